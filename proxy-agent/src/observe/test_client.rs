//! An HTTP client for tests of the servers.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::http::{Handler, serve};

/// An answer that came.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) status: u16,
    /// Status line and headers, in lower case.
    pub(super) head: String,
    pub(super) body: String,
}

/// Serves on a free port of 127.0.0.1.
pub(super) async fn start(handler: Handler, cancel: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, handler, cancel.clone()));
    address
}

/// Sends a request. `headers` are whole lines, each with its end.
pub(super) async fn request(address: SocketAddr, method: &str, path: &str, headers: &str) -> Got {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    let read = stream.read_to_string(&mut response);
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Got { status, head: head.to_lowercase(), body: body.to_owned() }
}

pub(super) async fn get(address: SocketAddr, path: &str) -> Got {
    request(address, "GET", path, "").await
}
