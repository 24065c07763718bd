//! Connections that stay.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// How long connecting and each reply may take: a lost packet is sent again.
const PATIENCE: Duration = Duration::from_secs(3);

const REQUEST: &str = "Are you there?\n";

/// A connection that is kept.
#[derive(Debug)]
pub struct Held {
    what: String,
    stream: BufReader<TcpStream>,
    lost: Option<String>,
}

impl Held {
    /// Connects, from the network namespace of this thread, and has a first reply.
    ///
    /// # Errors
    /// If either fails.
    pub fn open(to: SocketAddr, what: &str) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| what.to_owned())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut held = Self { what: what.to_owned(), stream: BufReader::new(stream), lost: None };
        held.request().with_context(|| what.to_owned())?;
        Ok(held)
    }

    /// The client's end.
    ///
    /// # Errors
    /// If the socket has none any more.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    /// A request and its reply. A connection that was lost stays lost.
    pub fn ask(&mut self) {
        if self.lost.is_none() {
            self.lost = self.request().err().map(|error| format!("{}: {error:#}", self.what));
        }
    }

    /// Why the connection is lost, if it is.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    fn request(&mut self) -> Result<()> {
        self.stream.get_mut().write_all(REQUEST.as_bytes())?;
        let mut line = String::new();
        let read = self.stream.read_line(&mut line)?;
        ensure!(read > 0 && line.ends_with(REQUEST), "not the reply: {line:?}");
        Ok(())
    }
}
