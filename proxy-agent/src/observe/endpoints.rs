//! Paths and their pages.

use std::sync::Arc;

use hyper::{StatusCode, header::ACCEPT, http::request::Parts};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{
    Health, Metrics,
    health::{Audience, Report},
    http::{Answer, Client, Handler, Page, pages},
    metrics::{Format, Probe},
    status::Status,
};

/// The name of the mode in kube-proxy's format; scripts read it.
pub const PROXY_MODE: &str = "ebpf";

/// `/healthz` and `/livez`, for `--healthz-bind-address`. Each answer is counted.
pub fn health(health: &Arc<Health>, metrics: &Arc<Metrics>) -> Handler {
    let livez: Page = {
        let (health, metrics) = (health.clone(), metrics.clone());
        Box::new(move |request| probed(&metrics, Probe::Livez, &health.live(audience(request))))
    };
    pages(vec![("/healthz", healthz(health, metrics)), ("/livez", livez)])
}

/// `/metrics`, `/healthz`, `/status`, `/proxyMode` and `/configz`, for `--metrics-bind-address`.
///
/// `config` is the document of `/configz`, in kube-proxy's form: `{"kubeproxy.config.k8s.io": {...}}`.
pub fn metrics(metrics: &Arc<Metrics>, health: &Arc<Health>, config: &Value, node: &str) -> Handler {
    let status: Page = {
        let (health, metrics, node) = (health.clone(), metrics.clone(), node.to_owned());
        let started = Timestamp::now();
        Box::new(move |request| match audience(request) {
            Audience::Node => json(&Status::now(&node, started, &health, &metrics), StatusCode::OK),
            Audience::Anyone => Answer::text(StatusCode::FORBIDDEN, "only for clients of the node itself\n"),
        })
    };
    let scrape: Page = {
        let metrics = metrics.clone();
        Box::new(move |request| scraped(&metrics, request))
    };
    let config = config.to_string();
    pages(vec![
        ("/metrics", scrape),
        ("/healthz", healthz(health, metrics)),
        ("/status", status),
        ("/proxyMode", Box::new(|_| Answer::text(StatusCode::OK, PROXY_MODE))),
        ("/configz", Box::new(move |_| Answer::json(StatusCode::OK, config.clone()))),
    ])
}

fn healthz(health: &Arc<Health>, metrics: &Arc<Metrics>) -> Page {
    let (health, metrics) = (health.clone(), metrics.clone());
    Box::new(move |request| probed(&metrics, Probe::Healthz, &health.ready(audience(request))))
}

fn audience(request: &Parts) -> Audience {
    let is_of_this_node = request.extensions.get::<Client>().is_some_and(|client| client.is_of_this_node());
    if is_of_this_node { Audience::Node } else { Audience::Anyone }
}

fn probed(metrics: &Metrics, probe: Probe, report: &Report) -> Answer {
    let status = if report.is_healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    metrics.probed(probe, status.as_u16());
    json(report, status)
}

fn json(value: &impl Serialize, status: StatusCode) -> Answer {
    match serde_json::to_string(value) {
        Ok(body) => Answer::json(status, body),
        Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

fn scraped(metrics: &Metrics, request: &Parts) -> Answer {
    let accepted = request.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::preferred(accepted);
    match metrics.encode(format) {
        Ok(body) => Answer::new(StatusCode::OK, format.content_type(), body),
        Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests;
