//! The page, for people.

use std::{collections::BTreeMap, fmt::Write as _};

use k8s_openapi::jiff::Timestamp;

use crate::{observe::status::Status, output::table};

/// With more interfaces than these, programs are only counted.
const FEW: usize = 16;

pub(super) fn render(status: &Status) -> String {
    let mut page = format!(
        "proxy-agent {} on node {}, pid {}, up {}\n",
        status.version,
        status.node,
        status.pid,
        age(status.started, status.now)
    );
    let words = |is: bool, yes, no| if is { yes } else { no };
    let ready = words(status.ready, "ready", "NOT READY");
    let alive = words(status.alive, "alive", "NOT ALIVE");
    line(&mut page, "health", &format!("{ready}, {alive}"));
    for problem in &status.problems {
        line(&mut page, "", problem);
    }
    if let Some(server) = &status.api_server {
        let version = status.api_server_version.as_ref();
        let version = version.map_or_else(String::new, |version| format!(" ({version})"));
        line(&mut page, "source", &format!("{server}{version}"));
    }
    let services = &status.services;
    let applied =
        services.last_applied.map_or("never".to_owned(), |at| format!("{} ago", age(at, status.now)));
    line(
        &mut page,
        "services",
        &format!(
            "{} service ports, {} frontends, {} endpoints; {} Services failed",
            services.ports, services.frontends, services.endpoints, services.failed
        ),
    );
    line(&mut page, "changes", &format!("{} wait, last applied {applied}", services.pending_changes));
    line(&mut page, "programs", &programs(status));
    page.push('\n');
    page.push_str(&watches(status));
    page.push('\n');
    page.push_str(&maps(status));
    page.push('\n');
    let flows = status.flows.iter().map(|(state, count)| vec![state.clone(), count.to_string()]);
    page.push_str(&table(&["FLOWS", "COUNT"], flows));
    if status.hooks.len() <= FEW {
        page.push('\n');
        let hooks =
            status.hooks.iter().map(|hook| vec![hook.program.clone(), hook.at.clone(), hook.how.clone()]);
        page.push_str(&table(&["PROGRAM", "AT", "HOW"], hooks));
    }
    page
}

fn line(page: &mut String, title: &str, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(page, "{title:<9} {text}");
}

fn programs(status: &Status) -> String {
    let mut means: BTreeMap<&str, usize> = BTreeMap::new();
    for hook in &status.hooks {
        *means.entry(&hook.how).or_default() += 1;
    }
    let means: Vec<String> = means.iter().map(|(how, count)| format!("{count} {how}")).collect();
    let means = if means.is_empty() { String::new() } else { format!(" ({})", means.join(", ")) };
    format!("{} attached{means}, {} missing", status.hooks.len(), status.missing_hooks)
}

fn watches(status: &Status) -> String {
    let row = |watch: &crate::observe::status::WatchStatus| {
        vec![
            watch.name.clone(),
            if watch.synced { "yes" } else { "no" }.to_owned(),
            watch.last_event.map_or("-".to_owned(), |at| format!("{} ago", age(at, status.now))),
            watch.starts.to_string(),
            watch.failures.to_string(),
            watch.trouble.clone().unwrap_or_default(),
        ]
    };
    let header = ["WATCH", "SYNCED", "LAST EVENT", "STARTS", "FAILURES", "TROUBLE"];
    table(&header, status.watches.iter().map(row))
}

fn maps(status: &Status) -> String {
    let row = |map: &crate::observe::status::MapStatus| {
        let fill = map.entries as f64 * 100.0 / f64::from(map.capacity.max(1));
        vec![map.name.clone(), map.entries.to_string(), map.capacity.to_string(), format!("{fill:.1} %")]
    };
    table(&["MAP", "ENTRIES", "CAPACITY", "FILL"], status.maps.iter().map(row))
}

/// As kubectl writes ages.
fn age(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.as_second().saturating_sub(from.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if minutes < 2 => format!("{seconds}s"),
        () if hours < 2 => format!("{minutes}m"),
        () if days < 2 => format!("{hours}h"),
        () => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{HookStatus, MapStatus, ServiceStatus, WatchStatus};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_page_shows_problems_and_how_full_maps_are() {
        let status = Status {
            version: "0.1.0".to_owned(),
            node: "node-1".to_owned(),
            pid: 7,
            started: at(0),
            now: at(7_300),
            ready: false,
            alive: true,
            problems: vec!["the API server does not answer".to_owned()],
            api_server: Some("https://192.0.2.1:6443".to_owned()),
            api_server_version: Some("v1.35.0".to_owned()),
            watches: vec![WatchStatus {
                name: "services".to_owned(),
                synced: true,
                last_event: Some(at(7_270)),
                starts: 3,
                failures: 2,
                trouble: Some("refused".to_owned()),
            }],
            services: ServiceStatus { ports: 20, last_applied: Some(at(7_000)), ..ServiceStatus::default() },
            hooks: vec![HookStatus {
                at: "eth0".to_owned(),
                program: "uplink_ingress".to_owned(),
                how: "tcx".to_owned(),
            }],
            missing_hooks: 1,
            maps: vec![MapStatus { name: "service_names".to_owned(), entries: 20, capacity: 200 }],
            flows: BTreeMap::from([("new".to_owned(), 5)]),
        };
        let page = render(&status);
        for expected in [
            "proxy-agent 0.1.0 on node node-1, pid 7, up 2h\n",
            "health    NOT READY, alive\n          the API server does not answer\n",
            "source    https://192.0.2.1:6443 (v1.35.0)\n",
            "services  20 service ports, 0 frontends, 0 endpoints; 0 Services failed\n",
            "changes   0 wait, last applied 5m ago\n",
            "programs  1 attached (1 tcx), 1 missing\n",
            "services   yes      30s ago      3        2          refused\n",
            "names   20        200        10.0 %\n",
            "new     5\n",
            "uplink_ingress   eth0   tcx\n",
        ] {
            assert!(page.contains(expected), "{expected:?} in\n{page}");
        }
    }

    #[test]
    fn ages_are_kubectls() {
        for (seconds, text) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (7_200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(at(0), at(seconds)), text);
        }
    }
}
