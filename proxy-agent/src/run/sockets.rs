//! The controller of sockets: ends those whose endpoint is gone, and finds out from which addresses they send.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use proxy_common::layout::id::Id;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::{
    datapath::{Datapath, Kept, LostFrontend, Services},
    model::objects::Protocol,
    net::netns,
    socket_termination::SocketTerminator,
};

/// Addresses of network namespaces by their cookies.
pub(super) type Namespaces = HashMap<u64, Vec<IpAddr>>;

/// The result of a background task.
pub(super) enum Found {
    /// The addresses of all network namespaces.
    Namespaces(Namespaces),
    /// Records of connected sockets, after the first round.
    Kept(HashSet<Kept>),
}

/// Ends sockets and looks at network namespaces, in the background.
pub(super) struct SocketController {
    socket_termination: Arc<SocketTerminator>,
    resets_tcp: bool,
    /// The kernel identifies network namespaces by cookies (5.14): so sockets' sources are known.
    knows_cookies: bool,
    /// The addresses of network namespaces were requested once.
    knows_namespaces: bool,
    /// The addresses of all network namespaces, as they were found last.
    namespaces: Namespaces,
    looking: Option<JoinHandle<Result<Namespaces>>>,
    scanning_at_start: Option<JoinHandle<Result<HashSet<Kept>>>>,
    /// The last logged warning: it is the same at every look.
    logged: String,
}

impl SocketController {
    /// Nothing is known of sockets yet.
    pub(super) fn new(socket_termination: SocketTerminator, resets_tcp: bool, knows_cookies: bool) -> Self {
        Self {
            socket_termination: Arc::new(socket_termination),
            resets_tcp,
            knows_cookies,
            knows_namespaces: false,
            namespaces: Namespaces::new(),
            looking: None,
            scanning_at_start: None,
            logged: String::new(),
        }
    }

    /// Whether it can be known from which addresses sockets send.
    pub(super) fn knows_sources(&self) -> bool {
        self.knows_cookies
    }

    /// Ends sockets connected to endpoints that serve no more: TCP only if configured. Also ends UDP sockets that connected
    /// through frontends that lead elsewhere or nowhere now.
    pub(super) fn end_removed(&self, services: &mut Services) {
        let lost = services.take_lost_frontends();
        let protocols = self.protocols();
        let dead = services.take_dead().into_iter();
        self.socket_termination.dead(dead.filter(|(protocol, _)| protocols.contains(protocol)));
        self.socket_termination.lost(lost);
    }

    /// After a restart: endpoints may have gone while no agent ran. [`Self::found`] reports what sockets have stored.
    pub(super) fn scan_at_start(&mut self) {
        let (socket_termination, protocols) = (self.socket_termination.clone(), self.protocols());
        self.scanning_at_start = Some(tokio::spawn(async move { socket_termination.kept(protocols).await }));
    }

    /// Takes over the result; `of_pods` adds the addresses of pods, which may be newer.
    pub(super) fn apply_scan(
        &mut self,
        found: Found,
        of_pods: impl Fn(&mut Namespaces),
        datapath: &mut Datapath,
    ) {
        match found {
            Found::Namespaces(namespaces) => {
                self.namespaces = namespaces;
                self.write_namespaces(of_pods, datapath);
            }
            Found::Kept(kept) => self.sweep(&kept, &datapath.services),
        }
    }

    /// Pods were checked: writes their addresses, if any are needed.
    pub(super) fn follow_pods(&self, of_pods: impl Fn(&mut Namespaces), datapath: &mut Datapath) {
        if self.knows_namespaces {
            self.write_namespaces(of_pods, datapath);
        }
    }

    fn write_namespaces(&self, of_pods: impl Fn(&mut Namespaces), datapath: &mut Datapath) {
        let mut namespaces = self.namespaces.clone();
        of_pods(&mut namespaces);
        if let Err(error) = datapath.set_netns_addresses(&namespaces) {
            error!("{error:#}");
        }
    }

    /// Ends the sockets of those of these that serve no more, or lead elsewhere.
    fn sweep(&self, kept: &HashSet<Kept>, services: &Services) {
        let backends: HashSet<Id> = kept.iter().map(|kept| kept.backend).collect();
        let dead = backends.into_iter().filter(|backend| !services.is_served(*backend));
        // Which protocol a backend had is not known any more.
        self.socket_termination
            .dead(dead.flat_map(|backend| self.protocols().iter().map(move |it| (*it, backend))));
        // The kind of this socket is not known either; frontends are lost to UDP sockets alone.
        let lost = kept.iter().filter(|kept| !services.leads_to(kept.vip, kept.service));
        self.socket_termination
            .lost(lost.map(|kept| LostFrontend { service: kept.service, address: kept.vip }));
    }

    /// Looks, unless it is at it, which addresses network namespaces have; `primary` are this node's.
    pub(super) fn scan_namespaces(&mut self, primary: Vec<IpAddr>) {
        if self.looking.is_none() {
            self.looking = Some(tokio::task::spawn_blocking(move || {
                netns::addresses(&primary).context("cannot determine the source addresses of sockets")
            }));
        }
    }

    /// Whether the first scan is due, for which services wait. To be called if any of them has source ranges.
    pub(super) fn begins_scan(&mut self) -> bool {
        !std::mem::replace(&mut self.knows_namespaces, true)
    }

    /// The first look, waited for: sockets that are not known are left to the packet path, where a node has none.
    pub(super) async fn first_scan(&mut self, primary: Vec<IpAddr>) -> Result<Found> {
        self.scan_namespaces(primary);
        finished(&mut self.looking).await.map(Found::Namespaces)
    }

    /// Resolves when something was found out.
    pub(super) async fn found(&mut self) -> Found {
        loop {
            let result = tokio::select! {
                result = finished(&mut self.looking) => result.map(Found::Namespaces),
                result = finished(&mut self.scanning_at_start) => result.map(Found::Kept),
            };
            match result {
                Ok(found) => return found,
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != self.logged {
                        warn!("{error}");
                        self.logged = error;
                    }
                }
            }
        }
    }

    fn protocols(&self) -> &'static [Protocol] {
        if self.resets_tcp { &[Protocol::Udp, Protocol::Tcp] } else { &[Protocol::Udp] }
    }
}

/// Resolves to the result of a task, once.
async fn finished<T>(task: &mut Option<JoinHandle<Result<T>>>) -> Result<T> {
    let Some(running) = task else {
        return std::future::pending().await;
    };
    let result = running.await.context("a task of the agent ended unexpectedly")?;
    *task = None;
    result
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::{
        datapath::pins::Pins,
        socket_termination::{Counts, Records},
    };

    fn controller(resets_tcp: bool) -> SocketController {
        let records = Records::Notes(Pins::new(Path::new("/no/such/pins")));
        SocketController::new(SocketTerminator::start(records, Counts::default()), resets_tcp, true)
    }

    #[tokio::test]
    async fn tcp_is_ended_where_that_was_asked_for() {
        assert_eq!(controller(false).protocols(), [Protocol::Udp]);
        assert_eq!(controller(true).protocols(), [Protocol::Udp, Protocol::Tcp]);
    }

    #[tokio::test]
    async fn the_first_look_is_taken_once() {
        let mut sockets = controller(false);
        assert_eq!([(); 3].map(|()| sockets.begins_scan()), [true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_scan_gives_nothing_and_the_next_one_does() {
        let mut sockets = controller(false);
        let forever = Duration::from_secs(3600);
        timeout(forever, sockets.found()).await.map(drop).expect_err("nothing was begun");
        sockets.looking = Some(tokio::spawn(async { Err(anyhow::anyhow!("no")) }));
        let namespaces: Namespaces = [(7, vec!["10.0.0.1".parse().unwrap()])].into();
        let found = namespaces.clone();
        sockets.scanning_at_start = Some(tokio::spawn(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(HashSet::new())
        }));
        assert!(matches!(sockets.found().await, Found::Kept(kept) if kept.is_empty()));
        assert_eq!(sockets.logged, "no");
        sockets.looking = Some(tokio::spawn(async { Ok(found) }));
        assert!(matches!(sockets.found().await, Found::Namespaces(it) if it == namespaces));
    }
}
