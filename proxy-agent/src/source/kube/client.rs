//! Where the API server is and who we are to it.

use std::time::Duration;

use anyhow::Context as _;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::KubeSettings;

/// Every API server's certificate has this name; it need not have the address that an override names.
const IN_CLUSTER_NAME: &str = "kubernetes.default.svc";

/// How the connection is made: credentials from the kubeconfig or the service account, address from the override.
pub(super) async fn config(settings: &KubeSettings) -> anyhow::Result<Config> {
    let address = settings.api_server.as_deref().map(parse_address).transpose()?;
    let mut config = match (&settings.kubeconfig, address) {
        (Some(path), address) => {
            let shown = path.display();
            let kubeconfig =
                Kubeconfig::read_from(path).with_context(|| format!("cannot use kubeconfig {shown}"))?;
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("cannot use kubeconfig {shown}"))?;
            if let Some(address) = address {
                config.cluster_url = address;
            }
            config
        }
        (None, Some(address)) if address.scheme_str() == Some("http") => {
            let mut config = Config::new(address);
            // There is no certificate to check: reading those of all authorities would be for nothing.
            config.root_cert = Some(Vec::new());
            config
        }
        // The environment's address is of no interest: it is usually that of a Service.
        (None, Some(address)) => {
            let mut config = Config::incluster_dns().context(NO_CREDENTIALS)?;
            config.cluster_url = address;
            config.tls_server_name = Some(IN_CLUSTER_NAME.to_owned());
            config
        }
        (None, None) => Config::incluster_env().context(NO_CREDENTIALS)?,
    };

    // The watcher has its own, which costs nothing where something comes in time: this one would wake the agent once more
    // after everything that it reads.
    config.read_timeout = None;
    config.connect_timeout = Some(Duration::from_secs(10));
    // Failures are repeated, and told, in one place: by the watcher.
    config.default_retry = false;
    Ok(config)
}

/// How much longer than a watch should last to wait for its end.
pub(super) const SLACK: Duration = Duration::from_secs(5);

const NO_CREDENTIALS: &str =
    "no --kubeconfig is given, and this is not a pod with a service account (--manifests DIR needs neither)";

fn parse_address(text: &str) -> anyhow::Result<http::Uri> {
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url: http::Uri = full
        .parse()
        .with_context(|| format!("--api-server `{text}` is not a URL like https://10.0.0.1:6443"))?;
    let known = matches!(url.scheme_str(), Some("http" | "https"));
    anyhow::ensure!(known, "--api-server `{text}` is neither an https:// nor an http:// URL");
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kube::Timing;

    const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'https://10.96.0.1:443'}}]
users: [{name: u, user: {token: secret}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
";

    fn settings(kubeconfig: Option<&str>, api_server: Option<&str>) -> KubeSettings {
        KubeSettings {
            kubeconfig: kubeconfig.map(Into::into),
            api_server: api_server.map(Into::into),
            node_name: "n1".into(),
            timing: Timing::default(),
        }
    }

    #[tokio::test]
    async fn the_override_changes_the_address_and_keeps_the_credentials() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, KUBECONFIG).unwrap();
        let path = file.path().to_str();
        for (api_server, expected) in [
            (None, "https://10.96.0.1:443/"),
            (Some("https://10.0.0.1:6443"), "https://10.0.0.1:6443/"),
            (Some("10.0.0.1:6443"), "https://10.0.0.1:6443/"),
        ] {
            let config = config(&settings(path, api_server)).await.unwrap();
            assert_eq!(config.cluster_url.to_string(), expected);
            assert!(config.auth_info.token.is_some());
            assert_eq!(config.tls_server_name, None);
        }
        let plain = config(&settings(None, Some("http://127.0.0.1:8080"))).await.unwrap();
        assert_eq!(plain.cluster_url.to_string(), "http://127.0.0.1:8080/");
    }

    #[tokio::test]
    async fn what_cannot_work_is_said_clearly() {
        for (kubeconfig, api_server, expected) in [
            (Some("/nonexistent"), None, "cannot use kubeconfig /nonexistent"),
            (None, Some("ftp://x"), "neither an https:// nor an http:// URL"),
            (None, Some("https://a b"), "is not a URL"),
            (None, Some("https://10.0.0.1"), "no --kubeconfig is given"),
        ] {
            let error = format!("{:#}", config(&settings(kubeconfig, api_server)).await.unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
