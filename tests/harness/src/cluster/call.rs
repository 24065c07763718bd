//! Servers and clients in a cluster: the `peer` program, started and understood.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use super::{BulkReport, Host, LoadReport, Process, Reply, netns::pipe, until};

/// The program, by PROXY_PEER_BIN or beside the one that is running.
pub fn peer_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PROXY_PEER_BIN") {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let candidates = own.ancestors().skip(1).take(2).map(|dir| dir.join("peer"));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.context("no `peer` program: build it with `cargo build -p proxy-harness`, or set PROXY_PEER_BIN")
}

/// A request that begins like this asks the server to close first.
pub const CLOSE: &str = "close ";

/// How a client talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// sendto and recvfrom.
    Udp,
    /// connect, then send and recv.
    ConnectedUdp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::ConnectedUdp];
}

/// How a client treats a path's MTU when it sends datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMtu {
    /// The default of most programs: fragments, but only if a datagram does not fit the MTU as far as it is known.
    Want,
    /// No fragments: sends as much as fits the path.
    Do,
    /// Anybody may make fragments.
    Dont,
}

/// A running server. Ends when dropped.
#[derive(Debug)]
pub struct Server(pub Process);

impl Server {
    /// Starts a server, which prints `ready` when it listens.
    pub(super) fn start(mut command: Command, what: &str) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        let output = child.stdout.take();
        let server = Self(Process::new(child));
        let mut line = String::new();
        BufReader::new(output.context("no output")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("cannot serve: {what}");
        }
        Ok(server)
    }
}

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    process: Process,
    output: File,
}

/// A request to be made.
#[derive(Clone, Debug)]
#[must_use]
pub struct Call<'a> {
    from: &'a Host,
    to: SocketAddr,
    protocol: Protocol,
    v4_mapped: bool,
    keep_alive: bool,
    bind: Option<SocketAddr>,
    device: Option<&'a str>,
    timeout: Duration,
    interval: Option<Duration>,
    size: usize,
    user: Option<u32>,
}

/// A bulk transfer that went well: see [`BulkReport`].
pub type Bulk = BulkReport;

impl Host {
    /// Serves TCP and UDP on a port, at both of the place's addresses.
    pub fn serve(&self, port: u16) -> Result<Server> {
        self.serve_as(&self.name, &[self.v4.into(), self.v6.into()], port)
    }

    /// The same on several ports.
    pub fn serve_all(&self, ports: &[u16]) -> Result<Server> {
        let own = [IpAddr::from(self.v4), self.v6.into()];
        let all: Vec<_> =
            ports.iter().flat_map(|port| own.map(|address| SocketAddr::new(address, *port))).collect();
        self.serve_at(&self.name, &all)
    }

    /// Serves TCP and UDP at the given addresses.
    pub fn serve_as(&self, name: &str, addresses: &[IpAddr], port: u16) -> Result<Server> {
        let all: Vec<_> = addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
        self.serve_at(name, &all)
    }

    fn serve_at(&self, name: &str, listen: &[SocketAddr]) -> Result<Server> {
        let mut command = self.peer("serve")?;
        command.args(["--name", name]);
        for address in listen {
            command.args(["--listen", &address.to_string()]);
        }
        Server::start(command, &format!("{name} at {listen:?}"))
    }

    /// A request to an address; TCP by default.
    pub fn call(&self, to: SocketAddr) -> Call<'_> {
        Call {
            from: self,
            to,
            protocol: Protocol::Tcp,
            v4_mapped: false,
            keep_alive: false,
            bind: None,
            device: None,
            timeout: Duration::from_secs(2),
            interval: None,
            size: 0,
            user: None,
        }
    }

    /// Sends one echo request: is it answered in time?
    ///
    /// # Errors
    /// Returns the error that the socket got instead of an answer.
    pub fn ping(&self, to: IpAddr, timeout: Duration) -> Result<bool> {
        self.ping_with(to, 0, timeout)
    }

    /// The same with this many bytes after the ICMP header, all of which must come back.
    ///
    /// # Errors
    /// Returns the error that the socket got instead of an answer.
    pub fn ping_with(&self, to: IpAddr, size: usize, timeout: Duration) -> Result<bool> {
        let mut command = self.peer("ping")?;
        command.args(["--to", &to.to_string(), "--timeout-ms", &timeout.as_millis().to_string()]);
        command.args(["--size", &size.to_string()]);
        let printed = pipe(&mut command, "")?;
        printed.trim().parse().with_context(|| format!("ping to {to}: {}", printed.trim()))
    }

    pub(super) fn peer(&self, what: &str) -> Result<Command> {
        let mut command = self.command(&peer_binary()?.to_string_lossy())?;
        command.arg(what);
        Ok(command)
    }
}

impl<'a> Call<'a> {
    /// How to talk.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Uses an IPv6 socket for an IPv4 address.
    pub fn v4_mapped(mut self) -> Self {
        self.v4_mapped = true;
        self
    }

    /// Makes all requests on one connection.
    pub fn keep_alive(mut self) -> Self {
        self.keep_alive = true;
        self
    }

    /// Binds the socket to an address first.
    pub fn bind(mut self, address: SocketAddr) -> Self {
        self.bind = Some(address);
        self
    }

    /// Binds the socket to a network interface of the place (SO_BINDTODEVICE).
    pub fn device(mut self, device: &'a str) -> Self {
        self.device = Some(device);
        self
    }

    /// How long to wait for an answer (default 2 s).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a load pauses after each request (default 5 ms).
    pub fn every(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// Makes them as a user other than root.
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Makes requests at least this long, in bytes; answers are longer.
    pub fn size(mut self, size: usize) -> Self {
        self.size = size;
        self
    }

    /// Sends one datagram of the call's size and gets it back; tries a few times, as the first may be lost while
    /// the path's MTU is learnt.
    pub fn datagram(&self, path_mtu: PathMtu, attempts: usize) -> Result<Reply> {
        let mut command = self.command("datagram")?;
        let path_mtu = match path_mtu {
            PathMtu::Want => "want",
            PathMtu::Do => "do",
            PathMtu::Dont => "dont",
        };
        let first = self.from.ports.take(1, self.to.is_ipv4(), false);
        command.args(["--first-port", &first.to_string()]);
        command.args(["--path-mtu", path_mtu, "--attempts", &attempts.to_string()]);
        parse(&pipe(&mut command, "")?)
    }

    fn command(&self, what: &str) -> Result<Command> {
        let mut command = self.from.peer(what)?;
        command.args(["--size", &self.size.to_string()]);
        command.args(["--to", &self.to.to_string()]);
        command.args(["--protocol", if self.protocol == Protocol::Tcp { "tcp" } else { "udp" }]);
        command.args(["--timeout-ms", &self.timeout.as_millis().to_string()]);
        let flags = [
            ("--connected-udp", self.protocol == Protocol::ConnectedUdp),
            ("--v4-mapped", self.v4_mapped),
            ("--keepalive", self.keep_alive),
        ];
        command.args(flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag));
        if let Some(address) = self.bind {
            command.args(["--bind", &address.to_string()]);
        }
        if let Some(device) = self.device {
            command.args(["--device", device]);
        }
        if let Some(user) = self.user {
            command.args(["--user", &user.to_string()]);
        }
        Ok(command)
    }

    /// Makes one request.
    pub fn once(&self) -> Result<Reply> {
        self.times(1)?.pop().context("`peer call` printed nothing")
    }

    /// Makes some requests, one after the other, each from a new socket unless kept alive. One that fails is the last.
    pub fn times(&self, count: usize) -> Result<Vec<Reply>> {
        let mut command = self.command("call")?;
        if self.bind.is_none() {
            let is_tcp = self.protocol == Protocol::Tcp;
            let first = self.from.ports.take(count, self.to.is_ipv4(), is_tcp);
            command.args(["--first-port", &first.to_string()]);
        }
        let output = pipe(command.args(["--count", &count.to_string()]), "")?;
        output.lines().map(parse).collect()
    }

    /// Names of the servers that answer; every request must be answered.
    pub fn servers(&self, count: usize) -> Result<Vec<String>> {
        let name = |reply: Reply| match reply.answer {
            Some(answer) => Ok(answer.server),
            None => bail!("{} -> {}: {reply:?}", self.from.name, self.to),
        };
        self.times(count)?.into_iter().map(name).collect()
    }

    /// Makes requests until the load is stopped.
    pub fn load(&self) -> Result<Load> {
        let output = tempfile::tempfile()?;
        let mut command = self.command("load")?;
        if let Some(interval) = self.interval {
            command.args(["--interval-ms", &interval.as_millis().to_string()]);
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?);
        let process = Process::new(command.spawn().context("cannot start `peer load`")?);
        Ok(Load { process, output })
    }

    /// Makes so many requests, `parallel` at a time, each from a new socket.
    pub fn many(&self, count: u64, parallel: usize) -> Result<LoadReport> {
        let mut command = self.command("many")?;
        command.args(["--count", &count.to_string(), "--parallel", &parallel.to_string()]);
        parse(&pipe(&mut command, "")?)
    }

    /// Makes requests for some time, `parallel` at a time, each from a new socket. The side that closes TCP connections
    /// first has them in TIME-WAIT.
    pub fn many_for(&self, time: Duration, parallel: usize, server_closes: bool) -> Result<LoadReport> {
        let mut command = self.command("many")?;
        command.args(["--milliseconds", &time.as_millis().to_string(), "--parallel", &parallel.to_string()]);
        command.args(server_closes.then_some("--server-closes"));
        parse(&pipe(&mut command, "")?)
    }

    /// Sends bytes over one connection and gets as many back; both sides compare each one.
    pub fn bulk(&self, bytes: u64) -> Result<Bulk> {
        let mut command = self.command("bulk")?;
        parse(&pipe(command.args(["--bytes", &bytes.to_string()]), "")?)
    }

    /// The same; ended when it takes longer than this.
    pub fn bulk_within(&self, bytes: u64, limit: Duration) -> Result<Bulk> {
        let (output, errors) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
        let mut command = self.command("bulk")?;
        command.args(["--bytes", &bytes.to_string()]);
        command.stdin(Stdio::null()).stdout(output.reopen()?).stderr(errors.reopen()?);
        let mut process = Process::new(command.spawn().context("cannot start `peer bulk`")?);
        let status = until(limit, "the end of a transfer", || Ok(process.child().try_wait()?))?;
        if !status.success() {
            bail!("{status}: {}", fs::read_to_string(errors.path())?.trim());
        }
        parse(&fs::read_to_string(output.path())?)
    }
}

impl Load {
    /// How it goes: the summary of all requests until now.
    pub fn report(&self) -> Result<LoadReport> {
        let mut text = vec![0; self.output.metadata()?.len() as usize];
        self.output.read_exact_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text);
        // The last line may be incomplete.
        let last = text.split_inclusive('\n').rfind(|line| line.ends_with('\n'));
        last.map_or_else(|| Ok(LoadReport::default()), parse)
    }

    /// Waits until this many more requests have ended, well or not.
    pub fn wait_for(&self, requests: u64) -> Result<()> {
        let target = self.report()?.sent + requests;
        until(Duration::from_secs(20), "requests of a load", || {
            Ok((self.report()?.sent >= target).then_some(()))
        })
    }

    /// Ends the load; how it went.
    pub fn stop(mut self) -> Result<LoadReport> {
        self.process.terminate()?;
        self.report()
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).with_context(|| format!("`peer` printed {text:?}"))
}
