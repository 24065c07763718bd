//! Tables of flags, from the definition of the command line.

use clap::{Arg, ArgAction, Command, CommandFactory as _};
use proxy_agent::cli::Cli;

use super::{header, row};

/// Begins the sentence of a help text that goes into the column of defaults.
const DEFAULT: &str = "Default: ";

/// The flags of `run`, a table for each heading.
pub(super) fn of_run() -> String {
    let mut cli = Cli::command();
    cli.build();
    let run = cli.get_subcommands().filter(|command| command.get_name() == "run");
    let flags: Vec<_> = run.flat_map(Command::get_arguments).filter(|flag| is_shown(flag)).collect();
    let mut headings: Vec<_> = flags.iter().map(|flag| flag.get_help_heading()).collect();
    headings.dedup();
    // Flags without a heading are those of every subcommand.
    headings.sort_by_key(Option::is_none);
    headings.dedup();
    let mut tables = String::new();
    for heading in headings {
        tables += &format!("**{}**\n\n", heading.unwrap_or("Of every subcommand"));
        tables += &header(&["flag", "default", "meaning"]);
        for flag in flags.iter().filter(|flag| flag.get_help_heading() == heading) {
            let (meaning, sentence) = meaning(flag);
            tables += &row(&[&spelling(flag), &default(flag, sentence), &meaning]);
        }
        tables.push('\n');
    }
    tables
}

fn is_shown(flag: &Arg) -> bool {
    !flag.is_hide_set() && flag.get_long().is_some() && !["help", "version"].contains(&flag.get_id().as_str())
}

/// `--node-name NAME`, and its aliases.
fn spelling(flag: &Arg) -> String {
    let values: Vec<_> = flag.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let value = if !flag.get_action().takes_values() {
        String::new()
    } else if !values.is_empty() && !flag.is_hide_possible_values_set() {
        format!(" {}", values.join("|"))
    } else {
        let names = flag.get_value_names().unwrap_or_default();
        names.iter().map(|name| format!(" {name}")).collect()
    };
    let short = flag.get_short().map(|short| format!("`-{short}`"));
    let aliases = flag.get_visible_aliases().unwrap_or_default();
    let longs = flag.get_long().into_iter().chain(aliases).map(|long| format!("`--{long}{value}`"));
    short.into_iter().chain(longs).collect::<Vec<_>>().join(", ")
}

/// The help text without the sentence about the default, and that.
fn meaning(flag: &Arg) -> (String, Option<String>) {
    let text = flag.get_long_help().or(flag.get_help()).map(ToString::to_string).unwrap_or_default();
    let paragraphs: Vec<_> =
        text.split("\n\n").map(|paragraph| paragraph.trim().replace('\n', " ")).collect();
    let mut sentence = None;
    let mut meaning = Vec::new();
    for mut paragraph in paragraphs {
        if let Some(at) = paragraph.find(DEFAULT) {
            let rest = paragraph.split_off(at);
            let (default, rest) =
                rest[DEFAULT.len()..].split_once(". ").unwrap_or((&rest[DEFAULT.len()..], ""));
            let default = default.trim_end_matches('.');
            // A value, or words.
            let is_value = !default.contains(' ');
            sentence = Some(if is_value { format!("`{default}`") } else { default.to_owned() });
            paragraph += rest;
        }
        let paragraph = paragraph.trim().trim_end_matches('.');
        if !paragraph.is_empty() {
            meaning.push(format!("{paragraph}."));
        }
    }
    (meaning.join(" "), sentence)
}

fn default(flag: &Arg, sentence: Option<String>) -> String {
    let environment = flag.get_env().map(|name| format!("`${}`", name.to_string_lossy()));
    let values: Vec<_> = flag.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let value = match flag.get_action() {
        ArgAction::SetTrue => Some("off".to_owned()),
        ArgAction::Count => None,
        _ => (!values.is_empty()).then(|| format!("`{}`", values.join(","))),
    };
    environment.into_iter().chain(sentence).chain(value).collect::<Vec<_>>().join(", else ")
}
