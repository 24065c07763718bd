//! The agent in a container, as a container runtime makes one of the DaemonSet: its capabilities and no others, the default seccomp
//! profile, a read-only root, masked and read-only paths. crun(1) starts it.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Cluster, Netns, Process,
    cgroup::{BPFFS, cgroup2_mount},
    netns::pipe,
    until,
};

/// The default profile of CRI-O and podman. containerd's and Docker's have the same rules.
const SECCOMP: &str = "/usr/share/containers/seccomp.json";
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A container that is running. Ends when dropped.
#[derive(Debug)]
pub struct Container {
    process: Process,
    log: PathBuf,
    netns: Netns,
    state: PathBuf,
    name: String,
}

impl Cluster {
    /// Starts the agent of a pod template (`spec.template.spec` of a DaemonSet) on a node, from an unpacked image, and waits until its
    /// `/healthz` at this address returns 200. Host paths become those of the node. Services come from the cluster's manifests.
    pub fn start_container(
        &self,
        node: usize,
        pod: &Value,
        rootfs: &Path,
        healthz: SocketAddr,
    ) -> Result<Container> {
        let folder = self.manifests.path().display().to_string();
        let manifests = bind(&folder, &folder.clone().into(), true);
        let args = vec![format!("--manifests={folder}")];
        let mut container =
            self.container(node, pod, &pod["containers"][0], rootfs, args, vec![manifests])?;
        let healthy = until(START_DEADLINE, "the container to be healthy", || {
            if let Some(status) = container.process.child().try_wait()? {
                bail!("it ended: {status}");
            }
            Ok(container.is_healthy(healthz).unwrap_or(false).then_some(()))
        });
        healthy.with_context(|| format!("its log:\n{}", container.log()))?;
        Ok(container)
    }

    /// Runs the first init container of a pod template on a node to its end; returns its exit code and output.
    pub fn run_init_container(
        &self,
        node: usize,
        pod: &Value,
        rootfs: &Path,
    ) -> Result<(Option<i32>, String)> {
        let mut container = self.container(node, pod, &pod["initContainers"][0], rootfs, vec![], vec![])?;
        let ended =
            until(START_DEADLINE, "the container to end", || Ok(container.process.child().try_wait()?))?;
        Ok((ended.code(), container.log()))
    }

    fn container(
        &self,
        node: usize,
        pod: &Value,
        container: &Value,
        rootfs: &Path,
        further_args: Vec<String>,
        further_mounts: Vec<Value>,
    ) -> Result<Container> {
        let node = self.node(node)?;
        let name =
            format!("{}-{}-{}", self.name, node.host.name, container["name"].as_str().unwrap_or_default());
        let bundle = self.logs.join(&name);
        fs::create_dir_all(&bundle)?;
        let mut args = vec![Value::from("/proxy-agent")];
        args.extend(container["args"].as_array().context("no arguments")?.iter().cloned());
        args.push(format!("--bpffs={}", node.bpffs.display()).into());
        args.extend(further_args.into_iter().map(Value::from));
        let cgroup =
            Path::new(CGROUPS).join(node.cgroup.strip_prefix(cgroup2_mount()?)?).display().to_string();
        let mut mounts = standard_mounts();
        for mount in container["volumeMounts"].as_array().context("no mounts")? {
            let volumes = pod["volumes"].as_array().context("no volumes")?;
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
            let source = match (mount["name"].as_str(), volume.and_then(|it| it["hostPath"]["path"].as_str()))
            {
                (Some("bpffs"), _) => BPFFS,
                (Some("cgroup"), _) => &cgroup,
                (_, Some(path)) => path,
                (name, None) => bail!("a volume {name:?}"),
            };
            mounts.push(bind(source, &mount["mountPath"], mount["readOnly"] == true));
        }
        mounts.extend(further_mounts);
        let config = config(pod, container, args, &node.host.name, rootfs, mounts)?;
        fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config)?)?;

        let (state, log) = (bundle.join("state"), bundle.join("log"));
        // The node's control group and network are those of the process that starts it.
        let mut command = node.host.command(SHELL)?;
        crun(&mut command, &state)?.arg("run").arg("--bundle").arg(&bundle).arg(&name);
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process =
            Process::new(command.spawn().context("cannot start crun: `cargo xtask setup` installs it")?);
        Ok(Container { process, log, netns: node.host.netns.clone(), state, name })
    }
}

impl Container {
    /// The agent's process.
    pub fn agent(&self) -> Result<u32> {
        let mut command = Command::new(SHELL);
        let state = pipe(crun(&mut command, &self.state)?.args(["state", &self.name]), "")?;
        let state: Value = serde_json::from_str(&state)?;
        state["pid"].as_u64().and_then(|id| id.try_into().ok()).context("no process")
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether `/healthz` at this address of the node returns 200.
    pub fn is_healthy(&self, address: SocketAddr) -> Result<bool> {
        Ok(self.netns.get(&address.to_string(), "/healthz")?.status == 200)
    }

    /// Runs `proxy-agent` with these arguments inside the container, as `kubectl exec` does; returns the output.
    pub fn exec(&self, args: &[&str]) -> Result<String> {
        let mut command = self.netns.command(SHELL)?;
        crun(&mut command, &self.state)?.args(["exec", &self.name, "/proxy-agent"]);
        pipe(command.args(args), "")
    }

    /// Ends it as kubelet does, and waits.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.terminate()
    }
}

/// The program that runs crun(1).
const SHELL: &str = "unshare";
/// Where crun looks for control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Completes a command that runs crun where cgroup v2 is at the usual place: it refuses hybrid hosts.
fn crun<'c>(command: &'c mut Command, state: &Path) -> Result<&'c mut Command> {
    let script = format!("mount --bind \"$1\" {CGROUPS} && shift && exec crun \"$@\"");
    command.args(["--mount", "--propagation=private", "sh", "-c", &script, "sh"]);
    command.arg(cgroup2_mount()?).arg("--root").arg(state).arg("--cgroup-manager=disabled");
    Ok(command)
}

/// From `linux/capability.h`.
const CAPABILITIES: [(&str, u32); 8] = [
    ("DAC_READ_SEARCH", 2),
    ("NET_BROADCAST", 11),
    ("NET_ADMIN", 12),
    ("SYS_PTRACE", 19),
    ("SYS_ADMIN", 21),
    ("SYS_RESOURCE", 24),
    ("PERFMON", 38),
    ("BPF", 39),
];

/// Capabilities that a process started from here can have.
fn bounding_set() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    Ok(u64::from_str_radix(line.context("no CapBnd")?.trim(), 16)?)
}

fn config(
    pod: &Value,
    container: &Value,
    args: Vec<Value>,
    node: &str,
    rootfs: &Path,
    mounts: Vec<Value>,
) -> Result<Value> {
    ensure!(pod["hostNetwork"] == true && pod["hostPID"] == true, "namespaces of the node: {pod}");
    let security = &container["securityContext"];
    ensure!(security["privileged"] != true, "a privileged container needs no test of its privileges");
    ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "{security}");
    let added = security["capabilities"]["add"].as_array().context("no capabilities")?;
    let possible = bounding_set()?;
    let mut capabilities = Vec::new();
    for name in added.iter().filter_map(Value::as_str) {
        let known = CAPABILITIES.iter().find(|(known, _)| *known == name);
        let (_, number) = known.with_context(|| format!("the capability {name} has no number here"))?;
        if possible & (1 << number) == 0 {
            eprintln!("CAP_{name} is not in this machine's bounding set: the container runs without it");
        } else {
            capabilities.push(format!("CAP_{name}"));
        }
    }
    ensure!(security["seccompProfile"]["type"] == "RuntimeDefault", "{security}");
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": security["runAsUser"], "gid": 0 },
            "args": args,
            "env": [format!("NODE_NAME={node}")],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "noNewPrivileges": false,
        },
        "root": { "path": rootfs, "readonly": security["readOnlyRootFilesystem"] },
        "mounts": mounts,
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "ipc" }, { "type": "cgroup" }],
            "seccomp": seccomp(&capabilities)?,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

fn standard_mounts() -> Vec<Value> {
    let mount = |kind: &str, at: &str, options: &[&str]| json!({ "type": kind, "source": kind, "destination": at, "options": options });
    vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
    ]
}

fn bind(source: &str, at: &Value, read_only: bool) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    json!({ "type": "bind", "source": source, "destination": at, "options": ["rbind", access] })
}

/// The profile's rules for a container with these capabilities, on this architecture.
fn seccomp(capabilities: &[String]) -> Result<Value> {
    let text = fs::read(SECCOMP).with_context(|| format!("{SECCOMP}: `cargo xtask setup` installs it"))?;
    let profile: Value = serde_json::from_slice(&text)?;
    let has = |list: &Value, what: &dyn Fn(&str) -> bool| {
        list.as_array().map(|list| list.iter().filter_map(Value::as_str).any(what))
    };
    let is_ours = |name: &str| capabilities.iter().any(|capability| capability == name);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let applies = |rule: &&Value| {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        has(&includes["caps"], &is_ours).unwrap_or(true)
            && has(&includes["arches"], &|name| name == architecture).unwrap_or(true)
            && !has(&excludes["caps"], &is_ours).unwrap_or(false)
            && !has(&excludes["arches"], &|name| name == architecture).unwrap_or(false)
    };
    let rules = profile["syscalls"].as_array().context("a profile without rules")?;
    let rules: Vec<Value> = rules
        .iter()
        .filter(applies)
        .map(|rule| {
            let mut rule = rule.clone();
            if let Some(fields) = rule.as_object_mut() {
                fields.retain(|field, value| {
                    let is_empty = value.as_array().is_some_and(Vec::is_empty);
                    ["names", "action", "args", "errnoRet"].contains(&field.as_str())
                        && !value.is_null()
                        && !is_empty
                });
            }
            rule
        })
        .collect();
    Ok(json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": rules }))
}
