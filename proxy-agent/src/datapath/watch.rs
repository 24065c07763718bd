//! Watches: the requests of `proxy-agent monitor` and `top` to the programs, and the events that they get.
//!
//! A watch holds a lease and renews it every second. A watch that was killed gets no events after its lease has expired, and the agent,
//! or the next watch, removes its entry.
#![expect(unsafe_code, reason = "tokio wants a promise about the descriptor")]

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{
    Array, ArrayOfMaps, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf,
};
use nix::time::{ClockId, clock_gettime};
use proxy_common::layout::event::{
    Event, EventFilter, RATES, RING_BYTES, RateKey, Reported, WATCHES, Watch as Element,
};
use proxy_sys::bpf::map::delete_element;
use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyMutGuard},
};

use super::{hash::read, pins::Pins};

/// How long a watch gets events after its last renewal.
const LEASE: Duration = Duration::from_secs(5);
/// Interval of renewals.
const RENEW: Duration = Duration::from_secs(1);

/// The element of `watches` that shows whether any watch exists.
const SUMMARY: u32 = 0;

/// The maps that all watches share.
struct Watches {
    elements: Array<MapData, Element>,
    rings: ArrayOfMaps<MapData>,
    rates: ArrayOfMaps<MapData>,
    /// Descriptors of those two, to remove elements.
    descriptors: [OwnedFd; 2],
}

impl Watches {
    /// Opens them.
    ///
    /// # Errors
    /// When there are none.
    fn open(pins: &Pins) -> Result<Self> {
        let open = |name: &str| {
            let path = pins.map(name);
            MapData::from_pin(&path).with_context(|| {
                format!(
                    "no agent of this release has run with these pins ({}): name its directory with --bpffs",
                    path.display()
                )
            })
        };
        let elements = open("watches")?;
        let info = elements.info()?;
        if (info.value_size() as usize, info.max_entries()) != (size_of::<Element>(), WATCHES + 1) {
            bail!("the agent is of another release: watch with that release's proxy-agent");
        }
        let (rings, rates) = (open("watch_rings")?, open("watch_rates")?);
        let descriptors =
            [rings.fd().as_fd().try_clone_to_owned()?, rates.fd().as_fd().try_clone_to_owned()?];
        Ok(Self {
            elements: Map::Array(elements).try_into()?,
            rings: Map::ArrayOfMaps(rings).try_into()?,
            rates: Map::ArrayOfMaps(rates).try_into()?,
            descriptors,
        })
    }

    /// Removes watches whose lease has expired. Only under the lock: a new one may be written meanwhile.
    fn remove_expired(&mut self) -> Result<()> {
        if self.elements.get(&SUMMARY, 0)?.until == 0 {
            return Ok(());
        }
        let now = now()?;
        let mut lives = false;
        for index in 0..WATCHES {
            match self.elements.get(&(index + 1), 0)?.until {
                0 => {}
                until if until < now => self.remove(index)?,
                _ => lives = true,
            }
        }
        if !lives {
            self.elements.set(SUMMARY, Element::default(), 0)?;
        }
        Ok(())
    }

    fn remove(&mut self, index: u32) -> Result<()> {
        self.elements.set(index + 1, Element::default(), 0)?;
        // One of them is not there.
        delete_element(self.descriptors[0].as_fd(), index)?;
        delete_element(self.descriptors[1].as_fd(), index)?;
        Ok(())
    }
}

/// Removes the entries of killed watches. To be called regularly.
///
/// # Errors
/// The kernel's.
pub(crate) fn remove_expired(pins: &Pins) -> Result<()> {
    let elements: Array<MapData, Element> = Map::Array(MapData::from_pin(pins.map("watches"))?).try_into()?;
    if elements.get(&SUMMARY, 0)?.until == 0 {
        return Ok(());
    }
    let directory = open_lock(pins)?;
    match directory.try_lock() {
        Ok(()) => {}
        // A watch begins or ends, and does the same.
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    Watches::open(pins)?.remove_expired()
}

/// Keeps a watch's place, until it is dropped.
struct Lease {
    pins: Pins,
    maps: Watches,
    index: u32,
    element: Element,
}

impl Lease {
    fn write(&mut self) -> Result<()> {
        self.element.until = now()? + LEASE.as_nanos() as u64;
        self.maps.elements.set(self.index + 1, self.element, 0)?;
        self.maps.elements.set(SUMMARY, Element { until: 1, ..Element::default() }, 0)?;
        Ok(())
    }

    fn is_there(&self) -> bool {
        let element = self.maps.elements.get(&(self.index + 1), 0);
        element.is_ok_and(|element| element.until != 0 && element.filter.token == self.element.filter.token)
    }

    fn renew(&mut self) -> Result<()> {
        let _lock = lock(&self.pins)?;
        if !self.is_there() {
            bail!("another watch may have its place");
        }
        self.write()
    }

    /// Renews until stopped, or until it is too late. On a separate thread: the reader of events may be blocked by the reader of its
    /// output.
    fn keep(mut self, stop: &Receiver<()>) {
        while stop.recv_timeout(RENEW) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = self.renew() {
                tracing::debug!("a watch ended: {error:#}");
                return;
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut end = || -> Result<()> {
            let _lock = lock(&self.pins)?;
            if self.is_there() {
                self.maps.remove(self.index)?;
            }
            self.maps.remove_expired()
        };
        if let Err(error) = end() {
            tracing::debug!("cannot end a watch: {error:#}");
        }
    }
}

/// A watch, until it is dropped.
pub(crate) struct Watch {
    reports: PerCpuArray<MapData, Reported>,
    index: u32,
    /// Lost before it began.
    lost: u64,
    events: Option<RingBuf<MapData>>,
    rates: Option<PerCpuHashMap<MapData, RateKey, u64>>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches the programs of the agent with these pins.
    ///
    /// # Errors
    /// When there is none, too many watch, or the kernel refuses.
    pub(crate) fn start(pins: &Pins, filter: EventFilter) -> Result<Self> {
        const BPF_MAP_TYPE_LRU_PERCPU_HASH: u32 = 10;
        const BPF_MAP_TYPE_RINGBUF: u32 = 27;
        let mut maps = Watches::open(pins)?;
        let reports: PerCpuArray<MapData, Reported> =
            Map::PerCpuArray(MapData::from_pin(pins.map("watch_reports"))?).try_into()?;
        let guard = lock(pins)?;
        maps.remove_expired()?;
        let begun = now()?;
        let is_free = |index: &u32| {
            let element = maps.elements.get(&(index + 1), 0);
            element.is_ok_and(|element| element.until == 0)
        };
        let Some(index) = (0..WATCHES).find(is_free) else {
            bail!("{WATCHES} watch already, which is as many as can");
        };
        let (mut events, mut rates) = (None, None);
        if filter.counts == 0 {
            let ring = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF, 0, 0, RING_BYTES, 0);
            let ring = MapData::create(ring, "watch_ring", None).context("cannot make a ring buffer")?;
            maps.rings.set(index, &ring, 0)?;
            events = Some(Map::RingBuf(ring).try_into()?);
        } else {
            let (key, value) = (size_of::<RateKey>() as u32, size_of::<u64>() as u32);
            let map = aya_obj::Map::new_from_params(BPF_MAP_TYPE_LRU_PERCPU_HASH, key, value, RATES, 0);
            let map = MapData::create(map, "watch_rate", None).context("cannot make a map for rates")?;
            maps.rates.set(index, &map, 0)?;
            rates = Some(Map::PerCpuLruHashMap(map).try_into()?);
        }
        let lost = lost(&reports, index)?;
        // Distinguishes it from a later watch at the same index.
        let element = Element { until: 0, filter: EventFilter { token: begun as u32, ..filter } };
        let mut lease = Lease { pins: pins.clone(), maps, index, element };
        lease.write()?;
        drop(guard);
        let (stop, stopped) = channel();
        let thread = thread::Builder::new().name("lease".to_owned()).spawn(move || lease.keep(&stopped));
        let thread = Some(thread.context("cannot start a thread")?);
        Ok(Self { reports, index, lost, events, rates, stop: Some(stop), thread })
    }

    /// Whether the watch still gets events.
    ///
    /// # Errors
    /// When it was stopped for too long, or the agent has other maps.
    pub(crate) fn check(&self) -> Result<()> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            bail!(
                "this watch was stopped for more than {LEASE:?}, or the agent has other maps now: start it again"
            );
        }
        Ok(())
    }

    /// The events. To be called once, within a tokio runtime.
    ///
    /// # Errors
    /// When it counts instead.
    pub(crate) fn events(&mut self) -> Result<Events> {
        let ring = self.events.take().context("this watch counts instead of sending events")?;
        // SAFETY: the ring keeps its map's descriptor open and the same.
        Ok(Events(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?))
    }

    /// How many events were lost so far.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn lost(&self) -> Result<u64> {
        Ok(lost(&self.reports, self.index)?.saturating_sub(self.lost))
    }

    /// The counts so far.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn rates(&self) -> Result<HashMap<RateKey, u64>> {
        // A walk through a map that changes may restart: this bounds it.
        const PATIENCE: usize = 4 * RATES as usize;
        let sum = |entry: Result<(RateKey, PerCpuValues<u64>), MapError>| {
            entry.map(|(key, values)| (key, values.iter().sum()))
        };
        let rates = self.rates.as_ref().context("nothing is counted")?;
        Ok(rates.iter().take(PATIENCE).map(sum).collect::<Result<_, _>>()?)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::debug!("the thread of a watch panicked");
        }
    }
}

/// The events of a watch.
pub(crate) struct Events(AsyncFd<RingBuf<MapData>>);

impl Events {
    /// Resolves when there may be events.
    ///
    /// # Errors
    /// The runtime's.
    pub(crate) async fn ready(&mut self) -> io::Result<Ready<'_>> {
        Ok(Ready(self.0.readable_mut().await?))
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        next_event(self.0.get_mut())
    }
}

/// The events that wait.
pub(crate) struct Ready<'a>(AsyncFdReadyMutGuard<'a, RingBuf<MapData>>);

impl Iterator for Ready<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        next_event(self.0.get_inner_mut())
    }
}

impl Ready<'_> {
    /// All were taken: waits for others from now on.
    pub(crate) fn clear(mut self) {
        self.0.clear_ready();
    }
}

/// The next event as the programs reported it; one that is too short is left out.
fn next_event(ring: &mut RingBuf<MapData>) -> Option<Event> {
    loop {
        let item = ring.next()?;
        if let Some(event) = read(&item) {
            return Some(event);
        }
    }
}

/// How many events a place has lost since there are these maps.
fn lost(reports: &PerCpuArray<MapData, Reported>, index: u32) -> Result<u64> {
    Ok(reports.get(&index, 0)?.iter().map(|reported| reported.lost).sum())
}

/// The lock of processes that write `watches`.
fn lock(pins: &Pins) -> Result<File> {
    let file = open_lock(pins)?;
    file.lock().context("cannot lock the directory of the maps")?;
    Ok(file)
}

/// The file to lock: the directory of the maps.
fn open_lock(pins: &Pins) -> Result<File> {
    let path = pins.map("watches");
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    File::open(directory).with_context(|| format!("cannot open {}", directory.display()))
}

fn now() -> Result<u64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64)
}
