//! The output of the `peer` program, and the answers of its server.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One answer of the server, a line or a datagram of JSON.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The client as the server sees it.
    pub client: SocketAddr,
    /// The server's own address.
    pub local: SocketAddr,
}

/// One request of `peer call`, a line of JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Reply {
    /// The server's answer; `None` if there was an error.
    pub answer: Option<Answer>,
    /// The other side in the client's own eyes: getpeername of a connected socket, the sender of the datagram else.
    pub peer: Option<SocketAddr>,
    /// Name of the error number, like `ECONNREFUSED`. A request that got no answer in time has `ETIMEDOUT`.
    pub error: Option<String>,
    /// How long the request took, in milliseconds.
    pub elapsed_ms: u64,
}

/// The summary of `peer load`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LoadReport {
    /// Requests begun.
    pub sent: u64,
    /// Requests answered.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// The first [`LoadReport::ERRORS`] errors, each with the number of the request that had it.
    pub errors: Vec<String>,
    /// Where the last answer came from, in the server's own eyes.
    pub last_server: Option<SocketAddr>,
    /// The longest time an answer took, in milliseconds.
    pub slowest_ms: u64,
}

impl LoadReport {
    /// How many errors are shown; all are counted.
    const ERRORS: usize = 8;

    /// Counts a request that failed.
    pub fn fail(&mut self, number: u64, error: &str) {
        self.failed += 1;
        if self.errors.len() < Self::ERRORS {
            self.errors.push(format!("request {number}: {error}"));
        }
    }
}

/// The result of `peer bulk`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BulkReport {
    /// Bytes sent, and received again.
    pub bytes: u64,
    /// The server.
    pub server: String,
    /// Both directions together, in milliseconds.
    pub elapsed_ms: u64,
}
