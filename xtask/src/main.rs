//! Everything a developer runs: `cargo xtask <command>`.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod codegen;
mod demo;
mod doc;
mod fuzz;
mod image;
mod lint;
mod nightly;
mod setup;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything a developer runs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install the BPF tool chain and the programs that tests need. The other commands do so themselves.
    Setup(setup::SetupArgs),
    /// Build the programs and the agent that holds them.
    Build(build::BuildArgs),
    /// Show services at work in a cluster of three nodes on this machine.
    Demo(demo::DemoArgs),
    /// Run the tests: all of them, or some parts.
    Test(test::TestArgs),
    /// Check rules that a compiler does not: format, clippy, retired words, and the length of files.
    Lint(lint::LintArgs),
    /// Feed random input to whatever reads foreign input.
    Fuzz(fuzz::FuzzArgs),
    /// Run the long tests: random packets by the million, agents that are ended a thousand times under load, and each
    /// fuzz target for minutes.
    Nightly(nightly::NightlyArgs),
    /// Measure.
    Bench(bench::BenchArgs),
    /// Boot packaged kernels in virtual machines and run the agent there.
    Vm(vm::VmArgs),
    /// Write the files generated from code and from the Helm chart: tables in documents, the kustomize base and components.
    Codegen(codegen::CodegenArgs),
    /// Write the documentation of the code by rustdoc. Warnings are errors.
    Doc(doc::DocArgs),
    /// Make a container image, as an OCI archive. Needs no container tools.
    Image(image::ImageArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::main(&args),
        Command::Build(args) => build::main(&args),
        Command::Demo(args) => demo::main(&args),
        Command::Test(args) => test::main(&args),
        Command::Lint(args) => lint::main(&args),
        Command::Fuzz(args) => fuzz::main(&args),
        Command::Nightly(args) => nightly::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Vm(args) => vm::main(&args),
        Command::Codegen(args) => codegen::main(&args),
        Command::Doc(args) => doc::main(&args),
        Command::Image(args) => image::main(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::CommandFactory;

    use super::*;

    /// Every Markdown file of the root, `docs` with its folders, and `deploy`.
    fn documents() -> impl Iterator<Item = (String, String)> {
        let dirs = ["", "docs", "docs/adr", "docs/agent", "docs/datapath", "docs/dev", "deploy"]
            .map(|dir| workspace::root().join(dir));
        let files = dirs.into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let paths =
            files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "md"));
        paths.map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()))
    }

    #[test]
    fn the_documents_name_commands_and_options_that_exist() {
        let cli = Cli::command();
        for (file, text) in documents() {
            for after in text.split("cargo xtask ").skip(1) {
                let usage = after.split(['`', '\n', '#', '&', '|', ',']).next().unwrap_or_default();
                let mut words = usage.split_whitespace();
                let Some(name) = words.next().filter(|word| word.chars().all(|c| c.is_ascii_lowercase()))
                else {
                    continue;
                };
                let command =
                    cli.find_subcommand(name).unwrap_or_else(|| panic!("{file}: no `cargo xtask {name}`"));
                for option in words.filter_map(|word| word.strip_prefix("--")) {
                    let option = option.split('=').next().unwrap_or_default();
                    // An option of the command, or of one below it, like `bench packet`.
                    let known = std::iter::once(command)
                        .chain(command.get_subcommands())
                        .flat_map(clap::Command::get_arguments)
                        .any(|argument| argument.get_long() == Some(option));
                    assert!(known, "{file}: `cargo xtask {name}` has no --{option}");
                }
            }
        }
    }
}
