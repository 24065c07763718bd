//! `peer many`: requests from many sockets at once.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::UdpSocket,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use proxy_harness::cluster::{CLOSE, LoadReport};

use crate::{
    Protocol, Target,
    client::{any, connect_tcp, destination, error_name, over_tcp, over_udp, request_text, source},
};

/// What ends it: whichever comes first.
pub(crate) struct Limit {
    pub(crate) count: u64,
    pub(crate) time: Duration,
}

/// Makes the requests, each from a new socket, and prints the summary.
pub(crate) fn many(target: &Target, limit: &Limit, parallel: usize, server_closes: bool) -> io::Result<()> {
    let (next, start) = (AtomicU64::new(0), Instant::now());
    let report = Mutex::new(LoadReport::default());
    thread::scope(|scope| {
        for _ in 0..parallel {
            scope.spawn(|| {
                while start.elapsed() < limit.time {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= limit.count {
                        break;
                    }
                    let begin = Instant::now();
                    let result = request(target, number, server_closes);
                    note(&mut report.lock().unwrap_or_else(PoisonError::into_inner), number, begin, result);
                }
            });
        }
    });
    let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)
}

fn note(report: &mut LoadReport, number: u64, begin: Instant, result: io::Result<()>) {
    report.sent += 1;
    report.slowest_ms = report.slowest_ms.max(begin.elapsed().as_millis() as u64);
    match result {
        Ok(()) => report.ok += 1,
        Err(error) => report.fail(number, &error_name(&error)),
    }
}

fn request(target: &Target, number: u64, server_closes: bool) -> io::Result<()> {
    let source = source(target, number);
    let text = request_text(number, target.size);
    if target.protocol == Protocol::Udp {
        let to = destination(target);
        let socket = UdpSocket::bind(source.unwrap_or((any(&to), 0).into()))?;
        socket.set_read_timeout(Some(target.timeout()))?;
        socket.connect(to)?;
        return over_udp(target, &socket, &text).map(drop);
    }
    let mut stream = BufReader::new(connect_tcp(target, source)?);
    if !server_closes {
        return over_tcp(&mut stream, &text).map(drop);
    }
    over_tcp(&mut stream, &format!("{CLOSE}{text}"))?;
    // The server's FIN must come, and not another line.
    match stream.read_line(&mut String::new())? {
        0 => Ok(()),
        _ => Err(Errno::EBADMSG.into()),
    }
}
