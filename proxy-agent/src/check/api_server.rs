//! The API server: is it reached, by an address that is not a Service's, with the rights that the agent needs?

use std::{fmt::Debug, net::IpAddr, time::Duration};

use kube::{Api, Client, Error, Resource, api::ListParams};
use serde::de::DeserializeOwned;

use super::finding::{Finding, State};
use crate::{
    config::Settings,
    source::{
        kube::{Connection, KubeSettings, RequestCounts, Timing},
        trimmed::{TrimmedEndpointSlice, TrimmedNode, TrimmedService, TrimmedServiceCidr},
    },
};

const REACHED: &str = "API server";
const RIGHTS: &str = "API rights";

/// For one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// For an address, where there are more.
const NEXT_ADDRESS: Duration = Duration::from_secs(4);

/// Answers of the API server.
#[derive(Debug)]
pub(super) struct Facts {
    /// Its URL.
    server: String,
    /// Of several addresses those that are not reached, and why.
    unreached: Vec<(String, String)>,
    /// Known addresses of the Service `default/kubernetes`.
    service_addresses: Vec<IpAddr>,
    services: Answer,
    endpoint_slices: Answer,
    /// `None` if no Node has this name.
    nodes: Answer,
    /// API servers before 1.33 have none.
    service_cidrs: Answer,
    node_name: String,
}

/// The answer to a list of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// So many.
    Listed(usize),
    /// The API refused, with a status and a message.
    Refused(u16, String),
    /// There was no answer.
    Failed(String),
}

/// # Errors
/// When the settings cannot work.
pub(super) async fn gather(settings: &Settings) -> Result<Facts, String> {
    let connection = connect(settings, settings.api_servers.clone()).await?;
    let client = connection.client();
    let one = ListParams::default().limit(1);
    let this_node = one.clone().fields(&format!("metadata.name={}", settings.node_name));
    let kubernetes = one.clone().fields("metadata.name=kubernetes,metadata.namespace=default");
    let (services, objects) = list::<TrimmedService>(&client, &kubernetes).await;
    let from_objects = objects.iter().flat_map(|service| service.spec.cluster_ips.clone());
    // In pods it is that address, unless another one was set.
    let from_environment = std::env::var("KUBERNETES_SERVICE_HOST").ok().filter(|_| objects.is_empty());
    let service_addresses = from_objects.chain(from_environment);
    let is_reached = !matches!(services, Answer::Failed(_));
    let mut facts = Facts {
        server: connection.server(),
        unreached: Vec::new(),
        service_addresses: service_addresses.filter_map(|text| text.parse().ok()).collect(),
        endpoint_slices: services.clone(),
        nodes: services.clone(),
        service_cidrs: services.clone(),
        services,
        node_name: settings.node_name.clone(),
    };
    // Without an answer to the first request, the others get none either.
    if is_reached {
        facts.endpoint_slices = list::<TrimmedEndpointSlice>(&client, &one).await.0;
        facts.nodes = list::<TrimmedNode>(&client, &this_node).await.0;
        facts.service_cidrs = list::<TrimmedServiceCidr>(&client, &one).await.0;
        facts.unreached = unreached(settings, &one).await?;
    }
    Ok(facts)
}

async fn connect(settings: &Settings, api_servers: Vec<String>) -> Result<Connection, String> {
    let kube = KubeSettings {
        kubeconfig: settings.kubeconfig.clone(),
        api_servers,
        node_name: settings.node_name.clone(),
        timing: Timing { next_address: NEXT_ADDRESS, ..Timing::default() },
    };
    Connection::new(kube, RequestCounts::default()).await.map_err(|error| format!("{error:#}"))
}

/// Tries each of several addresses.
async fn unreached(settings: &Settings, one: &ListParams) -> Result<Vec<(String, String)>, String> {
    let mut unreached = Vec::new();
    for address in settings.api_servers.iter().filter(|_| settings.api_servers.len() > 1) {
        let client = connect(settings, vec![address.clone()]).await?.client();
        if let (Answer::Failed(why), _) = list::<TrimmedService>(&client, one).await {
            unreached.push((address.clone(), why));
        }
    }
    Ok(unreached)
}

async fn list<K>(client: &Client, parameters: &ListParams) -> (Answer, Vec<K>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    match tokio::time::timeout(PATIENCE, Api::<K>::all(client.clone()).list(parameters)).await {
        Err(_) => (Answer::Failed(format!("no answer within {PATIENCE:?}")), Vec::new()),
        Ok(Ok(list)) => (Answer::Listed(list.items.len()), list.items),
        Ok(Err(Error::Api(status))) => (Answer::Refused(status.code, status.message.clone()), Vec::new()),
        Ok(Err(error)) => (Answer::Failed(root_cause(&error)), Vec::new()),
    }
}

/// Outer errors add no information to the innermost one.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The address in a URL, if it has one and not a name.
fn address_in(server: &str) -> Option<IpAddr> {
    let url: http::Uri = server.parse().ok()?;
    url.host()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn is_of_service(facts: &Facts) -> bool {
    let by_name = |name: &str| {
        matches!(name, "kubernetes" | "kubernetes.default") || name.starts_with("kubernetes.default.svc")
    };
    match address_in(&facts.server) {
        Some(address) => facts.service_addresses.contains(&address),
        None => facts.server.parse::<http::Uri>().is_ok_and(|url| url.host().is_some_and(by_name)),
    }
}

/// Why an agent with these settings would lack something; `None` if it would not. `needs_node`: a Node of this name must exist.
pub(crate) async fn trouble(settings: &Settings, needs_node: bool) -> Option<String> {
    let facts = gather(settings).await;
    if let Ok(Facts { nodes: Answer::Listed(0), node_name, .. }) = &facts
        && needs_node
    {
        return Some(format!("the API server has no Node `{node_name}`"));
    }
    let findings = [assess(&facts), assess_rights(&facts)];
    findings.into_iter().find(|finding| finding.state == State::Fail).map(|finding| finding.seen)
}

/// Without an API server.
pub(super) fn skipped() -> [Finding; 2] {
    [REACHED, RIGHTS].map(|name| Finding::skipped(name, "--manifests: no API server is used"))
}

/// One that has not answered by then.
pub(super) fn silent(patience: Duration) -> [Finding; 2] {
    [REACHED, RIGHTS].map(|name| Finding::unknown(name, format!("no answer within {patience:?}")))
}

pub(super) fn assess(facts: &Result<Facts, String>) -> Finding {
    let facts = match facts {
        Ok(facts) => facts,
        Err(why) => return Finding::fail(REACHED, why, "correct --kubeconfig or --api-server"),
    };
    let server = &facts.server;
    let advice = "name its real address with --api-server (in the manifests, the ConfigMap proxy-agent)";
    match (&facts.services, is_of_service(facts)) {
        (Answer::Failed(why), true) => Finding::fail(
            REACHED,
            format!("{server}, the address of the Service default/kubernetes, is not reached: {why}"),
            format!("only this agent makes that address work, and it needs the API server first: {advice}"),
        ),
        (Answer::Failed(why), false) => Finding::fail(
            REACHED,
            format!("{server} is not reached: {why}"),
            format!("{advice}; a firewall or a missing route may be in the way"),
        ),
        (_, true) => Finding::warn(
            REACHED,
            format!("{server} is the address of the Service default/kubernetes"),
            format!(
                "it works as long as another proxy serves it, and not when the node starts with this one alone: {advice}"
            ),
        ),
        (_, false) if !facts.unreached.is_empty() => {
            let failures: Vec<_> = facts
                .unreached
                .iter()
                .map(|(address, why)| format!("{address} is not reached: {why}"))
                .collect();
            Finding::warn(
                REACHED,
                format!("{server} answers; {}", failures.join("; ")),
                "the agent uses the addresses that answer: correct or remove the others in --api-server",
            )
        }
        (_, false) => Finding::pass(REACHED, format!("{server} answers")),
    }
}

pub(super) fn assess_rights(facts: &Result<Facts, String>) -> Finding {
    let facts = match facts {
        Ok(facts) => facts,
        Err(why) => return Finding::unknown(RIGHTS, why),
    };
    let lists = [
        ("services", &facts.services),
        ("endpointslices", &facts.endpoint_slices),
        ("nodes", &facts.nodes),
        ("servicecidrs", &facts.service_cidrs),
    ];
    let role = "apply the ClusterRole of deploy/base/rbac.yaml, bound to these credentials; the agent needs list and watch";
    let is_missing_kind = |name: &str, code: u16| name == "servicecidrs" && code == 404;
    for (name, answer) in lists {
        match answer {
            Answer::Failed(why) => return Finding::unknown(RIGHTS, format!("{name}: {why}")),
            Answer::Refused(401, message) => {
                let advice = "the credentials are not accepted: correct --kubeconfig, or the service account";
                return Finding::fail(RIGHTS, message, advice);
            }
            // The agent works without these.
            Answer::Refused(code, message) if name == "servicecidrs" && !is_missing_kind(name, *code) => {
                return Finding::warn(
                    RIGHTS,
                    format!("{name}: {message}"),
                    format!("{role}, or give --service-cidr"),
                );
            }
            Answer::Refused(code, message) if !is_missing_kind(name, *code) => {
                return Finding::fail(RIGHTS, format!("{name}: {message}"), role);
            }
            _ => {}
        }
    }
    if facts.nodes == Answer::Listed(0) {
        return Finding::warn(
            RIGHTS,
            format!("Node `{}` does not exist", facts.node_name),
            "give the Node's name with --node-name: without it all endpoints count as remote, and the node as not eligible",
        );
    }
    Finding::pass(RIGHTS, "services, endpointslices, nodes and servicecidrs can be listed")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: Answer = Answer::Listed(1);

    fn facts(server: &str, services: Answer) -> Facts {
        Facts {
            server: server.to_owned(),
            unreached: Vec::new(),
            service_addresses: vec!["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()],
            services,
            endpoint_slices: LISTED,
            nodes: LISTED,
            service_cidrs: LISTED,
            node_name: "n".into(),
        }
    }

    #[test]
    fn a_service_address_is_a_circle() {
        let failed = || Answer::Failed("connection refused".into());
        for (server, services, expected) in [
            ("https://192.0.2.1:6443", LISTED, State::Pass),
            ("https://10.96.0.1:443", LISTED, State::Warn),
            ("https://[fd00:96::1]:443", LISTED, State::Warn),
            ("https://kubernetes.default.svc", LISTED, State::Warn),
            ("https://api.example.com:6443", LISTED, State::Pass),
            ("https://10.96.0.1:443", failed(), State::Fail),
            ("https://192.0.2.1:6443", failed(), State::Fail),
            // Its rights are another matter.
            ("https://192.0.2.1:6443", Answer::Refused(403, "forbidden".into()), State::Pass),
        ] {
            let finding = assess(&Ok(facts(server, services)));
            assert_eq!(finding.state, expected, "{finding:?}");
        }
        assert_eq!(assess(&Err("cannot use kubeconfig /x".into())).state, State::Fail);
        let mut one_of_two = facts("https://192.0.2.1:6443", LISTED);
        one_of_two.unreached.push(("https://192.0.2.2:6443".into(), "connection refused".into()));
        assert_eq!(assess(&Ok(one_of_two)).state, State::Warn);
    }

    #[test]
    fn rights() {
        let forbidden = || Answer::Refused(403, "forbidden".into());
        let with = |change: fn(&mut Facts, Answer), answer| {
            let mut facts = facts("https://192.0.2.1", LISTED);
            change(&mut facts, answer);
            Ok(facts)
        };
        for (facts, expected) in [
            (with(|facts, answer| facts.services = answer, LISTED), State::Pass),
            (with(|facts, answer| facts.services = answer, forbidden()), State::Fail),
            (with(|facts, answer| facts.services = answer, Answer::Refused(401, "no".into())), State::Fail),
            (with(|facts, answer| facts.nodes = answer, forbidden()), State::Fail),
            (with(|facts, answer| facts.nodes = answer, Answer::Listed(0)), State::Warn),
            (with(|facts, answer| facts.service_cidrs = answer, forbidden()), State::Warn),
            (
                with(|facts, answer| facts.service_cidrs = answer, Answer::Refused(404, "no".into())),
                State::Pass,
            ),
            (
                with(|facts, answer| facts.endpoint_slices = answer, Answer::Failed("cut".into())),
                State::Unknown,
            ),
        ] {
            let finding = assess_rights(&facts);
            assert_eq!(finding.state, expected, "{finding:?}");
        }
        assert_eq!(assess_rights(&Err("no".into())).state, State::Unknown);
    }
}
