//! UDP sockets that receive on command, and many of them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{Host, Process, Reply, netns::pipe, peer_binary};

/// A socket that has sent a request to some addresses, and has not received yet.
#[derive(Debug)]
pub struct Parked {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Host {
    /// Sends a request to each of these addresses by one unconnected UDP socket.
    pub fn park(&self, to: &[SocketAddr]) -> Result<Parked> {
        self.park_by(self.peer_to("park", to)?)
    }

    /// The same as a user other than root.
    pub fn park_as(&self, user: u32, to: &[SocketAddr]) -> Result<Parked> {
        let mut command = self.peer_to("park", to)?;
        command.args(["--user", &user.to_string()]);
        self.park_by(command)
    }

    /// The same by a socket that is connected to the first address.
    pub fn park_connected(&self, to: &[SocketAddr]) -> Result<Parked> {
        let mut command = self.peer_to("park", to)?;
        command.arg("--connected");
        self.park_by(command)
    }

    fn park_by(&self, mut command: Command) -> Result<Parked> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start `peer`")?;
        let input = child.stdin.take().context("no input")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let process = Process::new(child);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line == "sent\n", "`peer` printed {line:?}");
        Ok(Parked { process, input, output })
    }

    /// Opens this many unconnected UDP sockets, not all at once, and sends a datagram to each of these addresses by each.
    pub fn open_sockets(&self, to: &[SocketAddr], count: usize) -> Result<()> {
        pipe(self.peer_to("sockets", to)?.args(["--count", &count.to_string()]), "").map(drop)
    }

    /// Connects this many UDP sockets, all open at once, round-robin to these addresses. Each must show its address as its peer.
    pub fn connect_sockets(&self, to: &[SocketAddr], count: usize) -> Result<Parked> {
        let mut command = self.peer_to("connected", to)?;
        command.args(["--count", &count.to_string()]);
        self.park_by(command)
    }

    /// Connects this many IPv6 sockets of UDP to an IPv6 address and then to an IPv4 one, and makes them sockets of IPv4.
    pub fn convert_sockets(&self, first: SocketAddr, then: SocketAddr, count: usize) -> Result<Parked> {
        let mut command = self.peer_to("converted", &[first, then])?;
        command.args(["--count", &count.to_string()]);
        self.park_by(command)
    }

    fn peer_to(&self, what: &str, to: &[SocketAddr]) -> Result<Command> {
        let mut command = self.command(&peer_binary()?.to_string_lossy())?;
        command.arg(what);
        for address in to {
            command.args(["--to", &address.to_string()]);
        }
        Ok(command)
    }
}

impl Parked {
    /// Receives: a reply for each address, in the order in which they came.
    pub fn receive(mut self) -> Result<Vec<Reply>> {
        self.input.write_all(b"\n")?;
        let lines = self.output.lines();
        lines.map(|line| serde_json::from_str(&line?).context("`peer park`")).collect()
    }

    /// Checks connected sockets once more, and closes them.
    pub fn end(mut self) -> Result<()> {
        self.input.write_all(b"\n")?;
        let status = self.process.child().wait()?;
        ensure!(status.success(), "`peer`: {status}");
        Ok(())
    }
}
