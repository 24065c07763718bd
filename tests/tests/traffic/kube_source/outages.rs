//! Servers that are away, silent, odd, or cut watches.

use proxy_agent::model::objects::{Change, Kind, ObjectName};
use proxy_apiserver::{ApiServer, EventType, Mode, Request, Resource};

use super::{A_AND_B, Source, lists, served, server, slice, web};

#[tokio::test]
async fn a_watch_that_expires_is_started_again_and_nothing_is_lost() {
    for streaming in [true, false] {
        let server = server().await;
        server.set(|behaviour| behaviour.streaming_lists = streaming);
        let mut source = Source::start(&server);
        source.until_served(A_AND_B).await;
        source.until_well().await;
        server.expire_watches();
        let listed_twice = |requests: &[Request]| {
            lists(requests, Resource::Services) >= 2 && lists(requests, Resource::EndpointSlices) >= 2
        };
        source.during("relist", server.wait_for_requests("new lists", listed_twice)).await.unwrap();
        server.apply(web("c")).unwrap();
        source.until_served(&[A_AND_B[0], A_AND_B[1], ("c", &[])]).await;
        let flaps = source
            .seen
            .iter()
            .any(|change| matches!(change, Change::ServiceGone(_) | Change::EndpointSliceGone(_)));
        assert!(!flaps, "a new list of the same objects removes none");
    }
}

#[tokio::test]
async fn a_cut_watch_resumes_where_it_was() {
    let server = server().await;
    let mut source = Source::start(&server);
    source.until_served(A_AND_B).await;
    source.until_well().await;
    for last in 10..15 {
        server.drop_connections();
        server.apply(slice("a-1", "a", &[last])).unwrap();
        let endpoint = format!("10.244.0.{last}:8080");
        source.until_served(&[("a", &[&endpoint]), A_AND_B[1]]).await;
    }
    assert_eq!(source.lists_done(Kind::EndpointSlice), 1);
}

#[tokio::test]
async fn an_outage_changes_nothing_until_the_server_is_back() {
    let server = server().await;
    let mut source = Source::start(&server);
    source.until_served(A_AND_B).await;
    source.until_well().await;

    server.set(|behaviour| behaviour.mode = Mode::Refuse);
    source.until_trouble(&format!("cannot reach the API server at {}", server.url())).await;
    server.delete(Resource::Services, "default", "a");
    server.delete(Resource::EndpointSlices, "default", "a-1");
    assert_eq!(served(&source.store).len(), 2);
    assert!(source.state.borrow().is_synced(), "what was read is still served");

    // Back, but not well yet.
    server.set(|behaviour| behaviour.mode = Mode::Fail(503));
    source.until_trouble("answers 503").await;
    server.set(|behaviour| behaviour.mode = Mode::Fail(403));
    source.until_trouble("does not let us watch").await;
    server.set(|behaviour| behaviour.mode = Mode::Serve);
    source.until_served(&A_AND_B[1..]).await;
    source.until_well().await;
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let server = server().await;
    server.set(|behaviour| behaviour.mode = Mode::Refuse);
    let mut source = Source::start(&server);
    source.until_trouble("cannot reach the API server").await;
    assert!(source.seen.iter().all(|change| !matches!(change, Change::ListDone(_))));
    server.set(|behaviour| behaviour.mode = Mode::Serve);
    source.until_served(A_AND_B).await;
    source.until_well().await;
}

#[tokio::test]
async fn a_silent_server_is_noticed() {
    let server = server().await;
    let mut source = Source::start(&server);
    source.until_served(A_AND_B).await;
    source.until_well().await;
    server.set(|behaviour| behaviour.mode = Mode::Hang);
    source.until_trouble("cannot reach the API server").await;
    server.delete(Resource::Services, "default", "a");
    server.set(|behaviour| behaviour.mode = Mode::Serve);
    source.until_served(&A_AND_B[1..]).await;
    source.until_well().await;
}

#[tokio::test]
async fn odd_events_do_no_harm() {
    let server = ApiServer::start().await.unwrap();
    let mut source = Source::start(&server);
    source.until_served(&[]).await;
    // Endpoints before their Service; the deletion of an unknown object; a repeated event; a second addition of an existing object.
    server.apply(slice("a-1", "a", &[1])).unwrap();
    server.send_event(EventType::Deleted, web("nobody")).unwrap();
    server.send_event(EventType::Deleted, slice("nothing", "a", &[9])).unwrap();
    server.apply(web("a")).unwrap();
    server.send_event(EventType::Modified, web("a")).unwrap();
    server.send_event(EventType::Added, web("a")).unwrap();
    server.send_event(EventType::Modified, web("b")).unwrap();
    source.until_served(&[A_AND_B[0], ("b", &[])]).await;
    // Objects that the server does not have are gone with the next list.
    server.compact();
    server.expire_watches();
    source.until_served(&A_AND_B[..1]).await;
    assert!(source.store.service(&ObjectName::new("default", "b")).is_none());
}
