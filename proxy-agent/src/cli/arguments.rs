//! Spellings of Kubernetes' programs that the parser of the command line does not know.

use std::{ffi::OsString, path::Path};

use clap::CommandFactory as _;

use super::Cli;

/// Rewrites a command line (the program's name first), so that a DaemonSet's arguments for kube-proxy work unchanged:
///
/// - the verbosity `-v=2` or `-v 2` becomes `--v=2`;
/// - without a subcommand, `run` is meant if `--config` is given or the program is called `kube-proxy`.
pub fn normalise(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut normal: Vec<OsString> = Vec::new();
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-v") => match arguments.next_if(|next| verbosity(next.to_str()).is_some()) {
                Some(next) => normal.push(format!("--v={}", next.display()).into()),
                None => normal.push(argument),
            },
            Some(text) => match verbosity(text.strip_prefix("-v=")) {
                Some(number) => normal.push(format!("--v={number}").into()),
                None => normal.push(argument),
            },
            None => normal.push(argument),
        }
    }
    if means_run(&normal) {
        normal.insert(1, "run".into());
    }
    normal
}

fn verbosity(text: Option<&str>) -> Option<u8> {
    text?.parse().ok()
}

fn means_run(arguments: &[OsString]) -> bool {
    let Some((program, arguments)) = arguments.split_first() else {
        return false;
    };
    let cli = Cli::command();
    let is_command = |argument: &OsString| {
        argument == "help" || cli.get_subcommands().any(|command| argument == command.get_name())
    };
    let is_config = |argument: &OsString| {
        argument.to_str().is_some_and(|text| text == "--config" || text.starts_with("--config="))
    };
    let is_kube_proxy = Path::new(program).file_name().is_some_and(|name| name == "kube-proxy");
    !arguments.iter().any(is_command) && (is_kube_proxy || arguments.iter().any(is_config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_kube_proxy_are_understood() {
        for (given, expected) in [
            ("proxy-agent run -v", "proxy-agent run -v"),
            ("proxy-agent run -vv", "proxy-agent run -vv"),
            ("proxy-agent run -v=5", "proxy-agent run --v=5"),
            ("proxy-agent run -v 5", "proxy-agent run --v=5"),
            ("proxy-agent -v run", "proxy-agent -v run"),
            ("proxy-agent run -v=x", "proxy-agent run -v=x"),
            ("proxy-agent --config=c --v=2", "proxy-agent run --config=c --v=2"),
            ("proxy-agent --config c", "proxy-agent run --config c"),
            ("proxy-agent -v run --config c", "proxy-agent -v run --config c"),
            ("proxy-agent", "proxy-agent"),
            ("proxy-agent --help", "proxy-agent --help"),
            ("proxy-agent --node-name n", "proxy-agent --node-name n"),
            ("/usr/local/bin/kube-proxy", "/usr/local/bin/kube-proxy run"),
            ("kube-proxy --master m", "kube-proxy run --master m"),
            ("kube-proxy cleanup", "kube-proxy cleanup"),
        ] {
            let normal = normalise(given.split(' ').map(Into::into));
            let expected: Vec<OsString> = expected.split(' ').map(Into::into).collect();
            assert_eq!(normal, expected, "{given}");
        }
    }
}
