//! The container image: one layer with the static binary, written as an OCI archive (OCI image layout 1.0 in a tar).

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::{
    build,
    workspace::{say, target_dir},
};

/// Arguments of `image`.
#[derive(Args)]
pub(crate) struct ImageArgs {
    /// The archive to write. Default: proxy-agent.oci.tar in cargo's target directory.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A static binary to take instead of building one.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The image's name; deploy/base refers to it.
const NAME: &str = "localhost/proxy-agent";

/// Mount points, and directories that programs expect.
const DIRECTORIES: &[(&str, u32)] =
    &[("dev/", 0o755), ("etc/", 0o755), ("proc/", 0o755), ("run/", 0o755), ("sys/", 0o755), ("tmp/", 0o1777)];

/// `cargo xtask image`.
pub(crate) fn main(args: &ImageArgs) -> Result<()> {
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => build::release(false)?,
    };
    let output = match &args.output {
        Some(output) => write(&agent, output).map(|()| output.clone())?,
        None => archive(&agent, "proxy-agent.oci.tar")?,
    };
    let file = output.display();
    say(format!("wrote {NAME}:{VERSION} to {file}. To load it:"));
    println!("  containerd   ctr --namespace k8s.io images import {file}");
    println!("  nerdctl      nerdctl --namespace k8s.io load --input {file}");
    println!("  podman       podman load --input {file}");
    println!("  kind         kind load image-archive {file}");
    println!("  a registry   skopeo copy oci-archive:{file} docker://REGISTRY/proxy-agent:{VERSION}");
    Ok(())
}

/// Makes the archive for tests, which is not for users, and returns it.
pub(crate) fn archive_of_tests(agent: &Path) -> Result<PathBuf> {
    archive(agent, "proxy-agent-tests.oci.tar")
}

fn archive(agent: &Path, name: &str) -> Result<PathBuf> {
    let output = target_dir().join(name);
    write(agent, &output)?;
    Ok(output)
}

fn write(agent: &Path, output: &Path) -> Result<()> {
    let binary = fs::read(agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let layer = layer(&binary)?;
    let mut compressed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    compressed.write_all(&layer)?;
    let compressed = compressed.finish()?;

    let config = serde_json::to_vec(&config(&digest(&layer)))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &compressed)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    entry["annotations"] = json!({
        // skopeo and podman read the first, containerd the second.
        "org.opencontainers.image.ref.name": format!("{NAME}:{VERSION}"),
        "io.containerd.image.name": format!("{NAME}:{VERSION}"),
    });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;

    if let Some(dir) = output.parent() {
        fs::create_dir_all(dir)?;
    }
    let file = File::create(output).with_context(|| format!("cannot write {}", output.display()))?;
    let mut archive = tar::Builder::new(file);
    add(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut archive, "index.json", 0o644, &index)?;
    for blob in [&manifest, &config, &compressed] {
        add(&mut archive, &format!("blobs/sha256/{}", digest(blob)), 0o644, blob)?;
    }
    archive.into_inner()?.sync_all()?;
    Ok(())
}

fn layer(binary: &[u8]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (path, mode) in DIRECTORIES {
        let mut header = header(*mode, 0);
        header.set_entry_type(EntryType::Directory);
        layer.append_data(&mut header, path, std::io::empty())?;
    }
    add(&mut layer, "proxy-agent", 0o755, binary)?;
    Ok(layer.into_inner()?)
}

fn add(archive: &mut tar::Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(mode, content.len() as u64);
    header.set_entry_type(EntryType::Regular);
    Ok(archive.append_data(&mut header, path, content)?)
}

/// Owner root, time zero: the same binary gives the same image.
fn header(mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn config(layer_digest: &str) -> Value {
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/proxy-agent"],
            "Cmd": ["run"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "proxy-agent",
                "org.opencontainers.image.description": "A Kubernetes service proxy in eBPF",
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
                "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
                "org.opencontainers.image.version": VERSION,
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
        "history": [{ "created_by": "cargo xtask image" }],
    })
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", digest(content)), "size": content.len() })
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The processor as OCI (that is, Go) spells it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_binary_gives_the_same_archive() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        fs::write(&agent, b"not really a binary").unwrap();
        let archives = ["one.tar", "two.tar"].map(|name| {
            let path = dir.path().join(name);
            write(&agent, &path).unwrap();
            fs::read(path).unwrap()
        });
        assert!(archives[0] == archives[1]);
    }
}
