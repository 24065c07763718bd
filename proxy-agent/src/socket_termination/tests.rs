use std::{net::SocketAddr, path::Path};

use proxy_common::layout::id::Id;

use super::{end::Suspect, noted::Noted, records::suspects, *};
use crate::datapath::pins::Pins;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const VIP: &str = "10.96.0.10:53";
const SERVICE: Id = Id::new(9, 1);
const A: Id = Id::new(1, 1);
const B: Id = Id::new(2, 1);
const C: Id = Id::new(3, 1);

fn noted(cookie: u64, backend: &str, backend_id: Id) -> Noted {
    let kept = Kept { vip: address(VIP), service: SERVICE, backend: backend_id };
    Noted { cookie, backend: address(backend), kept }
}

fn notes_of_nowhere() -> Records {
    Records::Notes(Pins::new(Path::new("/nowhere")))
}

#[test]
fn sockets_of_the_dead_backend_are_suspects_and_no_others() {
    // The second is of another service, which still has the endpoint.
    let all = [noted(1, "10.244.0.3:53", A), noted(2, "10.244.0.3:53", B), noted(3, "[fd00::3]:53", C)];
    let dead = [(Transport::Udp, A), (Transport::Tcp, A), (Transport::Udp, C)]
        .map(|(transport, backend)| Target::Backend(transport, backend));
    let mut found: Vec<_> =
        suspects(&all, &dead.into()).map(|suspect| (suspect.cookie, suspect.transport)).collect();
    found.sort();
    assert_eq!(found, [(1, Transport::Tcp), (1, Transport::Udp), (3, Transport::Udp)]);
}

#[test]
fn udp_sockets_of_a_lost_frontend_are_targets_and_no_others() {
    let lost = |service, at: &str| Target::Frontend(LostFrontend { service, address: address(at) });
    let kept = |vip: &str, service| Kept { vip: address(vip), service, backend: A };
    let other = Id::new(8, 1);
    for (lost, kept, expected) in [
        (lost(SERVICE, VIP), kept(VIP, SERVICE), true),
        (lost(other, VIP), kept(VIP, SERVICE), false),
        (lost(SERVICE, VIP), kept("10.96.0.10:54", SERVICE), false),
        (lost(SERVICE, VIP), kept("10.96.0.11:53", SERVICE), false),
        // A nodePort, by whichever address of the node.
        (lost(SERVICE, "0.0.0.0:30053"), kept("192.168.0.1:30053", SERVICE), true),
        (lost(SERVICE, "[::]:30053"), kept("[fd00::1]:30053", SERVICE), true),
        (lost(SERVICE, "[::]:30053"), kept("192.168.0.1:30053", SERVICE), false),
    ] {
        let targets = [lost].into();
        assert_eq!(end::is_target(&targets, Transport::Udp, &kept), expected, "{lost:?} {kept:?}");
        assert!(!end::is_target(&targets, Transport::Tcp, &kept), "TCP continues");
    }
}

#[tokio::test]
async fn what_waits_already_takes_no_more_room() {
    // Its worker never gets to run: the test does not wait.
    let socket_termination = SocketTerminator::start(notes_of_nowhere(), Counts::default());
    for _ in 0..1000 {
        socket_termination.dead([Protocol::Udp, Protocol::Tcp, Protocol::Sctp].map(|protocol| (protocol, A)));
    }
    assert_eq!(socket_termination.queue.take().len(), 2, "no socket of SCTP is ever translated");
    assert!(socket_termination.queue.take().is_empty());
}

#[tokio::test]
async fn unreadable_notes_are_counted_and_work_continues() {
    let counts = Counts::default();
    let socket_termination = SocketTerminator::start(notes_of_nowhere(), counts.clone());
    for failed in 1..=2 {
        socket_termination.dead([(Protocol::Udp, A)]);
        let counted = async {
            while counts.failed.get() < failed {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), counted).await.unwrap();
    }
}

/// How often targets are searched: at first, and again while it is due.
#[test]
fn a_second_walk_follows_and_more_while_one_fails() {
    let walked = |failed| Outcome { walked: Walked { failed, ..Walked::default() }, ..Outcome::default() };
    let backend = Target::Backend(Transport::Udp, A);
    for (failures, walks) in
        [(&[0, 0, 0, 0, 0, 0][..], 2), (&[1, 0], 2), (&[0, 1, 0], 3), (&[1; 9], MOST_LOOKS)]
    {
        let mut looks = vec![Look { due: Instant::now(), made: 0, targets: [backend].into() }];
        let made = failures.iter().take_while(|failed| {
            let left = !looks.is_empty();
            looks = again(std::mem::take(&mut looks), &walked(**failed), Instant::now());
            left
        });
        assert_eq!(made.count(), walks, "{failures:?}");
    }
}

#[test]
fn a_socket_that_was_ended_is_not_searched_again() {
    let socket = |cookie| Suspect { transport: Transport::Udp, cookie, peer: address("10.244.0.3:53") };
    let looks = vec![Look {
        due: Instant::now(),
        made: 0,
        targets: [1, 2].map(|it| Target::Socket(socket(it))).into(),
    }];
    let outcome = Outcome { ended: [socket(1)].into(), ..Outcome::default() };
    let again = again(looks, &outcome, Instant::now());
    assert_eq!(again[0].targets, [Target::Socket(socket(2))].into());
}
