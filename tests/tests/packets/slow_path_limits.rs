//! Fragments of non-service packets, and messages that Linux does not limit. Needs root.

use anyhow::Result;
use proxy_common::layout::counter::Counter;
use proxy_packets::{
    Device, Frame, Host, Kernel, Node, Options, PacketFamily, Transport, for_both_families, fragments,
    helpers::{ACK, NEXT, REDIRECT, SHOT, XDP_PASS},
    sys::Kind,
    talk::{self, Hook},
    with_extensions,
};

for_both_families! {
    packet_fragments_of_other_protocols_are_not_queued
    packet_too_big_has_a_limit_of_its_own
}

const HOOKS: [Hook; 6] = [
    ("uplink_ingress", Device::Uplink),
    ("uplink_xdp", Device::Uplink),
    ("pod_ingress", Device::PodA),
    ("pod_ingress", Device::PortC),
    ("pod_egress", Device::PodA),
    ("uplink_egress", Device::Uplink),
];

/// Later ones before the first, as well.
fn packet_fragments_of_other_protocols_are_not_queued<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut number = 0;
    for (program, device) in HOOKS {
        if kernel.possible(&[program])?.is_empty() {
            continue;
        }
        let pass = if Kernel::kind(program) == Kind::Xdp { XDP_PASS } else { NEXT };
        for to in [Host::Node, Host::LocalVip, Host::PodB] {
            let mut frame = Frame::new(Host::Client.at::<F>(7), to.at::<F>(80), Transport::Echo(false));
            frame.payload = vec![1; 4_000];
            let ping = frame.build()?;
            let mut all = vec![("ping", ping.clone())];
            let protocol = if F::IS_V4 { 23 } else { 20 };
            for (what, value) in [("esp", 50), ("gre", 47), ("ipip", 4), ("sctp", 132), ("experimental", 253)]
            {
                let mut bytes = ping.clone();
                bytes[protocol] = value;
                all.push((what, bytes));
            }
            for (what, bytes) in all {
                for order in [[0, 1, 2], [2, 1, 0]] {
                    number += 1;
                    let pieces = fragments(&bytes, number, 1_400);
                    for piece in order.map(|place| &pieces[place]) {
                        let run = kernel.run(program, piece, device.index()?, 0)?;
                        assert_eq!((run.result, &run.packet), (pass, piece), "{program}: {what} to {to:?}");
                    }
                }
            }
        }
    }
    assert_eq!(kernel.counter(Counter::FragmentReleased)?, 0);
    assert_eq!(kernel.counter(Counter::FragmentUnknown)?, 0);
    Ok(())
}

/// Later fragments of IPv6 name the first extension header only, so the programs store the data of the first fragment.
#[test]
fn packet_first_fragments_of_unknown_protocols_are_remembered() -> Result<()> {
    type F = proxy_common::V6;
    let Node { kernel, .. } = Node::new(Options::default())?;
    let uplink = Device::Uplink.index()?;
    for (number, protocol) in (1u16..).zip([58u8, 50, 47, 132]) {
        let mut frame = Frame::new(Host::Client.at::<F>(7), Host::Node.at::<F>(80), Transport::Echo(false));
        frame.payload = vec![1; 4_000];
        let mut bytes = frame.build()?;
        bytes[20] = protocol;
        let pieces = fragments(&with_extensions(&bytes, &[60]), number, 1_400);
        for piece in [&pieces[0], &pieces[2], &pieces[1]] {
            let run = kernel.run("uplink_ingress", piece, uplink, 0)?;
            assert_eq!((run.result, &run.packet), (NEXT, piece), "protocol {protocol}");
        }
    }
    assert_eq!(kernel.fragments::<F>()?.len(), 4);
    // Fragments that come too early wait for it, and pass then.
    let mut frame = Frame::new(Host::Client.at::<F>(7), Host::Node.at::<F>(80), Transport::Echo(false));
    frame.payload = vec![1; 2_000];
    let pieces = fragments(&with_extensions(&frame.build()?, &[60]), 99, 1_400);
    let run = |piece: &[u8]| kernel.run("uplink_ingress", piece, uplink, 0);
    assert_eq!(run(&pieces[1])?.result, SHOT, "held");
    assert_eq!(run(&pieces[0])?.result, SHOT, "it comes in again");
    for piece in &pieces {
        let run = run(piece)?;
        assert_eq!((run.result, &run.packet), (NEXT, piece));
    }
    assert_eq!(kernel.counter(Counter::FragmentReleased)?, 1);
    Ok(())
}

fn packet_too_big_has_a_limit_of_its_own<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let uplink = ("uplink_ingress", Device::Uplink);
    let request = Frame::new(Host::Client.at::<F>(50_000), Host::Node.at::<F>(30_002), ACK);
    talk::open(&kernel, uplink, uplink, &request)?;
    let long = Frame { payload: vec![1; 1_600], ..request }.build()?;
    let refused = Frame::new(Host::PodA.at::<F>(40_000), Host::EmptyVip.at::<F>(80), Transport::Udp);
    let (refused, pod, uplink) = (refused.build()?, Device::PodA.index()?, Device::Uplink.index()?);
    let mut limited = 0u64;
    // Windows of time pass meanwhile, and the limit starts again.
    for _ in 0..2_000 {
        limited += u64::from(kernel.run("pod_ingress", &refused, pod, 0)?.result == SHOT);
        assert_eq!(kernel.run("uplink_ingress", &long, uplink, 0)?.result, REDIRECT, "after {limited}");
    }
    assert!(limited > 0);
    assert_eq!(kernel.counter(Counter::RejectLimited)?, limited);
    assert_eq!(kernel.counter(Counter::TooBig)?, 2_000);
    Ok(())
}
