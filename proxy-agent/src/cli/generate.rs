//! Shell completions and manual pages, made from the definition of the command line.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;

/// The program's name.
const NAME: &str = "proxy-agent";

/// Arguments of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// For which shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// Write a page for each subcommand into this folder, instead of the one page to standard output.
    #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
    pub to: Option<PathBuf>,

    /// The subcommand whose page to print, like `run` or `debug services`. Default: the page of the program.
    #[arg(value_name = "SUBCOMMAND")]
    pub subcommand: Vec<String>,
}

/// The script that completes the command line in a shell.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    script
}

/// A manual page, in roff: of the program, or of a subcommand of it.
///
/// # Errors
/// When this subcommand does not exist.
pub fn manual_page(subcommand: &[String]) -> Result<Vec<u8>> {
    let mut pages = pages()?;
    let wanted = [NAME].into_iter().chain(subcommand.iter().map(String::as_str));
    let wanted = wanted.collect::<Vec<_>>().join("-");
    let names: Vec<String> = pages.iter().map(|(name, _)| name.replace('-', " ")).collect();
    let at = pages.iter().position(|(name, _)| *name == wanted);
    let at = at.with_context(|| {
        format!("manual page `{wanted}` does not exist; existing ones: {}", names.join(", "))
    })?;
    Ok(pages.swap_remove(at).1)
}

/// Writes all manual pages into a folder, like `proxy-agent-run.1`. Returns how many there are.
///
/// # Errors
/// When they cannot be written.
pub fn write_manual_pages(folder: &Path) -> Result<usize> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let pages = pages()?;
    for (name, page) in &pages {
        let path = folder.join(format!("{name}.1"));
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(pages.len())
}

/// Names and contents of all pages.
fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    // Built commands have names like `proxy-agent-debug-services`.
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let mut page = Vec::new();
    let release = format!("{NAME} {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).source(release).render(&mut page)?;
    pages.push((name.to_owned(), page));
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        add(subcommand, pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All subcommands by their names, without those that are hidden.
    fn all<'c>(command: &'c Command, path: &[String], found: &mut Vec<(Vec<String>, &'c Command)>) {
        found.push((path.to_vec(), command));
        for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            all(subcommand, &[path, &[subcommand.get_name().to_owned()]].concat(), found);
        }
    }

    fn flags(command: &Command) -> impl Iterator<Item = &str> {
        command
            .get_arguments()
            .filter(|argument| !argument.is_hide_set())
            .filter_map(|argument| argument.get_long())
    }

    #[test]
    fn every_subcommand_and_flag_is_in_completions_and_manual() {
        let mut root = Cli::command().disable_help_subcommand(true);
        root.build();
        let mut commands = Vec::new();
        all(&root, &[], &mut commands);
        assert!(commands.len() > 10);
        let scripts = [Shell::Bash, Shell::Zsh, Shell::Fish]
            .map(|shell| (shell, String::from_utf8(completions(shell)).unwrap()));
        for (path, command) in commands {
            let page = String::from_utf8(manual_page(&path).unwrap()).unwrap().replace("\\-", "-");
            for flag in flags(command) {
                assert!(page.contains(&format!("--{flag}")), "--{flag} in the page of {path:?}");
                for (shell, script) in &scripts {
                    assert!(script.contains(flag), "--{flag} of {path:?} in {shell}");
                }
            }
            for (shell, script) in &scripts {
                assert!(script.contains(command.get_name()), "{path:?} in {shell}");
            }
        }
        assert!(manual_page(&["nosuch".to_owned()]).is_err());
    }

    #[test]
    fn pages_are_written_with_their_whole_names() {
        let folder = tempfile::tempdir().unwrap();
        let count = write_manual_pages(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), count);
        let page = fs::read_to_string(folder.path().join("proxy-agent-debug-services.1")).unwrap();
        assert!(page.starts_with(".ie"), "{page}");
    }
}
