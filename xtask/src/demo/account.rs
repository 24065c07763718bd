//! The account of the proofs, for people to read.

use std::io::{IsTerminal, stdout};

use anyhow::{Result, bail};

const GREEN: &str = "32";
const RED: &str = "31";
const BOLD: &str = "1";
const DIM: &str = "2";

/// Prints each proof; counts failures.
pub(super) struct Account {
    colour: bool,
    proved: usize,
    failed: usize,
}

impl Account {
    pub(super) fn new() -> Self {
        // https://no-color.org
        let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, proved: 0, failed: 0 }
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn title(&self, text: &str) {
        println!("{}", self.paint(BOLD, text));
    }

    pub(super) fn heading(&self, text: &str) {
        println!("\n{}", self.paint(BOLD, text));
    }

    pub(super) fn text(&self, text: &str) {
        println!("  {}", self.paint(DIM, text));
    }

    /// A table as `proxy-agent debug` prints it.
    pub(super) fn table(&self, command: &str, table: &str) {
        self.text(&format!("$ {command}"));
        for line in table.lines() {
            println!("    {line}");
        }
    }

    /// Proves something: prints how it was seen or why it failed.
    pub(super) fn prove(&mut self, what: &str, proof: Result<String>) {
        match proof {
            Ok(seen) => {
                self.proved += 1;
                println!("  {} {what:<46} {}", self.paint(GREEN, "ok"), self.paint(DIM, &seen));
            }
            Err(error) => {
                self.failed += 1;
                println!("  {} {what}\n     {error:#}", self.paint(RED, "FAILED"));
            }
        }
    }

    /// Prints the result; an error if anything failed.
    pub(super) fn verdict(&self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} of {} statements could not be proved", self.failed, self.failed + self.proved);
        }
        println!("\n{}", self.paint(GREEN, &format!("All {} statements proved.", self.proved)));
        Ok(())
    }
}
