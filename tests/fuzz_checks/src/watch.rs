//! An API server with arbitrary replies: lists, pages, events and failures, to the agent's own watchers.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use kube::{Client, client::Body};
use proxy_agent::{
    model::store::Store,
    source::{
        SourceState,
        kube::{Addresses, Timing, follow},
    },
};
use tokio::sync::{Notify, mpsc, watch as state_watch};

use super::api::settle;

/// Services, EndpointSlices, this Node, ServiceCIDRs.
const WATCHERS: usize = 4;

/// The answers to come, and how many requests have none.
struct Server {
    answers: Vec<Response<Full<Bytes>>>,
    waiting: usize,
}

/// Answers of an API server to one request after another, separated by lines `===`. The first line of an answer is its
/// status, the others are its body: a list, or an event in each line.
pub fn watch(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut answers: Vec<_> = text.split("===\n").map(answer).collect();
    answers.reverse();
    // Waiting takes no time: the paused clock advances by itself.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { return };
    let mut store = Store::new();
    runtime.block_on(serve(Server { answers, waiting: 0 }, &mut store));
    settle(&mut store);
}

fn answer(text: &str) -> Response<Full<Bytes>> {
    let (status, body) = text.split_once('\n').unwrap_or(("200", text));
    let status = status.trim().parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status.unwrap_or_default();
    response
}

/// Until every watcher waits for an answer.
async fn serve(server: Server, store: &mut Store) {
    let server = Arc::new(Mutex::new(server));
    let quiet = Arc::new(Notify::new());
    let service = tower::service_fn({
        let quiet = Arc::clone(&quiet);
        move |_: Request<Body>| {
            let answer = server.lock().ok().and_then(|mut server| {
                let answer = server.answers.pop();
                if answer.is_none() {
                    server.waiting += 1;
                    if server.waiting == WATCHERS {
                        quiet.notify_one();
                    }
                }
                answer
            });
            async move {
                match answer {
                    Some(answer) => Ok::<_, Infallible>(answer),
                    None => pending().await,
                }
            }
        }
    });
    let client = Client::new(service, "default");
    let (changes, mut received) = mpsc::channel(64);
    let state = state_watch::Sender::new(SourceState::default());
    let servers = Arc::new(Addresses::new(vec![http::Uri::from_static("http://server")]));
    let follow = follow(&client, &servers, "here", Timing::default(), &changes, &state);
    tokio::pin!(follow);
    loop {
        tokio::select! {
            biased;
            Some(change) = received.recv() => store.apply(change),
            () = &mut follow => break,
            () = quiet.notified() => break,
        }
    }
}
