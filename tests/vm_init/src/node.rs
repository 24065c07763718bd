//! The machine as a node: file systems, modules, two routed pods, a client outside, a folder of manifests.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
};

pub(crate) const MANIFESTS: &str = "/manifests";
const CGROUPS: &str = "/sys/fs/cgroup";
/// The node's and its pods' processes: another machine's are not served by the node's socket hooks.
pub(crate) const NODE_CGROUP: &str = "/sys/fs/cgroup/node";
const OTHER_CGROUP: &str = "/sys/fs/cgroup/other";
pub(crate) const UPLINK: &str = "uplink0";

/// Network namespaces.
pub(crate) const CLIENT_POD: &str = "client-pod";
pub(crate) const SERVER_POD: &str = "server-pod";
pub(crate) const OUTSIDE: &str = "outside";

/// Mounts file systems and loads modules.
pub(crate) fn prepare() -> Result<()> {
    // The bpf file system is left to the agent.
    for (kind, target) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("cgroup2", CGROUPS),
    ] {
        // The kernel may have mounted /dev itself.
        if kind == "devtmpfs" && Path::new("/dev/null").exists() {
            continue;
        }
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} at {target}"))?;
    }
    for cgroup in [NODE_CGROUP, OTHER_CGROUP] {
        fs::create_dir(cgroup).with_context(|| format!("cannot make {cgroup}"))?;
    }
    join(NODE_CGROUP)?;
    fs::create_dir_all("/run/netns")?;
    // `ip netns` works below /var/run.
    fs::remove_dir("/var/run")?;
    std::os::unix::fs::symlink("/run", "/var/run")?;
    // Else each namespace gets devices for tunnels with the modules.
    fs::write("/proc/sys/net/core/fb_tunnels_only_for_init_net", "2").context("tunnels")?;
    let mut modules = fs::read_dir("/modules")?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    modules.sort();
    for module in modules {
        finit_module(File::open(&module)?, c"", ModuleInitFlags::empty())
            .with_context(|| format!("cannot load {}", module.display()))?;
    }
    write_manifests()
}

/// Makes sockets as another machine would. Sockets that are there stay the node's.
pub(crate) fn elsewhere<T>(act: impl FnOnce() -> Result<T>) -> Result<T> {
    join(OTHER_CGROUP)?;
    let result = act();
    join(NODE_CGROUP)?;
    result
}

fn join(cgroup: &str) -> Result<()> {
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").with_context(|| format!("cannot join {cgroup}"))
}

/// Makes the interfaces and routes.
pub(crate) fn connect() -> Result<()> {
    ip("link set lo up")?;
    for (setting, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
        fs::write(Path::new("/proc/sys/net").join(setting), value).context(setting)?;
    }
    for (namespace, device, last) in [(CLIENT_POD, "veth-client", 2), (SERVER_POD, "veth-server", 3)] {
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("link add {device} type veth peer name eth0 netns {namespace}"))?;
        // The node's end has the gateway's address; each pod has a separate route.
        ip(&format!("addr add 10.244.0.1/32 dev {device}"))?;
        ip(&format!("addr add fd00:10:244::1/128 dev {device} nodad"))?;
        ip(&format!("link set {device} up"))?;
        ip(&format!("route add 10.244.0.{last}/32 dev {device}"))?;
        ip(&format!("route add fd00:10:244::{last}/128 dev {device}"))?;
        in_namespace(namespace, &format!("addr add 10.244.0.{last}/32 dev eth0"))?;
        in_namespace(namespace, &format!("addr add fd00:10:244::{last}/128 dev eth0 nodad"))?;
        in_namespace(namespace, "link set lo up")?;
        in_namespace(namespace, "link set eth0 up")?;
        in_namespace(namespace, "route add default via 10.244.0.1 dev eth0 onlink")?;
        in_namespace(namespace, "route add default via fd00:10:244::1 dev eth0 onlink")?;
    }
    ip(&format!("netns add {OUTSIDE}"))?;
    ip(&format!("link add {UPLINK} type veth peer name eth0 netns {OUTSIDE}"))?;
    ip(&format!("addr add 192.168.77.2/24 dev {UPLINK}"))?;
    ip(&format!("addr add fd00:77::2/64 dev {UPLINK} nodad"))?;
    ip(&format!("link set {UPLINK} up"))?;
    in_namespace(OUTSIDE, "addr add 192.168.77.1/24 dev eth0")?;
    in_namespace(OUTSIDE, "addr add fd00:77::1/64 dev eth0 nodad")?;
    in_namespace(OUTSIDE, "link set lo up")?;
    in_namespace(OUTSIDE, "link set eth0 up")?;
    // A device without Ethernet headers.
    ip("link add l3 type ipip local 192.168.77.2 remote 192.168.77.1")?;
    ip("link set l3 up")?;
    ip("route add default via 192.168.77.1")?;
    ip("route add default via fd00:77::1")
}

/// Senders make checksums themselves and leave none to a device.
pub(crate) fn switch_checksum_offload_off() -> Result<()> {
    for namespace in [CLIENT_POD, SERVER_POD, OUTSIDE] {
        succeed(Command::new("/bin/ip").args([
            "netns",
            "exec",
            namespace,
            "/bin/ethtool",
            "-K",
            "eth0",
            "tx",
            "off",
        ]))?;
    }
    Ok(())
}

fn ip(arguments: &str) -> Result<()> {
    succeed(Command::new("/bin/ip").args(arguments.split(' ')))
}

fn in_namespace(namespace: &str, arguments: &str) -> Result<()> {
    succeed(Command::new("/bin/ip").args(["-n", namespace]).args(arguments.split(' ')))
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

fn write_manifests() -> Result<()> {
    let mut documents = vec![SERVICE.to_owned()];
    for (family, endpoint) in [("IPv4", "10.244.0.3"), ("IPv6", "fd00:10:244::3")] {
        documents.push(
            SLICE
                .replace("FAMILY", family)
                .replace("SUFFIX", &family.to_lowercase())
                .replace("ENDPOINT", endpoint),
        );
    }
    fs::write(Path::new(MANIFESTS).join("web.yaml"), documents.join("---\n"))
        .context("cannot write the manifests")
}

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  clusterIPs: [10.96.0.80, 'fd00:10:96::80']
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: tcp, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: udp, protocol: UDP, port: 80, targetPort: 8080, nodePort: 30080}
";

const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-SUFFIX
  namespace: default
  labels: {kubernetes.io/service-name: web}
addressType: FAMILY
endpoints:
- addresses: ['ENDPOINT']
  nodeName: vm
  conditions: {ready: true, serving: true, terminating: false}
ports:
- {name: tcp, protocol: TCP, port: 8080}
- {name: udp, protocol: UDP, port: 8080}
";
