//! Requests that go on while something happens.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Entry, Scenario, WEB};
use crate::cluster::{Host, Load, Protocol};

/// Time between the requests of a load: many loads leave the processors to the agents, and to other tests.
const PACE: Duration = Duration::from_millis(20);

/// How long a request may take, usually.
const PATIENCE: Duration = Duration::from_secs(2);

/// Loads of one Service, with their names.
pub struct Loads(Vec<(String, Load)>);

impl Loads {
    /// From these clients by these entries: of each protocol, with a connection or socket per request and with one that is kept.
    ///
    /// # Errors
    /// When a client cannot be started.
    pub fn start(scenario: &Scenario, ways: &[(&Host, Entry)]) -> Result<Self> {
        Self::patient(scenario, ways, PATIENCE)
    }

    /// The same where requests may take so long: a lost one fails all the same.
    ///
    /// # Errors
    /// When a client cannot be started.
    pub fn patient(scenario: &Scenario, ways: &[(&Host, Entry)], patience: Duration) -> Result<Self> {
        let mut loads = Vec::new();
        for (client, entry) in ways {
            for protocol in Protocol::ALL {
                for keep_alive in [false, true] {
                    let call = client.call(scenario.target(*entry, WEB, true)?).protocol(protocol);
                    let call = call.every(PACE).timeout(patience);
                    let call = if keep_alive { call.keep_alive() } else { call };
                    let what = format!("{} -> {entry} {protocol:?}, kept alive: {keep_alive}", client.name);
                    loads.push((what, call.load()?));
                }
            }
        }
        Ok(Self(loads))
    }

    /// Waits until each has had so many answers more.
    ///
    /// # Errors
    /// When one has none for too long.
    pub fn wait_for(&self, answers: u64) -> Result<()> {
        self.0.iter().try_for_each(|(_, load)| load.wait_for(answers))
    }

    /// Ends them.
    ///
    /// # Errors
    /// When a request failed, or a load made hardly any.
    pub fn none_failed(self) -> Result<()> {
        for (what, load) in self.0 {
            let report = load.stop()?;
            ensure!(report.failed == 0 && report.ok > 100, "{what}: {report:?}");
        }
        Ok(())
    }
}
