//! Where Services come from, and where Events go to.

use std::path::PathBuf;

use anyhow::Result;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    config::Settings,
    model::objects::Change,
    observe::Events,
    source::{
        self, SourceState,
        kube::{Connection, KubeSettings, RequestCounts},
    },
};

/// Where Services come from.
pub(crate) struct Source {
    node_name: String,
    kind: Kind,
    /// Requests to the API server.
    requests: RequestCounts,
}

enum Kind {
    Manifests(PathBuf),
    Kubernetes(Box<Connection>),
}

impl Source {
    /// # Errors
    /// When an API server cannot be reached by any means with these settings.
    pub(crate) async fn of(settings: &Settings) -> Result<Self> {
        let node_name = settings.node_name.clone();
        let requests = RequestCounts::default();
        let kind = match &settings.manifests {
            Some(folder) => Kind::Manifests(folder.clone()),
            None => {
                let settings = KubeSettings {
                    kubeconfig: settings.kubeconfig.clone(),
                    api_servers: settings.api_servers.clone(),
                    node_name: node_name.clone(),
                    timing: source::kube::Timing::default(),
                };
                Kind::Kubernetes(Box::new(Connection::new(settings, requests.clone()).await?))
            }
        };
        Ok(Self { node_name, kind, requests })
    }

    /// Counts of the requests to the API server.
    pub(crate) fn requests(&self) -> &RequestCounts {
        &self.requests
    }

    /// Where Events go to: nowhere without an API server.
    pub(crate) fn events(&self, cancel: CancellationToken) -> Events {
        match &self.kind {
            Kind::Manifests(_) => Events::nowhere(),
            Kind::Kubernetes(connection) => Events::to(connection.client(), &self.node_name, cancel),
        }
    }

    /// Begins to send changes.
    pub(crate) fn start(
        self,
        changes: mpsc::Sender<Change>,
        state: watch::Sender<SourceState>,
        cancel: CancellationToken,
    ) -> JoinHandle<Result<()>> {
        match self.kind {
            Kind::Manifests(folder) => {
                info!("reading Services and EndpointSlices from {}", folder.display());
                tokio::spawn(source::manifests::run(folder, self.node_name, changes, state, cancel))
            }
            Kind::Kubernetes(connection) => tokio::spawn(async move {
                connection.watch(changes, state, cancel).await;
                Ok(())
            }),
        }
    }
}
