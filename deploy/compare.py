#!/usr/bin/env python3
"""Compares what `helm template` and `kubectl kustomize` make of one folder below deploy/. Needs helm, kubectl and PyYAML."""

import pathlib
import subprocess
import sys
import tempfile

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent


def objects(*command):
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    loaded = [document for document in yaml.safe_load_all(text) if document]
    return {(it["kind"], it["metadata"]["name"]): it for it in loaded}


def kustomize(folder):
    if folder.parent.name != "components":
        return objects("kubectl", "kustomize", str(folder))
    # A component needs a base, and kustomize relative paths.
    with tempfile.TemporaryDirectory(dir=DEPLOY) as overlay:
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../base"],
            "components": [f"../components/{folder.name}"],
        }
        pathlib.Path(overlay, "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return objects("kubectl", "kustomize", overlay)


def main():
    folder = DEPLOY / sys.argv[1]
    values = folder / "values.yaml"
    command = ["helm", "template", "proxy-agent", str(DEPLOY / "chart"), "--namespace", "kube-system"]
    if values.exists():
        command += ["--values", str(values)]
    by_helm, by_kustomize = objects(*command), kustomize(folder)
    different = {key for key in by_helm.keys() | by_kustomize.keys() if by_helm.get(key) != by_kustomize.get(key)}
    for kind, name in sorted(different):
        print(f"{sys.argv[1]}: {kind} {name} differs")
    if different:
        sys.exit(1)
    print(f"{sys.argv[1]}: {len(by_helm)} objects, the same from Helm and kustomize")


if __name__ == "__main__":
    main()
