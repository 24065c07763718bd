//! A small HTTP server for probes and scrapes: GET and HEAD of a few fixed paths.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How long to wait before an address that is taken is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// How long a client may take to send its request, and how long an idle connection is kept.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections served at the same time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 64;

/// What is sent for a path.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body's media type.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// The answer to a path, if the path exists.
pub type Routes = Arc<dyn Fn(&str) -> Option<Answer> + Send + Sync>;

/// Answers at an address until cancelled. While it is taken this is logged and tried again: the agent's work goes on
/// without. `what` says for people what is served.
pub async fn serve(what: &str, address: SocketAddr, routes: Routes, cancel: CancellationToken) {
    let Some(listener) = cancel.run_until_cancelled(bind(what, address)).await else {
        return;
    };
    serve_on(listener, routes, cancel).await;
}

async fn bind(what: &str, address: SocketAddr) -> TcpListener {
    let mut said = String::new();
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!("answering {what} at {address}");
                return listener;
            }
            Err(error) => {
                let error = error.to_string();
                if said != error {
                    warn!("cannot answer {what} at {address}: {error}; trying again every {BIND_AGAIN:?}");
                    said = error;
                }
            }
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

/// Answers at a listener until cancelled.
pub async fn serve_on(listener: TcpListener, routes: Routes, cancel: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            // Closed never: `slots` lives as long as this.
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => {
                    let routes = routes.clone();
                    connections.spawn(async move {
                        converse(stream, routes).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of files, most likely: that passes when connections end.
                    debug!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    cancel.run_until_cancelled(accept).await;
}

async fn converse(stream: TcpStream, routes: Routes) {
    let service = service_fn(|request| {
        let response = respond(&request, &routes);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!("a connection for health or metrics ended: {error}");
    }
}

fn respond<B>(request: &Request<B>, routes: &Routes) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let mut allow = None;
    let answer = match (request.method(), routes(path)) {
        (&Method::GET | &Method::HEAD, Some(answer)) => answer,
        (_, Some(_)) => {
            allow = Some(HeaderValue::from_static("GET, HEAD"));
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n")
        }
        (_, None) => text(StatusCode::NOT_FOUND, "there is nothing here\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert("X-Content-Type-Options", HeaderValue::from_static("nosniff"));
    if let Some(allow) = allow {
        headers.insert(ALLOW, allow);
    }
    response
}

/// A plain text answer.
pub fn text(status: StatusCode, body: &str) -> Answer {
    Answer { status, content_type: "text/plain; charset=utf-8", body: body.to_owned() }
}
