//! Flows while their maps are replaced by larger ones, in the kernel's programs. Needs root.

use anyhow::{Context as _, Result};
use proxy_common::layout::counter::Counter;
use proxy_packets::{
    Frame, Node, Options, PacketFamily, Transport, for_both_families,
    helpers::{ACK, FIN, SYN, SYN_ACK},
};

use super::flows::{AT_REMOTE, Outcome, REMOTE, answer, ask};

for_both_families! {
    packet_a_connection_lives_on_while_maps_grow
    packet_datagrams_find_their_flow_while_maps_grow
    packet_a_source_port_has_one_flow_while_maps_grow
}

/// Small maps: machines that are emulated have little memory.
const OPTIONS: Options = Options { max_flows: 1024, max_pending: 1024, ..Options::DEFAULT };

/// Packets of a connection: whether the client sends each, and its flags.
const LIFE: [(bool, Transport); 6] =
    [(true, SYN), (false, SYN_ACK), (true, ACK), (false, ACK), (true, FIN), (false, FIN)];

/// Maps begin to grow before one of its packets, or behind the last. Closed, it gives its only port away, wherever its entries are.
fn packet_a_connection_lives_on_while_maps_grow<F: PacketFamily>() -> Result<()> {
    for grown in 0..=LIFE.len() {
        let Node { mut kernel, .. } = Node::new(Options { snat_ports: 1, ..OPTIONS })?;
        let mut sent: Option<Frame> = None;
        for (number, (by_client, transport)) in LIFE.into_iter().enumerate() {
            if number == grown {
                kernel.enlarge_maps()?;
            }
            if by_client {
                let frame = ask::<F>(&kernel, 50_000, REMOTE, transport)?.sent()?;
                let port = sent.as_ref().map_or(frame.src, |sent| sent.src);
                assert_eq!(frame.src, port, "maps grew before packet {grown}: {transport:?}");
                sent = Some(frame);
            } else {
                answer::<F>(
                    &kernel,
                    sent.as_ref().context("the client begins")?,
                    50_000,
                    AT_REMOTE,
                    transport,
                )?;
            }
        }
        if grown == LIFE.len() {
            kernel.enlarge_maps()?;
        }
        let next = ask::<F>(&kernel, 50_001, REMOTE, SYN)?.sent()?;
        assert_eq!(Some(next.src), sent.map(|sent| sent.src), "maps grew before packet {grown}");
        answer::<F>(&kernel, &next, 50_001, AT_REMOTE, SYN_ACK)?;
    }
    Ok(())
}

/// What is inserted from then on goes into the larger map.
fn packet_datagrams_find_their_flow_while_maps_grow<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, .. } = Node::new(OPTIONS)?;
    let flow = |kernel: &_, client| -> Result<_> {
        let sent = ask::<F>(kernel, client, REMOTE, Transport::Udp)?.sent()?;
        answer::<F>(kernel, &sent, client, AT_REMOTE, Transport::Udp)?;
        Ok(sent.src)
    };
    let first = flow(&kernel, 50_000)?;
    assert_eq!(kernel.count_flows::<F>()?, (2, 0));
    kernel.enlarge_maps()?;
    assert_eq!(kernel.count_flows::<F>()?, (0, 0), "no entry of the larger maps");
    assert_eq!(flow(&kernel, 50_000)?, first);
    assert_eq!(kernel.count_flows::<F>()?, (0, 0));
    flow(&kernel, 50_001)?;
    assert_eq!(kernel.count_flows::<F>()?, (2, 0));
    Ok(())
}

/// A port whose flow is in the map that is being replaced is taken.
fn packet_a_source_port_has_one_flow_while_maps_grow<F: PacketFamily>() -> Result<()> {
    for (handshake, transport) in
        [(&[SYN][..], SYN), (&[SYN, SYN_ACK, ACK], SYN), (&[Transport::Udp], Transport::Udp)]
    {
        let Node { mut kernel, .. } = Node::new(Options { snat_ports: 1, idle: 60_000, ..OPTIONS })?;
        let mut sent: Option<Frame> = None;
        for transport in handshake {
            match &sent {
                Some(sent) if *transport == SYN_ACK => {
                    answer::<F>(&kernel, sent, 50_000, AT_REMOTE, SYN_ACK)?;
                }
                _ => sent = Some(ask::<F>(&kernel, 50_000, REMOTE, *transport)?.sent()?),
            }
        }
        kernel.enlarge_maps()?;
        assert_eq!(ask::<F>(&kernel, 50_001, REMOTE, transport)?, Outcome::Dropped, "{handshake:?}");
        assert_eq!(kernel.counter(Counter::SnatExhausted)?, 1);
    }
    Ok(())
}
