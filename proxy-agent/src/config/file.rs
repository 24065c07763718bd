//! A kube-proxy configuration file: the fields that are used.
//!
//! The format is kube-proxy's `kubeproxy.config.k8s.io/v1alpha1`. An empty string, `null` and an absent field are the same
//! there: the default.

use std::{fmt::Display, net::IpAddr, path::Path, str::FromStr, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;
use serde_saphyr::{Spanned, options};

use super::Notice;
use crate::{
    kube_proxy::unused::{self, Unused},
    logging::LogFormat,
    net::topology::NodePortAddresses,
    observe::BindAddress,
};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// `KubeProxyConfiguration`: the fields that are used here.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the names are those of the format; docs/operations.md explains each")]
pub struct KubeProxyConfiguration {
    api_version: String,
    kind: String,
    #[serde(deserialize_with = "text")]
    pub bind_address: Option<IpAddr>,
    pub bind_address_hard_fail: Option<bool>,
    #[serde(deserialize_with = "section")]
    pub client_connection: ClientConnection,
    #[serde(deserialize_with = "section")]
    pub conntrack: Conntrack,
    #[serde(deserialize_with = "section")]
    pub detect_local: DetectLocal,
    #[serde(deserialize_with = "text")]
    pub healthz_bind_address: Option<BindAddress>,
    #[serde(deserialize_with = "text")]
    pub hostname_override: Option<String>,
    #[serde(deserialize_with = "section")]
    pub iptables: Rules,
    #[serde(deserialize_with = "section")]
    pub logging: Logging,
    #[serde(deserialize_with = "text")]
    pub metrics_bind_address: Option<BindAddress>,
    #[serde(deserialize_with = "text")]
    pub mode: Option<String>,
    #[serde(deserialize_with = "section")]
    pub nftables: Rules,
    #[serde(deserialize_with = "section")]
    pub node_port_addresses: Vec<NodePortAddresses>,
    #[serde(deserialize_with = "oom_score_adj")]
    pub oom_score_adj: Option<i32>,
}

/// `clientConnection`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "as above")]
pub struct ClientConnection {
    #[serde(deserialize_with = "text")]
    pub kubeconfig: Option<String>,
}

/// `conntrack`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "as above")]
pub struct Conntrack {
    pub max_per_core: Option<u32>,
    pub min: Option<u32>,
    pub tcp_be_liberal: Option<bool>,
    /// Zero is not a default here: it leaves the kernel's setting unchanged.
    #[serde(deserialize_with = "period_or_zero")]
    pub tcp_close_wait_timeout: Option<Duration>,
    #[serde(deserialize_with = "period_or_zero")]
    pub tcp_established_timeout: Option<Duration>,
    #[serde(deserialize_with = "period")]
    pub udp_stream_timeout: Option<Duration>,
    #[serde(deserialize_with = "period")]
    pub udp_timeout: Option<Duration>,
}

/// `detectLocal`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "as above")]
pub struct DetectLocal {
    #[serde(deserialize_with = "text")]
    pub interface_name_prefix: Option<String>,
}

/// `iptables` or `nftables`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "as above")]
pub struct Rules {
    pub localhost_node_ports: Option<bool>,
    pub masquerade_all: Option<bool>,
    #[serde(deserialize_with = "period")]
    pub min_sync_period: Option<Duration>,
}

/// `logging`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "as above")]
pub struct Logging {
    #[serde(deserialize_with = "log_format")]
    pub format: Option<LogFormat>,
    #[serde(deserialize_with = "section")]
    pub verbosity: u8,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Header {
    api_version: Option<Spanned<String>>,
    kind: Option<Spanned<String>>,
}

impl KubeProxyConfiguration {
    /// Parses the text of a file. `path` is for messages. Returns the configuration, and notices of the fields that are not used.
    ///
    /// # Errors
    ///
    /// When it is not a configuration of kube-proxy, or a value is not of its type; the error has the line.
    pub fn parse(path: &Path, text: &str) -> Result<(Self, Vec<Notice>)> {
        let shown = path.display();
        let cannot = || format!("cannot use the configuration {shown}");
        let header: Header = yaml(text).with_context(cannot)?;
        for (name, found, expected) in
            [("apiVersion", header.api_version, API_VERSION), ("kind", header.kind, KIND)]
        {
            match found {
                Some(found) if found.value == expected => {}
                Some(found) => {
                    let line = found.referenced.line();
                    bail!(
                        "cannot use the configuration {shown}:{line}: {name} is `{}`, not {expected}",
                        found.value
                    );
                }
                None => bail!("cannot use the configuration {shown}:1: it has no {name} {expected}"),
            }
        }
        let config = yaml(text).with_context(cannot)?;
        // A second time without lines, to find unused fields.
        let value: Value = yaml(text).with_context(cannot)?;
        let mut notices = Vec::new();
        let _: Self = serde_ignored::deserialize(&value, |at| {
            let at = at.to_string().replace(".?", "");
            notices.extend(passed_over(&value, &at));
        })
        .with_context(cannot)?;
        Ok((config, notices))
    }
}

/// The notice of a field that is not read. `None` if the field is empty: kubeadm writes every field.
fn passed_over(config: &Value, path: &str) -> Option<Notice> {
    let below = |field: &&Unused| {
        path.strip_prefix(field.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let known = unused::FIELDS.iter().find(below);
    let value = config.pointer(&format!("/{}", path.replace('.', "/")));
    match known {
        Some(_) if value.is_some_and(is_empty) => None,
        Some(field) => Some(Notice::info(format!("{path} is not used: {}", field.why))),
        None => Some(Notice::warning(format!("{path} is not a field of kube-proxy's configuration"))),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

fn yaml<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T> {
    Ok(serde_saphyr::from_str_with_options(text, options! { with_snippet: false })?)
}

/// `null` is the default.
fn section<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// `null` and an empty text are `None`.
fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    let text = text.as_deref().map(str::trim).filter(|text| !text.is_empty());
    text.map(parse).transpose().map_err(D::Error::custom)
}

fn text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<Option<T>, D::Error> {
    parsed(deserializer, |text| {
        let message = |error: T::Err| error.to_string();
        text.parse().map_err(message).map_err(|error| match error.contains(text) {
            true => error,
            false => format!("`{text}`: {error}"),
        })
    })
}

fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Ok(period_or_zero(deserializer)?.filter(|period: &Duration| !period.is_zero()))
}

fn period_or_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parsed(deserializer, crate::cli::duration)
}

fn log_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LogFormat>, D::Error> {
    parsed(deserializer, crate::cli::log_format)
}

fn oom_score_adj<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    let score: Option<i32> = Option::deserialize(deserializer)?;
    match score {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(D::Error::custom(format!("{score} is not between -1000 and 1000")))
        }
        score => Ok(score),
    }
}

#[cfg(test)]
mod tests;
