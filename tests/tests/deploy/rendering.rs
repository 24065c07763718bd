//! Chart, base and components are one.

use std::{collections::BTreeMap, fs, path::Path, path::PathBuf, process::Command};

use proxy_chart::key;
use serde_json::{Value, json};

use super::{chart, deploy, every_value, folders, values_of};

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
        for list in ["containers", "initContainers"] {
            let args = format!("/spec/template/spec/{list}/0/args");
            if let Some(args) = object.pointer_mut(&args).and_then(Value::as_array_mut) {
                args.sort_by_key(ToString::to_string);
            }
        }
        (key(&object), object)
    };
    objects.into_iter().map(sorted).collect()
}

/// Compares the chart's objects with those of kustomize, by our reading of the kustomization and by kubectl's where it is installed.
fn assert_same(what: &str, values: &Value, folder: &Path) {
    let by_chart = by_key(chart().objects(values).unwrap());
    assert!(!by_chart.is_empty(), "{what}");
    assert_eq!(by_key(proxy_chart::build(folder).unwrap()), by_chart, "{what}");
    match Command::new("kubectl").arg("kustomize").arg(folder).output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(by_key(serde_saphyr::from_multiple(&text).unwrap()), by_chart, "{what}, kubectl");
        }
        Ok(output) => panic!("{what}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => eprintln!("{what}: no kubectl here, so compared without it"),
    }
}

#[test]
fn generated_files_equal_the_rendered_chart() {
    let files = proxy_chart::files(&deploy()).unwrap();
    for (path, text) in &files {
        let there = fs::read_to_string(path).unwrap_or_default();
        assert!(there == *text, "{} is stale: run `cargo xtask codegen`", path.display());
    }
    assert_eq!(proxy_chart::obsolete(&deploy(), &files).unwrap(), Vec::<PathBuf>::new());
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
    let objects = by_key(proxy_chart::build(&deploy().join("example")).unwrap());
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

/// Whether a map of values is passed on unchanged.
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
    assert_eq!(config["data"]["PROXY_AGENT_API_SERVER"], "https://192.0.2.10:6443");
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
    // All addresses, unless only the first one is wanted.
    let servers = ["https://192.0.2.10:6443", "https://192.0.2.11:6443"];
    for (failover, expected) in [(None, servers.join(",")), (Some(false), servers[0].to_owned())] {
        let mut values = json!({"apiServers": servers});
        if let Some(failover) = failover {
            values["apiServerFailover"] = failover.into();
        }
        let objects = by_key(chart().objects(&values).unwrap());
        let config = &objects[&("ConfigMap".to_owned(), "proxy-agent".to_owned())];
        assert_eq!(config["data"]["PROXY_AGENT_API_SERVER"], expected);
    }
}
