//! A small HTTP server for probes and scrapes.

mod connections;

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::connections::Connections;
use super::listen::{Listener, Listeners};

/// How long to wait before an address that is taken is tried again for the first time; later longer.
const BIND_SOON: Duration = Duration::from_millis(50);
/// How long to wait at most.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// How long a client may take to send its request, and how long an idle connection is kept.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest head of a request that is read: a probe's is a few hundred bytes, a scrape's not much longer.
const MAX_REQUEST: usize = 16 * 1024;
/// How long the last connections may take when another agent took over.
const LINGER: Duration = Duration::from_secs(1);

/// The client: among the extensions of a request.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The client's address.
    pub address: IpAddr,
    /// The server's address.
    pub server: IpAddr,
}

impl Client {
    /// Whether it is a process of this node. Those have the address that they connect to as their own, or a loopback one; no
    /// other host can have a connection with either. `kubectl exec` and `kubectl port-forward` are of the node.
    pub fn is_of_this_node(self) -> bool {
        let address = self.address.to_canonical();
        address.is_loopback() || address == self.server.to_canonical()
    }
}

/// The response to a request.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body's media type.
    pub content_type: &'static str,
    /// More headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// An answer without more headers.
    pub fn new(status: StatusCode, content_type: &'static str, body: String) -> Self {
        Self { status, content_type, headers: Vec::new(), body }
    }

    /// A plain text answer.
    pub fn text(status: StatusCode, body: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body.to_owned())
    }

    /// A JSON answer.
    pub fn json(status: StatusCode, body: String) -> Self {
        Self::new(status, "application/json", body)
    }

    /// With another header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Answers any request.
pub type Handler = Arc<dyn Fn(&Parts) -> Answer + Send + Sync>;

/// The page at a path.
pub type Page = Box<dyn Fn(&Parts) -> Answer + Send + Sync>;

/// Answers GET and HEAD of a few paths, and refuses the rest.
pub fn pages(pages: Vec<(&'static str, Page)>) -> Handler {
    Arc::new(move |request| match pages.iter().find(|(path, _)| *path == request.uri.path()) {
        Some((_, page)) if matches!(request.method, Method::GET | Method::HEAD) => page(request),
        Some(_) => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n")
            .with(ALLOW, HeaderValue::from_static("GET, HEAD")),
        None => Answer::text(StatusCode::NOT_FOUND, "not found\n"),
    })
}

/// A server: pages, address, and a callback for an address that is taken.
pub struct Server {
    /// The name of the server, for messages.
    pub what: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// The answers.
    pub handler: Handler,
    /// An address that is not available at once is an error, instead of something that may pass.
    pub must_bind: bool,
    /// Called once with the reason why the address is not available.
    pub on_failure: Box<dyn Fn(&str) + Send>,
}

impl Server {
    /// Serves until cancelled. While the address is taken it is tried again every 5 s: the agent works without it meanwhile.
    ///
    /// # Errors
    ///
    /// If the address is not available and `must_bind`.
    pub async fn start(self, listeners: &Listeners, cancel: CancellationToken) -> Result<()> {
        let Self { what, address, handler, must_bind, on_failure } = self;
        let error = match listeners.bind(address) {
            Ok(listener) => {
                info!("answering {what} at {address}");
                tokio::spawn(serve(listener, handler, cancel));
                return Ok(());
            }
            Err(error) => error,
        };
        on_failure(&format!("cannot answer {what} at {address}: {error}"));
        if must_bind {
            return Err(error).with_context(|| format!("cannot answer {what} at {address}"));
        }
        warn!("cannot answer {what} at {address}: {error}; trying again every {BIND_AGAIN:?}");
        let listeners = listeners.clone();
        tokio::spawn(async move {
            if let Some(listener) = cancel.run_until_cancelled(bind_later(what, address, &listeners)).await {
                serve(listener, handler, cancel).await;
            }
        });
        Ok(())
    }
}

async fn bind_later(what: &str, address: SocketAddr, listeners: &Listeners) -> Listener {
    // An agent that ends may take a moment to let go of its ports.
    let mut wait = BIND_SOON;
    loop {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BIND_AGAIN);
        match listeners.bind(address) {
            Ok(listener) => {
                info!("answering {what} at {address} now");
                return listener;
            }
            Err(error) => debug!("cannot answer {what} at {address}: {error}"),
        }
    }
}

/// Answers at a listener until cancelled. Then it is closed, and its connections are cut; those of a listener that another agent
/// shares, which answers from then on, may end first.
pub async fn serve(listener: impl Into<Listener>, handler: Handler, cancel: CancellationToken) {
    let listener = listener.into();
    let mut connections = Connections::default();
    let accept = async {
        loop {
            match listener.socket().accept().await {
                Ok((stream, peer)) => {
                    // A connection that is closed already has no peer address.
                    let server =
                        stream.local_addr().map_or(IpAddr::from(Ipv6Addr::UNSPECIFIED), |at| at.ip());
                    let client = Client { address: peer.ip(), server };
                    connections.spawn(client.address, converse(stream, client, handler.clone()));
                    // Its request is read, if it has come, before others that wait can push it out.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    // Out of files, most likely: that passes when connections end.
                    debug!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    let mut accept = std::pin::pin!(accept);
    cancel.run_until_cancelled(&mut accept).await;
    if listener.leave_to_successor() {
        // For those that began to connect before.
        let _ = tokio::time::timeout(LINGER, accept).await;
    }
}

async fn converse(stream: TcpStream, client: Client, handler: Handler) {
    let service = service_fn(|request: Request<Incoming>| {
        let mut request = request.into_parts().0;
        request.extensions.insert(client);
        let response = respond(handler(&request));
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!("a connection for health or metrics ended: {error}");
    }
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.extend(answer.headers);
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A busy agent accepts all waiting connections at once: more than may be open.
    #[tokio::test]
    async fn requests_that_came_together_are_all_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..120 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
            clients.push(client);
        }
        let cancel = CancellationToken::new();
        tokio::spawn(serve(listener, pages(Vec::new()), cancel.clone()));
        for (number, mut client) in clients.into_iter().enumerate() {
            let mut response = String::new();
            client.read_to_string(&mut response).await.unwrap();
            assert!(response.starts_with("HTTP/1.1 404"), "request {number}: {response:?}");
        }
        cancel.cancel();
    }
}
