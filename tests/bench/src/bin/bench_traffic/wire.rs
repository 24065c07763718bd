//! Messages between the parts of the benchmark: ports, loads, and their results.

use std::net::Ipv4Addr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Where services answer short connections (TCP) and datagrams (UDP).
pub(crate) const SERVICE_PORT: u16 = 80;
/// Where services have connections that stay: request and reply, or as many bytes as there is time for.
pub(crate) const STREAM_SERVICE_PORT: u16 = 81;
/// Where their endpoints listen.
pub(crate) const TARGET_PORT: u16 = 8080;
/// The same for connections that stay.
pub(crate) const STREAM_TARGET_PORT: u16 = 8081;

/// The first byte of a connection that stays: it requests every further byte back.
pub(crate) const ECHO: u8 = b'e';
/// The same: bytes until it is closed.
pub(crate) const FLOOD: u8 = b'f';

/// The repeated operation of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
pub(crate) enum Kind {
    /// Connects, sends a byte, gets one, and is closed by the server.
    Short,
    /// Sends a byte and gets one, over one connection.
    KeepAlive,
    /// A new socket for each datagram and its answer, as DNS clients do.
    Datagram,
    /// Datagrams and answers, all from one socket that is not connected.
    Datagrams,
    /// Reads as much as there is from one connection.
    Bulk,
}

impl Kind {
    /// Where services serve it.
    pub(crate) fn service_port(self) -> u16 {
        if self.is_stream() { STREAM_SERVICE_PORT } else { SERVICE_PORT }
    }

    /// Where endpoints serve it.
    pub(crate) fn target_port(self) -> u16 {
        if self.is_stream() { STREAM_TARGET_PORT } else { TARGET_PORT }
    }

    fn is_stream(self) -> bool {
        matches!(self, Self::KeepAlive | Self::Bulk)
    }
}

/// One slice of load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) kind: Kind,
    /// Targets, one after the other: a service is one, without a service the endpoints are.
    pub(crate) to: Vec<Ipv4Addr>,
    pub(crate) port: u16,
    pub(crate) milliseconds: u64,
}

/// How it went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Operations, or bytes.
    pub(crate) done: u64,
    pub(crate) nanoseconds: u64,
    /// How long until the connection stood, in nanoseconds, for some operations.
    pub(crate) connects: Vec<u64>,
    /// Why it ended early.
    pub(crate) error: Option<String>,
}
