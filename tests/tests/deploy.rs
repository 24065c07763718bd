//! What `deploy/` and the image promise.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All documents of the base but the kustomization.
fn documents() -> Vec<Value> {
    let base = root().join("deploy/base");
    let kustomization: Value =
        serde_saphyr::from_str(&fs::read_to_string(base.join("kustomization.yaml")).unwrap()).unwrap();
    let resources = kustomization["resources"].as_array().unwrap();
    let listed: BTreeSet<_> = resources.iter().map(|file| file.as_str().unwrap().to_owned()).collect();
    let there: BTreeSet<_> =
        fs::read_dir(&base).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(
        there,
        listed.iter().cloned().chain(["kustomization.yaml".to_owned()]).collect(),
        "kustomization.yaml lists every file"
    );
    let mut documents = Vec::new();
    for file in listed {
        let text = fs::read_to_string(base.join(&file)).unwrap();
        documents.extend(
            serde_saphyr::from_multiple::<Value>(&text).unwrap_or_else(|error| panic!("{file}: {error}")),
        );
    }
    documents
}

/// Reads a document as its Kubernetes type. What the type does not know would be lost on the way back: a misspelt field.
fn strict<T: DeserializeOwned + Serialize>(document: &Value) -> T {
    let object: T =
        serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}"));
    assert_eq!(&serde_json::to_value(&object).unwrap(), document, "a field is unknown or in the wrong place");
    object
}

fn the<T: DeserializeOwned + Serialize>(kind: &str) -> T {
    let mut of_kind = documents().into_iter().filter(|document| document["kind"] == kind);
    let document = of_kind.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(of_kind.next().is_none(), "there is more than one {kind}");
    strict(&document)
}

#[test]
fn every_manifest_is_what_its_kind_says() {
    for document in documents() {
        match document["kind"].as_str().unwrap() {
            "ServiceAccount" => drop(strict::<ServiceAccount>(&document)),
            "ClusterRole" => drop(strict::<ClusterRole>(&document)),
            "ClusterRoleBinding" => drop(strict::<ClusterRoleBinding>(&document)),
            "ConfigMap" => drop(strict::<ConfigMap>(&document)),
            "DaemonSet" => drop(strict::<DaemonSet>(&document)),
            kind => panic!("a {kind}: add it to this test"),
        }
    }
}

#[test]
#[should_panic(expected = "a field is unknown")]
fn a_misspelt_field_is_found() {
    let document = serde_json::json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, "automountServiceAcountToken": true,
    });
    strict::<ServiceAccount>(&document);
}

#[test]
fn the_role_allows_exactly_what_is_watched_and_events() {
    let mut watched = BTreeSet::new();
    for file in fs::read_dir(root().join("proxy-agent/src/source/kube")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for after in text.split("Api::<").skip(1) {
            let name = after.split('>').next().unwrap();
            watched.insert(format!("{}s", name.trim_end_matches("Lite").to_lowercase()));
        }
    }
    assert!(watched.contains("services"), "the watches are no longer found in the source: {watched:?}");
    let role: ClusterRole = the("ClusterRole");
    let (events, rules): (Vec<_>, Vec<_>) =
        role.rules.unwrap().into_iter().partition(|rule| rule.resources.as_ref().unwrap() == &["events"]);
    let [events] = &events[..] else { panic!("one rule for Events: {events:?}") };
    assert_eq!(events.api_groups.as_ref().unwrap(), &["events.k8s.io"]);
    assert_eq!(events.verbs, ["create", "patch"]);
    for rule in &rules {
        assert_eq!(rule.verbs, ["list", "watch"], "{rule:?}");
        let group = match rule.resources.as_ref().unwrap()[0].as_str() {
            "endpointslices" => "discovery.k8s.io",
            "servicecidrs" => "networking.k8s.io",
            _ => "",
        };
        assert_eq!(rule.api_groups.as_ref().unwrap(), &[group], "{rule:?}");
    }
    let allowed: BTreeSet<_> = rules.into_iter().flat_map(|rule| rule.resources.unwrap()).collect();
    assert_eq!(allowed, watched);
}

#[test]
fn the_role_is_bound_to_the_account_that_the_pods_use() {
    let role: ClusterRole = the("ClusterRole");
    let binding: ClusterRoleBinding = the("ClusterRoleBinding");
    let account: ServiceAccount = the("ServiceAccount");
    let daemon_set: DaemonSet = the("DaemonSet");
    assert_eq!(Some(&binding.role_ref.name), role.metadata.name.as_ref());
    let subject = &binding.subjects.as_ref().unwrap()[0];
    assert_eq!(Some(&subject.name), account.metadata.name.as_ref());
    assert_eq!(subject.namespace, account.metadata.namespace);
    let pod = daemon_set.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.service_account_name, account.metadata.name);
}

#[test]
fn the_pod_is_tied_together() {
    let daemon_set: DaemonSet = the("DaemonSet");
    let config: ConfigMap = the("ConfigMap");
    let spec = daemon_set.spec.unwrap();
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    for (label, value) in spec.selector.match_labels.unwrap() {
        assert_eq!(labels.get(&label), Some(&value), "the selector matches the pods");
    }
    let pod = spec.template.spec.unwrap();
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.host_pid, Some(true), "the network namespaces of pods are found by their processes");
    assert_eq!(pod.dns_policy.as_deref(), Some("Default"));
    let [container] = &pod.containers[..] else { panic!("one container") };
    let volumes: BTreeSet<_> = pod.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
    let mounts: BTreeSet<_> =
        container.volume_mounts.as_ref().unwrap().iter().map(|mount| mount.name.clone()).collect();
    assert_eq!(volumes, mounts);
    let from = container.env_from.as_ref().unwrap()[0].config_map_ref.as_ref().unwrap();
    assert_eq!(Some(&from.name), config.metadata.name.as_ref());
    assert!(config.data.unwrap()["PROXY_AGENT_API_SERVER"].starts_with("https://"));
}

#[test]
fn the_agent_understands_the_arguments() {
    use clap::Parser as _;
    let daemon_set: DaemonSet = the("DaemonSet");
    let pod = daemon_set.spec.unwrap().template.spec.unwrap();
    let args = pod.containers[0].args.clone().unwrap();
    let command_line = ["proxy-agent".to_owned()].into_iter().chain(args).chain(["--node-name=n".to_owned()]);
    let cli = proxy_agent::cli::Cli::try_parse_from(command_line).unwrap();
    assert!(matches!(cli.command, proxy_agent::cli::Command::Run(_)));
}

/// The image, as xtask made it for this run; made now when the test is run by hand.
fn image(dir: &Path) -> PathBuf {
    if let Some(image) = env::var_os("PROXY_AGENT_IMAGE") {
        return image.into();
    }
    let image = dir.join("image.tar");
    let mut xtask = Command::new(env!("CARGO"));
    let status = xtask.current_dir(root()).args(["xtask", "image", "--output"]).arg(&image).status().unwrap();
    assert!(status.success());
    image
}

#[test]
fn the_image_holds_a_binary_that_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    tar::Archive::new(fs::File::open(image(dir.path())).unwrap()).unpack(&layout).unwrap();
    let json = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    // A blob, found as a container runtime finds it.
    let blob = |descriptor: &Value| {
        let (algorithm, digest) = descriptor["digest"].as_str().unwrap().split_once(':').unwrap();
        let path = layout.join("blobs").join(algorithm).join(digest);
        assert_eq!(fs::metadata(&path).unwrap().len(), descriptor["size"].as_u64().unwrap());
        path
    };
    assert_eq!(json(layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let entry = &json(layout.join("index.json"))["manifests"][0];
    let manifest = json(blob(entry));
    let config = json(blob(&manifest["config"]));
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/proxy-agent"]));
    let daemon_set: DaemonSet = the("DaemonSet");
    let deployed = daemon_set.spec.unwrap().template.spec.unwrap().containers[0].image.clone().unwrap();
    assert_eq!(entry["annotations"]["io.containerd.image.name"], deployed.as_str());

    let mut layer = Vec::new();
    let compressed = fs::File::open(blob(&manifest["layers"][0])).unwrap();
    flate2::read::GzDecoder::new(compressed).read_to_end(&mut layer).unwrap();
    let rootfs = dir.path().join("rootfs");
    tar::Archive::new(&layer[..]).unpack(&rootfs).unwrap();
    for (args, expected) in
        [(vec!["--version"], env!("CARGO_PKG_VERSION")), (vec!["run", "--help"], "--node-name")]
    {
        let output = Command::new("chroot").arg(&rootfs).arg("/proxy-agent").args(&args).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains(expected), "{args:?}: {output:?}");
    }
}
