//! The API server stand-in as a process: serves objects from a folder and takes commands on its standard input.
//!
//! Usage: `apiserver ADDRESS:PORT [FOLDER]`. It prints `listening on URL`, then answers each command with `ok`
//! or `error: ...`; `help` shows them. It ends with its input.
#![forbid(unsafe_code)]

use std::{net::SocketAddr, path::Path};

use anyhow::{Context as _, bail};
use proxy_apiserver::{ApiServer, Mode, Resource};
use serde_json::Value;
use tokio::sync::mpsc;

const HELP: &str = "commands: apply FILE | delete service|endpointslice|node|servicecidr [NAMESPACE/]NAME | drop | compact | expire | \
bookmark | mode serve|hang|refuse|fail CODE | streaming on|off | field-selectors on|off | service-cidrs on|off | requests | quit";

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: apiserver ADDRESS:PORT [FOLDER]";
    let address: SocketAddr = arguments.next().context(usage)?.parse().context(usage)?;
    let server = ApiServer::bind(address).await?;
    if let Some(folder) = arguments.next() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
            apply(&server, &entry?.path())?;
        }
    }
    println!("listening on {}", server.url());

    // Reading blocks, so a separate thread does it.
    let (sender, mut lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    while let Some(line) = lines.recv().await {
        let words: Vec<_> = line.split_whitespace().collect();
        if words == ["quit"] {
            break;
        }
        match obey(&server, &words) {
            Ok(()) => println!("ok"),
            Err(error) => println!("error: {error:#}"),
        }
    }
    Ok(())
}

fn obey(server: &ApiServer, words: &[&str]) -> anyhow::Result<()> {
    match words {
        ["apply", file] => apply(server, Path::new(file))?,
        ["delete", kind, name] => delete(server, kind, name)?,
        ["drop"] => server.drop_connections(),
        ["compact"] => server.compact(),
        ["expire"] => server.expire_watches(),
        ["bookmark"] => server.send_bookmarks(),
        ["mode", mode @ ..] => {
            let mode = match mode {
                ["serve"] => Mode::Serve,
                ["hang"] => Mode::Hang,
                ["refuse"] => Mode::Refuse,
                ["fail", code] => Mode::Fail(code.parse().context("CODE is an HTTP status")?),
                _ => bail!("{HELP}"),
            };
            server.set(|behaviour| behaviour.mode = mode);
        }
        ["streaming", value] => {
            let on = on_or_off(value)?;
            server.set(|behaviour| behaviour.streaming_lists = on);
        }
        ["field-selectors", value] => {
            let on = on_or_off(value)?;
            server.set(|behaviour| behaviour.field_selectors = on);
        }
        ["service-cidrs", value] => {
            let on = on_or_off(value)?;
            server.set(|behaviour| behaviour.service_cidrs = on);
        }
        ["requests"] => server.requests().iter().for_each(|request| println!("{request:?}")),
        ["help"] => println!("{HELP}"),
        _ => bail!("{HELP}"),
    }
    Ok(())
}

fn on_or_off(word: &str) -> anyhow::Result<bool> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        other => bail!("`{other}` is neither on nor off"),
    }
}

/// Applies all objects of a YAML or JSON file.
fn apply(server: &ApiServer, path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("cannot parse {shown}"))?;
    for mut object in documents.into_iter().filter(|document| !document.is_null()) {
        let namespaced = object["kind"] != "Node" && object["kind"] != "ServiceCIDR";
        if namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = "default".into();
        }
        server.apply(object).with_context(|| format!("cannot apply {shown}"))?;
    }
    Ok(())
}

fn delete(server: &ApiServer, kind: &str, name: &str) -> anyhow::Result<()> {
    let resource = match kind {
        "service" => Resource::Services,
        "endpointslice" => Resource::EndpointSlices,
        "node" => Resource::Nodes,
        "servicecidr" => Resource::ServiceCidrs,
        other => bail!("kind `{other}` is none of service, endpointslice, node and servicecidr"),
    };
    let namespaced = !matches!(resource, Resource::Nodes | Resource::ServiceCidrs);
    let (namespace, name) = name.split_once('/').unwrap_or((if namespaced { "default" } else { "" }, name));
    if !server.delete(resource, namespace, name) {
        bail!("there is no {kind} {namespace}/{name}");
    }
    Ok(())
}
