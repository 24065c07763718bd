//! Tests of `deploy/` and the image.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod container;
mod image;
mod manifests;
mod monitoring;
mod rendering;

use std::{
    fs,
    path::{Path, PathBuf},
};

use proxy_chart::Chart;
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

/// Folders with generated files.
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

/// Values that differ from the defaults wherever a template asks for them.
fn every_value() -> Value {
    json!({
        "image": {
            "repository": "registry.example.com/proxy-agent", "pullPolicy": "Always", "pullSecrets": ["one"],
            "digest": format!("sha256:{}", "a".repeat(64)),
        },
        "apiServers": ["https://192.0.2.10:6443", "https://[fd00::10]:6443"],
        "apiServerFailover": false,
        "ipv6Only": true,
        "metricsOnNodeAddress": true,
        "cgroupRoot": "/sys/fs/cgroup/unified",
        "bpffs": "/run/bpf",
        "logFormat": "json",
        "logVerbosity": 4,
        "extraArgs": ["--pod-datapath=tc", "--nodeport-addresses=192.0.2.0/24,primary"],
        "check": false,
        "resources": {"limits": {"cpu": "2"}},
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "20%"}},
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}],
        "affinity": {"nodeAffinity": {}},
        "podLabels": {"team": "network"},
        "podAnnotations": {"note": "with: colon"},
        "security": {"seLinuxOptions": null},
    })
}
