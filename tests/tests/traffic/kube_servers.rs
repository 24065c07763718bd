//! The agent's source for API servers that are weak, stale, restored from a backup, or several.
//!
//! Set-up: no cluster: the agent's source in this process, and one or two stand-ins on loopback that refuse, fall
//! behind, lose their history or stay silent.

use std::time::Duration;

use prometheus_client::{encoding::text, registry::Registry};
use proxy_agent::source::kube::{KubeSettings, Timing};
use proxy_apiserver::{ApiServer, Mode, Request, Resource};

use super::kube_source::{A_AND_B, NODE, Source, TIMING, lists, resumptions, server, slice, web};

fn settings(servers: &[&ApiServer], timing: Timing) -> KubeSettings {
    KubeSettings {
        kubeconfig: None,
        api_servers: servers.iter().map(|server| server.url()).collect(),
        node_name: NODE.into(),
        timing,
    }
}

fn of(requests: &[Request], resource: Resource) -> Vec<&Request> {
    requests.iter().filter(|request| request.resource == resource).collect()
}

/// Between each request and the one before.
fn gaps(requests: &[&Request]) -> Vec<Duration> {
    requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

#[tokio::test]
async fn lists_that_break_off_come_less_and_less_often() {
    let server = server().await;
    server.set(|behaviour| {
        behaviour.cut_next_list_after = Some(1);
        behaviour.cut_all_lists = true;
    });
    let timing =
        Timing { first_retry: Duration::from_millis(50), longest_retry: Duration::from_secs(2), ..TIMING };
    let mut source = Source::with(settings(&[&server], timing));
    let six = |requests: &[Request]| lists(requests, Resource::Services) >= 6;
    source.during("six lists", server.wait_for_requests("six lists", six)).await.unwrap();
    let requests = server.requests();
    let gaps = gaps(&of(&requests, Resource::Services));
    // Half of 50, 100, 200, 400 and 800 ms at least: the first object of a list does not reset the back-off.
    for (n, gap) in gaps.iter().take(5).enumerate() {
        assert!(*gap >= Duration::from_millis(25 << n), "{gaps:?}");
    }
    server.set(|behaviour| {
        behaviour.cut_next_list_after = None;
        behaviour.cut_all_lists = false;
    });
    source.until_served(A_AND_B).await;
}

#[tokio::test]
async fn a_server_is_left_alone_as_long_as_it_asks_for() {
    for code in [429, 503] {
        let server = server().await;
        server.set(|behaviour| {
            behaviour.mode = Mode::Fail(code);
            behaviour.retry_after = Some(2);
        });
        let mut source = Source::start(&server);
        let twice = |requests: &[Request]| of(requests, Resource::Services).len() >= 2;
        source.during("twice", server.wait_for_requests("two requests", twice)).await.unwrap();
        source.until_trouble(&format!("answers {code}")).await;
        let requests = server.requests();
        let gaps = gaps(&of(&requests, Resource::Services));
        assert!(gaps[0] >= Duration::from_secs(2), "{code}: {gaps:?}");
        server.set(|behaviour| behaviour.mode = Mode::Serve);
        source.until_served(A_AND_B).await;
    }
}

#[tokio::test]
async fn requests_name_their_sender_and_the_length_of_watches() {
    let server = server().await;
    let mut source = Source::with(settings(&[&server], Timing { watch: Duration::from_secs(300), ..TIMING }));
    source.until_well().await;
    for request in server.requests() {
        let agent = &request.headers["user-agent"];
        assert!(agent.starts_with("proxy-agent/") && agent.contains(" (linux/"), "{agent}");
        let lifetime: u64 = request.query["timeoutSeconds"].parse().unwrap();
        assert!((300..=600).contains(&lifetime), "{lifetime}");
    }
    let state = source.state.borrow().clone();
    assert_eq!(state.server, Some(server.url()));
}

#[tokio::test]
async fn plain_lists_are_those_of_the_cache_and_streaming_is_tried_again() {
    let server = server().await;
    server.set(|behaviour| behaviour.streaming_lists = false);
    let timing = Timing { plain_lists: Duration::from_millis(500), ..TIMING };
    let mut source = Source::with(settings(&[&server], timing));
    source.until_served(A_AND_B).await;
    source.until_well().await;
    let requests = server.requests();
    let slices = of(&requests, Resource::EndpointSlices);
    let plain = slices.iter().find(|request| !request.is_watch()).unwrap();
    assert_eq!(plain.query.get("resourceVersion").map(String::as_str), Some("0"));
    assert_eq!(slices.iter().filter(|request| !request.is_watch()).count(), 1, "the cache knows no pages");

    // After a while the next list is a stream again.
    server.set(|behaviour| behaviour.streaming_lists = true);
    tokio::time::sleep(timing.plain_lists).await;
    let before = server.requests().len();
    server.expire_watches();
    let streamed = |requests: &[Request]| {
        of(&requests[before..], Resource::EndpointSlices).iter().any(|r| r.is_list() && r.is_watch())
    };
    source.during("streamed", server.wait_for_requests("a streaming list", streamed)).await.unwrap();
    source.until_served(A_AND_B).await;
}

#[tokio::test]
async fn a_restored_backup_is_listed() {
    // After a long outage before the watch resumes; after a short one when the watch stays silent.
    for (long_outage, silence) in
        [(Duration::ZERO, TIMING.silence), (Duration::from_secs(60), Duration::from_millis(800))]
    {
        let server = server().await;
        let backup = server.apply(slice("a-1", "a", &[1])).unwrap();
        for last in 3..9 {
            server.apply(slice("a-1", "a", &[last])).unwrap();
        }
        server.delete(Resource::Services, "default", "b");
        let timing = Timing { long_outage, silence, watch: Duration::from_secs(60), ..TIMING };
        let mut source = Source::with(settings(&[&server], timing));
        source.until_served(&[("a", &["10.244.0.8:8080"])]).await;
        source.until_well().await;

        server.set(|behaviour| behaviour.mode = Mode::Refuse);
        source.until_trouble("cannot reach").await;
        server.restore(backup);
        server.set(|behaviour| behaviour.mode = Mode::Serve);
        source.until_served(A_AND_B).await;
        source.until_well().await;
        let state = source.state.borrow().clone();
        assert_eq!(state.watches["services"].regressions, 1, "{state:#?}");
        assert_eq!(state.watches["endpointslices"].regressions, 1, "{state:#?}");
        // And from there on as ever.
        server.apply(web("c")).unwrap();
        source.until_served(&[A_AND_B[0], A_AND_B[1], ("c", &[])]).await;
    }
}

#[tokio::test]
async fn a_server_that_is_behind_does_not_take_the_agent_back() {
    let [new, old] = [server().await, server().await];
    old.set(|behaviour| behaviour.quorum = false);
    new.apply(web("c")).unwrap();
    new.apply(slice("c-1", "c", &[3])).unwrap();
    let all: [(&str, &[&str]); 3] = [A_AND_B[0], A_AND_B[1], ("c", &["10.244.0.3:8080"])];
    let timing = Timing { watch: Duration::from_secs(60), silence: Duration::from_millis(500), ..TIMING };
    // Whether the old one accepts a watch from a version in its future, or refuses it so that a list is needed.
    for grants in [true, false] {
        old.set(|behaviour| behaviour.future_watches = grants);
        let mut source = Source::with(settings(&[&new, &old], timing));
        source.until_served(&all).await;
        source.until_well().await;
        let before = old.requests().len();
        new.set(|behaviour| behaviour.mode = Mode::Refuse);
        let newest = |requests: &[Request]| {
            requests[before..].iter().any(|request| !request.query.contains_key("resourceVersion"))
        };
        source.during("asked", old.wait_for_requests("the newest version", newest)).await.unwrap();
        new.set(|behaviour| behaviour.mode = Mode::Serve);
        source.until_well().await;
        new.apply(web("d")).unwrap();
        source.until_served(&[all[0], all[1], all[2], ("d", &[])]).await;
        let state = source.state.borrow().clone();
        assert!(state.watches.values().all(|watch| watch.regressions == 0), "{grants}: {state:#?}");
        new.delete(Resource::Services, "default", "d");
    }
}

#[tokio::test]
async fn a_watch_that_stays_silent_is_made_again() {
    let server = server().await;
    let timing = Timing { watch: Duration::from_secs(60), silence: Duration::from_millis(500), ..TIMING };
    let mut source = Source::with(settings(&[&server], timing));
    source.until_served(A_AND_B).await;
    source.until_well().await;
    server.set(|behaviour| behaviour.mute_watches = true);
    server.apply(slice("a-1", "a", &[7])).unwrap();
    let again = |requests: &[Request]| resumptions(requests, Resource::EndpointSlices) >= 2;
    source.during("again", server.wait_for_requests("another watch", again)).await.unwrap();
    server.set(|behaviour| behaviour.mute_watches = false);
    source.until_served(&[("a", &["10.244.0.7:8080"]), A_AND_B[1]]).await;
    assert_eq!(
        lists(&server.requests(), Resource::EndpointSlices),
        1 + checks(&server),
        "no list was needed"
    );
    assert!(source.state.borrow().watches["endpointslices"].silences >= 1);
    assert_eq!(source.state.borrow().trouble(), None);
}

/// Requests for the newest version alone.
fn checks(server: &ApiServer) -> usize {
    let requests = server.requests();
    let of_one = |request: &&&Request| request.query.get("limit").is_some_and(|limit| limit == "1");
    of(&requests, Resource::EndpointSlices).iter().filter(of_one).count()
}

#[tokio::test]
async fn the_next_address_is_used_at_once_and_kept() {
    let [first, second] = [server().await, server().await];
    // Refused connections, then a server that takes requests and does not answer.
    for mode in [Mode::Refuse, Mode::Hang] {
        first.set(|behaviour| behaviour.mode = mode);
        let slow = Timing {
            settled: Duration::ZERO,
            first_retry: Duration::from_secs(60),
            longest_retry: Duration::from_secs(60),
            ..TIMING
        };
        let mut source = Source::with(settings(&[&first, &second], slow));
        source.until_served(A_AND_B).await;
        source.until_well().await;
        assert_eq!(source.state.borrow().server, Some(second.url()));
        // It stays there, also when the first one is back.
        first.set(|behaviour| behaviour.mode = Mode::Serve);
        let before = first.requests().len();
        let again = |requests: &[Request]| resumptions(requests, Resource::Services) >= 1;
        source.during("the next watch", second.wait_for_requests("the next watch", again)).await.unwrap();
        assert_eq!(first.requests().len(), before, "{mode:?}");
        // And goes back when the second one fails.
        second.set(|behaviour| behaviour.mode = Mode::Refuse);
        let asked = |requests: &[Request]| resumptions(&requests[before..], Resource::Services) >= 1;
        source.during("back", first.wait_for_requests("a watch at the first", asked)).await.unwrap();
        first.apply(web("c")).unwrap();
        source.until_served(&[A_AND_B[0], A_AND_B[1], ("c", &[])]).await;
        first.delete(Resource::Services, "default", "c");
        second.set(|behaviour| behaviour.mode = Mode::Serve);
    }
}

#[tokio::test]
async fn forbidden_at_the_start_is_not_a_problem_until_it_lasts() {
    let server = server().await;
    server.set(|behaviour| behaviour.mode = Mode::Fail(403));
    let timing = Timing { forbidden_grace: Duration::from_secs(1), ..TIMING };
    let mut source = Source::with(settings(&[&server], timing));
    let asked = |requests: &[Request]| of(requests, Resource::Services).len() >= 3;
    source.during("asked", server.wait_for_requests("three attempts", asked)).await.unwrap();
    assert_eq!(source.state.borrow().trouble(), None);
    source.until_trouble("does not let us watch").await;
    let trouble = source.state.borrow().trouble().cloned().unwrap();
    assert!(trouble.message.contains("ClusterRole proxy-agent"), "{trouble:?}");
    server.set(|behaviour| behaviour.mode = Mode::Serve);
    source.until_served(A_AND_B).await;
    source.until_well().await;
}

#[tokio::test]
async fn requests_are_counted_as_by_client_go() {
    let server = server().await;
    let mut source = Source::start(&server);
    source.until_well().await;
    server.set(|behaviour| behaviour.mode = Mode::Refuse);
    source.until_trouble("cannot reach").await;
    let mut registry = Registry::default();
    source.requests.register(&mut registry);
    let mut metrics = String::new();
    text::encode(&mut metrics, &registry).unwrap();
    let url = server.url();
    let host = url.trim_start_matches("http://");
    for expected in [
        format!("rest_client_requests_total{{code=\"200\",method=\"GET\",host=\"{host}\"}}"),
        format!("rest_client_requests_total{{code=\"<error>\",method=\"GET\",host=\"{host}\"}}"),
        format!("rest_client_request_duration_seconds_bucket{{le=\"0.005\",verb=\"GET\",host=\"{host}\"}}"),
    ] {
        assert!(metrics.contains(&expected), "{expected} in {metrics}");
    }
}
