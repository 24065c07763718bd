//! Next hops that programs send to, as they report them to the agent. Needs root.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use proxy_common::layout::{
    counter::Counter,
    device::DEVICE_FRAGMENTS,
    next_hop::{HEARTBEAT, NextHop},
};
use proxy_harness::cluster::pipe;
use proxy_packets::{
    Device, Frame, Host, Node, Options, PacketFamily, Transport, for_both_families, fragments,
    helpers::{ACK, REDIRECT, SYN, XDP_PASS, XDP_TX},
    talk,
};

/// The MAC of a second router.
const ROUTER: [u8; 6] = [2, 0, 0, 0, 3, 1];

for_both_families! {
    packet_next_hops_are_marked
    packet_is_left_to_tc_when_the_agent_is_gone
    packet_that_may_be_cut_is_for_the_stack
    packet_next_hops_with_one_slot_stay_apart
}

fn packet_next_hops_are_marked<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let uplink = Device::Uplink.index()?;
    let marked = || -> Result<Vec<F::Addr>> {
        let hops = kernel.next_hops::<F>()?;
        Ok(hops.into_iter().filter(|hop| hop.ifindex == uplink).map(|hop| hop.addr).collect())
    };
    let client = Frame::new(Host::Client.at::<F>(50_000), Host::Node.at::<F>(30_002), SYN);
    let sent = talk::translated(&kernel, ("uplink_ingress", Device::Uplink), &client)?;
    assert_eq!(marked()?, [Host::OtherNode.addr::<F>()], "a new flow");
    talk::translated(
        &kernel,
        ("uplink_ingress", Device::Uplink),
        &Frame { transport: Transport::Tcp(18), ..sent.reply() },
    )?;
    let mut both = marked()?;
    both.sort_by_key(|addr| *addr == Host::Gateway.addr::<F>());
    assert_eq!(both, [Host::OtherNode, Host::Gateway].map(|host| host.addr::<F>()), "and its reply");
    Ok(())
}

/// One packet a second and next hop, if an agent has ever probed neighbours and none does now.
fn packet_is_left_to_tc_when_the_agent_is_gone<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, .. } = Node::new(Options::default())?;
    for program in kernel.possible(&["uplink_xdp", "uplink_xdp_frags"])? {
        let hook = ("uplink_ingress", Device::Uplink);
        let client = Frame::new(Host::Client.at::<F>(50_000), Host::Node.at::<F>(30_002), ACK);
        talk::open(&kernel, hook, hook, &client)?;
        let uplink = Device::Uplink.index()?;
        let packet = client.build()?;
        // Each CPU keeps routes for a moment.
        let forget = |kernel: &mut proxy_packets::Kernel| kernel.forget_routes::<F>();
        let mut send = |heartbeat: u32, handed_over: u32| -> Result<u32> {
            forget(&mut kernel)?;
            let now = kernel.next_hops::<F>()?.iter().map(|hop| hop.last_used).max().unwrap_or(0);
            let ago = |jiffies: u32| if jiffies == 0 { 0 } else { now.wrapping_sub(jiffies) };
            let mut hops = kernel.next_hops::<F>()?;
            hops.iter_mut().for_each(|hop| hop.handed_over = ago(handed_over));
            kernel.put_next_hops::<F>(&hops, ago(heartbeat))?;
            Ok(kernel.run(program, &packet, uplink, 0)?.result)
        };
        const SECOND: u32 = 1_000;
        assert_eq!(send(0, 9 * SECOND)?, XDP_TX, "no agent ever");
        assert_eq!(send(1, 9 * SECOND)?, XDP_TX, "an agent");
        assert_eq!(send(9 * SECOND, 9 * SECOND)?, XDP_PASS, "none any more");
        assert_eq!(send(9 * SECOND, 1)?, XDP_TX, "a moment later");
    }
    Ok(())
}

/// The clients of two flows are behind routers whose routes have the same slot: each flow's packets go to its own
/// router, also those that come right after a packet for the other.
fn packet_next_hops_with_one_slot_stay_apart<F: PacketFamily>() -> Result<()> {
    // Longer than a CPU keeps a route: by then flows have marked the slot of theirs.
    const LONG: Duration = Duration::from_millis(700);
    let Node { kernel, .. } = Node::new(Options::default())?;
    if kernel.possible(&["uplink_xdp"])?.is_empty() {
        return Ok(());
    }
    let (uplink, hook) = (Device::Uplink.index()?, ("uplink_ingress", Device::Uplink));
    let slot = |ip: IpAddr| NextHop::<F>::slot(&F::from_ip(ip), uplink);
    let candidate = |number: u16| -> IpAddr {
        let [high, low] = number.to_be_bytes();
        if F::IS_V4 { [10, 99, high, low].into() } else { [0xfd00, 0x99, 0, 0, 0, 0, 0, number].into() }
    };
    let is_alike = |ip: &IpAddr| slot(*ip) == slot(Host::Gateway.ip::<F>());
    let router = (1..u16::MAX).map(candidate).find(is_alike).context("no address with that slot")?;
    let (flag, net, client): (_, _, IpAddr) = if F::IS_V4 {
        ("-4", "10.99.0.0/16", [198, 18, 0, 9].into())
    } else {
        ("-6", "fd00:99::/64", [0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 9].into())
    };
    let script = format!(
        "route add {net} dev uplink\nneigh add {router} lladdr {} dev uplink nud permanent\nroute add {client} via {router}\n",
        ROUTER.map(|byte| format!("{byte:02x}")).join(":"),
    );
    pipe(Command::new("ip").args([flag, "-batch", "-"]), &script)?;
    let reply = |client: SocketAddr| -> Result<Vec<u8>> {
        let sent = talk::open(&kernel, hook, hook, &Frame::new(client, Host::Node.at::<F>(30_002), ACK))?;
        sent.reply().build()
    };
    let flows = [
        (reply(Host::Client.at::<F>(50_000))?, Host::Gateway.mac()),
        (reply((client, 50_001).into())?, ROUTER),
    ];
    let send = |(packet, mac): &(Vec<u8>, [u8; 6])| -> Result<()> {
        let run = kernel.run("uplink_xdp", packet, uplink, 0)?;
        assert_eq!((run.result, &run.packet[..6]), (XDP_TX, &mac[..]));
        Ok(())
    };
    for [long, short] in [[0, 1], [1, 0]] {
        let start = Instant::now();
        while start.elapsed() < LONG {
            send(&flows[long])?;
        }
        for _ in 0..3 {
            send(&flows[short])?;
            send(&flows[long])?;
        }
    }
    Ok(())
}

/// IPv4 without "don't fragment", where the stack takes such packets; else its sender gets an ICMP error, and XDP leaves
/// both to tc.
fn packet_that_may_be_cut_is_for_the_stack<F: PacketFamily>() -> Result<()> {
    for takes in [true, false] {
        let Node { kernel, .. } = Node::with(Options::default(), |v4, v6| {
            for devices in [&mut v4.devices, &mut v6.devices] {
                devices.values_mut().filter(|_| takes).for_each(|device| device.flags |= DEVICE_FRAGMENTS);
            }
        })?;
        let (uplink, hook) = (Device::Uplink.index()?, ("uplink_ingress", Device::Uplink));
        let mut frame = Frame::new(Host::Client.at::<F>(50_000), Host::Node.at::<F>(30_002), Transport::Udp);
        talk::open(&kernel, hook, hook, &frame)?;
        frame.payload = vec![1; 1_600];
        for may_be_cut in [true, false] {
            let mut packet = frame.build()?;
            if F::IS_V4 {
                set_dont_fragment(&mut packet, !may_be_cut);
            }
            let before = kernel.counter(Counter::TooBig)?;
            for program in kernel.possible(&["uplink_xdp"])? {
                let run = kernel.run(program, &packet, uplink, 0)?;
                assert_eq!((run.result, &run.packet), (XDP_PASS, &packet));
            }
            let run = kernel.run("uplink_ingress", &packet, uplink, 0)?;
            assert_eq!(run.result, REDIRECT);
            let is_cut = F::IS_V4 && takes && may_be_cut;
            assert_eq!(run.packet[..6] == [0; 6], is_cut, "for the loopback interface");
            assert_eq!(kernel.counter(Counter::TooBig)? - before, u64::from(!is_cut));
        }
        // Its fragments as well, the first and a later one.
        if F::IS_V4 && takes {
            frame.payload = vec![1; 5_000];
            for piece in fragments(&frame.build()?, 77, 1_600).iter().take(2) {
                let run = kernel.run("uplink_ingress", piece, uplink, 0)?;
                assert_eq!((run.result, &run.packet[..6]), (REDIRECT, &[0; 6][..]));
            }
        }
    }
    Ok(())
}

/// Writes the flag, and the header's checksum.
fn set_dont_fragment(packet: &mut [u8], on: bool) {
    const HEADER: std::ops::Range<usize> = 14..34;
    packet[20] = if on { 0x40 } else { 0 };
    packet[24..26].fill(0);
    let sum: u32 =
        packet[HEADER].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

/// The slots of the map are elements of an array; this checks the place of the heartbeat.
#[test]
fn the_heartbeat_is_behind_the_slots() {
    assert!((0..1_000u32).all(|addr| NextHop::<proxy_common::V4>::slot(&addr, 2) < HEARTBEAT));
}
