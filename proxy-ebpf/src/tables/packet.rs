//! The current packet.

use proxy_common::{
    decide::{Fragmentable, PacketContext},
    packet::{
        Bytes, ETHERNET, Packet,
        field::{ipv4, tcp},
        ipv4_fragment, timestamp,
    },
};

use super::{Kernel, Layer};
use crate::{
    context::{Frame, Skb},
    family::KernelFamily,
    rewrite::LONGEST_MASK,
};

/// Reads up to the longest headers of a frame.
impl Bytes for Frame {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        // As in `rewrite`: the verifier does not know the value of an offset outside the stack.
        self.bounds().load(core::hint::black_box(offset) & LONGEST_MASK)
    }
}

impl<F: KernelFamily> PacketContext<F> for Kernel {
    #[inline(always)]
    fn came_in(&self) -> u32 {
        match self.layer {
            Layer::Tc(_) => Skb(self.ctx.cast()).ingress_ifindex(),
            Layer::Xdp | Layer::Socket { .. } => 0,
        }
    }

    #[inline(always)]
    fn leaves(&self) -> u32 {
        match self.layer {
            Layer::Tc(_) => Skb(self.ctx.cast()).ifindex(),
            Layer::Xdp | Layer::Socket { .. } => 0,
        }
    }

    #[inline(always)]
    fn acknowledgment(&self, _: &Packet<F>) -> u32 {
        let (bounds, link) = match self.layer {
            Layer::Tc(link) => (Skb(self.ctx.cast()).bounds(), link),
            Layer::Xdp => (Frame(self.ctx.cast()).bounds(), ETHERNET),
            Layer::Socket { .. } => return 0,
        };
        bounds.load(link + F::HEADER + tcp::ACKNOWLEDGMENT).map_or(0, u32::from_be)
    }

    #[inline(always)]
    fn timestamp(&self, packet: &Packet<F>) -> u32 {
        match self.layer {
            Layer::Tc(_) => timestamp(&Skb(self.ctx.cast()), packet.transport, packet.is_syn()),
            Layer::Xdp => timestamp(&Frame(self.ctx.cast()), packet.transport, packet.is_syn()),
            Layer::Socket { .. } => 0,
        }
    }

    #[inline(always)]
    fn size(&self, packet: &Packet<F>) -> u32 {
        match self.layer {
            Layer::Xdp => self.size_of_frame::<F>(),
            Layer::Tc(link) => self.size_of_skb(link, packet),
            Layer::Socket { .. } => 0,
        }
    }

    #[inline(always)]
    fn fragmentable(&self, _: &Packet<F>) -> Fragmentable {
        const DO_NOT_FRAGMENT: u16 = ipv4_fragment::DO_NOT_FRAGMENT.to_be();
        const IS_FRAGMENT: u16 = ipv4_fragment::IS_FRAGMENT.to_be();
        match self.layer {
            Layer::Tc(link) if size_of::<F::Addr>() == size_of::<u32>() => {
                match Skb(self.ctx.cast()).load::<u16>(link + ipv4::FRAGMENT) {
                    Some(flags) if flags & DO_NOT_FRAGMENT != 0 => Fragmentable::No,
                    Some(flags) if flags & IS_FRAGMENT == 0 => Fragmentable::Whole,
                    Some(_) => Fragmentable::Fragment,
                    None => Fragmentable::No,
                }
            }
            // XDP leaves it to tc.
            _ => Fragmentable::No,
        }
    }
}
