//! An API server that costs nothing: lists are encoded before anybody asks, and events are written to the connection by
//! the benchmark, so that the moment they leave is known.
//!
//! It needs fewer features than the tests' stand-in (`proxy_apiserver`): no selectors (all objects match those
//! of the agent), no history, no faults.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};

/// The listed and watched resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Services,
    EndpointSlices,
    Nodes,
    ServiceCidrs,
}

impl Resource {
    const ALL: [(Self, &'static str, &'static str, &'static str); 4] = [
        (Self::Services, "/api/v1/services", "Service", "v1"),
        (
            Self::EndpointSlices,
            "/apis/discovery.k8s.io/v1/endpointslices",
            "EndpointSlice",
            "discovery.k8s.io/v1",
        ),
        (Self::Nodes, "/api/v1/nodes", "Node", "v1"),
        (
            Self::ServiceCidrs,
            "/apis/networking.k8s.io/v1/servicecidrs",
            "ServiceCIDR",
            "networking.k8s.io/v1",
        ),
    ];
}

/// The server. Connections end with their clients.
#[derive(Debug)]
pub(crate) struct Api {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    version: AtomicU64,
    kinds: [Mutex<Kind>; 4],
}

#[derive(Debug, Default)]
struct Kind {
    /// A streaming list, as chunks of HTTP: an event per object.
    list: Arc<Vec<u8>>,
    /// The watching connection: the last one that asked.
    watcher: Option<TcpStream>,
    first_asked: Option<Instant>,
    last_byte: Option<Instant>,
}

impl Api {
    /// Listens on a free port of this network namespace's loopback.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { version: AtomicU64::new(1), kinds: Default::default() });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&serving);
                // A client that goes ends its connection, and that is all there is to it.
                thread::spawn(move || connection(stream, &shared));
            }
        });
        Ok(Self { address, shared })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the objects in lists of a kind from now on.
    pub(crate) fn set_list(&self, resource: Resource, objects: impl Iterator<Item = String>) {
        let mut list = Vec::new();
        objects.for_each(|object| chunk(&mut list, "ADDED", &object));
        self.shared.kind(resource).list = Arc::new(list);
    }

    /// The next resource version.
    pub(crate) fn next_version(&self) -> u64 {
        self.shared.version.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Forgets the watchers and the times of requests.
    pub(crate) fn reset(&self) {
        for kind in &self.shared.kinds {
            let mut kind = kind.lock().unwrap_or_else(PoisonError::into_inner);
            *kind = Kind { list: Arc::clone(&kind.list), ..Kind::default() };
        }
    }

    /// When lists were asked for first.
    pub(crate) fn first_asked(&self) -> Option<Instant> {
        self.shared.kind(Resource::EndpointSlices).first_asked
    }

    /// When the last byte of Services and EndpointSlices had left, if both have.
    pub(crate) fn last_byte(&self) -> Option<Instant> {
        let at = |resource| self.shared.kind(resource).last_byte;
        Some(at(Resource::Services)?.max(at(Resource::EndpointSlices)?))
    }

    /// Writes events, made with [`event`], to the watcher.
    pub(crate) fn send(&self, resource: Resource, events: &[u8]) -> Result<()> {
        let kind = self.shared.kind(resource);
        let mut watcher = kind.watcher.as_ref().with_context(|| format!("no client watches {resource:?}"))?;
        Ok(watcher.write_all(events)?)
    }
}

/// An event as it goes over the wire.
pub(crate) fn event(kind: &str, object: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    chunk(&mut bytes, kind, object);
    bytes
}

/// A chunk of HTTP with one event: API servers send each apart.
fn chunk(to: &mut Vec<u8>, kind: &str, object: &str) {
    let line = format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
    to.extend_from_slice(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes());
}

impl Shared {
    fn kind(&self, resource: Resource) -> MutexGuard<'_, Kind> {
        self.kinds[resource as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers requests until a watch takes the connection over, or the client is gone.
fn connection(stream: TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = read_request(&mut reader)?;
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let known = Resource::ALL.iter().find(|(_, known, ..)| *known == path);
        match known {
            Some((resource, _, kind, api_version)) if query.contains("watch=true") => {
                let lists = query.contains("sendInitialEvents=true");
                return watch(stream, shared, *resource, lists, (kind, api_version));
            }
            // Lists in pages are not asked for where streaming ones are granted.
            Some(_) => respond(&stream, "501 Not Implemented", b"{}")?,
            // Events of the agent: taken, and given back.
            None if line.starts_with("POST") => respond(&stream, "201 Created", &body)?,
            None => respond(&stream, "404 Not Found", b"{}")?,
        }
    }
}

/// Reads headers and body of a request.
fn read_request(reader: &mut BufReader<TcpStream>) -> Result<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn respond(mut stream: &TcpStream, status: &str, body: &[u8]) -> Result<()> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    Ok(())
}

/// Streams the list, if it is wanted, and leaves the connection to [`Api::send`].
fn watch(
    mut stream: TcpStream,
    shared: &Shared,
    resource: Resource,
    lists: bool,
    (kind, api_version): (&str, &str),
) -> Result<()> {
    let list = {
        let mut known = shared.kind(resource);
        known.first_asked.get_or_insert_with(Instant::now);
        Arc::clone(&known.list)
    };
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    if lists {
        let version = shared.version.load(Ordering::Relaxed);
        let bookmark = format!(
            r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{version}","creationTimestamp":null,"annotations":{{"k8s.io/initial-events-end":"true"}}}}}}"#
        );
        stream.write_all(&list)?;
        stream.write_all(&event("BOOKMARK", &bookmark))?;
    }
    let mut known = shared.kind(resource);
    known.last_byte = Some(Instant::now());
    known.watcher = Some(stream);
    Ok(())
}
