//! Services, EndpointSlices, ServiceCIDRs and this Node from an API server.
//!
//! Each kind is listed and then watched ([`watch`]) over a separate connection, with the selectors that kube-proxy
//! uses. No object is kept here: each is converted and passed on at once.

mod addresses;
mod backoff;
mod counts;
mod credentials;
mod failure;
mod requests;
mod subject;
mod transport;
mod trouble;
mod upkeep;
mod version;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::future::join4;
use kube::Client;
use tokio::sync::{mpsc, watch as state_watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use self::{addresses::Addresses, counts::RequestCounts};
use self::{
    subject::{Objects, Selectors, Subject},
    transport::Transport,
    watch::Watcher,
};
use super::{
    SourceState, convert,
    trimmed::{
        HEADLESS, SERVICE_PROXY_NAME, TrimmedEndpointSlice, TrimmedNode, TrimmedService, TrimmedServiceCidr,
    },
};
use crate::model::objects::{Change, Kind};

/// For the log's filter: the library's own lines, which repeat at every attempt what is logged here once per outage.
pub const REDUNDANT_LOGS: &str = "kube_client=off";

/// How to reach the API server, and whose node this is.
#[derive(Clone, Debug)]
pub struct KubeSettings {
    /// Credentials; without it the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The API servers' addresses; without any that of the credentials. `http://` needs no credentials.
    pub api_servers: Vec<String>,
    /// Which Node to watch.
    pub node_name: String,
    /// How patient to be.
    pub timing: Timing,
}

/// How patient the source is. The default suits production; tests are in more of a hurry.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The server ends a watch after this long, or up to twice as long (whole seconds).
    pub watch: Duration,
    /// A watch that sends nothing for this long, although the server sends bookmarks every minute, is checked.
    pub silence: Duration,
    /// A request is answered within this time; a plain list is complete.
    pub answer: Duration,
    /// With several addresses, an answer must begin within this time, or the next one is tried.
    pub next_address: Duration,
    /// A streaming list that is silent for this long will not end.
    pub list_silence: Duration,
    /// How long a server that does not stream lists gets no request for one.
    pub plain_lists: Duration,
    /// A watch that lives this long ends an outage: the next one begins with the first delay.
    pub settled: Duration,
    /// After an outage this long the server's version is compared with the one that was seen.
    pub long_outage: Duration,
    /// How long "forbidden" may be that of an API server that is starting.
    pub forbidden_grace: Duration,
    /// Before the first repetition after a failure; doubles from there.
    pub first_retry: Duration,
    /// Between repetitions at most.
    pub longest_retry: Duration,
    /// How often the files with credentials are read again.
    pub reload: Duration,
    /// Objects in a page, where lists come in pages.
    pub page_size: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(300),
            silence: Duration::from_secs(180),
            answer: Duration::from_secs(65),
            next_address: Duration::from_secs(15),
            list_silence: Duration::from_secs(30),
            plain_lists: Duration::from_secs(30 * 60),
            settled: Duration::from_secs(10),
            long_outage: Duration::from_secs(20),
            forbidden_grace: Duration::from_secs(10),
            first_retry: Duration::from_millis(400),
            longest_retry: Duration::from_secs(30),
            reload: Duration::from_secs(60),
            page_size: 500,
        }
    }
}

/// A connection to an API server, for watches and writes.
pub struct Connection {
    client: Client,
    transport: Arc<Transport>,
    settings: KubeSettings,
}

impl Connection {
    /// Reads credentials; nothing is sent yet. Requests are counted in `counts`.
    ///
    /// # Errors
    ///
    /// When the settings cannot work: no credentials, an unreadable kubeconfig, a wrong URL.
    pub async fn new(settings: KubeSettings, counts: RequestCounts) -> anyhow::Result<Self> {
        let transport = Transport::new(settings.clone(), counts).await?;
        Ok(Self { client: transport.client(), transport, settings })
    }

    /// For other requests to the API server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The URL of the API server in use.
    pub fn server(&self) -> String {
        self.transport.addresses().current()
    }

    /// Watches until `cancel` or until the receiver of `changes` is gone, through outages of any length. Problems are
    /// logged and shown in `state`.
    pub async fn watch(
        self,
        changes: mpsc::Sender<Change>,
        state: state_watch::Sender<SourceState>,
        cancel: CancellationToken,
    ) {
        let Self { client, transport, settings } = self;
        let servers = transport.addresses();
        info!("watching the API server at {}", servers.all());
        let follow = follow(&client, servers, &settings.node_name, settings.timing, &changes, &state);
        let upkeep = upkeep::run(&transport, &client, settings.timing, &state);
        tokio::select! {
            () = cancel.cancelled() => {}
            () = follow => {}
            () = upkeep => {}
        }
    }
}

/// Watches over a connection until the receiver of `changes` is gone. `servers` is for messages.
pub async fn follow(
    client: &Client,
    servers: &Arc<Addresses>,
    node_name: &str,
    timing: Timing,
    changes: &mpsc::Sender<Change>,
    state: &state_watch::Sender<SourceState>,
) {
    let services = Subject {
        objects: Objects::Listed(Kind::Service),
        convert: convert::service,
        gone: Change::ServiceGone,
        selectors: Selectors {
            labels: Some(format!("!{}", SERVICE_PROXY_NAME)),
            fields: Some("spec.clusterIP!=None".to_owned()),
        },
    };
    let slices = Subject {
        objects: Objects::Listed(Kind::EndpointSlice),
        convert: convert::endpoint_slice,
        gone: Change::EndpointSliceGone,
        selectors: Selectors { labels: Some(format!("!{}", HEADLESS)), fields: None },
    };
    let node = Subject {
        objects: Objects::ThisNode,
        convert: convert::node,
        gone: |_| Change::NodeGone,
        selectors: Selectors { labels: None, fields: Some(format!("metadata.name={node_name}")) },
    };
    let cidrs = Subject {
        objects: Objects::Optional(Kind::ServiceCidr),
        convert: convert::service_cidr,
        gone: |name| Change::ServiceCidrGone(convert::service_cidr_name(&name.name)),
        selectors: Selectors { labels: None, fields: None },
    };

    let services = Watcher::<TrimmedService>::new(client, services, servers, timing, changes, state);
    let slices = Watcher::<TrimmedEndpointSlice>::new(client, slices, servers, timing, changes, state);
    let node = Watcher::<TrimmedNode>::new(client, node, servers, timing, changes, state);
    let cidrs = Watcher::<TrimmedServiceCidr>::new(client, cidrs, servers, timing, changes, state);
    join4(services.run(), slices.run(), node.run(), cidrs.run()).await;
}

#[cfg(test)]
mod tests;
