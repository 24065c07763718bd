use std::net::SocketAddr;

use super::*;
use crate::model::{
    objects::{Change, Hints, Kind, Protocol, Service, ServicePort, SlicePort, TrafficPolicy},
    planner::plan_stored,
    store::Store,
};

const TIME: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;

fn endpoint(last: u8) -> Endpoint {
    Endpoint {
        address: IpAddr::from([10, 1, 0, last]),
        node: Some("n1".into()),
        ready: true,
        serving: true,
        terminating: false,
        hints: Hints::default(),
    }
}

fn slice(name: &str, port: u16, endpoints: Vec<Endpoint>) -> Change {
    Change::EndpointSlice(EndpointSlice {
        name: ObjectName::new("default", name),
        service: ObjectName::new("default", "web"),
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Udp, port }],
        endpoints,
        ..EndpointSlice::default()
    })
}

fn ready(name: &str, endpoints: &[u8]) -> Change {
    slice(name, PORT, endpoints.iter().copied().map(endpoint).collect())
}

fn web() -> Service {
    Service {
        name: ObjectName::new("default", "web"),
        cluster_ips: vec![IpAddr::from([10, 0, 0, 1])],
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Udp,
            port: 53,
            node_port: Some(30_053),
        }],
        external_policy: TrafficPolicy::Local,
        ..Service::default()
    }
}

fn gone(name: &str) -> Change {
    Change::EndpointSliceGone(ObjectName::new("default", name))
}

/// A store with the Service and these slices, at some time.
struct Fixture {
    store: Store,
    now: Instant,
}

impl Fixture {
    fn new(settle_time: Duration, slices: Vec<Change>) -> Self {
        let mut fixture = Self { store: Store::with_settle_time(settle_time), now: Instant::now() };
        fixture.take([Change::Service(web())].into_iter().chain(slices));
        fixture
    }

    fn take(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.store.apply(change));
        self.store.settle(self.now);
        self.store.take_changed();
    }

    /// Some time passes; was the Service planned again?
    fn pass(&mut self, millis: u64) -> bool {
        self.now += Duration::from_millis(millis);
        self.store.settle(self.now);
        !self.store.take_changed().is_empty()
    }

    /// The endpoints that get new connections, by cluster IP and from outside, and those that keep flows: last octets, and
    /// ports if they differ.
    fn shown(&self) -> String {
        let plan = plan_stored(&self.store, &ObjectName::new("default", "web"), "n1");
        let text = |list: &[SocketAddr]| {
            let all = list.iter().map(|address| match (address.ip(), address.port()) {
                (IpAddr::V4(ip), PORT) => ip.octets()[3].to_string(),
                (IpAddr::V4(ip), port) => format!("{}:{port}", ip.octets()[3]),
                (IpAddr::V6(ip), _) => ip.to_string(),
            });
            all.collect::<Vec<_>>().join(" ")
        };
        let Some(port) = plan.ports.first() else { return "-".to_owned() };
        format!("{} | {} | {}", text(&port.internal), text(&port.external), text(&port.serving))
    }
}

/// The state before, the changes; then the endpoints at once, and those after the settle time.
type Case = (&'static str, Vec<Change>, Vec<Change>, &'static str, &'static str);

#[test]
fn what_leaves_all_slices_stays_for_a_while() {
    let with = |change: fn(&mut Endpoint)| {
        let mut endpoint = endpoint(1);
        change(&mut endpoint);
        slice("a", PORT, vec![endpoint])
    };
    let terminating = |endpoint: &mut Endpoint| {
        endpoint.ready = false;
        endpoint.terminating = true;
    };
    let unready = |endpoint: &mut Endpoint| {
        endpoint.ready = false;
        endpoint.serving = false;
    };
    let cases: Vec<Case> = vec![
        ("others are there", vec![ready("a", &[1, 2])], vec![ready("a", &[2])], "2 | 2 | 1 2", "2 | 2 | 2"),
        ("it was the last one", vec![ready("a", &[1])], vec![ready("a", &[])], "1 | 1 | 1", " |  | "),
        ("its slice is gone", vec![ready("a", &[1])], vec![gone("a")], "1 | 1 | 1", " |  | "),
        (
            "a list without its slice",
            vec![ready("a", &[1]), ready("b", &[2])],
            vec![
                Change::ListStart(Kind::EndpointSlice),
                ready("b", &[2]),
                Change::ListDone(Kind::EndpointSlice),
            ],
            "2 | 2 | 1 2",
            "2 | 2 | 2",
        ),
        (
            "it is in another slice",
            vec![ready("a", &[1]), ready("b", &[])],
            vec![ready("a", &[]), ready("b", &[1])],
            "1 | 1 | 1",
            "1 | 1 | 1",
        ),
        (
            "another port",
            vec![ready("a", &[1])],
            vec![slice("a", 9090, vec![endpoint(1)])],
            "1:9090 | 1:9090 | 1 1:9090",
            "1:9090 | 1:9090 | 1:9090",
        ),
        ("it was terminating", vec![with(terminating)], vec![ready("a", &[])], " |  | ", " |  | "),
        ("it was not ready", vec![with(unready)], vec![ready("a", &[])], " |  | ", " |  | "),
        ("it is not ready now", vec![ready("a", &[1])], vec![with(unready)], " |  | ", " |  | "),
        (
            "the Service is gone",
            vec![ready("a", &[1])],
            vec![ready("a", &[]), Change::ServiceGone(ObjectName::new("default", "web"))],
            "-",
            "-",
        ),
        (
            "the Service is created again",
            vec![ready("a", &[1])],
            vec![
                ready("a", &[]),
                Change::ServiceGone(ObjectName::new("default", "web")),
                Change::Service(web()),
            ],
            " |  | ",
            " |  | ",
        ),
    ];
    for (what, before, happens, at_once, later) in cases {
        let mut fixture = Fixture::new(TIME, before);
        fixture.take(happens);
        assert_eq!(fixture.shown(), at_once, "{what}");
        fixture.pass(999);
        assert_eq!(fixture.shown(), at_once, "{what}, just before");
        let planned_again = fixture.pass(1);
        assert_eq!(fixture.shown(), later, "{what}, later");
        assert!(planned_again || at_once == later, "{what}");
        assert_eq!(fixture.store.settles_at(), None, "{what}");
    }
}

/// In a gap of any length below the settle time, as often as it likes.
#[test]
fn an_endpoint_that_comes_back_was_never_gone() {
    let mut fixture = Fixture::new(TIME, vec![ready("a", &[1])]);
    for _ in 0..5 {
        for (from, to) in [("a", "b"), ("b", "a")] {
            fixture.take([ready(from, &[])]);
            assert_eq!(fixture.shown(), "1 | 1 | 1", "in the gap");
            fixture.pass(700);
            assert_eq!(fixture.shown(), "1 | 1 | 1", "at the end of the gap");
            fixture.take([ready(to, &[1])]);
            fixture.pass(200);
            assert_eq!(fixture.shown(), "1 | 1 | 1");
        }
    }
    // Each time counts from when it left last.
    fixture.take([ready("a", &[])]);
    fixture.pass(999);
    assert_eq!(fixture.shown(), "1 | 1 | 1");
    assert!(fixture.pass(1), "it does not come back");
    assert_eq!(fixture.shown(), " |  | ");
}

/// A slice's present contents count more than its earlier ones.
#[test]
fn an_endpoint_that_comes_back_otherwise_is_what_it_is_now() {
    let mut fixture = Fixture::new(TIME, vec![ready("a", &[1])]);
    let unready = Endpoint { ready: false, serving: false, ..endpoint(1) };
    fixture.take([ready("a", &[]), slice("b", PORT, vec![unready])]);
    assert_eq!(fixture.shown(), " |  | ");
}

#[test]
fn without_a_settle_time_it_is_gone_at_once() {
    let mut fixture = Fixture::new(Duration::ZERO, vec![ready("a", &[1])]);
    fixture.take([ready("a", &[])]);
    assert_eq!((fixture.shown().as_str(), fixture.store.settles_at()), (" |  | ", None));
}

/// In a rollout, all Services have some at once.
#[test]
fn endpoints_that_left_take_no_spare_room() {
    let slice = |endpoints: &[u8]| match ready("a", endpoints) {
        Change::EndpointSlice(slice) => slice,
        other => panic!("{other:?}"),
    };
    let mut settling = Settling::new(TIME);
    settling.replaced(&slice(&[1, 2, 3]), Some(&slice(&[2, 3])));
    settling.replaced(&slice(&[2, 3]), Some(&slice(&[3])));
    let departed = &settling.departed[&slice(&[]).service];
    assert_eq!((departed.len(), departed.capacity()), (2, 2));
    assert!(departed.iter().all(|departed| departed.slice.endpoints.capacity() == 1));

    let now = Instant::now();
    settling.settle(now);
    assert_eq!(settling.settle(now + TIME).len(), 1);
    assert_eq!((settling.departed.len(), settling.deadlines.capacity()), (0, 0));
}

#[test]
fn the_time_begins_with_the_first_pass() {
    let mut fixture = Fixture::new(TIME, vec![ready("a", &[1])]);
    fixture.store.apply(gone("a"));
    assert_eq!(fixture.store.settles_at(), None);
    fixture.pass(5000);
    assert_eq!(fixture.store.settles_at(), Some(fixture.now + TIME));
    assert_eq!(fixture.shown(), "1 | 1 | 1");
}

/// There are clocks that end.
#[test]
fn a_settle_time_beyond_all_clocks_does_not_stop_anything() {
    let mut fixture = Fixture::new(Duration::MAX, vec![ready("a", &[1])]);
    fixture.take([gone("a")]);
    assert_eq!(fixture.shown(), " |  | ");
}
