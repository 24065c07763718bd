//! Connections and sockets that live from step to step.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    super::{Expect, Probe, Protocol},
    host,
    network::Network,
};
use proxy_harness::cluster::{Load, LoadReport, Protocol as By, until};

const INTERVAL: Duration = Duration::from_millis(40);
/// An answer that does not come in this time does not come.
const TIMEOUT: Duration = Duration::from_millis(400);
/// By then a flow must have moved.
const MOVED: Duration = Duration::from_secs(5);

/// The loads that a rule keeps.
#[derive(Default)]
pub(super) struct Held {
    loads: HashMap<&'static str, Vec<Kept>>,
    agreed: HashMap<(&'static str, bool), SocketAddr>,
}

/// A load and its last known state.
struct Kept {
    by: By,
    load: Load,
    seen: LoadReport,
}

impl Held {
    /// Starts the loads of a name, or looks at them again.
    pub(super) fn check(&mut self, network: &Network<'_>, probe: &Probe, name: &'static str) -> Result<()> {
        if !self.loads.contains_key(name) {
            let from = host(network.cluster, probe.from)?;
            let protocols: &[By] =
                if probe.protocol == Protocol::Tcp { &[By::Tcp] } else { &[By::Udp, By::ConnectedUdp] };
            let start = |by: &By| {
                let call = from.call(probe.to).protocol(*by).keep_alive().timeout(TIMEOUT).every(INTERVAL);
                Ok(Kept { by: *by, load: call.load()?, seen: LoadReport::default() })
            };
            self.loads.insert(name, protocols.iter().map(start).collect::<Result<_>>()?);
        }
        for kept in self.loads.get_mut(name).into_iter().flatten() {
            kept.check(&probe.expect).with_context(|| format!("{:?} of {name:?}", kept.by))?;
            kept.seen = kept.load.report()?;
        }
        Ok(())
    }

    /// All probes that agree by a name and protocol found the same endpoint.
    pub(super) fn agree(&mut self, probe: &Probe, found: Option<SocketAddr>) -> Result<()> {
        if let (Some(name), Some(found)) = (probe.agrees, found) {
            let agreed = *self.agreed.entry((name, probe.protocol == Protocol::Tcp)).or_insert(found);
            ensure!(agreed == found, "answered by {found}, elsewhere by {agreed}");
        }
        Ok(())
    }
}

impl Kept {
    fn check(&self, expect: &Expect) -> Result<()> {
        match expect {
            Expect::Answers(endpoints) => {
                let is_right = |report: &LoadReport| {
                    report.ok > self.seen.ok && report.last_server.is_some_and(|one| endpoints.contains(&one))
                };
                until(MOVED, &format!("answers of {endpoints:?}"), || {
                    Ok(is_right(&self.load.report()?).then_some(()))
                })
                .with_context(|| format!("{:?}", self.load.report()))?;
                self.load.wait_for(3)?;
                let report = self.load.report()?;
                ensure!(is_right(&report), "{report:?}");
                Ok(())
            }
            Expect::Kept => {
                self.load.wait_for(5)?;
                let report = self.load.report()?;
                ensure!(report.failed == self.seen.failed, "{report:?}");
                ensure!(report.last_server == self.seen.last_server, "{report:?}, before {:?}", self.seen);
                Ok(())
            }
            Expect::Unanswered => {
                // Packets on their way may still arrive.
                self.load.wait_for(2)?;
                let before = self.load.report()?;
                self.load.wait_for(3)?;
                let report = self.load.report()?;
                ensure!(report.ok == before.ok, "{report:?}");
                Ok(())
            }
            other => bail!("a connection that is held cannot be {other:?}"),
        }
    }
}
