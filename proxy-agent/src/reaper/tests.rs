use std::{net::SocketAddr, path::Path};

use proxy_common::layout::id::Id;

use super::{noted::Noted, records::suspects, *};
use crate::datapath::pins::Pins;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const A: Id = Id::new(1, 1);
const B: Id = Id::new(2, 1);
const C: Id = Id::new(3, 1);

fn noted(cookie: u64, backend: &str, backend_id: Id) -> Noted {
    Noted { cookie, backend: address(backend), backend_id }
}

fn notes_of_nowhere() -> Records {
    Records::Notes(Pins::new(Path::new("/nowhere")))
}

#[test]
fn sockets_of_the_dead_backend_are_suspects_and_no_others() {
    // The second is of another service, which still has the endpoint.
    let all = [noted(1, "10.244.0.3:53", A), noted(2, "10.244.0.3:53", B), noted(3, "[fd00::3]:53", C)];
    let dead = [(Transport::Udp, A), (Transport::Tcp, A), (Transport::Udp, C)];
    let mut found: Vec<_> =
        suspects(&all, &dead.into()).map(|suspect| (suspect.cookie, suspect.transport)).collect();
    found.sort();
    assert_eq!(found, [(1, Transport::Tcp), (1, Transport::Udp), (3, Transport::Udp)]);
}

#[tokio::test]
async fn what_waits_already_takes_no_more_room() {
    // Its worker never gets to run: the test does not wait.
    let reaper = Reaper::start(notes_of_nowhere(), Counts::default());
    for _ in 0..1000 {
        reaper.dead([Protocol::Udp, Protocol::Tcp, Protocol::Sctp].map(|protocol| (protocol, A)));
    }
    assert_eq!(reaper.queue.take().len(), 2, "no socket of SCTP is ever translated");
    assert!(reaper.queue.take().is_empty());
}

#[tokio::test]
async fn notes_that_cannot_be_read_are_counted_and_work_goes_on() {
    let counts = Counts::default();
    let reaper = Reaper::start(notes_of_nowhere(), counts.clone());
    for failed in 1..=2 {
        reaper.dead([(Protocol::Udp, A)]);
        let counted = async {
            while counts.failed.get() < failed {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), counted).await.unwrap();
    }
}
