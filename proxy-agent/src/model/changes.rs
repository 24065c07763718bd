//! The differences between two plans of a Service, in words for the log.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;

use super::plan::{Frontend, PortPlan};

/// A difference between two plans of one Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanChange<'a> {
    /// The port is new.
    Added(&'a PortPlan),
    /// Its frontends or endpoints differ.
    Changed {
        /// The previous plan.
        from: &'a PortPlan,
        /// The new plan.
        to: &'a PortPlan,
    },
    /// The port is gone.
    Removed(&'a PortPlan),
}

/// The differences between two lists of plans: changed and added ports in the order of `new`, then removed ones.
pub fn changes<'a>(old: &'a [PortPlan], new: &'a [PortPlan]) -> Vec<PlanChange<'a>> {
    let mut before: BTreeMap<_, _> = old.iter().map(|plan| (&plan.name, plan)).collect();
    let mut found: Vec<_> = new
        .iter()
        .filter_map(|to| match before.remove(&to.name) {
            None => Some(PlanChange::Added(to)),
            Some(from) => (from != to).then_some(PlanChange::Changed { from, to }),
        })
        .collect();
    found.extend(before.into_values().map(PlanChange::Removed));
    found
}

impl fmt::Display for PlanChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(plan) => write!(f, "service {} added: {}", plan.name, Summary(plan)),
            Self::Removed(plan) => write!(f, "service {} removed: {}", plan.name, Frontends(plan)),
            Self::Changed { from, to } => {
                write!(f, "service {} changed: {}", to.name, Summary(to))?;
                let gained = to.cluster.iter().filter(|address| !from.cluster.contains(address));
                gained.take(SHOWN).try_for_each(|address| write!(f, " +{address}"))?;
                let lost = from.cluster.iter().filter(|address| !to.cluster.contains(address));
                lost.take(SHOWN).try_for_each(|address| write!(f, " -{address}"))
            }
        }
    }
}

/// Endpoints named in one line at most, each way; source ranges too.
const SHOWN: usize = 4;

struct Frontends<'a>(&'a PortPlan);

impl fmt::Display for Frontends<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for frontend in &self.0.frontends {
            match frontend {
                // The line of the cluster IP, or of the load balancer's frontend, says it already.
                Frontend::ClusterAddress(_) | Frontend::LoadBalancerAddress(_) => continue,
                Frontend::ClusterIp(address) => write!(f, "{between}ClusterIP {address}")?,
                Frontend::ExternalIp(address) => write!(f, "{between}externalIP {address}")?,
                Frontend::LoadBalancer(address) => write!(f, "{between}LoadBalancer {address}")?,
                Frontend::NodePort(port) => write!(f, "{between}NodePort {port} ({:?})", self.0.name.family)?,
            }
            between = ", ";
        }
        write!(f, " {}", self.0.name.protocol)
    }
}

struct Summary<'a>(&'a PortPlan);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortPlan { frontends, internal, external, cluster, affinity, sources, .. } = self.0;
        write!(f, "{} -> {}", Frontends(self.0), Endpoints(cluster.len()))?;
        if internal != cluster {
            write!(f, ", {} for the cluster IP", Endpoints(internal.len()))?;
        }
        if external != cluster {
            write!(f, ", {} for clients outside", Endpoints(external.len()))?;
        }
        if let Some(time) = affinity {
            write!(f, ", a client keeps its endpoint for {} s", time.as_secs())?;
        }
        let has_load_balancer =
            frontends.iter().any(|frontend| matches!(frontend, Frontend::LoadBalancer(_)));
        if let Some(sources) = sources.as_ref().filter(|_| has_load_balancer) {
            write!(f, ", LoadBalancer {}", Sources(sources))?;
        }
        Ok(())
    }
}

struct Sources<'a>(&'a [IpNet]);

impl fmt::Display for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("denies all clients");
        }
        f.write_str("only for")?;
        for net in self.0.iter().take(SHOWN) {
            write!(f, " {net}")?;
        }
        match self.0.len() {
            0..=SHOWN => Ok(()),
            n => write!(f, " and {} more", n - SHOWN),
        }
    }
}

struct Endpoints(usize);

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("no endpoints"),
            1 => f.write_str("1 endpoint"),
            n => write!(f, "{n} endpoints"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{
        objects::{ObjectName, Protocol},
        plan::{Endpoints, IpFamily, Places, PortName},
    };

    fn plan(port: &str, endpoints: &[&str]) -> PortPlan {
        let endpoints: Endpoints = endpoints.iter().map(|e| e.parse().unwrap()).collect();
        PortPlan {
            name: PortName {
                service: ObjectName::new("default", "web"),
                port: port.into(),
                protocol: Protocol::Tcp,
                family: IpFamily::V4,
            },
            frontends: vec![Frontend::ClusterIp("10.1.2.3:80".parse().unwrap()), Frontend::NodePort(30016)],
            internal: endpoints.clone(),
            external: endpoints.clone(),
            serving: endpoints.clone(),
            cluster: endpoints,
            places: Places::default(),
            affinity: None,
            sources: None,
        }
    }

    #[test]
    fn all_settings_are_in_one_line() {
        let at = |text: &str| text.parse().unwrap();
        let ranges = |n: u8| (0..n).map(|n| format!("10.{n}.0.0/16").parse().unwrap()).collect();
        let full = PortPlan {
            frontends: vec![
                Frontend::ClusterIp(at("10.1.2.3:80")),
                Frontend::ClusterAddress("10.1.2.3".parse().unwrap()),
                Frontend::LoadBalancer(at("192.0.2.1:80")),
                Frontend::ExternalIp(at("192.0.2.2:80")),
                Frontend::NodePort(30016),
            ],
            affinity: Some(Duration::from_secs(10_800)),
            sources: Some(ranges(2)),
            ..plan("", &["1.1.1.1:1"])
        };
        let line = |plan: PortPlan| changes(&[], &[plan])[0].to_string();
        assert_eq!(
            line(full.clone()),
            "service default/web added: ClusterIP 10.1.2.3:80, LoadBalancer 192.0.2.1:80, externalIP 192.0.2.2:80, \
             NodePort 30016 (V4) TCP -> 1 endpoint, a client keeps its endpoint for 10800 s, \
             LoadBalancer only for 10.0.0.0/16 10.1.0.0/16"
        );
        for (sources, expected) in [
            (Some(ranges(6)), "only for 10.0.0.0/16 10.1.0.0/16 10.2.0.0/16 10.3.0.0/16 and 2 more"),
            (Some(vec![]), "LoadBalancer denies all clients"),
            (None, "keeps its endpoint for 10800 s"),
        ] {
            let line = line(PortPlan { sources, ..full.clone() });
            assert!(line.ends_with(expected), "{line}");
        }
        // Without a load balancer, no client is affected.
        let without = PortPlan { sources: Some(vec![]), ..plan("", &[]) };
        assert!(line(without).ends_with("-> no endpoints"));
    }

    #[test]
    fn differences_read_well() {
        let old = [plan("a", &["1.1.1.1:1"]), plan("b", &["1.1.1.1:1"]), plan("c", &["1.1.1.1:1"])];
        let mut local = plan("d", &["1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"]);
        local.external = Endpoints::default();
        let new = [plan("a", &["1.1.1.1:1"]), plan("b", &["2.2.2.2:1", "3.3.3.3:1"]), local];
        let lines: Vec<_> = changes(&old, &new).iter().map(ToString::to_string).collect();
        let frontends = "ClusterIP 10.1.2.3:80, NodePort 30016 (V4) TCP";
        assert_eq!(
            lines,
            [
                format!(
                    "service default/web:b changed: {frontends} -> 2 endpoints +2.2.2.2:1 +3.3.3.3:1 -1.1.1.1:1"
                ),
                format!(
                    "service default/web:d added: {frontends} -> 3 endpoints, no endpoints for clients outside"
                ),
                format!("service default/web:c removed: {frontends}"),
            ]
        );
        assert!(changes(&new, &new).is_empty());
    }
}
