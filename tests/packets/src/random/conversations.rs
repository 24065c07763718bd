//! Steps that belong together.

use super::{
    shape::Shape,
    steps::{PARTS, PORTS, PROGRAMS, Random, Segment, Step, WAITS, What, options, request, segment},
};
use crate::{Device, Frame, Host, PacketFamily, Transport};

/// A connection: its handshake, and the packets that may follow.
pub(super) fn conversation<F: PacketFamily>(random: &mut Random, steps: &mut Vec<Step>) {
    let (program, device) = random.of(&PROGRAMS);
    let transport = random.of(&[Transport::Tcp(2), Transport::Tcp(2), Transport::Udp, Transport::Sctp(1)]);
    let mut frame = request::<F>(random, program);
    frame.transport = transport;
    frame.hop_limit = 64;
    frame.tcp_options = if transport == Transport::Tcp(2) { options(random, 2) } else { Vec::new() };
    let first = steps.len();
    // One of both hooks that look for replies finds it.
    let replies = if program.starts_with("pod") {
        [("pod_egress", Device::PodA), (program, device)]
    } else {
        [("uplink_egress", Device::Uplink), ("uplink_ingress", Device::Uplink)]
    };
    let plain = |flags| Segment { flags, skew: [0; 2] };
    steps.push(whole((program, device), What::Request(frame)));
    for reply in replies {
        steps.push(whole(reply, What::Answer { to: first, segment: plain(18) }));
    }
    if random.below(6) > 0 {
        steps.push(whole((program, device), What::Again { of: first, segment: plain(16) }));
    }
    for _ in 0..random.below(8) {
        let segment = segment(random);
        if random.below(16) == 0 {
            // Its other entry is made again.
            steps.push(Step::Forget(first, random.of(&PARTS)));
            steps.push(Step::Wait(WAITS[0]));
        } else if random.below(2) == 0 {
            steps.push(whole((program, device), What::Again { of: first, segment }));
        } else {
            for reply in replies {
                steps.push(whole(reply, What::Answer { to: first, segment }));
            }
        }
    }
}

/// An unchanged packet, of the node if it leaves.
fn whole((program, device): (&'static str, Device), what: What) -> Step {
    Step::Packet { program, device, came_in: None, what, shape: Shape::Whole }
}

/// The node, or kernel NAT for it, talks from a frontend's own address and port.
pub(super) fn own_conversation<F: PacketFamily>(random: &mut Random, steps: &mut Vec<Step>) {
    let frontend = random.of(&[
        Host::Node.at::<F>(30_001),
        Host::Node.at::<F>(30_002),
        Host::LocalVip.at::<F>(80),
        Host::GuardedIp.at::<F>(80),
    ]);
    let (out, back, to) = random.of(&[
        (("uplink_egress", Device::Uplink), ("uplink_ingress", Device::Uplink), Host::Client),
        (("uplink_egress", Device::Uplink), ("uplink_xdp", Device::Uplink), Host::Client),
        (("pod_egress", Device::PodA), ("pod_ingress", Device::PodA), Host::PodA),
    ]);
    let transport = random.of(&[Transport::Udp, Transport::Udp, Transport::Udp, Transport::Tcp(2)]);
    let first = steps.len();
    let frame = Frame::new(frontend, to.at::<F>(random.of(&PORTS)), transport);
    steps.push(whole(out, What::Request(frame)));
    for _ in 0..=random.below(3) {
        if random.below(4) == 0 {
            steps.push(Step::Wait(random.of(&WAITS)));
        }
        steps.push(whole(back, What::Back { of: first }));
    }
}
