//! The packet at hand.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use proxy_common::{
    decide::{Fragmentable, PacketContext},
    packet::{
        Bytes, ETHERNET, Packet,
        field::{ipv4, tcp},
        ipv4_fragment, read, timestamp,
    },
};

use super::{Kernel, Layer};
use crate::{family::KernelFamily, rewrite::LONGEST_MASK, tc::Skb};

/// The bytes of a frame at XDP, as far as its headers may reach.
struct Frame(*mut xdp_md);

impl Bytes for Frame {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: the context is readable, and so are the bounds it gives.
        unsafe {
            let (data, end) =
                ((*self.0).data as usize as *const u8, (*self.0).data_end as usize as *const u8);
            // As in `rewrite`: what is not on the stack may be anything to the verifier.
            let at = data.wrapping_add(core::hint::black_box(offset) & LONGEST_MASK);
            (at.wrapping_add(size_of::<T>()) <= end).then(|| read(at))
        }
    }
}

impl<F: KernelFamily> PacketContext<F> for Kernel {
    #[inline(always)]
    fn came_in(&self) -> u32 {
        match self.layer {
            // SAFETY: the context is readable.
            Layer::Tc(_) => unsafe { (*self.ctx.cast::<__sk_buff>()).ingress_ifindex },
            Layer::Xdp | Layer::Socket => 0,
        }
    }

    #[inline(always)]
    fn leaves(&self) -> u32 {
        match self.layer {
            // SAFETY: the context is readable.
            Layer::Tc(_) => unsafe { (*self.ctx.cast::<__sk_buff>()).ifindex },
            Layer::Xdp | Layer::Socket => 0,
        }
    }

    #[inline(always)]
    fn acknowledgment(&self, _: &Packet<F>) -> u32 {
        let (data, end, link) = match self.layer {
            // SAFETY: the context is readable.
            Layer::Tc(link) => unsafe {
                let skb = self.ctx.cast::<__sk_buff>();
                ((*skb).data as usize as *const u8, (*skb).data_end as usize as *const u8, link)
            },
            // SAFETY: as above.
            Layer::Xdp => unsafe {
                let frame = self.ctx.cast::<xdp_md>();
                ((*frame).data as usize as *const u8, (*frame).data_end as usize as *const u8, ETHERNET)
            },
            Layer::Socket => return 0,
        };
        let at = data.wrapping_add(link + F::HEADER + tcp::ACKNOWLEDGMENT);
        if at.wrapping_add(size_of::<u32>()) > end {
            return 0;
        }
        // SAFETY: within the bounds just checked.
        u32::from_be(unsafe { read(at) })
    }

    #[inline(always)]
    fn timestamp(&self, packet: &Packet<F>) -> u32 {
        match self.layer {
            Layer::Tc(_) => timestamp(&Skb(self.ctx.cast()), packet.transport, packet.is_syn()),
            Layer::Xdp => timestamp(&Frame(self.ctx.cast()), packet.transport, packet.is_syn()),
            Layer::Socket => 0,
        }
    }

    #[inline(always)]
    fn size(&self, packet: &Packet<F>) -> u32 {
        match self.layer {
            Layer::Xdp => self.size_of_frame::<F>(),
            Layer::Tc(link) => self.size_of_skb(link, packet),
            Layer::Socket => 0,
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
