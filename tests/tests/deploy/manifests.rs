//! Every manifest is valid for its kind, and the parts fit each other and the agent.

use std::{collections::BTreeSet, fs};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{chart, deploy, every_value, folders, root, values_of};

/// All documents that the chart can render.
fn documents() -> Vec<Value> {
    let values = folders().into_iter().map(|folder| values_of(&folder));
    let mut checked = every_value();
    checked["check"] = true.into();
    let all = values.chain([every_value(), checked, json!({"security": {"privileged": true}})]);
    all.flat_map(|values| chart().objects(&values).unwrap()).collect()
}

/// Reads a document as its Kubernetes type. A field that the type does not know is lost on the way back: a misspelt one.
fn strict<T: DeserializeOwned + Serialize>(document: &Value) -> T {
    let object: T =
        serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}"));
    assert_eq!(&serde_json::to_value(&object).unwrap(), document, "a field is unknown or in the wrong place");
    object
}

fn the<T: DeserializeOwned + Serialize>(kind: &str) -> T {
    let objects = proxy_chart::build(&deploy().join("base")).unwrap();
    let mut of_kind = objects.into_iter().filter(|document| document["kind"] == kind);
    let document = of_kind.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(of_kind.next().is_none(), "there is more than one {kind}");
    strict(&document)
}

#[test]
fn every_manifest_is_valid_for_its_kind() {
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
fn the_role_allows_exactly_the_watched_resources_and_events() {
    let mut watched = BTreeSet::new();
    for file in fs::read_dir(root().join("proxy-agent/src/source/kube")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for after in text.split("Watcher::<").skip(1) {
            let name = after.split('>').next().unwrap();
            watched.insert(format!("{}s", name.trim_start_matches("Trimmed").to_lowercase()));
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
            let cli = proxy_agent::cli::Cli::try_parse_from(["proxy-agent"].into_iter().chain(args));
            if let Err(error) = cli {
                panic!("{error}: {container}");
            }
            seen += 1;
        }
    }
    assert!(seen > folders().len(), "{seen}");
}
