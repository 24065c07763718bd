//! The watchers with the timing of production, against scripted answers, in paused time.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::{Addresses, Timing, follow};
use crate::source::SourceState;

type Answer = Response<BoxBody<Bytes, Infallible>>;
type ReplyFilter = dyn Fn(&Query) -> Answer + Send + Sync;
type Query = BTreeMap<String, String>;

/// Answers requests for Services; others stay without an answer.
#[derive(Clone)]
struct Script {
    requests: Arc<Mutex<Vec<Query>>>,
    answer: Arc<ReplyFilter>,
}

impl Script {
    fn new(answer: impl Fn(&Query) -> Answer + Send + Sync + 'static) -> Self {
        Self { requests: Arc::default(), answer: Arc::new(answer) }
    }

    /// The requests that come within this time, and how the watch of Services is then.
    async fn run(self, time: Duration) -> (Vec<Query>, SourceState) {
        let service = tower::service_fn({
            let this = self.clone();
            move |request: Request<Body>| {
                let answer = (request.uri().path() == "/api/v1/services").then(|| {
                    let query = request.uri().query().unwrap_or_default();
                    let query: Query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
                    let answer = (this.answer)(&query);
                    this.requests.lock().unwrap().push(query);
                    answer
                });
                async move {
                    match answer {
                        Some(answer) => Ok::<_, Infallible>(answer),
                        None => std::future::pending().await,
                    }
                }
            }
        });
        let client = Client::new(service, "default");
        let servers = Arc::new(Addresses::new(vec![Uri::from_static("http://server")]));
        let (changes, mut received) = mpsc::channel(64);
        let state = watch::Sender::new(SourceState::default());
        let follow = follow(&client, &servers, "here", Timing::default(), &changes, &state);
        tokio::select! {
            () = follow => {}
            () = async { while received.recv().await.is_some() {} } => {}
            () = sleep(time) => {}
        }
        let requests = self.requests.lock().unwrap().clone();
        (requests, state.borrow().clone())
    }
}

fn list(version: u32) -> String {
    let metadata = serde_json::json!({"resourceVersion": version.to_string()});
    serde_json::json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": metadata, "items": null})
        .to_string()
}

fn whole(code: u16, body: &str) -> Answer {
    let mut answer = Response::new(http_body_util::Full::from(body.to_owned()).boxed());
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    answer
}

/// Events, each after some time. The answer ends with them, or never.
fn events(events: Vec<(Duration, String)>, ends: bool) -> Answer {
    let (sender, mut receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        for (delay, event) in events {
            sleep(delay).await;
            let frame = Frame::data(Bytes::from(event + "\n"));
            if sender.send(Ok::<_, Infallible>(frame)).await.is_err() {
                return;
            }
        }
        if !ends {
            sender.closed().await;
        }
    });
    Response::new(BoxBody::new(StreamBody::new(futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)))))
}

fn bookmark(version: u32, ends_list: bool) -> String {
    let annotations = if ends_list { r#""k8s.io/initial-events-end":"true""# } else { "" };
    format!(
        r#"{{"type":"BOOKMARK","object":{{"kind":"Service","apiVersion":"v1",
        "metadata":{{"resourceVersion":"{version}","annotations":{{{annotations}}}}}}}}}"#
    )
    .replace('\n', "")
}

fn added(version: u32) -> String {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "a", "namespace": "default", "resourceVersion": version.to_string()},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
    });
    serde_json::json!({"type": "ADDED", "object": object}).to_string()
}

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);

fn is_list(query: &Query) -> bool {
    query.contains_key("sendInitialEvents")
}

#[tokio::test(start_paused = true)]
async fn lists_that_break_off_are_repeated_every_half_minute_at_most() {
    let (requests, state) =
        Script::new(|_| events(vec![(NOW, added(5)), (Duration::from_secs(1), added(6))], true))
            .run(HOUR)
            .await;
    // 30 s with up to half of it less, and the second that the list takes.
    assert!((110..=230).contains(&requests.len()), "{}", requests.len());
    assert!(!state.watches["services"].synced);
}

#[tokio::test(start_paused = true)]
async fn a_list_and_a_watch_that_ends_at_once_are_no_reason_to_hurry() {
    let (requests, _) = Script::new(|query| {
        let first = if is_list(query) { vec![(NOW, bookmark(5, true))] } else { vec![] };
        events(first, true)
    })
    .run(HOUR)
    .await;
    assert!((110..=250).contains(&requests.len()), "{}", requests.len());
    assert_eq!(requests.iter().filter(|query| is_list(query)).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn watches_that_last_are_begun_again_without_a_pause() {
    let minute = Duration::from_secs(60);
    let (requests, state) = Script::new(move |query| {
        let mut all = vec![(NOW, bookmark(5, is_list(query)))];
        all.extend((0..5).map(|_| (minute, bookmark(5, false))));
        events(all, true)
    })
    .run(HOUR)
    .await;
    assert!((12..=13).contains(&requests.len()), "{}", requests.len());
    assert_eq!(state.watches["services"].failures, 0);
    let lifetimes: Vec<u64> = requests.iter().map(|query| query["timeoutSeconds"].parse().unwrap()).collect();
    assert!(lifetimes.iter().all(|lifetime| (300..=600).contains(lifetime)), "{lifetimes:?}");
    assert!(lifetimes.iter().any(|lifetime| *lifetime != lifetimes[0]), "{lifetimes:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_counts() {
    let busy = r#"{"kind":"Status","code":429,"message":"busy","details":{"retryAfterSeconds":120}}"#;
    let (requests, _) = Script::new(move |_| whole(429, busy)).run(HOUR).await;
    assert!((24..=31).contains(&requests.len()), "{}", requests.len());
}

#[tokio::test(start_paused = true)]
async fn silence_is_checked_and_is_not_a_problem() {
    // Not to the second of another silence.
    const NEARLY_AN_HOUR: Duration = Duration::from_secs(3600 - 60);
    const SILENCE: u64 = 180;
    let (requests, state) = Script::new(|query| {
        if query.contains_key("limit") {
            return whole(200, &list(9));
        }
        events(if is_list(query) { vec![(NOW, bookmark(5, true))] } else { vec![] }, false)
    })
    .run(NEARLY_AN_HOUR)
    .await;
    let checks = requests.iter().filter(|query| query.contains_key("limit")).count();
    assert_eq!(checks as u64, NEARLY_AN_HOUR.as_secs() / SILENCE, "every three minutes");
    assert_eq!(requests.len(), 1 + 2 * checks);
    let services = &state.watches["services"];
    assert_eq!((services.silences, services.failures, services.regressions), (checks as u64, 0, 0));
    assert_eq!(services.trouble, None);
}

#[tokio::test(start_paused = true)]
async fn an_older_version_takes_one_list_of_the_newest() {
    // It is seen in a watch, or by the check after silence.
    for seen in [true, false] {
        let minute = Duration::from_secs(60);
        let (requests, state) = Script::new(move |query| {
            let end = if is_list(query) { 30 } else { 31 };
            match query.get("resourceVersion") {
                _ if query.contains_key("limit") => whole(200, &list(31)),
                Some(version) if version == "0" => {
                    let before = [(NOW, bookmark(50, true)), (minute, bookmark(30, false))];
                    events(before.into_iter().take(if seen { 2 } else { 1 }).collect(), false)
                }
                Some(_) if !seen => events(vec![], false),
                _ => {
                    let begin = [(NOW, added(20)), (NOW, bookmark(end, is_list(query)))];
                    events(
                        begin.into_iter().chain((0..100).map(|_| (minute, bookmark(31, false)))).collect(),
                        false,
                    )
                }
            }
        })
        .run(HOUR)
        .await;
        let newest = |query: &&Query| is_list(query) && !query.contains_key("resourceVersion");
        assert_eq!(requests.iter().filter(newest).count(), 1, "{seen}: {requests:#?}");
        let services = &state.watches["services"];
        assert_eq!((services.regressions, services.failures), (1, 0), "{seen}");
        assert!(services.synced && services.trouble.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn streaming_is_tried_again_after_half_an_hour() {
    let (requests, _) = Script::new(|query| {
        if is_list(query) {
            return whole(422, r#"{"kind":"Status","code":422,"message":"sendInitialEvents is forbidden"}"#);
        }
        if query.contains_key("watch") {
            // History is lost every ten minutes.
            let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"gone","reason":"Expired"}}"#;
            let half = Duration::from_secs(150);
            let bookmarks = (0..3).map(|_| (half, bookmark(9, false)));
            return events(bookmarks.chain([(half, gone.to_owned())]).collect(), true);
        }
        whole(200, &list(9))
    })
    .run(2 * HOUR)
    .await;
    let streaming = requests.iter().filter(|query| is_list(query)).count();
    let plain: Vec<_> = requests.iter().filter(|query| query.contains_key("limit")).collect();
    assert!((3..=4).contains(&streaming), "{streaming}");
    assert_eq!(plain[0]["resourceVersion"], "0");
}
