//! `debug explain`: each endpoint of a Service, whether this node uses it, and why. Reads the Service from the agent's source, and
//! compares it with the maps.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{backends, names};
use crate::{
    cli::{ExplainArgs, LogArgs},
    config::{self, Settings},
    datapath::pins::Pins,
    model::{
        explain::{Explained, explain},
        objects::ObjectName,
        planner::NodeContext,
        store::Store,
    },
    output::{self, OutputFormat, Row, or_dash},
    service_source::Source,
    source::SourceState,
};

/// For the first complete lists.
const PATIENCE: Duration = Duration::from_secs(30);
/// For the Node object, when the lists are complete: it may not exist.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

/// An endpoint of a Service port.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExplainRow {
    port: String,
    protocol: String,
    endpoint: SocketAddr,
    node: Option<String>,
    /// Which clients get it, by the Service.
    used: Vec<&'static str>,
    /// Which clients get it, by the maps; `None`: the maps do not have it.
    in_maps: Option<Vec<&'static str>>,
    why: String,
}

impl Row for ExplainRow {
    const HEADER: &'static [&'static str] =
        &["PORT", "PROTOCOL", "ENDPOINT", "NODE", "USED", "IN MAPS", "WHY"];

    fn cells(&self) -> Vec<String> {
        let list = |names: &[&str]| if names.is_empty() { "no".to_owned() } else { names.join(",") };
        vec![
            or_dash((!self.port.is_empty()).then_some(&self.port)),
            self.protocol.clone(),
            self.endpoint.to_string(),
            or_dash(self.node.as_ref()),
            list(&self.used),
            self.in_maps.as_deref().map_or_else(|| "-".to_owned(), list),
            self.why.clone(),
        ]
    }
}

/// Reads the Service and explains it.
pub(super) fn run(pins: &Pins, args: &ExplainArgs, format: OutputFormat) -> Result<String> {
    let settings = config::load(&args.run, &LogArgs::default())?.settings;
    let (namespace, name) = args.service.split_once('/').context("the Service has no namespace")?;
    let name = ObjectName::new(namespace, name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let store = runtime.block_on(read(&settings))?;
    let Some(service) = store.service(&name) else {
        bail!(
            "Service {name} is not served: it does not exist, is headless or of type ExternalName, or another proxy's by \
             the label service.kubernetes.io/service-proxy-name"
        );
    };
    let node_context = NodeContext::new(&settings.node_name, &store);
    let slices: Vec<_> = store.slices(&name).collect();
    let (explained, unused) = explain(service, slices.iter().copied(), node_context);
    let in_maps = Maps::read(pins, &name);
    let rows: Vec<ExplainRow> = explained.into_iter().map(|it| row(it, in_maps.as_ref())).collect();
    if rows.is_empty() && unused.is_empty() {
        let label = "kubernetes.io/service-name";
        eprintln!("no EndpointSlice with the label {label}: {} has endpoints for a port of it", name.name);
    }
    unused.iter().for_each(|line| eprintln!("{line}"));
    output::render(&rows, format)
}

/// A Service's entries in the maps: sets by port, protocol and endpoint.
struct Maps(BTreeMap<(String, &'static str, SocketAddr), Vec<&'static str>>);

impl Maps {
    /// `None`: without maps.
    fn read(pins: &Pins, name: &ObjectName) -> Option<Self> {
        let of_service = |service: &str| {
            let rest = service.strip_prefix(&name.to_string())?;
            if rest.is_empty() { Some(String::new()) } else { Some(rest.strip_prefix(':')?.to_owned()) }
        };
        let rows = backends::read(pins).ok()?;
        let entry = |row: backends::BackendRow| {
            Some(((of_service(&row.service)?, row.protocol, row.endpoint), row.sets))
        };
        Some(Self(rows.into_iter().filter_map(entry).collect()))
    }
}

fn row(explained: Explained, maps: Option<&Maps>) -> ExplainRow {
    let Explained { port, protocol, endpoint, node, internal, external, cluster, why } = explained;
    let used = [(internal, "clusterIP"), (external, "external"), (cluster, "cluster")];
    let protocol = names::protocol_text(Some(protocol));
    let key = (port.to_string(), protocol, endpoint);
    ExplainRow {
        used: used.into_iter().filter(|(is_used, _)| *is_used).map(|(_, name)| name).collect(),
        in_maps: maps.map(|maps| maps.0.get(&key).cloned().unwrap_or_default()),
        port: key.0,
        protocol: protocol.to_owned(),
        endpoint,
        node: node.map(|node| node.to_string()),
        why,
    }
}

/// All objects, and this node's as far as there is one.
async fn read(settings: &Settings) -> Result<Store> {
    let (changes, mut inbox) = mpsc::channel(4096);
    let (state, source) = watch::channel(SourceState::default());
    let cancel = CancellationToken::new();
    let service_source = Source::of(settings).await?;
    let task = service_source.start(changes, state, cancel.clone());
    let mut store = Store::new();
    let lists = async {
        while !store.is_complete() {
            let change = inbox.recv().await.context("the source of Services ended")?;
            store.apply(change);
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(PATIENCE, lists).await {
        Ok(result) => result?,
        Err(_) => {
            let state = source.borrow();
            let trouble = state.trouble().map_or("", |trouble| trouble.message.as_str());
            bail!("the Services were not complete after {PATIENCE:?}: {trouble}");
        }
    }
    let node = async {
        while store.node().is_none() {
            let Some(change) = inbox.recv().await else { break };
            store.apply(change);
        }
    };
    // Without the Node object, hints have no zone to name.
    let _ = tokio::time::timeout(NODE_PATIENCE, node).await;
    cancel.cancel();
    task.abort();
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::objects::Protocol;

    #[test]
    fn the_service_and_the_maps_side_by_side() {
        let endpoint: SocketAddr = "10.244.0.1:8080".parse().unwrap();
        let explained = || Explained {
            port: "http".into(),
            protocol: Protocol::Tcp,
            endpoint,
            node: Some("node-2".into()),
            internal: false,
            external: true,
            cluster: true,
            why: "because".to_owned(),
        };
        let line = |maps: Option<&Maps>| row(explained(), maps).cells().join(" ");
        let there = Maps([(("http".to_owned(), "TCP", endpoint), vec!["external", "cluster"])].into());
        assert_eq!(
            line(Some(&there)),
            "http TCP 10.244.0.1:8080 node-2 external,cluster external,cluster because"
        );
        assert_eq!(
            line(Some(&Maps(BTreeMap::new()))),
            "http TCP 10.244.0.1:8080 node-2 external,cluster no because"
        );
        assert_eq!(line(None), "http TCP 10.244.0.1:8080 node-2 external,cluster - because");
    }
}
