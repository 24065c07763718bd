//! What is measured.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use proxy_common::{V4, V6};
use proxy_tests::packets::{Device, Frame, Host, Kernel, Node, Options, PacketFamily, Transport, sys::Kind};

use crate::wrapper::{Restore, Wrapper, empty};

const SYN: Transport = Transport::Tcp(2);
const ACK: Transport = Transport::Tcp(16);

/// One case, ready to be run.
pub(crate) struct Case {
    pub(crate) family: &'static str,
    pub(crate) program: &'static str,
    pub(crate) what: &'static str,
    pub(crate) kind: Kind,
    pub(crate) device: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) wrapper: Wrapper,
    /// The same with nothing behind it.
    pub(crate) floor: Wrapper,
}

/// A packet of a case and how it must end, which shows that the case is what it is called.
struct Path {
    program: &'static str,
    what: &'static str,
    frame: Frame,
    result: u32,
    is_translated: bool,
    is_new: bool,
}

const NEXT: u32 = u32::MAX;
const REDIRECT: u32 = 7;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// The node and a second set of maps, in which new flows push only each other out.
pub(crate) struct Bench {
    node: Node,
    churning: Kernel,
}

impl Bench {
    pub(crate) fn new() -> Result<Self> {
        let mut node = Node::new(Options::default())?;
        // As the agent would load them on this kernel.
        let options = Options { csum_ipv6: node.kernel.knows_csum_ipv6()?, ..Options::default() };
        node.kernel = Kernel::load(options, &node.v4, &node.v6)?;
        let churning = Kernel::load(options, &node.v4, &node.v6)?;
        Ok(Self { node, churning })
    }

    /// All cases, with their flows open.
    pub(crate) fn cases(&self) -> Result<Vec<Case>> {
        let mut cases = self.of_family::<V4>("IPv4")?;
        cases.extend(self.of_family::<V6>("IPv6")?);
        Ok(cases)
    }

    fn of_family<F: PacketFamily>(&self, family: &'static str) -> Result<Vec<Case>> {
        paths::<F>(&self.node.kernel)?.into_iter().map(|path| self.case::<F>(family, path)).collect()
    }

    fn case<F: PacketFamily>(&self, family: &'static str, path: Path) -> Result<Case> {
        let Path { program, what, frame, result, is_translated, is_new } = path;
        let kernel = if is_new { &self.churning } else { &self.node.kernel };
        let kind = Kernel::kind(program);
        let device = device_of(program).index()?;
        let bytes = frame.build()?;
        let transport = frame.transport_offset();
        // The last word of the client's address, and its port.
        let random = is_new.then_some(if F::IS_V4 { [28, transport] } else { [36, transport] });
        let restore = Restore { frame: &bytes, headers: transport + 20, random };
        let wrapper = Wrapper::new(kind, kernel.program(program)?.as_fd(), &restore)?;
        let nothing = empty(kind)?;
        let floor = Wrapper::new(kind, nothing.as_fd(), &restore)?;
        let case = Case { family, program, what, kind, device, frame: bytes, wrapper, floor };
        // Twice: the second repetition must find the packet restored.
        for repeat in [1, 2] {
            let run =
                proxy_tests::packets::sys::run(case.wrapper.fd(), kind, &case.frame, device, repeat, 0, 0)?;
            ensure!(run.result == result, "{program}, {what}: result {} instead of {result}", run.result);
            ensure!(
                (run.packet != case.frame) == is_translated || is_new,
                "{program}, {what}: wrong translation"
            );
        }
        Ok(case)
    }
}

fn device_of(program: &str) -> Device {
    if program.starts_with("pod") { Device::PodA } else { Device::Uplink }
}

/// Opens the flows and lists the packets.
fn paths<F: PacketFamily>(kernel: &Kernel) -> Result<Vec<Path>> {
    let frame = |src: (Host, u16), dst: (Host, u16), transport| {
        let mut frame = Frame::new(src.0.at::<F>(src.1), dst.0.at::<F>(dst.1), transport);
        frame.payload = vec![0; 64];
        frame
    };
    let sent_by = |program: &str, request: &Frame| -> Result<Frame> {
        let syn = Frame { transport: SYN, ..request.clone() };
        let run = kernel.run(program, &syn.build()?, device_of(program).index()?, 0)?;
        let at = request.transport_offset();
        let mut sent = request.clone();
        let (to_remote, local) = (Host::Remote.at::<F>(8080), Host::PodB.at::<F>(8080));
        if run.result == REDIRECT {
            (sent.src, sent.dst) = (Host::Node.at::<F>(0), to_remote);
            sent.src.set_port(u16::from_be_bytes([run.packet[at], run.packet[at + 1]]));
        } else {
            sent.dst = local;
        }
        // Established, as far as the entries are concerned.
        kernel.run(program, &request.build()?, device_of(program).index()?, 0)?;
        Ok(sent)
    };
    let cluster_ip = frame((Host::PodA, 40_000), (Host::LocalVip, 80), ACK);
    let local = frame((Host::Client, 50_000), (Host::Node, 30_001), ACK);
    let remote = frame((Host::Client, 50_001), (Host::Node, 30_002), ACK);
    let cluster_ip_sent = sent_by("pod_ingress", &cluster_ip)?;
    let local_sent = sent_by("uplink_ingress", &local)?;
    let remote_sent = sent_by("uplink_ingress", &remote)?;
    let from_pod = frame((Host::PodA, 40_000), (Host::Client, 443), ACK);
    let from_outside = frame((Host::Client, 443), (Host::PodA, 40_000), ACK);
    let new_cluster_ip = frame((Host::PodA, 40_000), (Host::LocalVip, 80), SYN);
    let new_local = frame((Host::Client, 50_000), (Host::Node, 30_001), SYN);

    let mut paths = Vec::new();
    let mut add = |program, what, frame: &Frame, result| {
        let (is_new, is_translated) = (what == NEW_CLUSTER_IP || what == NEW_NODE_PORT, what != OTHER);
        paths.push(Path { program, what, frame: frame.clone(), result, is_translated, is_new });
    };
    const OTHER: &str = "not for a service";
    const NEW_CLUSTER_IP: &str = "ClusterIP, new flow";
    const NEW_NODE_PORT: &str = "NodePort, local backend, new flow";
    add("pod_ingress", OTHER, &from_pod, NEXT);
    add("pod_ingress", "ClusterIP, established", &cluster_ip, NEXT);
    add("pod_ingress", NEW_CLUSTER_IP, &new_cluster_ip, NEXT);
    add("pod_egress", OTHER, &from_outside, NEXT);
    add("pod_egress", "ClusterIP, answer", &cluster_ip_sent.reply(), NEXT);
    for (program, pass, redirect) in [("uplink_ingress", NEXT, REDIRECT), ("uplink_xdp", XDP_PASS, XDP_TX)] {
        add(program, OTHER, &from_outside, pass);
        add(program, "NodePort, local backend, established", &local, pass);
        add(program, NEW_NODE_PORT, &new_local, pass);
        add(program, "NodePort, remote backend, established", &remote, redirect);
        add(program, "NodePort, remote backend, answer", &remote_sent.reply(), redirect);
    }
    add("uplink_egress", OTHER, &from_pod, NEXT);
    add("uplink_egress", "NodePort, local backend, answer", &local_sent.reply(), NEXT);
    Ok(paths)
}
