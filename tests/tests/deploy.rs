//! What `deploy/` and the image promise.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
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
use proxy_tests::chart::{self, Chart, key};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn deploy() -> PathBuf {
    root().join("deploy")
}

fn chart() -> Chart {
    Chart::open(&deploy().join("chart")).unwrap()
}

/// Folders that kustomize takes, and whether each is a component.
fn folders() -> Vec<PathBuf> {
    let components = fs::read_dir(deploy().join("components")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = components.chain(["base", "cleanup"].map(|name| deploy().join(name))).collect();
    folders.sort();
    folders
}

/// Values of a component; those of the base are the chart's own.
fn values_of(folder: &Path) -> Value {
    match fs::read_to_string(folder.join("values.yaml")) {
        Ok(text) => serde_saphyr::from_str(&text).unwrap(),
        Err(_) => json!({}),
    }
}

/// A folder with a kustomization of the base and some components, beside them because kustomize wants relative paths.
fn overlay(components: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix(".overlay-").tempdir_in(deploy()).unwrap();
    let list: String = components.iter().map(|name| format!("- ../components/{name}\n")).collect();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n- ../base\ncomponents:\n{list}"
    );
    fs::write(dir.path().join("kustomization.yaml"), text).unwrap();
    dir
}

/// Objects by kind and name. Arguments are sorted: components append theirs in the order in which they are listed.
fn by_key(objects: Vec<Value>) -> BTreeMap<(String, String), Value> {
    let sorted = |mut object: Value| {
        let args = object.pointer_mut("/spec/template/spec/containers/0/args").and_then(Value::as_array_mut);
        if let Some(args) = args {
            args.sort_by_key(ToString::to_string);
        }
        (key(&object), object)
    };
    objects.into_iter().map(sorted).collect()
}

/// Compares what the chart renders with what kustomize makes, by our reading of the kustomization and by kubectl's where there is one.
fn assert_same(what: &str, values: &Value, folder: &Path) {
    let by_chart = by_key(chart().objects(values).unwrap());
    assert!(!by_chart.is_empty(), "{what}");
    assert_eq!(by_key(chart::build(folder).unwrap()), by_chart, "{what}");
    match Command::new("kubectl").arg("kustomize").arg(folder).output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(by_key(serde_saphyr::from_multiple(&text).unwrap()), by_chart, "{what}, kubectl");
        }
        Ok(output) => panic!("{what}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => eprintln!("{what}: no kubectl here, so compared without it"),
    }
}

/// All documents that the chart can render.
fn documents() -> Vec<Value> {
    let values = folders().into_iter().map(|folder| values_of(&folder));
    let all = values.chain([every_value(), json!({"security": {"privileged": true}, "check": true})]);
    all.flat_map(|values| chart().objects(&values).unwrap()).collect()
}

/// Values that differ from the defaults wherever a template asks for them.
fn every_value() -> Value {
    json!({
        "image": {
            "repository": "registry.example.com/proxy-agent", "pullPolicy": "Always", "pullSecrets": ["one"],
            "digest": format!("sha256:{}", "a".repeat(64)),
        },
        "apiServers": ["https://192.0.2.10:6443", "https://[fd00::10]:6443"],
        "apiServerFailover": true,
        "ipv6Only": true,
        "metricsOnNodeAddress": true,
        "cgroupRoot": "/sys/fs/cgroup/unified",
        "bpffs": "/run/bpf",
        "logFormat": "json",
        "logVerbosity": 4,
        "extraArgs": ["--pod-datapath=tc", "--nodeport-addresses=192.0.2.0/24,primary"],
        "check": true,
        "resources": {"limits": {"cpu": "2"}},
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "20%"}},
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}],
        "affinity": {"nodeAffinity": {}},
        "podLabels": {"team": "network"},
        "podAnnotations": {"note": "with: colon"},
        "security": {"seLinuxOptions": null},
    })
}

/// Reads a document as its Kubernetes type. What the type does not know would be lost on the way back: a misspelt field.
fn strict<T: DeserializeOwned + Serialize>(document: &Value) -> T {
    let object: T =
        serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}"));
    assert_eq!(&serde_json::to_value(&object).unwrap(), document, "a field is unknown or in the wrong place");
    object
}

fn the<T: DeserializeOwned + Serialize>(kind: &str) -> T {
    let objects = chart::build(&deploy().join("base")).unwrap();
    let mut of_kind = objects.into_iter().filter(|document| document["kind"] == kind);
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
            // Not Kubernetes' own types; Prometheus' operator checks them.
            "PodMonitor" | "PrometheusRule" => {}
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
fn what_is_generated_is_what_the_chart_renders() {
    let files = chart::files(&deploy()).unwrap();
    for (path, text) in &files {
        let there = fs::read_to_string(path).unwrap_or_default();
        assert!(there == *text, "{} is stale: run `cargo xtask deploy`", path.display());
    }
    assert_eq!(chart::obsolete(&deploy(), &files).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn chart_and_kustomize_render_the_same_objects() {
    for folder in folders() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let is_component = folder.parent().unwrap().ends_with("components");
        let overlay = is_component.then(|| overlay(&[name]));
        let built = overlay.as_ref().map_or(folder.as_path(), |overlay| overlay.path());
        assert_same(name, &values_of(&folder), built);
    }
}

#[test]
fn components_can_be_combined() {
    let names: Vec<_> = folders()
        .into_iter()
        .filter(|folder| folder.parent().unwrap().ends_with("components"))
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    // It is itself two components, which choose an address each for metrics.
    let both = ["ipv6-only", "monitoring", "ipv6-only-monitoring"];
    for (number, first) in names.iter().enumerate() {
        for second in &names[number + 1..] {
            if both.contains(&&**first) && both.contains(&&**second) {
                continue;
            }
            let mut values = values_of(&deploy().join("components").join(first));
            merge(&mut values, values_of(&deploy().join("components").join(second)));
            assert_same(&format!("{first} and {second}"), &values, overlay(&[first, second]).path());
        }
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(name, value)| merge(into.entry(name).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

#[test]
fn the_example_is_an_overlay() {
    let objects = by_key(chart::build(&deploy().join("example")).unwrap());
    let config = &objects[&("ConfigMap".to_owned(), "proxy-agent".to_owned())];
    assert_eq!(config["data"]["PROXY_AGENT_API_SERVER"], "https://192.0.2.10:6443");
    let daemon_set = &objects[&("DaemonSet".to_owned(), "proxy-agent".to_owned())];
    let image = daemon_set.pointer("/spec/template/spec/containers/0/image").unwrap();
    assert_eq!(image, "registry.example.com/proxy-agent:0.1.0");
}

#[test]
fn values_are_checked() {
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(deploy().join("chart/values.schema.json")).unwrap())
            .unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let valid = |values: &Value| validator.is_valid(&chart().values(values));
    for folder in folders() {
        let values = values_of(&folder);
        let errors: Vec<_> =
            validator.iter_errors(&chart().values(&values)).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", folder.display());
    }
    assert!(valid(&every_value()));
    for wrong in [
        json!({"apiServer": "https://192.0.2.10:6443"}),
        json!({"apiServers": "https://192.0.2.10:6443"}),
        json!({"apiServers": []}),
        json!({"apiServers": ["192.0.2.10:6443"]}),
        json!({"image": {"repo": "x"}}),
        json!({"image": {"pullPolicy": "Sometimes"}}),
        json!({"image": {"digest": "sha256:short"}}),
        json!({"ipv6Only": "true"}),
        json!({"cgroupRoot": "sys/fs/cgroup"}),
        json!({"logFormat": "xml"}),
        json!({"logVerbosity": "2"}),
        json!({"extraArgs": ["pod-datapath=tc"]}),
        json!({"extraArgs": {"pod-datapath": "tc"}}),
        json!({"tolerations": [{"operator": "Always"}]}),
        json!({"resources": {"request": {"cpu": 1}}}),
        json!({"updateStrategy": {"type": "Recreate"}}),
        json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "ten"}}}),
        json!({"security": {"capabilities": ["CAP_BPF"]}}),
        json!({"security": {"seccompProfile": "RuntimeDefault"}}),
        json!({"monitoring": {"podMonitor": 1}}),
        json!({"cleanup": true}),
    ] {
        assert!(!valid(&wrong), "{wrong}");
    }
    // A value that is nowhere used, or used and nowhere declared, would be a mistake of the chart.
    let mut text = String::new();
    for file in fs::read_dir(deploy().join("chart/templates")).unwrap() {
        text += &fs::read_to_string(file.unwrap().path()).unwrap();
    }
    let mut paths = Vec::new();
    collect(&chart().values(&json!({})), String::new(), &mut paths);
    for path in paths {
        let is_used = |path: &str| text.contains(&format!(".Values{path}"));
        let mut parents =
            path.match_indices('.').map(|(end, _)| &path[..end]).filter(|parent| !parent.is_empty());
        assert!(is_used(&path) || parents.any(is_used_whole(&text)), "no template uses {path}");
    }
}

/// Is a map of values passed on as it is?
fn is_used_whole(text: &str) -> impl Fn(&str) -> bool + '_ {
    move |parent| [" ", ")"].iter().any(|end| text.contains(&format!(".Values{parent}{end}")))
}

/// Paths of all values that are no maps.
fn collect(values: &Value, path: String, paths: &mut Vec<String>) {
    match values.as_object().filter(|fields| !fields.is_empty()) {
        Some(fields) => {
            fields.iter().for_each(|(name, value)| collect(value, format!("{path}.{name}"), paths))
        }
        None => paths.push(path),
    }
}

#[test]
fn values_reach_the_pod() {
    let objects = by_key(chart().objects(&every_value()).unwrap());
    let config = &objects[&("ConfigMap".to_owned(), "proxy-agent".to_owned())];
    assert_eq!(config["data"]["PROXY_AGENT_API_SERVER"], "https://192.0.2.10:6443,https://[fd00::10]:6443");
    let set = &objects[&("DaemonSet".to_owned(), "proxy-agent".to_owned())]["spec"];
    assert_eq!(set["updateStrategy"]["rollingUpdate"], json!({"maxUnavailable": 0, "maxSurge": "20%"}));
    let pod = &set["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], format!("registry.example.com/proxy-agent@sha256:{}", "a".repeat(64)));
    let args: Vec<_> =
        container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    for arg in [
        "--healthz-bind-address=[::]:10256",
        "--metrics-bind-address=[::]:10249",
        "--log-format=json",
        "--v=4",
        "--pod-datapath=tc",
    ] {
        assert!(args.contains(&arg), "{arg} is not in {args:?}");
    }
    assert_eq!(pod["volumes"][1]["hostPath"]["path"], "/sys/fs/cgroup/unified");
    assert_eq!(pod["tolerations"][0]["tolerationSeconds"], 9);
    assert_eq!(container["securityContext"].get("seLinuxOptions"), None);
    assert_eq!(set["template"]["metadata"]["annotations"]["note"], "with: colon");
    // One address, for agents that take one.
    let values = json!({"apiServers": ["https://192.0.2.10:6443", "https://192.0.2.11:6443"]});
    let objects = by_key(chart().objects(&values).unwrap());
    let config = &objects[&("ConfigMap".to_owned(), "proxy-agent".to_owned())];
    assert_eq!(config["data"]["PROXY_AGENT_API_SERVER"], "https://192.0.2.10:6443");
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
    // In the host's network each declared port is a hostPort, and a second agent on the node (maxSurge) could not be scheduled.
    assert_eq!(container.ports, None);
    let security = container.security_context.as_ref().unwrap();
    assert_eq!((security.privileged, security.read_only_root_filesystem), (None, Some(true)));
}

#[test]
fn the_agent_understands_the_arguments() {
    use clap::Parser as _;
    let mut seen = 0;
    for document in documents().iter().filter(|document| document["kind"] == "DaemonSet") {
        let pod = &document["spec"]["template"]["spec"];
        let lists =
            ["initContainers", "containers"].map(|list| pod[list].as_array().cloned().unwrap_or_default());
        for container in lists.concat() {
            let Some(args) = container["args"].as_array() else { continue };
            let args = args.iter().map(|arg| arg.as_str().unwrap());
            // Of a release to come.
            if container["name"] == "check" && !has_check() {
                continue;
            }
            let cli = proxy_agent::cli::Cli::try_parse_from(["proxy-agent"].into_iter().chain(args));
            if let Err(error) = cli {
                panic!("{error}: {container}");
            }
            seen += 1;
        }
    }
    assert!(seen > folders().len(), "{seen}");
}

/// Does the agent have `check`?
fn has_check() -> bool {
    use clap::CommandFactory as _;
    proxy_agent::cli::Cli::command().find_subcommand("check").is_some()
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
