use std::time::Duration;

use tokio::time::Instant;

use super::*;

#[test]
fn what_sockets_cannot_serve_needs_programs_at_pods() {
    use PodDatapath::{Auto, Both, Socket, Tc};
    for (configured, without, with) in
        [(Auto, Auto, Both), (Socket, Socket, Both), (Tc, Tc, Tc), (Both, Both, Both)]
    {
        let found = [false, true].map(|needs_packets| pod_datapath(configured, needs_packets));
        assert_eq!(found, [without, with], "{configured:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_later_puts_no_look_off() {
    let now = Instant::now();
    let (soon, later) = (now + Duration::from_secs(1), now + Duration::from_secs(9));
    let mut schedule = Schedule::default();
    assert_eq!(schedule.next(), None);
    schedule.at(later);
    schedule.at(soon);
    schedule.at(later);
    assert_eq!(schedule.next(), Some(soon), "the first of all");
    schedule.soon();
    assert_eq!(schedule.next(), Some(soon), "one is planned");
    schedule.set(None);
    schedule.soon();
    assert_eq!(schedule.next(), Some(now));
}

/// A controller that looked at nothing. Needs a tokio runtime, and nothing of the kernel but a socket.
fn controller() -> InterfaceController {
    InterfaceController {
        netlink: interfaces::connect().unwrap(),
        topology_config: TopologyConfig {
            uplinks: Vec::new(),
            pod_interfaces: Vec::new(),
            pod_datapath: PodDatapath::Auto,
            nodeport_addresses: Vec::new(),
            bind_address: None,
            snat_addresses: Vec::new(),
        },
        topology: Topology::default(),
        routes: Routes::default(),
        followed: PodDatapath::Auto,
        logged: Vec::new(),
        searched: BTreeSet::new(),
        fragments_failed: false,
        pods: Pods::new(false, &BTreeSet::new()),
        checks: Checks::default(),
        schedule: Schedule::default(),
        reports: Reports::nowhere(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_that_failed_is_taken_again_later_and_later() {
    let mut interfaces = controller();
    let mut waits = Vec::new();
    for _ in 0..3 {
        interfaces.plan_retry(Err(anyhow::anyhow!("no")));
        waits.push(interfaces.schedule.next().unwrap() - Instant::now());
    }
    assert!(waits.is_sorted_by(|a, b| a < b), "{waits:?}");
    interfaces.plan_retry(Ok(()));
    assert_eq!(interfaces.schedule.next(), None);
}

#[tokio::test(start_paused = true)]
async fn changes_ask_for_a_look_when_they_have_settled() {
    let mut interfaces = controller();
    interfaces.note(&Happened::Other);
    let at = interfaces.schedule.next().unwrap();
    assert!(at > Instant::now(), "there may be more of them");
    tokio::time::advance(Duration::from_millis(10)).await;
    interfaces.note(&Happened::Other);
    assert_eq!(interfaces.schedule.next(), Some(at), "a burst does not put it off");
}

#[tokio::test]
async fn services_that_need_packets_change_how_pods_are_served() {
    let mut interfaces = controller();
    let needs = |packets| ServiceNeeds { packets, ..ServiceNeeds::default() };
    assert!(!interfaces.serves_otherwise(&needs(false)));
    assert!(interfaces.serves_otherwise(&needs(true)));
    interfaces.follow(Found { topology: Topology::default(), pod_datapath: PodDatapath::Both });
    assert!(!interfaces.serves_otherwise(&needs(true)));
}
