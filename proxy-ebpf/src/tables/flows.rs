//! Flows.

use aya_ebpf::bindings::BPF_NOEXIST;
use proxy_common::{
    decide::{FlowTables, Inserted},
    layout::{
        flow::{Flow, FlowDraft, FlowKey},
        fragment::{FragmentKey, FragmentPorts},
        outbound::Outbound,
        reply_filter::Fingerprint,
    },
};

use super::{FlowEntry, Kernel};
use crate::{family::KernelFamily, reply_filter, scratch::draft};

impl<F: KernelFamily> FlowTables<F> for Kernel {
    type Flow = FlowEntry<F>;
    type FlowDraft = &'static mut FlowDraft<F>;

    #[inline(always)]
    fn draft(&self) -> Option<&'static mut FlowDraft<F>> {
        draft::<F>()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey<F>) -> Option<FlowEntry<F>> {
        F::flow(key).map(FlowEntry)
    }

    #[inline(always)]
    fn may_be_filtered_reply(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool {
        reply_filter::contains(Fingerprint::of::<F>(addr, port, protocol))
    }

    #[inline(always)]
    fn insert_reply(&self, addr: &F::Addr, port: u16, protocol: u8) {
        reply_filter::insert(Fingerprint::of::<F>(addr, port, protocol));
    }

    #[inline(always)]
    fn replace_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool {
        F::put_flow(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey<F>) {
        F::remove_flow(key);
    }

    #[inline(always)]
    fn pending(&self, key: &FlowKey<F>) -> Option<FlowEntry<F>> {
        F::pending(key).map(FlowEntry)
    }

    #[inline(always)]
    fn insert_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Inserted {
        const EEXIST: i32 = -17;
        match F::put_pending(key, flow, BPF_NOEXIST as u64) {
            Ok(()) => Inserted::Yes,
            Err(EEXIST) => Inserted::Exists,
            Err(_) => Inserted::NoRoom,
        }
    }

    #[inline(always)]
    fn replace_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool {
        F::put_pending(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn remove_pending(&self, key: &FlowKey<F>) {
        F::remove_pending(key);
    }

    #[inline(always)]
    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound> {
        // SAFETY: the kernel gave the pointer. Two words, of which the second hardly ever changes.
        F::outbound(key).map(|outbound| unsafe { *outbound })
    }

    #[inline(always)]
    fn remember_outbound(&self, key: &FlowKey<F>, outbound: &Outbound) {
        F::put_outbound(key, outbound);
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<F>) -> Option<FragmentPorts> {
        // SAFETY: the kernel gave the pointer. Two words; a sender that reuses the identification meanwhile
        // corrupts both packets.
        F::fragment(key).map(|ports| unsafe { *ports })
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey<F>, ports: &FragmentPorts) {
        F::put_fragment(key, ports);
    }
}
