//! As much of kustomize as the generated files and the documented overlays use: resources, components, JSON patches (RFC 6902),
//! merge patches, deletions and images. Anything else is an error.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::{key, yaml};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    patches: Vec<Patch>,
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    target: Option<Target>,
    patch: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    kind: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Image {
    name: String,
    new_name: Option<String>,
    new_tag: Option<String>,
}

/// The objects that `kubectl kustomize` makes of a folder, in the order of the resources.
///
/// # Errors
/// When a file cannot be read, or uses a field that this code does not know.
pub fn build(folder: &Path) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    apply(folder, "Kustomization", &mut objects)?;
    Ok(objects)
}

fn apply(folder: &Path, kind: &str, objects: &mut Vec<Value>) -> Result<()> {
    let file = folder.join("kustomization.yaml");
    let kustomization: Kustomization =
        serde_json::from_value(yaml(&file)?).with_context(|| file.display().to_string())?;
    ensure!(kustomization.kind == kind, "{} is no {kind}", file.display());
    for resource in kustomization.resources {
        let path = folder.join(resource);
        if path.is_dir() {
            objects.extend(build(&path)?);
        } else {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())?;
            objects.extend(documents.into_iter().filter(|document| !document.is_null()));
        }
    }
    for component in kustomization.components {
        apply(&folder.join(component), "Component", objects)?;
    }
    for patch in &kustomization.patches {
        patch.apply(objects).with_context(|| format!("{}: {}", file.display(), patch.patch))?;
    }
    for image in &kustomization.images {
        objects.iter_mut().for_each(|object| image.apply(object));
    }
    Ok(())
}

impl Patch {
    fn apply(&self, objects: &mut Vec<Value>) -> Result<()> {
        let patch: Value = serde_saphyr::from_str(&self.patch)?;
        let target = match &self.target {
            Some(target) => (target.kind.clone(), target.name.clone()),
            None => key(&patch),
        };
        let index = objects.iter().position(|object| key(object) == target);
        let index = index.with_context(|| format!("there is no {} {}", target.0, target.1))?;
        if patch.is_array() {
            let patch: json_patch::Patch = serde_json::from_value(patch)?;
            json_patch::patch(&mut objects[index], &patch)?;
        } else if patch["$patch"] == "delete" {
            objects.remove(index);
        } else if patch.get("spec").is_none() {
            json_patch::merge(&mut objects[index], &patch);
        } else {
            // Kustomize merges some lists by name.
            bail!("a merge patch of a spec");
        }
        Ok(())
    }
}

impl Image {
    fn apply(&self, object: &mut Value) {
        for kind in ["containers", "initContainers"] {
            let list =
                object.pointer_mut(&format!("/spec/template/spec/{kind}")).and_then(Value::as_array_mut);
            for container in list.into_iter().flatten() {
                let Some((name, tag)) = container["image"].as_str().and_then(|image| image.rsplit_once(':'))
                else {
                    continue;
                };
                if name == self.name {
                    let name = self.new_name.as_deref().unwrap_or(name);
                    let tag = self.new_tag.as_deref().unwrap_or(tag);
                    container["image"] = format!("{name}:{tag}").into();
                }
            }
        }
    }
}
