//! What the running agent does about sockets: ends those whose endpoint is gone, and learns which addresses they send
//! from.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use proxy_common::layout::id::Id;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::{
    datapath::{Kept, LostFrontend, Services},
    model::objects::Protocol,
    net::netns,
    reaper::Reaper,
};

/// Addresses of network namespaces by their cookies.
pub(super) type Namespaces = HashMap<u64, Vec<IpAddr>>;

/// What was found out in the background.
pub(super) enum Found {
    /// The addresses of all network namespaces.
    Namespaces(Namespaces),
    /// What connected sockets keep, after the first round.
    Kept(HashSet<Kept>),
}

/// Ends sockets and looks at network namespaces, in the background.
pub(super) struct Sockets {
    reaper: Arc<Reaper>,
    resets_tcp: bool,
    looking: Option<JoinHandle<Result<Namespaces>>>,
    looking_back: Option<JoinHandle<Result<HashSet<Kept>>>>,
    /// The last complaint: it is the same at every look.
    said: String,
}

impl Sockets {
    pub(super) fn new(reaper: Reaper, resets_tcp: bool) -> Self {
        let reaper = Arc::new(reaper);
        Self { reaper, resets_tcp, looking: None, looking_back: None, said: String::new() }
    }

    /// Ends what is connected to these: they serve no more. TCP only where that was asked for. And UDP sockets that connected
    /// through these frontends, which lead elsewhere or nowhere now.
    pub(super) fn end(&self, dead: Vec<(Protocol, Id)>, lost: Vec<LostFrontend>) {
        let protocols = self.protocols();
        self.reaper.dead(dead.into_iter().filter(|(protocol, _)| protocols.contains(protocol)));
        self.reaper.lost(lost);
    }

    /// After a restart: endpoints may have gone while no agent ran. [`Self::found`] tells what sockets have.
    pub(super) fn look_back(&mut self) {
        let (reaper, protocols) = (self.reaper.clone(), self.protocols());
        self.looking_back = Some(tokio::spawn(async move { reaper.kept(protocols).await }));
    }

    /// Ends the sockets of those of these that serve no more, or lead elsewhere.
    pub(super) fn sweep(&self, kept: &HashSet<Kept>, services: &Services) {
        let backends: HashSet<Id> = kept.iter().map(|kept| kept.backend).collect();
        let dead = backends.into_iter().filter(|backend| !services.is_served(*backend));
        // Which protocol a backend had is not known any more.
        self.reaper.dead(dead.flat_map(|backend| self.protocols().iter().map(move |it| (*it, backend))));
        // Nor which kind of socket this is; frontends are lost to UDP sockets alone.
        let lost = kept.iter().filter(|kept| !services.leads_to(kept.vip, kept.service));
        self.reaper.lost(lost.map(|kept| LostFrontend { service: kept.service, address: kept.vip }));
    }

    /// Looks, unless it is at it, which addresses network namespaces have; `primary` are this node's.
    pub(super) fn look_for_namespaces(&mut self, primary: Vec<IpAddr>) {
        if self.looking.is_none() {
            self.looking = Some(tokio::task::spawn_blocking(move || {
                netns::addresses(&primary).context("cannot tell which addresses sockets send from")
            }));
        }
    }

    /// The same, and waits: for when nothing is known yet.
    pub(super) async fn first_look(&mut self, primary: Vec<IpAddr>) -> Result<Namespaces> {
        self.look_for_namespaces(primary);
        finished(&mut self.looking).await
    }

    /// Resolves when something was found out.
    pub(super) async fn found(&mut self) -> Found {
        loop {
            let result = tokio::select! {
                result = finished(&mut self.looking) => result.map(Found::Namespaces),
                result = finished(&mut self.looking_back) => result.map(Found::Kept),
            };
            match result {
                Ok(found) => return found,
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != self.said {
                        warn!("{error}");
                        self.said = error;
                    }
                }
            }
        }
    }

    fn protocols(&self) -> &'static [Protocol] {
        if self.resets_tcp { &[Protocol::Udp, Protocol::Tcp] } else { &[Protocol::Udp] }
    }
}

/// Resolves to what a task found, once.
async fn finished<T>(task: &mut Option<JoinHandle<Result<T>>>) -> Result<T> {
    let Some(running) = task else {
        return std::future::pending().await;
    };
    let result = running.await.context("a task of the agent ended unexpectedly")?;
    *task = None;
    result
}
