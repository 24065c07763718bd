//! Conversations: a flow that is opened and confirmed, program by program.

use anyhow::{Result, ensure};

use super::{Device, Frame, Kernel, Transport, frame::ends, sys::Kind};

/// A program, and the device that it runs at.
pub type Hook = (&'static str, Device);

/// Runs a program of an ingress on a packet that it must translate; returns the result, with the MACs and the hop limit that it had.
///
/// # Errors
/// When it is dropped, or left as it was; the kernel's.
pub fn translated(kernel: &Kernel, (program, device): Hook, frame: &Frame) -> Result<Frame> {
    const XDP_DROP: u32 = 1;
    const SHOT: u32 = 2;
    let input = frame.build()?;
    let run = kernel.run(program, &input, device.index()?, 0)?;
    let drop = if Kernel::kind(program) == Kind::Xdp { XDP_DROP } else { SHOT };
    ensure!(run.result != drop, "{program} drops {frame:?}");
    ensure!(run.packet != input, "{program} leaves {frame:?} unchanged");
    let (src, dst) = ends(&run.packet);
    Ok(frame.between(src, dst))
}

/// Opens a flow with the first packet of a client's connection (or datagram), and confirms it by the next ones. Returns the request as
/// it was sent to the endpoint.
///
/// # Errors
/// As for [`translated`].
pub fn open(kernel: &Kernel, request: Hook, reply: Hook, frame: &Frame) -> Result<Frame> {
    let steps = match frame.transport {
        Transport::Tcp(_) => [2, 18, 16].map(Transport::Tcp),
        Transport::Sctp(_) => [1, 2, 10].map(Transport::Sctp),
        other => [other; 3],
    };
    let with = |frame: &Frame, transport| Frame { transport, ..frame.clone() };
    let sent = translated(kernel, request, &with(frame, steps[0]))?;
    let answer = translated(kernel, reply, &with(&sent.reply(), steps[1]))?;
    ensure!((answer.src, answer.dst) == (frame.dst, frame.src), "the reply became {answer:?}");
    let again = translated(kernel, request, &with(frame, steps[2]))?;
    ensure!((again.src, again.dst) == (sent.src, sent.dst), "{sent:?} and then {again:?}");
    Ok(with(&sent, frame.transport))
}
