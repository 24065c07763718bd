//! Lists: streamed, in pages, broken off.

use proxy_agent::model::objects::{Change, Kind};
use proxy_apiserver::{Mode, Request, Resource};
use serde_json::json;

use super::{A_AND_B, NODE, Source, lists, node, resumptions, server, service, slice, web};

#[tokio::test]
async fn a_streaming_list_and_then_every_change() {
    let server = server().await;
    let mut source = Source::start(&server);
    source.until_served(A_AND_B).await;
    source.until_well().await;
    let this_node = source.store.node().expect("listed");
    assert_eq!(this_node.addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);

    let requests = server.requests();
    for (resource, labels, fields) in [
        (Resource::Services, Some("!service.kubernetes.io/service-proxy-name"), Some("spec.clusterIP!=None")),
        (Resource::EndpointSlices, Some("!service.kubernetes.io/headless"), None),
        (Resource::Nodes, None, Some("metadata.name=node-1")),
    ] {
        let first = requests.iter().find(|request| request.resource == resource).unwrap();
        let query = |key: &str| first.query.get(key).map(String::as_str);
        assert_eq!((query("labelSelector"), query("fieldSelector")), (labels, fields));
        assert_eq!(query("sendInitialEvents"), Some("true"));
    }

    server.apply(web("c")).unwrap();
    server.apply(slice("a-1", "a", &[1, 3])).unwrap();
    server.delete(Resource::Services, "default", "b");
    source.until_served(&[("a", &["10.244.0.1:8080", "10.244.0.3:8080"]), ("c", &[])]).await;
    server.delete(Resource::EndpointSlices, "default", "a-1");
    server.apply(node("node-2", "192.0.2.9")).unwrap();
    server.apply(node(NODE, "192.0.2.2")).unwrap();
    source.until_served(&[("a", &[]), ("c", &[])]).await;
    let moved = "192.0.2.2".parse::<std::net::IpAddr>().unwrap();
    source
        .until("the node's new address", |store| store.node().is_some_and(|node| node.addresses == [moved]))
        .await;
    assert_eq!(source.lists_done(Kind::Service), 1, "none of this took a new list");
}

#[tokio::test]
async fn lists_come_in_pages_where_they_cannot_be_streamed() {
    let server = server().await;
    for name in ["c", "d", "e"] {
        server.apply(web(name)).unwrap();
    }
    server.set(|behaviour| {
        behaviour.streaming_lists = false;
        behaviour.watch_cache = false;
    });
    let mut source = Source::start(&server);
    let all: [(&str, &[&str]); 5] = [A_AND_B[0], A_AND_B[1], ("c", &[]), ("d", &[]), ("e", &[])];
    source.until_served(&all).await;
    source.until_well().await;

    let requests = server.requests();
    let of_services = requests.iter().filter(|r| r.resource == Resource::Services && !r.is_watch());
    let pages: Vec<_> = of_services.map(|request| request.query.contains_key("continue")).collect();
    assert_eq!(pages, [false, true, true], "five Services, two to a page");
    server.delete(Resource::Services, "default", "e");
    source.until_served(&all[..4]).await;
}

#[tokio::test]
async fn what_the_server_does_not_understand_is_done_here() {
    for streaming in [true, false] {
        let server = server().await;
        server.apply(service("headless", "None", json!({}))).unwrap();
        server.set(|behaviour| {
            behaviour.field_selectors = false;
            behaviour.streaming_lists = streaming;
        });
        let mut source = Source::start(&server);
        source.until_served(A_AND_B).await;
        server.apply(service("a", "None", json!({}))).unwrap();
        source.until_served(&A_AND_B[1..]).await;
        source.until_well().await;
    }
}

#[tokio::test]
async fn a_streaming_list_that_never_ends_is_given_up_for_pages() {
    let server = server().await;
    server.set(|behaviour| behaviour.initial_bookmark = false);
    let mut source = Source::start(&server);
    source.until_served(A_AND_B).await;
    source.until_well().await;
    assert!(server.requests().iter().any(|request| !request.is_watch()), "there was a list in pages");
}

#[tokio::test]
async fn bookmarks_spare_a_new_list() {
    let server = server().await;
    let mut source = Source::start(&server);
    source.until_well().await;
    // Services do not change, but time passes: without the bookmark their watch would begin in forgotten history.
    for last in 3..9 {
        server.apply(slice("a-1", "a", &[last])).unwrap();
    }
    source.until_served(&[("a", &["10.244.0.8:8080"]), A_AND_B[1]]).await;
    server.send_bookmarks();
    // The bookmark leaves no trace here; the watch's own end shows that it was read.
    let resumed = |requests: &[Request]| resumptions(requests, Resource::Services) > 0;
    source.during("resumed", server.wait_for_requests("the next watch", resumed)).await.unwrap();
    server.compact();
    server.drop_connections();
    let before = server.requests().len();
    let again = |requests: &[Request]| resumptions(&requests[before..], Resource::Services) > 0;
    source.during("again", server.wait_for_requests("a watch after the cut", again)).await.unwrap();
    server.delete(Resource::Services, "default", "b");
    source.until_served(&[("a", &["10.244.0.8:8080"])]).await;
    assert_eq!(lists(&server.requests(), Resource::Services), 1);
}

#[tokio::test]
async fn forgotten_history_takes_a_new_list() {
    for gone_as_status in [true, false] {
        let server = server().await;
        server.set(|behaviour| behaviour.gone_as_status = gone_as_status);
        let mut source = Source::start(&server);
        source.until_served(A_AND_B).await;
        source.until_well().await;

        // Away while things change and are forgotten.
        server.set(|behaviour| behaviour.mode = Mode::Refuse);
        source.until_trouble("cannot reach the API server").await;
        server.delete(Resource::Services, "default", "b");
        server.apply(slice("a-1", "a", &[7])).unwrap();
        server.compact();
        server.set(|behaviour| behaviour.mode = Mode::Serve);
        source.until_served(&[("a", &["10.244.0.7:8080"])]).await;
        source.until_well().await;
        assert!(lists(&server.requests(), Resource::Services) >= 2, "as status: {gone_as_status}");
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_does_not_count() {
    for streaming in [true, false] {
        let server = server().await;
        server.apply(web("c")).unwrap();
        server.apply(slice("c-1", "c", &[3])).unwrap();
        server.set(|behaviour| {
            behaviour.streaming_lists = streaming;
            behaviour.watch_cache = false;
            behaviour.cut_next_list_after = Some(1);
        });
        let mut source = Source::start(&server);
        source.until_served(&[A_AND_B[0], A_AND_B[1], ("c", &["10.244.0.3:8080"])]).await;
        source.until_well().await;
        for kind in [Kind::Service, Kind::EndpointSlice] {
            let mut listed = None;
            for change in &source.seen {
                match change {
                    Change::ListStart(k) if *k == kind => listed = Some(0),
                    Change::Service(_) if kind == Kind::Service => listed = listed.map(|n| n + 1),
                    Change::EndpointSlice(_) if kind == Kind::EndpointSlice => listed = listed.map(|n| n + 1),
                    Change::ListDone(k) if *k == kind => {
                        assert_eq!(listed.take(), Some(3), "{:#?}", source.seen)
                    }
                    _ => {}
                }
            }
        }
        let starts = source
            .seen
            .iter()
            .filter(|change| matches!(change, Change::ListStart(Kind::Service | Kind::EndpointSlice)))
            .count();
        assert!(starts >= 3, "one list was begun twice: {:#?}, {:#?}", source.seen, server.requests());
    }
}
