//! Connections and requests.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Response, StatusCode};
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{mpsc, watch as signal},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Behaviour, Inner, Mode, Request, Resource, Shared, events,
    selector::Selector,
    state::{Resources as _, TOO_NEW, status},
    watch::{self, WatchRequest},
};

/// Accepts connections, except while the mode is to refuse them.
pub(super) async fn accept(
    address: SocketAddr,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
) {
    let mut listener = Some(listener);
    let mut cut = shared.cut.subscribe();
    loop {
        let mode = shared.lock().behaviour.mode;
        match (mode, &listener) {
            (Mode::Refuse, _) => listener = None,
            (_, Some(_)) => {}
            (_, None) => {
                listener = TcpListener::bind(address).await.ok();
                if listener.is_none() {
                    // Another process has the port for the moment.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            }
        }
        match &listener {
            // Changes to and from refusing come with a cut.
            None => drop(cut.changed().await),
            Some(listener) => tokio::select! {
                _ = cut.changed() => {}
                accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                    let shared = Arc::clone(&shared);
                    // A cut may come before the connection's task runs: the task must still see it.
                    let cut = cut.clone();
                    match tls.clone() {
                        None => drop(tokio::spawn(connection(stream, cut, shared))),
                        Some(tls) => drop(tokio::spawn(async move {
                            // Clients that do not like the certificate end the handshake.
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, cut, shared).await;
                            }
                        })),
                    }
                },
            },
        }
    }
}

/// Serves a connection until it ends or is cut.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    mut cut: signal::Receiver<u64>,
    shared: Arc<Shared>,
) {
    let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = cut.changed() => {}
        _ = serving => {}
    }
}

/// A complete body, or one that a watch keeps writing.
pub(super) enum Answer {
    Whole(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(lines) => lines.poll_recv(cx).map(|line| line.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }
}

async fn answer(
    request: http::Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Answer>, Infallible> {
    if let Some(namespace) = events::namespace(&request) {
        return Ok(create_event(request, &namespace, &shared).await);
    }
    if request.uri().path() == "/version" {
        let release = json!({"major": "1", "minor": "35", "gitVersion": "v1.35.1"});
        return Ok(respond(StatusCode::OK, whole(&release)));
    }
    let query = parse_query(request.uri().query().unwrap_or_default());
    let Some(resource) = resource_of(request.uri().path()) else {
        return Ok(refusal(404, "NotFound", "there is no such resource"));
    };
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let headers = request.headers().iter().map(header).collect();
    let request = Request { resource, query, headers, at: Instant::now() };
    shared.lock().requests.push(request.clone());
    shared.notify();

    if let Some(refusal) = treated_badly(&shared).await {
        return Ok(refusal);
    }
    let token = shared.lock().behaviour.token;
    let given = request.headers.get("authorization").map(String::as_str);
    if token.is_some_and(|token| given != Some(&format!("Bearer {token}"))) {
        return Ok(refusal(401, "Unauthorized", "Unauthorized"));
    }
    if resource == Resource::ServiceCidrs && !shared.lock().behaviour.service_cidrs {
        return Ok(refusal(404, "NotFound", "the server could not find the requested resource"));
    }
    let selector = Selector::parse(request.query.get("labelSelector"), request.query.get("fieldSelector"));
    if selector.has_special_fields() && !shared.lock().behaviour.field_selectors {
        return Ok(refusal(400, "BadRequest", "field label not supported"));
    }
    let wants_newest =
        !request.query.contains_key("resourceVersion") && !request.query.contains_key("continue");
    if wants_newest && !shared.lock().behaviour.quorum {
        return Ok(refusal(504, "Timeout", "etcdserver: request timed out"));
    }
    if request.is_watch() {
        let watch = match WatchRequest::new(&shared.lock(), &request, selector) {
            Ok(watch) => watch,
            Err((code, reason, message)) => return Ok(refusal(code, reason, message)),
        };
        let (sender, lines) = mpsc::channel(1);
        tokio::spawn(watch::run(watch, sender, shared));
        return Ok(respond(StatusCode::OK, Answer::Stream(lines)));
    }
    let cut =
        resource.is_cut() && request.query.contains_key("continue") && shared.lock().behaviour.cuts_list();
    if cut {
        shared.cut_connections();
        std::future::pending::<()>().await;
    }
    Ok(list(&request, &selector, &shared))
}

/// The answer, if the mode is not to serve.
async fn treated_badly(shared: &Shared) -> Option<Response<Answer>> {
    let Behaviour { mode, retry_after, .. } = shared.lock().behaviour;
    match mode {
        Mode::Fail(code) => {
            let mut refusal = refusal(code, "InternalError", "the stand-in was told to fail");
            if let Some(seconds) = retry_after {
                refusal.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
            }
            Some(refusal)
        }
        // Until the connection is cut.
        Mode::Hang => std::future::pending().await,
        Mode::Serve | Mode::Refuse => None,
    }
}

async fn create_event(
    request: http::Request<Incoming>,
    namespace: &str,
    shared: &Shared,
) -> Response<Answer> {
    let response = match treated_badly(shared).await {
        Some(refusal) => refusal,
        None => match events::read(request.into_body(), namespace).await {
            Ok(event) => {
                let response = respond(StatusCode::CREATED, whole(&event));
                shared.lock().events.push(event);
                response
            }
            Err(problem) => refusal(422, "Invalid", &problem),
        },
    };
    if !response.status().is_success() {
        shared.lock().events_refused += 1;
    }
    shared.notify();
    response
}

fn list(request: &Request, selector: &Selector, shared: &Shared) -> Response<Answer> {
    let Inner { state, behaviour, .. } = &mut *shared.lock();
    let oldest = request.query.get("resourceVersion");
    if oldest.and_then(|oldest| oldest.parse().ok()).is_some_and(|oldest: u64| oldest > state.version()) {
        return refusal(504, "Timeout", TOO_NEW);
    }
    let mut page = match request.query.get("continue") {
        None => state.list(request.resource, selector),
        Some(token) => match state.take_rest(token) {
            Some(page) => page,
            None => return refusal(410, "Expired", "the provided continue parameter is too old"),
        },
    };
    let is_cached = behaviour.watch_cache && oldest.is_some_and(|oldest| oldest == "0");
    let limit = request.query.get("limit").filter(|_| !is_cached);
    let limit = limit.and_then(|limit| limit.parse().ok()).unwrap_or(0);
    let token = state.cut_page(&mut page, limit);
    let body = json!({
        "kind": format!("{}List", request.resource.kind()),
        "apiVersion": request.resource.api_version(),
        "metadata": {"resourceVersion": page.version.to_string(), "continue": token},
        "items": page.items,
    });
    respond(StatusCode::OK, whole(&body))
}

fn refusal(code: u16, reason: &str, message: &str) -> Response<Answer> {
    let http_status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    respond(http_status, whole(&status(code, reason, message)))
}

fn whole(body: &Value) -> Answer {
    Answer::Whole(Some(body.to_string().into()))
}

fn respond(code: StatusCode, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn resource_of(path: &str) -> Option<Resource> {
    match path {
        "/api/v1/services" => Some(Resource::Services),
        "/apis/discovery.k8s.io/v1/endpointslices" => Some(Resource::EndpointSlices),
        "/api/v1/nodes" => Some(Resource::Nodes),
        "/apis/networking.k8s.io/v1/servicecidrs" => Some(Resource::ServiceCidrs),
        _ => None,
    }
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

/// Undoes percent encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let encoded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| byte == b'%');
        bytes.push(encoded.unwrap_or(if byte == b'+' { b' ' } else { byte }));
        rest = if encoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
