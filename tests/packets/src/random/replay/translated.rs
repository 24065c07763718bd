//! Packets that were translated: the kernel's output must be the core's, byte by byte.

use proxy_common::{
    decide::{Translation, Verdict},
    packet::{Dissected, ETHERNET, Part, dissect},
};

use super::{Agreed, Both, Run, Sent};
use crate::{
    Frame, Kernel, PacketFamily, SNAT, checksums_are_valid,
    random::oracle::{bytes, parse, rewrite, same},
    same_frame,
    sys::Kind,
};

impl<F: PacketFamily> Run<'_, '_, F> {
    /// Compares a packet that was translated, with the port that the kernel chose.
    #[expect(clippy::too_many_arguments, reason = "all there is to know of one packet")]
    pub(super) fn translated(
        &mut self,
        sent: &Sent<'_>,
        input: &[u8],
        network: usize,
        dissected: &Dissected<F>,
        verdict: Verdict,
        out: &Translation<F>,
        got: &[u8],
    ) -> Agreed {
        let packet = &dissected.packet;
        // An error quotes the packet as the other end sent it.
        let at = packet.transport + if dissected.part == Part::Error { 2 } else { 0 };
        let Some(port) = got.get(at..at + 2).or((dissected.part == Part::Later).then_some(&[0, 0])) else {
            return Err("too short".to_owned());
        };
        let port = u16::from_be_bytes([port[0], port[1]]);
        let (src, dst) = F::ends(&out.to);
        let mut by_kernel = src;
        if SNAT.contains(&src.port()) && SNAT.contains(&port) {
            by_kernel.set_port(port);
        }
        // The packet as it came in: the ends of a reply may differ between the sides.
        let mut given = *dissected;
        if dissected.part == Part::Later {
            given.packet.tuple.sport = packet.tuple.sport;
        } else if let Ok(packet) = parse::<F>(input, network) {
            given.packet = packet;
        } else {
            dissect(input, network, &mut given);
        }
        let hops = (verdict == Verdict::Redirect) as u8;
        let mut expected = rewrite(input, network, &given, &F::tuple(by_kernel, dst), hops);
        if network == ETHERNET {
            let (to, from) = (expected[..6].to_vec(), expected[6..12].to_vec());
            match verdict {
                Verdict::Redirect if Kernel::kind(sent.program) == Kind::Xdp => {
                    expected[..6].copy_from_slice(&bytes(out.route.to));
                    expected[6..12].copy_from_slice(&bytes(out.route.from));
                }
                Verdict::Hairpin => {
                    expected[..6].copy_from_slice(&from);
                    expected[6..12].copy_from_slice(&to);
                }
                Verdict::Bridge => expected[..6].copy_from_slice(&bytes(out.mac)),
                _ => {}
            }
        }
        if !same(&expected, got, network, &given) {
            return Err(format!("another packet than {expected:02x?}"));
        }
        let (Some(both), true) = (&sent.both, sent.shape.is_sound()) else { return Ok(()) };
        // Once more, against a packet built from scratch.
        let mut anew = both.kernel.between(by_kernel, dst);
        anew.hop_limit -= hops;
        let built = anew.build().map_err(|error| format!("{error:#}"))?;
        let whole = [&built[..ETHERNET], &got[network..network + built.len() - ETHERNET]].concat();
        if !same_frame(&built, &whole) || !checksums_are_valid(&whole) {
            return Err(format!("another packet than {built:02x?}, built again"));
        }
        let plain = Frame { hop_limit: 64, ..anew };
        self.sent.insert(sent.number, Both { native: plain.between(src, dst), kernel: plain });
        Ok(())
    }
}
