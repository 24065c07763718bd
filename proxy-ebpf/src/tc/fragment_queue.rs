//! Fragments that come before the first one of their packet: the program queues them until that comes, and then
//! lets them come in again.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{bpf_clone_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use proxy_common::layout::{
    counter::Counter,
    fragment::{FragmentKey, MAX_QUEUED, QueuedFragment, QueuedFragmentKey},
};

use crate::{context::Skb, family::KernelFamily, maps::FRAG_BUFFER, tables::count};

/// Queues a copy of the frame; false on failure.
// A separate function, as the next one: their stack is free again for the later steps.
#[inline(never)]
pub(super) fn enqueue<F: KernelFamily>(skb: *mut __sk_buff, of: &FragmentKey<F>) -> bool {
    let Some(buffer) = FRAG_BUFFER.get_ptr_mut(0) else { return false };
    // SAFETY: the context is readable; this CPU's own element, whose length the mask bounds; the helper checks
    // the packet.
    unsafe {
        let length = Skb(skb).len();
        if length == 0 || length > QueuedFragment::LONGEST {
            return false;
        }
        let bytes = (&raw mut (*buffer).bytes).cast();
        if bpf_skb_load_bytes(skb.cast(), 0, bytes, QueuedFragment::bounded(length)) != 0 {
            return false;
        }
        (*buffer).length = length;
        for number in 0..MAX_QUEUED {
            if F::enqueue(&QueuedFragmentKey { of: *of, number }, &*buffer) {
                return true;
            }
        }
    }
    false
}

/// Lets the frame, a first fragment, come in again, and its queued fragments behind it; false if the queue has
/// none.
#[inline(never)]
pub(super) fn release<F: KernelFamily>(skb: *mut __sk_buff, of: &FragmentKey<F>) -> bool {
    let mut key = QueuedFragmentKey { of: *of, number: 0 };
    if F::queued(&key).is_none() {
        return false;
    }
    comes_in_again(skb);
    for number in 0..MAX_QUEUED {
        key.number = number;
        let Some(queued) = F::queued(&key) else { return true };
        // SAFETY: the kernel gave the pointer; an element that is reused meanwhile has a fragment, too. The
        // mask bounds the length; the helpers check the packet.
        unsafe {
            let length = QueuedFragment::bounded((*queued).length);
            let bytes = (&raw const (*queued).bytes).cast();
            if bpf_skb_change_tail(skb, length, 0) == 0
                && bpf_skb_store_bytes(skb, 0, bytes, length, BPF_F_RECOMPUTE_CSUM as u64) == 0
            {
                comes_in_again(skb);
                count(Counter::FragmentReleased);
            }
        }
        F::dequeue(&key);
    }
    true
}

/// A copy of the frame is received again by the interface by which it came in.
#[inline(always)]
fn comes_in_again(skb: *mut __sk_buff) {
    // SAFETY: the context; plain arguments.
    unsafe { bpf_clone_redirect(skb, Skb(skb).ifindex(), BPF_F_INGRESS as u64) };
}
