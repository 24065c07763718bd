//! Our programs with the packets that they are for.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use proxy_packets::{
    Device, Frame, Host, Kernel, PacketFamily, SNAT,
    helpers::{ACK, NEXT, REDIRECT, SYN, XDP_PASS, XDP_TX},
    sys::Kind,
};

use crate::{
    cases::{CLIENTS, Case, Sort, Table},
    fixture::MANY_REMOTE,
    wrapper::{Packet, Vary},
};

/// A program, a packet and how it must end, which shows that the case matches its name.
#[derive(Clone)]
pub(crate) struct Path {
    pub(crate) program: &'static str,
    pub(crate) row: &'static str,
    pub(crate) frame: Frame,
    pub(crate) result: u32,
    pub(crate) kind: PathKind,
}

/// The port of the first of many clients: no other flow to that backend has the source port that follows from it.
const FIRST_OF_CLIENTS: u32 = 5_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathKind {
    NotOurs,
    /// Such flows differ in the port of the source.
    Request {
        snat: bool,
    },
    /// It is the port of the destination.
    Answer {
        snat: bool,
    },
    New,
}

impl Path {
    pub(crate) fn device(&self) -> Device {
        if self.program.starts_with("pod") { Device::PodA } else { Device::Uplink }
    }

    pub(crate) fn packet(&self, varied: Vec<Vary>) -> Result<Packet> {
        Ok(Packet { frame: self.frame.build()?, headers: self.frame.transport_offset() + 20, varied })
    }

    /// The case of this path, in a table.
    pub(crate) fn case<'w, F: PacketFamily>(
        &self,
        kernel: &Kernel,
        table: Table,
        varied: Vec<Vary>,
    ) -> Result<Case<'w>> {
        let kind = Kernel::kind(self.program);
        let hook = if kind == Kind::Xdp { "XDP" } else { "tc" };
        let label = (table, self.sort(), format!("{hook}: {}", self.row));
        let program = kernel.program(self.program)?;
        let place = (kind, F::IS_V4, self.device().index()?);
        Case::new(label, place, &self.packet(varied)?, program.as_fd(), self.result)
            .with_context(|| format!("{}: {}", self.program, self.row))
    }

    fn sort(&self) -> Sort {
        match self.kind {
            PathKind::NotOurs => Sort::NotOurs,
            PathKind::Request { snat } | PathKind::Answer { snat } => Sort::Established { snat },
            PathKind::New => Sort::New { entries: 0.0 },
        }
    }

    /// Whether it is a client's packet to a remote backend.
    pub(crate) fn is_remote_request(&self) -> bool {
        self.kind == PathKind::Request { snat: true }
    }

    /// Whether it belongs into the table of numbers of services. One of each sort does.
    pub(crate) fn shows_services(&self) -> bool {
        match self.kind {
            PathKind::NotOurs => true,
            PathKind::Answer { .. } => false,
            PathKind::Request { .. } | PathKind::New => self.program != "uplink_ingress",
        }
    }

    /// A new client in each repetition. Both programs of an uplink have separate clients, else one would find the flows
    /// that the other has opened.
    pub(crate) fn fresh(&self) -> Vec<Vary> {
        const HALF: u32 = 1 << 15;
        let port = self.frame.transport_offset();
        let address = if self.frame.src.is_ipv4() { 28 } else { 36 };
        let first = if self.program == "uplink_xdp" { HALF } else { 0 };
        vec![Vary::word(port, 0), Vary { first, values: HALF, ..Vary::word(address, 16) }]
    }

    /// Many clients, one after the other, each with a port of its own. The node takes the same number of its range for it,
    /// so that answers are known, too.
    pub(crate) fn clients(&self) -> Vec<Vary> {
        let ports = self.frame.transport_offset();
        let address = if self.frame.src.is_ipv4() { 28 } else { 36 };
        let range = |at: usize, first: u32| Vary { at, bytes: 2, first, shift: 0, values: CLIENTS };
        match self.kind {
            PathKind::Answer { .. } => vec![range(ports + 2, u32::from(*SNAT.start()) + FIRST_OF_CLIENTS)],
            _ => vec![range(ports, FIRST_OF_CLIENTS), range(address, 0)],
        }
    }

    /// One flow after the other, or one destination after the other.
    pub(crate) fn round_robin(&self) -> Vec<Vary> {
        let ports = self.frame.transport_offset();
        let address = if self.frame.src.is_ipv4() { 32 } else { 52 };
        vec![match self.kind {
            PathKind::NotOurs => Vary::word(address, 0),
            PathKind::Request { .. } | PathKind::New => Vary::word(ports, 0),
            PathKind::Answer { .. } => Vary::word(ports + 2, 0),
        }]
    }
}

/// Opens a flow of each sort and lists the packets.
pub(crate) fn paths<F: PacketFamily>(kernel: &Kernel) -> Result<Vec<Path>> {
    let frame = |src: (Host, u16), dst: (Host, u16), transport| {
        let mut frame = Frame::new(src.0.at::<F>(src.1), dst.0.at::<F>(dst.1), transport);
        frame.payload = vec![0; 64];
        frame
    };
    let sent_by = |program: &str, device: Device, request: &Frame| -> Result<Frame> {
        let syn = Frame { transport: SYN, ..request.clone() };
        let run = kernel.run(program, &syn.build()?, device.index()?, 0)?;
        let at = request.transport_offset();
        let mut sent = request.clone();
        let (to_remote, local) = (Host::Remote.at::<F>(8080), Host::PodB.at::<F>(8080));
        if run.result == REDIRECT {
            (sent.src, sent.dst) = (Host::Node.at::<F>(0), to_remote);
            sent.src.set_port(u16::from_be_bytes([run.packet[at], run.packet[at + 1]]));
        } else {
            sent.dst = local;
        }
        Ok(sent)
    };
    let cluster_ip = frame((Host::PodA, 40_000), (Host::LocalVip, 80), ACK);
    let local = frame((Host::Client, 50_000), (Host::Node, 30_001), ACK);
    let remote = frame((Host::Client, 50_001), (Host::Node, 30_002), ACK);
    let cluster_ip_sent = sent_by("pod_ingress", Device::PodA, &cluster_ip)?;
    let local_sent = sent_by("uplink_ingress", Device::Uplink, &local)?;
    let remote_sent = sent_by("uplink_ingress", Device::Uplink, &remote)?;
    let from_pod = frame((Host::PodA, 40_000), (Host::Client, 443), ACK);
    let from_outside = frame((Host::Client, 443), (Host::PodA, 40_000), ACK);
    let new_cluster_ip = frame((Host::PodA, 40_000), (Host::LocalVip, 80), SYN);
    let new_local = frame((Host::Client, 50_000), (Host::Node, 30_001), SYN);
    let new_remote = frame((Host::Client, 50_000), (Host::Node, MANY_REMOTE), SYN);

    let mut paths = Vec::new();
    let mut add = |program, row, frame: &Frame, result, kind| {
        paths.push(Path { program, row, frame: frame.clone(), result, kind });
    };
    let (request, answer) = (PathKind::Request { snat: false }, PathKind::Answer { snat: false });
    add("pod_ingress", "not for a service, from a pod", &from_pod, NEXT, PathKind::NotOurs);
    add("pod_egress", "not for a service, to a pod", &from_outside, NEXT, PathKind::NotOurs);
    add("uplink_ingress", "not for a service, from outside", &from_outside, NEXT, PathKind::NotOurs);
    add("uplink_egress", "not for a service, to outside", &from_pod, NEXT, PathKind::NotOurs);
    add("uplink_xdp", "not for a service, from outside", &from_outside, XDP_PASS, PathKind::NotOurs);
    add("pod_ingress", "ClusterIP, established", &cluster_ip, NEXT, request);
    add("pod_egress", "ClusterIP, answer", &cluster_ip_sent.reply(), NEXT, answer);
    add("uplink_egress", "NodePort, local backend, answer", &local_sent.reply(), NEXT, answer);
    add("pod_ingress", "ClusterIP, new flow", &new_cluster_ip, NEXT, PathKind::New);
    for (program, pass, redirect) in [("uplink_ingress", NEXT, REDIRECT), ("uplink_xdp", XDP_PASS, XDP_TX)] {
        let (request, answer) = (PathKind::Request { snat: true }, PathKind::Answer { snat: true });
        let not_snat = PathKind::Request { snat: false };
        add(program, "NodePort, local backend, established", &local, pass, not_snat);
        add(program, "NodePort, remote backend, established", &remote, redirect, request);
        add(program, "NodePort, remote backend, answer", &remote_sent.reply(), redirect, answer);
        add(program, "NodePort, local backend, new flow", &new_local, pass, PathKind::New);
        add(program, "NodePort, remote backend, new flow", &new_remote, redirect, PathKind::New);
    }
    Ok(paths)
}
