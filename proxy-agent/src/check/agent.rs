//! A running agent at the same bpf directory, and the remains of an earlier one.

use std::path::Path;

use clap::Parser as _;

use super::{finding::Finding, processes::Process};
use crate::{
    cli::{Cli, Command, normalise},
    datapath::pins::Pins,
};

const NAME: &str = "running agent";

#[derive(Debug)]
pub(super) struct Facts {
    /// Ids of processes that are agents at this bpf directory.
    agents: Vec<u32>,
    /// How many links are pinned there.
    links: Result<usize, String>,
}

pub(super) fn gather(bpffs: &Path, processes: &[Process]) -> Facts {
    let links = Pins::new(bpffs).link_names();
    Facts {
        agents: processes
            .iter()
            .filter(|process| is_agent(process, bpffs))
            .map(|process| process.id)
            .collect(),
        links: links.map(|names| names.len()).map_err(|error| error.to_string()),
    }
}

fn is_agent(process: &Process, bpffs: &Path) -> bool {
    // kube-proxy's own arguments can be read as those of an agent.
    if process.name != "proxy-agent" {
        return false;
    }
    let arguments = normalise(process.arguments.iter().map(Into::into));
    match Cli::try_parse_from(arguments).map(|cli| cli.command) {
        Ok(Command::Run(run)) => run.pins.bpffs == bpffs,
        // Perhaps another release has such arguments.
        _ => false,
    }
}

pub(super) fn assess(facts: &Facts, bpffs: &Path) -> Finding {
    let shown = bpffs.display();
    let advice = "two agents at one --bpffs overwrite each other's maps: stop it, or use another --bpffs. Expected \
        if the new agent is to replace it";
    match (facts.agents.first(), &facts.links) {
        (Some(id), _) => {
            Finding::warn(NAME, format!("process {id} is an agent with --bpffs {shown}"), advice)
        }
        (None, Err(error)) => Finding::unknown(NAME, format!("cannot read {shown}: {error}")),
        (None, Ok(0)) => Finding::pass(NAME, "none"),
        (None, Ok(links)) => Finding::pass(
            NAME,
            format!("none is visible; {links} links of an earlier one below {shown} will be taken over"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::State;

    #[test]
    fn agents_by_their_arguments() {
        let bpffs = Path::new("/sys/fs/bpf/proxy-agent");
        for (name, arguments, expected) in [
            ("proxy-agent", "/proxy-agent run --node-name n", true),
            ("proxy-agent", "/proxy-agent run --bpffs /sys/fs/bpf/other", false),
            ("proxy-agent", "/proxy-agent debug services", false),
            ("proxy-agent", "/proxy-agent run --flag-of-the-future", false),
            ("kube-proxy", "kube-proxy --config /c", false),
            ("nginx", "nginx run", false),
        ] {
            let arguments = arguments.split(' ').map(str::to_owned).collect();
            let process = Process { name: name.to_owned(), arguments, ..Process::default() };
            assert_eq!(is_agent(&process, bpffs), expected, "{:?}", process.arguments);
        }
    }

    #[test]
    fn one_that_runs_is_a_warning() {
        for (agents, links, expected) in [
            (vec![], Ok(0), State::Pass),
            (vec![], Ok(8), State::Pass),
            (vec![7], Ok(8), State::Warn),
            (vec![], Err("permission denied".to_owned()), State::Unknown),
        ] {
            let facts = Facts { agents, links };
            assert_eq!(assess(&facts, Path::new("/x")).state, expected, "{facts:?}");
        }
    }
}
