//! Random choices of both sides: the core is made to choose as the kernel did.

use anyhow::Result;
use proxy_common::{
    decide::ServiceTables as _,
    layout::{
        flow::{FlowKey, LookupPoint},
        frontend::FrontendKey,
        set::{BackendSet, SetPolicy},
    },
    packet::Packet,
};

use super::Run;
use crate::{PacketFamily, random::fixture};

impl<F: PacketFamily> Run<'_, '_, F> {
    /// A random number by which the core chooses the backend that the kernel chose, if there was a choice.
    pub(super) fn choose_as_the_kernel_did(&self, number: usize, packet: &Packet<F>) -> Result<u32> {
        const TOP: u32 = 1 << 31;
        // Another source port at each step. The kernel's choice may meet an older flow.
        let random = (number as u32) << 22;
        let native = &self.comparison.native;
        let tuple = &packet.tuple;
        let frontend = |addr| native.frontend(&FrontendKey::new(addr, tuple.dport, packet.protocol));
        let Some(target) = frontend(tuple.dst).or_else(|| frontend(F::UNSPECIFIED)) else {
            return Ok(random);
        };
        let count = |set_policy| native.set(target.service(), set_policy).count();
        if SetPolicy::ALL.into_iter().map(count).max().unwrap_or(BackendSet::EMPTY.count()) < 2 {
            return Ok(random);
        }
        let key = FlowKey::new(*tuple, packet.protocol, LookupPoint::Forward);
        let flow = self.comparison.kernel.flow(&key)?;
        Ok(if flow.is_some_and(|flow| fixture::is_second::<F>(&flow.tuple.dst)) {
            random | TOP
        } else {
            random
        })
    }
}
