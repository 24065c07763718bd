//! `proxy-agent status`: one page from the running agent.

mod page;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    cli::StatusArgs,
    observe::status::Status,
    output::{OutputFormat, document, print},
};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A node with a thousand interfaces has a page of a few hundred kilobytes.
const LONGEST: usize = 16 << 20;
/// Where agents answer scrapes by default; the second one is that of IPv6-only nodes.
const USUAL: [SocketAddr; 2] = [
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10249)),
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 10249, 0, 0)),
];

/// Queries the agent and prints its status.
///
/// # Errors
/// When no agent answers there, and when it is not ready: so that scripts can see it.
pub async fn run(args: &StatusArgs) -> Result<()> {
    let status = ask(args.metrics_address).await?;
    print(&match args.output {
        OutputFormat::Table => page::render(&status),
        format => document(&status, format)?,
    })?;
    if !status.ready {
        bail!("this node is not ready");
    }
    Ok(())
}

/// The status of the agent that answers there.
///
/// # Errors
/// When no agent answers.
pub(crate) async fn ask(address: Option<SocketAddr>) -> Result<Status> {
    let addresses = address.map_or_else(|| USUAL.to_vec(), |address| vec![address]);
    let shown = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" or ");
    let body = timeout(PATIENCE, get(&addresses, "/status"))
        .await
        .with_context(|| format!("the agent at {shown} did not answer within {PATIENCE:?}"))?
        .with_context(|| {
            format!("no agent answers at {shown}; is it running, and is that its --metrics-bind-address?")
        })?;
    serde_json::from_slice(&body)
        .with_context(|| format!("the server at {shown} is not a proxy-agent of this release"))
}

/// From the first of these addresses that accepts a connection.
async fn get(addresses: &[SocketAddr], path: &str) -> Result<Bytes> {
    let stream = TcpStream::connect(addresses).await?;
    let address = stream.peer_addr()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if status != StatusCode::OK {
            bail!("{path}: {status}");
        }
        match Limited::new(answer.into_body(), LONGEST).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => bail!("{path}: {error}"),
        }
    };
    tokio::select! {
        answer = answer => answer,
        // It ends first only if the other side ends it.
        ended = connection => match ended {
            Ok(()) => bail!("the connection was closed"),
            Err(error) => Err(error.into()),
        },
    }
}
