//! The conformance table on the pure core: objects through the agent's conversion, store and planner into tables in
//! memory, and each probe decided by the code that the programs in the kernel run.

mod check;
mod family;
mod fill;
mod node;
mod walk;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::Result;
use proxy_conformance::{Case, Expect, HOSTS, Rule, Step, ready};
use serde_json::json;

use self::walk::Datapath;

/// The failures in a rule's steps for one family.
pub(crate) fn failures(rule: &Rule, case: &Case) -> Vec<String> {
    let mut cluster = check::Cluster::new(case);
    let mut failures = Vec::new();
    for (number, step) in rule.core_steps(case).iter().enumerate() {
        if let Err(error) = cluster.apply(&step.objects) {
            failures.push(format!("step {}: {error:#}", number + 1));
        }
        for probe in &step.probes {
            if let Err(error) = cluster.check(probe) {
                let what = format!("{} -> {} by {:?}", probe.from, probe.to, probe.protocol);
                failures.push(format!("step {}: {what}: {error:#}", number + 1));
            }
        }
    }
    failures
}

/// By whom each pod is answered over TCP and over UDP, by a service with affinity and six endpoints.
pub(crate) fn endpoints_with_affinity() -> Result<Vec<[BTreeSet<SocketAddr>; 2]>> {
    let case = Case { number: 250, id: "affinity-per-port", ipv4: true };
    let pods = HOSTS.iter().copied().filter(|place| place.starts_with("pod"));
    let endpoints: Vec<_> = pods.clone().map(ready).collect();
    let service = case.service().with(json!({"spec": {"sessionAffinity": "ClientIP"}}));
    let mut cluster = check::Cluster::new(&case);
    cluster.apply(&[service, case.slice(&endpoints)])?;
    pods.map(|pod| {
        let step = Step::default().probe(pod, case.vip(), Expect::Refused);
        let [tcp, udp] = [&step.probes[0], &step.probes[1]]
            .map(|probe| cluster.found(probe, Datapath::Packets, 10, Duration::ZERO));
        Ok([tcp?, udp?])
    })
    .collect()
}
