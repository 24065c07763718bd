//! Sends requests to one of several API servers, with credentials that may change. The client library is on top of it.
//!
//! A request goes to the address in use. If no connection is made, or no answer begins in time, it goes to the next
//! address at once; only when all have failed the request has failed. Credentials are read again after each failure that
//! they may be the reason of, and now and then. Answers that are still being read do not depend on any of this.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client,
    client::{Body, ConfigExt as _, middleware::BaseUriLayer},
    core::{Status, response::StatusDetails},
};
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder, ServiceExt as _, util::BoxCloneService};
use tracing::{info, warn};

use super::{
    KubeSettings,
    addresses::Addresses,
    counts::RequestCounts,
    credentials::{self, Credentials},
};
use crate::PLATFORM;

type Http = BoxCloneService<Request<Body>, Response<Incoming>, BoxError>;

/// For a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection that is idle for so long is probed, three times, ten seconds apart: watches may be quiet.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// The most that is read at once. Each connection keeps a buffer as large as that; hyper's default is 400 KiB.
const READ_BUFFER: usize = 64 << 10;
/// A refusal is not longer than this.
const MAX_REFUSAL: usize = 64 << 10;

pub(super) struct Transport {
    settings: KubeSettings,
    addresses: Arc<Addresses>,
    counts: RequestCounts,
    user_agent: HeaderValue,
    current: Mutex<Current>,
}

struct Current {
    http: Http,
    fingerprint: u64,
    /// Why the files could not be used the last time.
    problem: Option<String>,
}

impl Transport {
    /// Reads credentials; nothing is sent yet.
    pub(super) async fn new(settings: KubeSettings, counts: RequestCounts) -> anyhow::Result<Arc<Self>> {
        let credentials = credentials::load(&settings).await?;
        let http = http(&credentials)?;
        Ok(Arc::new(Self {
            settings,
            addresses: Arc::new(Addresses::new(credentials.addresses)),
            counts,
            user_agent: user_agent()?,
            current: Mutex::new(Current { http, fingerprint: credentials.fingerprint, problem: None }),
        }))
    }

    pub(super) fn addresses(&self) -> &Arc<Addresses> {
        &self.addresses
    }

    /// A client that sends through this.
    pub(super) fn client(self: &Arc<Self>) -> Client {
        let this = Arc::clone(self);
        let service = tower::service_fn(move |request| {
            let this = Arc::clone(&this);
            async move { this.send(request).await }
        });
        Client::new(service, "default")
    }

    /// Reads the files again, and uses them if they have changed. Returns whether others than `seen` are in use now.
    pub(super) async fn reload(&self, seen: Option<u64>) -> bool {
        let loaded = credentials::load(&self.settings).await;
        let mut current = self.current();
        match loaded.and_then(|credentials| self.adopt(&mut current, credentials)) {
            Ok(()) => current.problem = None,
            Err(error) => {
                let problem = Some(format!("{error:#}"));
                if current.problem != problem {
                    warn!("{error:#}: keeping the previous credentials");
                    current.problem = problem;
                }
            }
        }
        seen.is_some_and(|seen| seen != current.fingerprint)
    }

    fn adopt(&self, current: &mut Current, credentials: Credentials) -> anyhow::Result<()> {
        if credentials.fingerprint != current.fingerprint {
            current.http = http(&credentials)?;
            current.fingerprint = credentials.fingerprint;
            info!("the credentials for the API server have changed: new requests use them");
        }
        self.addresses.replace(credentials.addresses);
        Ok(())
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let (mut parts, body) = request.into_parts();
        parts.headers.insert(header::USER_AGENT, self.user_agent.clone());
        let body = body.collect_bytes().await?;
        let copy = || Request::from_parts(parts.clone(), Body::from(body.clone()));
        let seen = self.current().fingerprint;
        let answer = self.to_any(copy).await;
        let about_credentials = match &answer {
            Ok(response) => response.status() == StatusCode::UNAUTHORIZED,
            Err(error) => is_not_connected(error),
        };
        if about_credentials && self.reload(Some(seen)).await { self.to_any(copy).await } else { answer }
    }

    /// Sends to one address after another until one answers.
    async fn to_any(&self, request: impl Fn() -> Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let addresses = self.addresses.in_order();
        let mut failed = None;
        for (n, address) in addresses.iter().enumerate() {
            let request = request();
            // A write may have been done already, unless no connection was made.
            let repeatable = request.method() == Method::GET;
            let is_last = n + 1 == addresses.len();
            match self.to_one(address, request, repeatable && !is_last).await {
                Ok(response) => return self.answered(address, response).await,
                Err(error) if repeatable || is_not_connected(&error) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(failed.unwrap_or_else(|| "no address".into()))
    }

    async fn to_one(
        &self,
        address: &Uri,
        request: Request<Body>,
        is_urgent: bool,
    ) -> Result<Response<Incoming>, BoxError> {
        let http = self.current().http.clone();
        let http = ServiceBuilder::new().layer(BaseUriLayer::new(address.clone())).service(http);
        let method = request.method().clone();
        let began = Instant::now();
        let answer = http.oneshot(request);
        let answer = if is_urgent {
            timeout(self.settings.timing.next_address, answer)
                .await
                .unwrap_or_else(|_| Err(Box::new(TooSlow)))
        } else {
            answer.await
        };
        let code = answer.as_ref().ok().map(|response| response.status().as_u16());
        self.counts.count(&method, address, code, began.elapsed());
        answer
    }

    async fn answered(
        &self,
        address: &Uri,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, BoxError> {
        let status = response.status();
        // 504: it is behind, or etcd is away from it.
        if [502, 503, 504].contains(&status.as_u16()) {
            self.addresses.unavailable(address);
        } else {
            self.addresses.answered(address);
        }
        let seconds = retry_after(&response)
            .filter(|_| status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error());
        match seconds {
            // The library drops headers of refusals: this one goes where the API has a place for it.
            Some(seconds) => Err(refusal(response, seconds).await.into()),
            None => Ok(response),
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address took a request and did not begin to answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer in time")]
struct TooSlow;

/// Whether no connection was made, so that the server cannot have done anything.
fn is_not_connected(error: &BoxError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        if error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn http(credentials: &Credentials) -> anyhow::Result<Http> {
    let config = &credentials.config;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(3));
    let what = "cannot set up the connection to the API server";
    let mut connector =
        TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp).context(what)?);
    connector.set_connect_timeout(Some(CONNECT));
    let client =
        legacy::Client::builder(TokioExecutor::new()).http1_max_buf_size(READ_BUFFER).build(connector);
    let service = ServiceBuilder::new()
        .option_layer(config.auth_layer().context(what)?)
        .layer(config.extra_headers_layer().context(what)?)
        .map_err(BoxError::from)
        .service(client);
    Ok(BoxCloneService::new(service))
}

/// `proxy-agent/VERSION (linux/amd64)`.
fn user_agent() -> anyhow::Result<HeaderValue> {
    let agent = concat!("proxy-agent/", env!("CARGO_PKG_VERSION"));
    Ok(HeaderValue::try_from(format!("{agent} ({PLATFORM})"))?)
}

/// Seconds; the API server sends no dates.
fn retry_after<B>(response: &Response<B>) -> Option<u32> {
    response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

async fn refusal(response: Response<Incoming>, seconds: u32) -> kube::Error {
    let code = response.status().as_u16();
    let body = timeout(CONNECT, Limited::new(response.into_body(), MAX_REFUSAL).collect()).await;
    let body = body.ok().and_then(Result::ok).map_or_else(Bytes::new, http_body_util::Collected::to_bytes);
    let text = || String::from_utf8_lossy(&body).trim().to_owned();
    let mut status: Status =
        serde_json::from_slice(&body).unwrap_or_else(|_| Status::failure(&text(), "Unknown"));
    status.code = code;
    status.details.get_or_insert_with(no_details).retry_after_seconds = seconds;
    kube::Error::Api(Box::new(status))
}

fn no_details() -> StatusDetails {
    StatusDetails {
        name: String::new(),
        group: String::new(),
        kind: String::new(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    }
}
