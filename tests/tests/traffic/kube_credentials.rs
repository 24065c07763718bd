//! Credentials that change while the agent runs: tokens, certificates, the address in the kubeconfig.
//!
//! Set-up: no cluster: the agent's source in this process, and stand-ins on loopback with TLS, client certificates or
//! tokens, which change.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, sync::Arc};

use proxy_agent::source::kube::KubeSettings;
use proxy_apiserver::{ApiServer, Request, Resource};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::Value;
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};

use super::kube_source::{A_AND_B, NODE, Source, TIMING, lists, node, resumptions, slice, web};

fn objects() -> [Value; 5] {
    [web("a"), web("b"), slice("a-1", "a", &[1]), slice("b-1", "b", &[2]), node(NODE, "192.0.2.1")]
}

fn fill(server: &ApiServer) {
    for object in objects() {
        server.apply(object).unwrap();
    }
}

/// The agent with `config` in a folder.
fn source(folder: &Path) -> Source {
    Source::with(KubeSettings {
        kubeconfig: Some(folder.join("config")),
        api_servers: Vec::new(),
        node_name: NODE.into(),
        timing: TIMING,
    })
}

fn write_kubeconfig(folder: &Path, server: &str, user: &str) {
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: x, contexts: [{{name: x, context: {{cluster: c, user: u}}}}],
        clusters: [{{name: c, cluster: {{server: '{server}', certificate-authority: ca.crt}}}}],
        users: [{{name: u, user: {user}}}]}}"
    );
    // As editors and configuration management do it.
    fs::write(folder.join("new"), text).unwrap();
    fs::rename(folder.join("new"), folder.join("config")).unwrap();
}

/// A certificate authority, and its certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// PEM of a certificate and its key.
    fn client(&self) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// A server at 127.0.0.1 that wants certificates of clients if there is an authority for them.
    fn server(&self, clients: Option<&Self>) -> Arc<ServerConfig> {
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = match clients {
            None => ServerConfig::builder().with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.0.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
                ServerConfig::builder().with_client_cert_verifier(verifier)
            }
        };
        Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    }

    fn write(&self, folder: &Path) {
        fs::write(folder.join("ca.crt"), self.0.pem()).unwrap();
    }
}

/// Puts a token where a symbolic link leads to, as kubelet does in the volume of a service account.
fn swap_token(folder: &Path, token: &str) {
    let versioned = format!("..{token}");
    fs::create_dir(folder.join(&versioned)).unwrap();
    fs::write(folder.join(&versioned).join("token"), token).unwrap();
    std::os::unix::fs::symlink(&versioned, folder.join("..new")).unwrap();
    fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
    if !folder.join("token").exists() {
        std::os::unix::fs::symlink("..data/token", folder.join("token")).unwrap();
    }
}

#[tokio::test]
async fn a_token_file_is_read_again_and_watches_continue() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    Authority::new().write(folder);
    let server = ApiServer::start().await.unwrap();
    fill(&server);
    server.set(|behaviour| behaviour.token = Some("one"));
    swap_token(folder, "one");
    write_kubeconfig(folder, &server.url(), "{tokenFile: token}");
    let mut source = source(folder);
    source.until_served(A_AND_B).await;
    source.until_well().await;
    // The next request fails with the old token, and is sent again with the new one at once.
    swap_token(folder, "two");
    server.set(|behaviour| behaviour.token = Some("two"));
    let before = server.requests().len();
    let watching = |requests: &[Request]| resumptions(&requests[before..], Resource::Services) >= 2;
    source.during("the next watch", server.wait_for_requests("the next watch", watching)).await.unwrap();
    server.apply(web("c")).unwrap();
    source.until_served(&[A_AND_B[0], A_AND_B[1], ("c", &[])]).await;
    assert_eq!(source.state.borrow().trouble(), None);
    assert_eq!(source.state.borrow().watches["services"].failures, 0);
    assert_eq!(lists(&server.requests(), Resource::Services), 1);
}

#[tokio::test]
async fn another_authority_and_another_client_certificate_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [first, second] = [Authority::new(), Authority::new()];
    let write_client = |(certificate, key): (String, String)| {
        fs::write(folder.join("client.crt"), certificate).unwrap();
        fs::write(folder.join("client.key"), key).unwrap();
    };
    let user = "{client-certificate: client.crt, client-key: client.key}";
    let old = ApiServer::start_tls(first.server(Some(&first))).await.unwrap();
    fill(&old);
    first.write(folder);
    write_client(first.client());
    write_kubeconfig(folder, &old.url(), user);
    let mut source = source(folder);
    source.until_served(A_AND_B).await;
    source.until_well().await;
    assert_eq!(source.state.borrow().server, Some(old.url()));

    // Another server, whose certificate the old authority did not sign, and which does not accept the old one of ours.
    let new = ApiServer::start_tls(second.server(Some(&second))).await.unwrap();
    fill(&new);
    new.apply(web("c")).unwrap();
    write_kubeconfig(folder, &new.url(), user);
    // The watches go on until they end.
    old.apply(web("d")).unwrap();
    source.until("an open watch", |store| store.all_services().count() == 3).await;
    source.until_trouble("cannot reach the API server").await;
    second.write(folder);
    write_client(second.client());
    source.until_well().await;
    new.apply(web("e")).unwrap();
    source.until("the new server", |store| store.all_services().any(|s| &*s.name.name == "e")).await;
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_read_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    Authority::new().write(folder);
    let server = ApiServer::start().await.unwrap();
    fill(&server);
    write_kubeconfig(folder, &server.url(), "{token: one}");
    let mut source = source(folder);
    source.until_served(A_AND_B).await;
    fs::write(folder.join("config"), "apiVersion: [half").unwrap();
    let before = server.requests().len();
    let watching = |requests: &[Request]| resumptions(&requests[before..], Resource::Services) >= 1;
    source.during("the next watch", server.wait_for_requests("the next watch", watching)).await.unwrap();
    server.apply(web("c")).unwrap();
    source.until_served(&[A_AND_B[0], A_AND_B[1], ("c", &[])]).await;
    assert_eq!(source.state.borrow().trouble(), None);
}
