//! Puts the programs that `cargo xtask build` made into the binary.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The objects, and the variables that tell the source where they are.
const OBJECTS: [(&str, &str); 3] = [
    ("proxy-agent.bpf.o", "PROXY_AGENT_BPF_OBJECT"),
    ("proxy-agent-lines.bpf.o", "PROXY_AGENT_BPF_OBJECT_LINES"),
    ("proxy-agent-log.bpf.o", "PROXY_AGENT_BPF_OBJECT_LOG"),
];

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PROXY_AGENT_BPF_DIR");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let dir = object_dir(&out_dir);
    for (file, variable) in OBJECTS {
        let source = dir.join(file);
        let embedded = out_dir.join(file);
        println!("cargo::rerun-if-changed={}", source.display());
        match fs::read(&source) {
            Ok(object) => fs::write(&embedded, object)?,
            // Checks and lints need no programs; the agent says at run time that it has none.
            Err(error) => {
                println!("cargo::warning={}: {error}; run `cargo xtask build`", source.display());
                fs::write(&embedded, [])?;
            }
        }
        println!("cargo::rustc-env={variable}={}", embedded.display());
    }
    Ok(())
}

/// PROXY_AGENT_BPF_DIR, or `bpf` in the target directory in use, or in the workspace's default one.
fn object_dir(out_dir: &Path) -> PathBuf {
    if let Some(dir) = env::var_os("PROXY_AGENT_BPF_DIR") {
        return dir.into();
    }
    let has_objects = |dir: &PathBuf| OBJECTS.iter().all(|(file, _)| dir.join(file).is_file());
    // OUT_DIR is TARGET_DIR[/TRIPLE]/PROFILE/build/PACKAGE/out.
    let above = out_dir.ancestors().skip(4).take(2).map(|dir| dir.join("bpf"));
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf");
    above.into_iter().find(has_objects).unwrap_or(default)
}
