//! Takes Events, and is as strict about them as the real server where a client could go wrong.

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

/// Fields that an `events.k8s.io/v1` Event must have.
const REQUIRED: [&str; 5] = ["action", "eventTime", "reason", "reportingController", "reportingInstance"];

/// The namespace of the Event that a request creates, if it does.
pub(super) fn namespace<B>(request: &http::Request<B>) -> Option<String> {
    let path = request.uri().path().strip_prefix("/apis/events.k8s.io/v1/namespaces/")?;
    let namespace = path.strip_suffix("/events")?;
    (request.method() == http::Method::POST).then(|| namespace.to_owned())
}

/// Reads an Event that is to be created in a namespace.
///
/// # Errors
///
/// The reason why it is invalid.
pub(super) async fn read(body: Incoming, namespace: &str) -> Result<Value, String> {
    let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    let mut event: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    if let Some(missing) = REQUIRED.iter().find(|field| event[**field].as_str().is_none_or(str::is_empty)) {
        return Err(format!("{missing}: Required value"));
    }
    if !matches!(event["type"].as_str(), Some("Normal" | "Warning")) {
        return Err("type: has invalid value".to_owned());
    }
    // An Event about an object without a namespace belongs into this one.
    let regarding = event["regarding"]["namespace"].as_str().unwrap_or("default");
    if regarding != namespace {
        return Err("involvedObject.namespace: does not match event.namespace".to_owned());
    }
    match event["metadata"]["namespace"].as_str() {
        Some(named) if named != namespace => {
            Err("the namespace of the object is not that of the request".to_owned())
        }
        _ => {
            event["metadata"]["namespace"] = namespace.into();
            Ok(event)
        }
    }
}
