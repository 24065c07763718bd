//! A configuration file that changes: the agent ends, to be started again with it, but not for one that cannot work.

use std::{net::TcpListener, sync::Arc};

use anyhow::{Context as _, Result, anyhow, bail};
use tracing::info;

use super::turn::Observed;
use crate::{
    check,
    config::{self, Loaded, LoadedFile, Settings},
    observe::{Health, Metrics},
};

/// Where the agent reports a file that cannot be used.
pub(super) struct FailureReport {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl FailureReport {
    pub(super) fn by(observed: &Observed) -> Self {
        Self { health: observed.health.clone(), metrics: observed.metrics.clone() }
    }

    fn report(&self, why: Option<String>) {
        self.metrics.set_configuration_rejected(why.is_some());
        let problem = why.map(|why| format!("the changed configuration is not used: {why}"));
        self.health.set_problems("configuration", problem.into_iter().collect());
    }
}

/// Resolves when the configuration file changed to one that can work, to the reason to end.
pub(super) async fn configuration_changed(loaded: &Loaded, failure_report: FailureReport) -> anyhow::Error {
    let Some(file) = &loaded.file else {
        return std::future::pending().await;
    };
    let shared = Arc::new(loaded.clone());
    let trial = |text| {
        let loaded = shared.clone();
        async move { trial(&loaded, text).await }
    };
    config::watch::changed(file, trial, |why| failure_report.report(why)).await;
    let path = file.path.display();
    info!("the configuration {path} changed: ending, to be started again with it");
    anyhow!("the configuration {path} changed: the agent must be started again")
}

/// Fails if an agent would not start with this text, or not serve.
async fn trial(loaded: &Loaded, text: String) -> Result<()> {
    let path = loaded.file.as_ref().context("no configuration file")?.path.clone();
    let shown = path.display().to_string();
    let new = config::understand(&loaded.args, &loaded.log, Some(LoadedFile { path, text }))?;
    let cannot = || format!("cannot use the configuration {shown}");
    try_addresses(&new.settings).with_context(cannot)?;
    let source = |settings: &Settings| (settings.kubeconfig.clone(), settings.node_name.clone());
    if new.settings.manifests.is_none() && source(&new.settings) != source(&loaded.settings) {
        let is_renamed = new.settings.node_name != loaded.settings.node_name;
        if let Some(trouble) = check::api_server_trouble(&new.settings, is_renamed).await {
            return Err(anyhow!(trouble)).with_context(cannot);
        }
    }
    Ok(())
}

/// With `bindAddressHardFail` an agent ends when it cannot listen.
fn try_addresses(settings: &Settings) -> Result<()> {
    if !settings.bind_address_hard_fail {
        return Ok(());
    }
    for address in [settings.healthz_bind_address, settings.metrics_bind_address] {
        // Another port: this agent has those that are used now.
        if let Err(error) = TcpListener::bind((address.ip(), 0)) {
            bail!("nothing can listen at {address}: {error}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[tokio::test]
    async fn what_would_end_the_next_agent_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.conf");
        std::fs::write(&path, HEADER).unwrap();
        let config = format!("--config={}", path.display());
        let cli = Cli::parse_from([
            "proxy-agent",
            "run",
            "--node-name=n",
            "--api-server=http://127.0.0.1:1",
            &config,
        ]);
        let Command::Run(args) = &cli.command else { panic!("not run") };
        let loaded = config::load(args, &cli.log).unwrap();
        for (text, expected) in [
            ("mode: ipvs", None),
            ("bindAddressHardFail: true", None),
            ("bindAddressHardFail: true\nhealthzBindAddress: 203.0.113.7:1", Some("203.0.113.7:1")),
            ("healthzBindAddress: 203.0.113.7:1", None),
            ("clientConnection: {kubeconfig: /no/such/file}", Some("/no/such/file")),
            ("oomScoreAdj: 5000", Some("5000")),
        ] {
            let result = trial(&loaded, format!("{HEADER}{text}")).await;
            match expected {
                None => assert!(result.is_ok(), "{text}: {result:?}"),
                Some(part) => {
                    let error = format!("{:#}", result.unwrap_err());
                    assert!(error.contains(part) && error.contains("config.conf"), "{text}: {error}");
                }
            }
        }
    }
}
