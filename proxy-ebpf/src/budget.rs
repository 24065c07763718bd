//! How many flows may be opened that nobody answers; see [`Budget`].

use aya_ebpf::helpers::generated::bpf_jiffies64;
use proxy_common::{
    Family,
    layout::budget::{Budget, BudgetRate},
};

use crate::{
    maps,
    settings::{JIFFIES, NEW_FLOWS},
};

/// Counts one more flow, if there is room for it.
#[inline(always)]
pub(crate) fn admit<F: Family>() -> bool {
    let rate = BudgetRate { flows: NEW_FLOWS.load(), hz: JIFFIES.load() };
    if rate.flows == 0 {
        return true;
    }
    let Some(budget) = maps::NEW_FLOWS.get_ptr_mut(Budget::index::<F>()) else { return true };
    // SAFETY: the kernel gave the pointer; other CPUs may write meanwhile. At worst the bucket leaks once more, or a flow
    // is not counted.
    unsafe {
        let now = bpf_jiffies64();
        let elapsed = now.wrapping_sub((*budget).since);
        let mut level = (&raw const (*budget).level).read_volatile();
        if elapsed >= Budget::STEP {
            (*budget).since = now;
            level = Budget::leaked(level, elapsed, rate);
            (&raw mut (*budget).level).write_volatile(level);
        }
        if Budget::is_full(level, rate) {
            return false;
        }
        add(&raw mut (*budget).level, rate.hz as i64);
    }
    true
}

/// A flow was answered: it is counted no more.
#[inline(always)]
pub(crate) fn answered<F: Family>() {
    if NEW_FLOWS.load() == 0 {
        return;
    }
    if let Some(budget) = maps::NEW_FLOWS.get_ptr_mut(Budget::index::<F>()) {
        // SAFETY: the kernel gave the pointer.
        unsafe { add(&raw mut (*budget).level, -(JIFFIES.load() as i64)) };
    }
}

/// # Safety
/// The pointer is one into a map.
#[inline(always)]
unsafe fn add(to: *mut i64, what: i64) {
    // SAFETY: the caller's promise; one instruction, which all kernels know.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) to, in(reg) what) };
}
