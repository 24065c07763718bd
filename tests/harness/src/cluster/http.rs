//! HTTP requests to servers of a namespace.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::Netns;

/// How long a server may take, to accept and for each piece of its answer. An agent that is not optimised may take seconds for its
/// work in between.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// The status.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Netns {
    /// Asks an HTTP server for a path, by a connection from this namespace.
    ///
    /// # Errors
    /// When no server listens, or answers within ten seconds.
    pub fn get(&self, address: &str, path: &str) -> Result<HttpAnswer> {
        self.ask(address, &format!("GET {path}"))
    }

    /// The same with another method: `request` is both, as in `POST /path`.
    ///
    /// # Errors
    /// As above.
    pub fn ask(&self, address: &str, request: &str) -> Result<HttpAnswer> {
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&address.parse()?, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer: {text}"))?;
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            let status = status.with_context(|| format!("no status: {head}"))?;
            Ok(HttpAnswer { status, head: head.to_owned(), body: body.to_owned() })
        })
    }
}
