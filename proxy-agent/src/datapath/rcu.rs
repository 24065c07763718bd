//! Many links attached at a time: each waits for an RCU grace period of the kernel with its lock of all interfaces held
//! (`tcx_entry_sync`), so two programs each at a thousand interfaces would take half a minute.

use std::fs;

use crate::host;

/// Makes grace periods short (`/sys/kernel/rcu_expedited`, by inter-processor interrupts) until it is dropped.
pub(super) struct Expedited(());

const FILE: &str = "/sys/kernel/rcu_expedited";

impl Expedited {
    /// Begins; `None` if another process did, or it is not permitted: then everything takes longer.
    pub(super) fn begin() -> Option<Self> {
        let is_off = fs::read_to_string(FILE).is_ok_and(|value| value.trim() == "0");
        (is_off && host::write(FILE, "1").is_ok()).then_some(Self(()))
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Err(error) = host::write(FILE, "0") {
            tracing::warn!("cannot write 0 to {FILE}: {error}");
        }
    }
}
