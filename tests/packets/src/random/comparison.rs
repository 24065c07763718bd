//! Both sides: the programs in the kernel, and the core over the same tables.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context as _, Result};
use proxy_common::{
    decide::memory::MemoryTables,
    layout::{
        counter::Counter,
        flow::{Flow, FlowKey, Mac, flags},
        id::Id,
    },
    packet::PROTOCOL_UDP,
};

use super::{fixture, replay::Run, steps::Step};
use crate::{Kernel, PacketFamily, SNAT};
use proxy_harness::kernel_capabilities::MissingCapability;

/// The kinds of packets met, to see that none is missing.
pub(super) type Met = BTreeMap<String, u64>;

/// The step at which the two sides differ, and how.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// Its number; `None`: the state at the end differs.
    pub(super) step: Option<usize>,
    pub(super) what: String,
}

/// Both sides.
pub(super) struct Comparison<'a, F: PacketFamily> {
    pub(super) kernel: &'a mut Kernel,
    pub(super) native: &'a mut MemoryTables<F>,
    /// Backends at the start of a run.
    serving: HashSet<Id>,
    pub(super) backends: Vec<Id>,
    /// Whether the kernel takes the ingress device of a packet.
    pub(super) takes_ingress: bool,
}

impl<'a, F: PacketFamily> Comparison<'a, F> {
    pub(super) fn new(kernel: &'a mut Kernel, native: &'a mut MemoryTables<F>) -> Result<Self> {
        let (serving, backends) = (native.alive.clone(), fixture::backends(native));
        let takes_ingress = kernel.takes_ingress()?;
        if !takes_ingress {
            MissingCapability::TestIngress.note();
        }
        Ok(Self { kernel, native, serving, backends, takes_ingress })
    }

    /// Runs from the same beginning, whatever was before; but for the reply filter, which no program clears.
    pub(super) fn run(&mut self, steps: &[(usize, Step)], met: &mut Met) -> Result<Option<Failure>> {
        self.kernel.forget_clients::<F>()?;
        self.native.flows.borrow_mut().clear();
        self.native.pending.borrow_mut().clear();
        self.native.outbound.borrow_mut().clear();
        self.native.affinity.borrow_mut().clear();
        self.native.fragments.borrow_mut().clear();
        self.native.counts.borrow_mut().clear();
        self.native.steps.borrow_mut().clear();
        self.native.now.set(1_000);
        for id in self.serving.difference(&self.native.alive) {
            self.kernel.revive(*id, self.native)?;
        }
        self.native.alive.clone_from(&self.serving);
        let counters = self.counters()?;
        let mut run = Run::new(self, met);
        for (number, step) in steps {
            let failed = run.step(*number, step).with_context(|| format!("step {number}: {step:?}"))?;
            if let Err(what) = failed {
                return Ok(Some(Failure { step: Some(*number), what }));
            }
        }
        for (counter, count) in self.native.counts.borrow().iter() {
            *met.entry(format!("counted: {}", counter.name())).or_default() += count;
        }
        Ok(self.differences(&counters)?.map(|what| Failure { step: None, what }))
    }

    fn counters(&self) -> Result<Vec<u64>> {
        Counter::ALL.iter().map(|counter| self.kernel.counter(*counter)).collect()
    }

    /// How the state after a run differs.
    fn differences(&self, before: &[u64]) -> Result<Option<String>> {
        for (what, kernel, native) in [
            ("confirmed", self.kernel.confirmed::<F>()?, &self.native.flows),
            ("unconfirmed", self.kernel.pending::<F>()?, &self.native.pending),
        ] {
            let kernel = normal(kernel.into_iter());
            let native = normal(native.borrow().iter().map(|(key, flow)| (*key, flow.get())));
            if kernel != native {
                let without = |a: &[String], b: &[String]| -> Vec<String> {
                    a.iter().filter(|flow| !b.contains(flow)).cloned().collect()
                };
                let (extra, missing) = (without(&kernel, &native), without(&native, &kernel));
                return Ok(Some(format!(
                    "entries of {what} flows: in the kernel {extra:#?}, natively {missing:#?}"
                )));
            }
        }
        let sent: HashSet<_> = self.kernel.outbound::<F>()?.into_keys().collect();
        let expected: HashSet<_> = self.native.outbound.borrow().keys().copied().collect();
        if sent != expected {
            let differ: Vec<_> = sent.symmetric_difference(&expected).collect();
            return Ok(Some(format!("what the node sent: only on one side {differ:?}")));
        }
        let kept: HashMap<_, _> =
            self.kernel.affinity::<F>()?.iter().map(|(key, kept)| (*key, kept.backend)).collect();
        let affinity = self.native.affinity.borrow();
        let expected: HashMap<_, _> = affinity.iter().map(|(key, kept)| (*key, kept.get().backend)).collect();
        if kept != expected {
            return Ok(Some(format!("affinity: in the kernel {kept:?}, natively {expected:?}")));
        }
        // Counters that the programs raise, and the core does not.
        const OTHERS: [Counter; 8] = [
            Counter::RejectSent,
            Counter::RejectLimited,
            Counter::FragmentFollowed,
            Counter::FragmentReleased,
            Counter::IcmpError,
            Counter::XdpToTc,
            Counter::FrontendTorn,
            Counter::RewriteFailed,
        ];
        for (counter, (before, after)) in Counter::ALL.iter().zip(before.iter().zip(self.counters()?)) {
            let (kernel, native) = (after - before, self.native.counter(*counter));
            if !OTHERS.contains(counter) && kernel != native {
                return Ok(Some(format!("{}: {kernel} in the kernel, {native} natively", counter.name())));
            }
        }
        Ok(None)
    }
}

/// Flow entries without the parts that each side chose for itself: ports and times.
fn normal<F: PacketFamily>(flows: impl Iterator<Item = (FlowKey<F>, Flow<F>)>) -> Vec<String> {
    let hide = |port: &mut u16| {
        if SNAT.contains(&u16::from_be(*port)) {
            *port = 0;
        }
    };
    let mut all: Vec<_> = flows
        .map(|(mut key, mut flow)| {
            flow.last_seen = 0;
            if key.protocol == PROTOCOL_UDP {
                flow.isn = 0;
            }
            if flow.flags & flags::SNAT != 0 {
                // The mark of its route.
                flow.mac = Mac::NONE;
            }
            if flow.flags & flags::REVERSE == 0 {
                hide(&mut flow.tuple.sport);
            } else {
                hide(&mut key.tuple.dport);
            }
            let ((src, dst), (sent_src, sent_dst)) = (F::ends(&key.tuple), F::ends(&flow.tuple));
            let Flow { backend, service, state, flags, mac, isn, acknowledged, timestamp, .. } = flow;
            format!(
                "edge {} protocol {}: {src} > {dst} becomes {sent_src} > {sent_dst}; \
                 {backend:?} {service:?} state {state} flags {flags} {mac:?}, isn {isn:#x}, \
                 acknowledged {acknowledged:#x}, timestamp {timestamp}",
                key.lookup_point, key.protocol
            )
        })
        .collect();
    all.sort();
    all
}
