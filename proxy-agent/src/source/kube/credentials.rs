//! The addresses of the API servers, and our credentials. All of it may change at run time: files are read again.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use http::Uri;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::KubeSettings;

/// Every API server's certificate has this name; it need not have the address that an override names.
const IN_CLUSTER_NAME: &str = "kubernetes.default.svc";

/// A pod's token and CA.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The credentials of a connection.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) config: Config,
    /// At least one.
    pub(super) addresses: Vec<Uri>,
    /// Differs when the content of any file differs.
    pub(super) fingerprint: u64,
}

/// Reads credentials: from the kubeconfig or the service account, addresses from the override.
///
/// # Errors
///
/// When the settings cannot work.
pub(super) async fn load(settings: &KubeSettings) -> anyhow::Result<Credentials> {
    let mut addresses = Vec::new();
    for address in settings.api_servers.iter().filter(|address| !address.trim().is_empty()) {
        addresses.push(parse_address(address.trim())?);
    }
    // Each file is hashed before it is read: a change in between is noticed later, not missed.
    let mut files = Fingerprint::default();
    let needs_none = addresses.iter().all(|address| address.scheme_str() == Some("http"));
    let mut config = match (&settings.kubeconfig, addresses.first()) {
        (Some(path), _) => from_kubeconfig(path, &mut files)
            .await
            .with_context(|| format!("cannot use kubeconfig {}", path.display()))?,
        (None, Some(address)) if needs_none => {
            let mut config = Config::new(address.clone());
            // Without TLS no certificate is checked: reading the roots of all authorities would be useless.
            config.root_cert = Some(Vec::new());
            config
        }
        (None, address) => {
            for file in ["token", "ca.crt"] {
                files.add(&Path::new(SERVICE_ACCOUNT).join(file));
            }
            if address.is_some() {
                // The environment's address is of no interest: it is usually that of a Service.
                let mut config = Config::incluster_dns().context(NO_CREDENTIALS)?;
                config.tls_server_name = Some(IN_CLUSTER_NAME.to_owned());
                config
            } else {
                Config::incluster_env().context(NO_CREDENTIALS)?
            }
        }
    };
    if addresses.is_empty() {
        addresses.push(config.cluster_url.clone());
    }
    config.proxy_url = config.proxy_url.filter(|url| url.host().is_some());
    ensure!(
        config.proxy_url.is_none(),
        "the kubeconfig's proxy-url and $HTTPS_PROXY are not supported: the API server must be reached directly"
    );
    Ok(Credentials { config, addresses, fingerprint: files.0.finish() })
}

async fn from_kubeconfig(path: &Path, files: &mut Fingerprint) -> anyhow::Result<Config> {
    files.add(path);
    let kubeconfig = Kubeconfig::read_from(path)?;
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let of_users = users.flat_map(|user| [&user.client_certificate, &user.client_key, &user.token_file]);
    let referenced = clusters.map(|cluster| &cluster.certificate_authority).chain(of_users);
    for file in referenced.flatten().map(PathBuf::from) {
        files.add(&file);
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    ensure!(
        config.auth_info.exec.is_none() && config.auth_info.auth_provider.is_none(),
        "its user needs a credential plugin (exec or auth-provider), which is not supported: \
         use a client certificate, a token or a tokenFile"
    );
    Ok(config)
}

/// Over the content of files. Symbolic links are followed, so a volume's `..data` swap is a change of content.
#[derive(Default)]
struct Fingerprint(DefaultHasher);

impl Fingerprint {
    fn add(&mut self, path: &Path) {
        (path, std::fs::read(path).ok()).hash(&mut self.0);
    }
}

const NO_CREDENTIALS: &str =
    "no --kubeconfig is given, and this is not a pod with a service account (--manifests DIR needs neither)";

fn parse_address(text: &str) -> anyhow::Result<Uri> {
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url: Uri = full
        .parse()
        .with_context(|| format!("--api-server `{text}` is not a URL like https://10.0.0.1:6443"))?;
    let known = matches!(url.scheme_str(), Some("http" | "https"));
    ensure!(known, "--api-server `{text}` is neither an https:// nor an http:// URL");
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

    fn settings(kubeconfig: Option<&str>, api_servers: &[&str]) -> KubeSettings {
        KubeSettings {
            kubeconfig: kubeconfig.map(Into::into),
            api_servers: api_servers.iter().map(ToString::to_string).collect(),
            node_name: "n1".into(),
            timing: Timing::default(),
        }
    }

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    #[tokio::test]
    async fn the_override_changes_the_address_and_keeps_the_credentials() {
        let file = written(KUBECONFIG);
        let path = file.path().to_str();
        let cases: [(&[&str], &[&str]); 5] = [
            (&[], &["https://10.96.0.1/"]),
            (&[""], &["https://10.96.0.1/"]),
            (&["https://10.0.0.1:6443"], &["https://10.0.0.1:6443/"]),
            (&["10.0.0.1:6443"], &["https://10.0.0.1:6443/"]),
            (&["10.0.0.1:6443", " [fd00::1]:6443"], &["https://10.0.0.1:6443/", "https://[fd00::1]:6443/"]),
        ];
        for (api_servers, expected) in cases {
            let credentials = load(&settings(path, api_servers)).await.unwrap();
            let addresses: Vec<_> = credentials.addresses.iter().map(ToString::to_string).collect();
            let expected: Vec<_> = expected.iter().map(|text| text.parse::<Uri>().unwrap()).collect();
            assert!(
                addresses.len() == expected.len()
                    && credentials.addresses.iter().zip(&expected).all(|(a, b)| a.host() == b.host()),
                "{addresses:?}"
            );
            assert!(credentials.config.auth_info.token.is_some());
            assert_eq!(credentials.config.tls_server_name, None);
        }
        let plain = load(&settings(None, &["http://127.0.0.1:8080", "http://127.0.0.1:8081"])).await.unwrap();
        assert_eq!(plain.addresses.len(), 2);
    }

    #[tokio::test]
    async fn unusable_credentials_have_clear_errors() {
        let exec = written(&KUBECONFIG.replace(
            "{token: secret}",
            "{exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, interactiveMode: Never}}",
        ));
        let proxy = written(&KUBECONFIG.replace("server:", "proxy-url: 'http://proxy:3128', server:"));
        let cases: [(Option<&str>, &[&str], &str); 6] = [
            (Some("/nonexistent"), &[], "cannot use kubeconfig /nonexistent"),
            (None, &["ftp://x"], "neither an https:// nor an http:// URL"),
            (None, &["https://10.0.0.1", "https://a b"], "is not a URL"),
            (None, &["http://10.0.0.1", "https://10.0.0.1"], "no --kubeconfig is given"),
            (exec.path().to_str(), &[], "credential plugin"),
            (proxy.path().to_str(), &[], "proxy-url"),
        ];
        for (kubeconfig, api_servers, expected) in cases {
            let error = format!("{:#}", load(&settings(kubeconfig, api_servers)).await.unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn every_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        let [config, token] = ["config", "token"].map(|name| folder.path().join(name));
        std::fs::write(&token, "one").unwrap();
        // Paths are relative to the kubeconfig.
        std::fs::write(&config, KUBECONFIG.replace("token: secret", "tokenFile: token")).unwrap();
        let settings = settings(config.to_str(), &[]);
        let before = load(&settings).await.unwrap().fingerprint;
        assert_eq!(load(&settings).await.unwrap().fingerprint, before);
        std::fs::write(&token, "two").unwrap();
        let after = load(&settings).await.unwrap().fingerprint;
        assert_ne!(after, before);
        std::fs::write(&config, KUBECONFIG).unwrap();
        assert_ne!(load(&settings).await.unwrap().fingerprint, after);
    }
}
