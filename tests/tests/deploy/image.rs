//! The image holds a binary that needs nothing else.
//!
//! Set-up: the archive that `cargo xtask test` built (PROXY_AGENT_IMAGE), unpacked; its binary runs in an empty root.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::{chart, root};

/// An image, unpacked.
pub(crate) struct Image {
    /// Its entry in the archive's index.
    entry: Value,
    /// Its configuration.
    config: Value,
    /// Its files.
    pub(crate) rootfs: PathBuf,
}

/// Unpacks the image that xtask made for this run into a folder; it is made now when a test is run by hand.
pub(crate) fn unpack(dir: &Path) -> Image {
    let archive = env::var_os("PROXY_AGENT_IMAGE").map_or_else(|| make(dir), PathBuf::from);
    let layout = dir.join("layout");
    tar::Archive::new(fs::File::open(archive).unwrap()).unpack(&layout).unwrap();
    let json = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    // A blob, found as a container runtime finds it.
    let blob = |descriptor: &Value| {
        let (algorithm, digest) = descriptor["digest"].as_str().unwrap().split_once(':').unwrap();
        let path = layout.join("blobs").join(algorithm).join(digest);
        assert_eq!(fs::metadata(&path).unwrap().len(), descriptor["size"].as_u64().unwrap());
        path
    };
    assert_eq!(json(layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let entry = json(layout.join("index.json"))["manifests"][0].take();
    let manifest = json(blob(&entry));
    let rootfs = dir.join("rootfs");
    let layer = fs::File::open(blob(&manifest["layers"][0])).unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(layer)).unpack(&rootfs).unwrap();
    Image { entry, config: json(blob(&manifest["config"])), rootfs }
}

fn make(dir: &Path) -> PathBuf {
    let image = dir.join("image.tar");
    let mut xtask = Command::new(env!("CARGO"));
    let status = xtask.current_dir(root()).args(["xtask", "image", "--output"]).arg(&image).status().unwrap();
    assert!(status.success());
    image
}

#[test]
fn the_image_holds_a_binary_that_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let Image { entry, config, rootfs } = unpack(dir.path());
    assert_eq!(config["config"]["Entrypoint"], json!(["/proxy-agent"]));
    let objects = chart().objects(&json!({})).unwrap();
    let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let deployed = &daemon_set["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(&entry["annotations"]["io.containerd.image.name"], deployed);

    for (args, expected) in
        [(vec!["--version"], env!("CARGO_PKG_VERSION")), (vec!["run", "--help"], "--node-name")]
    {
        let output = Command::new("chroot").arg(&rootfs).arg("/proxy-agent").args(&args).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains(expected), "{args:?}: {output:?}");
    }
}
