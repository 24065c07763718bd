//! Services, EndpointSlices, ServiceCIDRs and this Node from an API server.
//!
//! Each kind is listed and then watched ([`watch`]) over a connection of its own, with the selectors that kube-proxy
//! uses. No object is kept here: each is converted and passed on at once.

mod backoff;
mod client;
mod failure;
mod subject;
mod watch;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch as state_watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::{
    subject::{Objects, Selectors, Subject},
    watch::Watcher,
};
use super::{
    SourceState, convert,
    lite::{EndpointSliceLite, HEADLESS, NodeLite, SERVICE_PROXY_NAME, ServiceCidrLite, ServiceLite},
};
use crate::model::objects::{Change, Kind};

/// For the log's filter: the library's own lines, which repeat at every attempt what is told here once per outage.
pub const REDUNDANT_LOGS: &str = "kube_client=off";

/// How to reach the API server, and whose node this is.
#[derive(Clone, Debug)]
pub struct KubeSettings {
    /// Credentials; without it the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The API server's address; without it that of the credentials. `http://` needs no credentials.
    pub api_server: Option<String>,
    /// Which Node to watch.
    pub node_name: String,
    /// How patient to be.
    pub timing: Timing,
}

/// How patient the source is. The default suits production; tests are in more of a hurry.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The server ends a watch after this long (whole seconds); a connection that is silent for much longer is dead.
    pub watch: Duration,
    /// A streaming list that is silent for this long will never end: the server cannot do it.
    pub list_silence: Duration,
    /// Before the first repetition after a failure; doubles from there.
    pub first_retry: Duration,
    /// Between repetitions at most.
    pub longest_retry: Duration,
    /// Objects in a page, where lists come in pages.
    pub page_size: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(60),
            list_silence: Duration::from_secs(30),
            first_retry: Duration::from_millis(400),
            longest_retry: Duration::from_secs(15),
            page_size: 500,
        }
    }
}

/// An API server, to be watched and told things.
pub struct Connection {
    client: Client,
    /// Its URL, for messages.
    server: String,
    settings: KubeSettings,
}

impl Connection {
    /// Reads credentials; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// When the settings cannot work: no credentials, an unreadable kubeconfig, a wrong URL.
    pub async fn new(settings: KubeSettings) -> anyhow::Result<Self> {
        let config = client::config(&settings).await?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).context("cannot set up the connection to the API server")?;
        Ok(Self { client, server, settings })
    }

    /// For the rest that there is to tell the API server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The API server's URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Watches until `cancel` or until nobody receives `changes`, through outages of any length. What is wrong is logged
    /// and shown in `state`.
    pub async fn watch(
        self,
        changes: mpsc::Sender<Change>,
        state: state_watch::Sender<SourceState>,
        cancel: CancellationToken,
    ) {
        let Self { client, server, settings } = self;
        info!("watching the API server at {server}");
        let follow = follow(&client, &server, &settings.node_name, settings.timing, &changes, &state);
        cancel.run_until_cancelled(follow).await;
    }
}

/// Watches over a connection until nobody receives `changes`. `server` is for messages.
pub async fn follow(
    client: &Client,
    server: &str,
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

    let services =
        Watcher::new(Api::<ServiceLite>::all(client.clone()), services, server, timing, changes, state);
    let slices =
        Watcher::new(Api::<EndpointSliceLite>::all(client.clone()), slices, server, timing, changes, state);
    let node = Watcher::new(Api::<NodeLite>::all(client.clone()), node, server, timing, changes, state);
    let cidrs =
        Watcher::new(Api::<ServiceCidrLite>::all(client.clone()), cidrs, server, timing, changes, state);
    futures::future::join4(services.run(), slices.run(), node.run(), cidrs.run()).await;
}
