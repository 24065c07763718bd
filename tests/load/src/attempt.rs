//! New connections, one request each, and datagrams from a new socket each.

use std::{
    cell::RefCell,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use proxy_harness::cluster::CLOSE;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, UdpSocket},
    runtime,
    task::LocalSet,
    time::{sleep, sleep_until, timeout_at},
};

use super::Tally;

/// How long a client waits before it tries again after a failure.
const BACK_OFF: Duration = Duration::from_millis(1);

/// The kind of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection; the client closes it when it has the reply.
    TcpClientCloses,
    /// A connection; the client waits until the server closes it.
    TcpServerCloses,
    /// A datagram and its reply, from a separate socket.
    Udp,
}

/// Clients of one Service. They run in the network namespace of the thread that runs them.
#[derive(Clone, Debug)]
pub struct Attempts {
    /// The kind of each attempt.
    pub transport: Transport,
    /// The Service's address.
    pub to: SocketAddrV4,
    /// The clients' addresses, in turn; none leaves the choice to the kernel.
    pub sources: Vec<Ipv4Addr>,
    /// How long a whole attempt may take.
    pub patience: Duration,
}

impl Attempts {
    /// Clients with addresses that the kernel chooses, which fail after a second.
    pub fn new(transport: Transport, to: SocketAddrV4) -> Self {
        Self { transport, to, sources: Vec::new(), patience: Duration::from_secs(1) }
    }

    /// This many clients, each of which begins its next attempt when the last has ended.
    ///
    /// # Errors
    /// If no event loop can be made. The tally has the results of attempts.
    pub fn closed_loop(&self, clients: usize, time: Duration) -> io::Result<Tally> {
        let run = Rc::new(Run::default());
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let tasks = LocalSet::new();
        for client in 0..clients {
            let (attempts, run) = (self.clone(), run.clone());
            tasks.spawn_local(async move {
                let mut number = client;
                while run.begin.elapsed() < time {
                    if !attempts.one(number, &run).await {
                        sleep(BACK_OFF).await;
                    }
                    number += clients;
                }
            });
        }
        runtime.block_on(tasks);
        Ok(run.end())
    }

    /// Begins this many attempts per second, whatever becomes of them.
    ///
    /// # Errors
    /// If no event loop can be made. The tally has the results of attempts.
    pub fn open_loop(&self, per_second: u32, time: Duration) -> io::Result<Tally> {
        let run = Rc::new(Run::default());
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let tasks = LocalSet::new();
        let count = (f64::from(per_second) * time.as_secs_f64()) as u32;
        for number in 0..count {
            let (attempts, run) = (self.clone(), run.clone());
            let at = run.begin + Duration::from_secs(1) / per_second * number;
            tasks.spawn_local(async move {
                sleep_until(at.into()).await;
                attempts.one(number as usize, &run).await;
            });
        }
        runtime.block_on(tasks);
        Ok(run.end())
    }

    /// One attempt, and whether it succeeded.
    async fn one(&self, number: usize, run: &Run) -> bool {
        let begin = Instant::now();
        let mut connect = None;
        let deadline = (begin + self.patience).into();
        let result = timeout_at(deadline, async {
            match self.transport {
                Transport::Udp => self.datagram(number).await,
                _ => self.connection(number, begin, &mut connect).await,
            }
        });
        let result = result.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let is_timeout = result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
        if connect.is_none() && (result.is_ok() || is_timeout) {
            connect = Some(begin.elapsed());
        }
        let succeeded = result.is_ok();
        run.tally.borrow_mut().add(run.begin.elapsed(), connect, result);
        succeeded
    }

    fn source(&self, number: usize) -> Option<SocketAddr> {
        let index = number.checked_rem(self.sources.len())?;
        Some((self.sources[index], 0).into())
    }

    async fn connection(
        &self,
        number: usize,
        begin: Instant,
        connect: &mut Option<Duration>,
    ) -> io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        if let Some(source) = self.source(number) {
            // The port is chosen when the target is known, so that targets and addresses do not share ports.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(source)?;
        }
        let mut stream = socket.connect(self.to.into()).await?;
        *connect = Some(begin.elapsed());
        let server_closes = self.transport == Transport::TcpServerCloses;
        let request = format!("{}C\n", if server_closes { CLOSE } else { "" });
        stream.write_all(request.as_bytes()).await?;
        let mut reply = [0; 512];
        if stream.read(&mut reply).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while server_closes && stream.read(&mut reply).await? > 0 {}
        Ok(())
    }

    async fn datagram(&self, number: usize) -> io::Result<()> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = UdpSocket::bind(self.source(number).unwrap_or(any)).await?;
        socket.connect(self.to).await?;
        socket.send(b"C\n").await?;
        socket.recv(&mut [0; 512]).await.map(drop)
    }
}

/// Attempts that are under way.
struct Run {
    begin: Instant,
    tally: RefCell<Tally>,
}

impl Default for Run {
    fn default() -> Self {
        Self { begin: Instant::now(), tally: RefCell::default() }
    }
}

impl Run {
    fn end(&self) -> Tally {
        let mut tally = self.tally.take();
        tally.end(self.begin.elapsed());
        tally
    }
}
