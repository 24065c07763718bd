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
    source::{self, SourceState, kube::KubeSettings},
};

/// Where Services come from.
pub(super) struct Origin {
    node_name: String,
    kind: Kind,
}

enum Kind {
    Manifests(PathBuf),
    Kubernetes(KubeSettings),
}

impl Origin {
    pub(super) fn of(settings: &Settings) -> Self {
        let node_name = settings.node_name.clone();
        let kind = match &settings.manifests {
            Some(folder) => Kind::Manifests(folder.clone()),
            None => Kind::Kubernetes(KubeSettings {
                kubeconfig: settings.kubeconfig.clone(),
                api_server: settings.api_server.clone(),
                node_name: node_name.clone(),
                timing: source::kube::Timing::default(),
            }),
        };
        Self { node_name, kind }
    }

    /// Where Events go to: nowhere without an API server.
    pub(super) async fn events(&self, cancel: CancellationToken) -> Result<Events> {
        match &self.kind {
            Kind::Manifests(_) => Ok(Events::nowhere()),
            Kind::Kubernetes(settings) => {
                Ok(Events::to(source::kube::client(settings).await?, &self.node_name, cancel))
            }
        }
    }

    /// Begins to send changes.
    pub(super) fn start(
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
            Kind::Kubernetes(settings) => tokio::spawn(source::kube::run(settings, changes, state, cancel)),
        }
    }
}
