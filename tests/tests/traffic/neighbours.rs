//! Next hops whose link-layer address changes without an announcement. Needs root.
//!
//! Set-up: two nodes, an agent on the first, whose Service has its endpoint on the second. node-2 changes its MAC and
//! has permanent neighbours, so that node-1 learns nothing by itself. tc, generic and native XDP.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use proxy_harness::{
    cluster::{Agent, Cluster, Load, LoadReport, Netns, Protocol, until},
    traffic::{Entry, SINGLE, Scenario},
};

/// How long connections may stand still: two seconds, and the delays of a busy machine.
const FOLLOWED: Duration = Duration::from_millis(2_800);

/// How programs at the uplink of node-1 are attached; with native XDP the router's ports have programs, too.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Tc,
    GenericXdp,
    NativeXdp,
}

impl Mode {
    fn args(self) -> [&'static str; 2] {
        ["--xdp", ["off", "generic", "native"][self as usize]]
    }
}

/// A cluster whose SINGLE has its endpoint on node-2, which never sends anything to node-1 by itself.
struct Fixture {
    scenario: Scenario,
    agent: Agent,
    changes: u8,
}

impl Fixture {
    fn start(mode: Mode) -> Result<Self> {
        let builder = Cluster::builder().nodes(2).offload(false).xdp_pass(matches!(mode, Mode::NativeXdp));
        let scenario = Scenario::without_agents(builder, "socket")?;
        scenario.apply(SINGLE, &[scenario.cluster.pod("pod-2a")?])?;
        let agent = scenario.cluster.start_agent(0, &mode.args())?;
        Ok(Self { scenario, agent, changes: 0 })
    }

    fn netns(&self, node: usize) -> Result<&Netns> {
        Ok(&self.scenario.cluster.node(node)?.host.netns)
    }

    /// Gives node-2 another MAC. All its neighbours are permanent, so that it sends no request: a request would reveal its MAC.
    fn change_mac(&mut self) -> Result<()> {
        self.changes += 1;
        let own = self.netns(0)?.feed("ip", &["-br", "link", "show", "dev", "eth0"], "")?;
        let own = own.split_whitespace().nth(2).context("no MAC")?.to_owned();
        let mut lines = vec![format!("link set eth0 address 02:00:00:00:99:{:02x}", self.changes)];
        let host = &self.scenario.cluster.node(0)?.host;
        for address in [host.v4.to_string(), host.v6.to_string()] {
            lines.push(format!("neigh replace {address} lladdr {own} dev eth0 nud permanent"));
        }
        self.netns(1)?.ip(&lines)
    }

    /// Makes node-1's entry for node-2 one that was not confirmed for long.
    fn doubt_next_hop(&self, ipv4: bool) -> Result<()> {
        let host = &self.scenario.cluster.node(1)?.host;
        let address = if ipv4 { host.v4.to_string() } else { host.v6.to_string() };
        let known = self.netns(0)?.feed("ip", &["neigh", "show", "to", &address], "")?;
        let mac = known.split_whitespace().nth(4).context("not resolved")?;
        self.netns(0)?.ip(&[format!("neigh replace {address} lladdr {mac} dev eth0 nud stale")])
    }

    /// UDP from the client outside to node-1's port, a new socket each time.
    fn load(&self, ipv4: bool) -> Result<Load> {
        let to = self.scenario.target(Entry::NodePort(0), SINGLE, ipv4)?;
        let call = self.scenario.cluster.client.call(to).protocol(Protocol::Udp);
        call.timeout(Duration::from_millis(100)).every(Duration::from_millis(10)).load()
    }

    /// Changes the MAC under load; how long nothing is answered.
    fn gap(&mut self, load: &Load, limit: Duration) -> Result<Duration> {
        self.change_mac()?;
        let (start, before) = (Instant::now(), load.report()?);
        until(limit, "answers from a next hop with another MAC", || {
            let now = load.report()?;
            // Not those that were on their way; and some were lost, or the test shows nothing.
            Ok((now.ok >= before.ok + 5 && now.failed > before.failed).then_some(()))
        })?;
        Ok(start.elapsed())
    }
}

fn follows(mode: Mode) -> Result<()> {
    let mut fixture = Fixture::start(mode)?;
    if matches!(mode, Mode::NativeXdp) {
        // The effect on a real device is documented where it is done.
        fixture.agent.wait_for_log("native XDP at eth0 (driver veth)")?;
    }
    for ipv4 in [true, false] {
        let to = fixture.scenario.target(Entry::NodePort(0), SINGLE, ipv4)?;
        let connection =
            fixture.scenario.cluster.client.call(to).keep_alive().timeout(Duration::from_secs(9));
        let connection = connection.every(Duration::from_millis(20)).load()?;
        let load = fixture.load(ipv4)?;
        load.wait_for(200)?;
        for _ in 0..2 {
            let gap = fixture.gap(&load, Duration::from_secs(8))?;
            eprintln!("{mode:?}, IPv4 {ipv4}: followed after {gap:?}");
            ensure!(gap < FOLLOWED, "{mode:?}, IPv4 {ipv4}: followed after {gap:?}\n{}", fixture.agent.log());
            load.wait_for(200)?;
        }
        connection.wait_for(20)?;
        let report = connection.stop()?;
        ensure!(report.failed == 0, "{mode:?}, IPv4 {ipv4}: {report:?}");
    }
    Ok(())
}

#[test]
fn another_mac_by_tc() {
    follows(Mode::Tc).unwrap();
}

#[test]
fn another_mac_by_generic_xdp() {
    follows(Mode::GenericXdp).unwrap();
}

#[test]
fn another_mac_by_native_xdp() {
    follows(Mode::NativeXdp).unwrap();
}

/// The kernel has long doubted the next hop when traffic begins.
#[test]
fn another_mac_while_nothing_was_sent() -> Result<()> {
    for mode in [Mode::Tc, Mode::GenericXdp] {
        let mut fixture = Fixture::start(mode)?;
        for ipv4 in [true, false] {
            let load = fixture.load(ipv4)?;
            load.wait_for(20)?;
            load.stop()?;
            // By then the agent probes it no more. Time must pass here: no event ends the wait.
            thread::sleep(Duration::from_secs(5));
            fixture.doubt_next_hop(ipv4)?;
            // As old as it would be: the kernel keeps an entry that it wrote a moment ago (`locktime`).
            thread::sleep(Duration::from_millis(1_200));
            fixture.change_mac()?;
            let start = Instant::now();
            let load = fixture.load(ipv4)?;
            until(Duration::from_secs(8), "answers from a next hop with another MAC", || {
                Ok((load.report()?.ok >= 5).then_some(()))
            })?;
            let gap = start.elapsed();
            eprintln!("{mode:?}, IPv4 {ipv4}, after silence: followed after {gap:?}");
            ensure!(gap < FOLLOWED, "{mode:?}, IPv4 {ipv4}: followed after {gap:?}");
        }
    }
    Ok(())
}

/// Nearly all were answered: a busy machine may be late once.
fn is_served(report: &LoadReport) -> Result<()> {
    ensure!(report.ok * 20 > report.sent * 19, "{report:?}");
    Ok(())
}

/// Rules of node-2 that count probes that come in by its uplink.
fn counted(and_then: &str) -> String {
    let table = |family: &str, what: &str| {
        let hook = "type filter hook input priority 0;";
        format!("table {family} seen {{ chain in {{ {hook} iifname eth0 {what} counter {and_then}; }}; }}\n")
    };
    table("arp", "arp operation request arp daddr ip 192.168.99.12")
        + &table("ip6", "icmpv6 type nd-neighbor-solicit")
}

/// At most one probe a second goes to a next hop in use, and none to one that is not.
#[test]
fn next_hops_are_asked_once_a_second() -> Result<()> {
    const SECONDS: u64 = 5;
    let fixture = Fixture::start(Mode::GenericXdp)?;
    let other = fixture.netns(1)?;
    other.nft(&counted(""))?;
    let count = |family: &str| -> Result<u64> {
        let text = other.feed("nft", &["list", "table", family, "seen"], "")?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).context("no counter")?.parse().context(text.clone())
    };
    for (ipv4, family) in [(true, "arp"), (false, "ip6")] {
        let load = fixture.load(ipv4)?;
        load.wait_for(100)?;
        let before = count(family)?;
        // The test counts probes in a time: no event ends the wait.
        thread::sleep(Duration::from_secs(SECONDS));
        let asked = count(family)? - before;
        ensure!((SECONDS - 2..=SECONDS + 1).contains(&asked), "{family}: {asked} in {SECONDS} s");
        is_served(&load.stop()?)?;
        until(Duration::from_secs(10), "the last probe", || {
            let before = count(family)?;
            thread::sleep(Duration::from_millis(2_500));
            Ok((count(family)? == before).then_some(()))
        })?;
    }
    Ok(())
}

/// The next agent probes the neighbours of the last one; and without any agent, XDP is no worse than tc.
#[test]
fn agents_that_end() -> Result<()> {
    let mut fixture = Fixture::start(Mode::GenericXdp)?;
    fixture.netns(0)?.sysctl(&[
        ("ipv4/neigh/eth0/delay_first_probe_time", "1"),
        ("ipv4/neigh/eth0/retrans_time_ms", "300"),
    ])?;
    let load = fixture.load(true)?;
    load.wait_for(100)?;
    fixture.agent.kill()?;
    fixture.doubt_next_hop(true)?;
    let gap = fixture.gap(&load, Duration::from_secs(40))?;
    eprintln!("without an agent: followed after {gap:?}");
    load.wait_for(100)?;
    fixture.agent.start()?;
    load.wait_for(200)?;
    let gap = fixture.gap(&load, Duration::from_secs(8))?;
    ensure!(gap < FOLLOWED, "after a restart: followed after {gap:?}\n{}", fixture.agent.log());
    Ok(())
}

/// Neighbours that others entered are left alone.
#[test]
fn neighbours_of_others() -> Result<()> {
    let fixture = Fixture::start(Mode::GenericXdp)?;
    let host = &fixture.scenario.cluster.node(1)?.host;
    let mac = fixture.netns(1)?.feed("ip", &["-br", "link", "show", "dev", "eth0"], "")?;
    let mac = mac.split_whitespace().nth(2).context("no MAC")?;
    fixture.netns(0)?.ip(&[
        format!("neigh replace {} lladdr {mac} dev eth0 nud permanent", host.v4),
        format!("neigh replace {} lladdr {mac} dev eth0 nud reachable extern_learn", host.v6),
    ])?;
    fixture.netns(1)?.nft(&counted("drop"))?;
    for (ipv4, family) in [(true, "arp"), (false, "ip6")] {
        let load = fixture.load(ipv4)?;
        // About three seconds.
        load.wait_for(250)?;
        is_served(&load.stop()?)?;
        let seen = fixture.netns(1)?.feed("nft", &["list", "table", family, "seen"], "")?;
        ensure!(seen.contains("packets 0"), "{seen}");
    }
    Ok(())
}
