//! `proxy-agent migrate`: kube-proxy's rules on this node, shown and removed once the agent serves.
//!
//! Connections that its rules translate live on: for each of them the kernel's connection tracking has the translation, and reads the
//! rules no more. A NAT table must stay for it, though: see [`KEEPER`]. IPVS differs: it drops the packets of connections whose virtual
//! server is gone.
//!
//! [`KEEPER`]: crate::net::nat_keeper::KEEPER

mod doomed;
mod ipvs;
mod legacy;
mod nft;
mod proof;

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result, bail, ensure};
use rtnetlink::Handle;

use self::{doomed::Doomed, proof::Proof};
use crate::{
    check::processes::{self, Process},
    cleanup,
    cli::{CleanupArgs, MigrateArgs},
    kube_proxy::{IPVS_INTERFACE, NFT_TABLE},
    net::{
        interfaces::{self, Interface},
        xtables::IptablesFamily,
    },
};

/// How often to search again, when another program changes rules meanwhile.
const ROUNDS: usize = 3;

/// Shows kube-proxy's rules and chains, and removes them if requested.
///
/// # Errors
/// If removal was requested and is not done: kube-proxy runs, or the agent does not serve. And when something could not be removed.
pub async fn run(args: &MigrateArgs) -> Result<()> {
    let netlink = interfaces::connect()?;
    let found = Found::read(&netlink).await?;
    let running = running(&processes::list());
    if args.back {
        return back(args, &found, &running).await;
    }
    let proofs = proof::all(args).await;
    println!("{}", found.page(&running));
    println!("{}", page_of(&proofs));
    if found.is_empty() {
        println!("nothing to remove");
        return Ok(());
    }
    let objection = objection(&running, &proofs, args.force);
    if !args.commit {
        match objection {
            Some(why) => println!("--commit would not remove it: {why}"),
            None => println!("nothing was changed; --commit removes it"),
        }
        return Ok(());
    }
    if let Some(why) = objection {
        bail!("nothing was removed: {why}");
    }
    remove(found, &netlink, args).await
}

async fn remove(mut found: Found, netlink: &Handle, args: &MigrateArgs) -> Result<()> {
    let mut failures = Vec::new();
    for _ in 0..ROUNDS {
        failures = found.remove_rules();
        found = Found::read(netlink).await?;
        if failures.is_empty() && !found.has_rules() {
            break;
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    ensure!(
        !found.has_rules(),
        "something makes the rules again; is kube-proxy running elsewhere in this network?"
    );
    let active = found.ipvs.active();
    if active > 0 && !args.force {
        println!(
            "removed the rules. {active} connections still go through IPVS, which would drop their packets: virtual servers and \
             {} stay. Run this again when they have ended, or with --force",
            IPVS_INTERFACE
        );
    } else {
        ipvs::remove(netlink, &found.ipvs).await?;
        println!("removed");
    }
    // Without the rules, only the agent can have answered.
    let proofs = proof::all(args).await;
    println!("{}", page_of(&proofs));
    if proofs.iter().any(|proof| proof.result.is_err()) && !args.force {
        bail!(
            "the rules are removed and the agent does not serve: start kube-proxy again (docs/migration.md, Back)"
        );
    }
    Ok(())
}

/// Takes this node back: removes only the agent's remains, and only when kube-proxy runs.
async fn back(args: &MigrateArgs, found: &Found, running: &[Process]) -> Result<()> {
    println!("{}", found.page(running));
    let is_served = !running.is_empty() && (found.has_rules() || !found.ipvs.is_empty());
    if !is_served {
        let missing =
            if running.is_empty() { "no kube-proxy runs here" } else { "kube-proxy has made no rules yet" };
        ensure!(
            !args.commit,
            "nothing was removed: {missing}; removing the agent's programs would stop Services"
        );
        println!("--commit would remove nothing: {missing}");
    }
    let cleanup = CleanupArgs { pins: args.pins.clone(), dry_run: !args.commit, force: false };
    cleanup::run(&cleanup).await
}

/// Why nothing may be removed.
fn objection(running: &[Process], proofs: &[Proof], force: bool) -> Option<String> {
    if let Some(process) = running.first() {
        return Some(format!(
            "process {} is kube-proxy, which would make its rules again: stop it first",
            process.id
        ));
    }
    let failed: Vec<&str> =
        proofs.iter().filter(|proof| proof.result.is_err()).map(|proof| proof.what).collect();
    let is_shown = failed.is_empty() || force;
    (!is_shown)
        .then(|| format!("it could not be shown that the agent serves this node ({})", failed.join(", ")))
}

/// kube-proxy of this network: nodes that are containers have others.
fn running(processes: &[Process]) -> Vec<Process> {
    let network = |id: &str| fs::read_link(format!("/proc/{id}/ns/net"));
    let own = network("thread-self").ok();
    let is_here = |process: &&Process| network(&process.id.to_string()).is_ok_and(|of| Some(of) == own);
    let is_one = |process: &&Process| process.is_kube_proxy();
    processes.iter().filter(is_one).filter(is_here).cloned().collect()
}

/// kube-proxy's objects in this network namespace.
#[derive(Debug, Default)]
struct Found {
    nft: Vec<nft::Found>,
    legacy: Vec<legacy::Found>,
    ipvs: ipvs::Found,
}

impl Found {
    async fn read(netlink: &Handle) -> Result<Self> {
        let interfaces: Vec<Interface> = interfaces::read(netlink).await?;
        Ok(Self {
            nft: nft::find_all().context("cannot list the rules of nftables")?,
            legacy: legacy::find().context("cannot list the rules of iptables (legacy)")?,
            ipvs: ipvs::find_all(netlink, &interfaces).await?,
        })
    }

    fn is_empty(&self) -> bool {
        !self.has_rules() && self.ipvs.is_empty()
    }

    /// Any that would go.
    fn has_rules(&self) -> bool {
        let is_left = |found: &nft::Found| match found {
            nft::Found::Own { .. } => true,
            nft::Found::Shared { doomed, .. } => !doomed.chains.is_empty(),
        };
        self.nft.iter().any(is_left) || self.legacy.iter().any(|found| !found.doomed.chains.is_empty())
    }

    /// Removes them; returns the failures.
    fn remove_rules(&self) -> Vec<String> {
        let of_nft =
            self.nft.iter().map(|found| nft::remove(found).map_err(|error| format!("nftables: {error}")));
        let doomed = self.legacy.iter().filter(|found| !found.doomed.chains.is_empty());
        let of_legacy = doomed.map(|found| {
            legacy::remove(found)
                .map_err(|error| format!("iptables (legacy), table {}: {error}", found.table))
        });
        of_nft.chain(of_legacy).filter_map(Result::err).collect()
    }

    fn page(&self, running: &[Process]) -> String {
        let mut page = String::from("kube-proxy on this node\n");
        let mut line = |title: &str, text: String| {
            // Writing to a string does not fail.
            let _ = writeln!(page, "  {title:<18} {text}");
        };
        match running {
            [] => line("process", "none is visible".to_owned()),
            all => all.iter().for_each(|process| line("process", format!("{} runs", process.id))),
        }
        for found in &self.nft {
            match found {
                nft::Found::Own { family, chains, rules } => {
                    line("nftables", format!("table {family} {}: {chains} chains, {rules} rules", NFT_TABLE));
                }
                nft::Found::Shared { family, table, doomed, jumps } => {
                    line("iptables (nft)", format!("{family} {table}: {}", describe(doomed, jumps.len())));
                }
            }
        }
        for legacy::Found { family, table, doomed, jumps } in &self.legacy {
            let family = if *family == IptablesFamily::V4 { "ip" } else { "ip6" };
            line("iptables (legacy)", format!("{family} {table}: {}", describe(doomed, *jumps)));
        }
        let ipvs = &self.ipvs;
        if let Some((_, addresses)) = ipvs.interface {
            line("IPVS", format!("interface {} with {addresses} addresses", IPVS_INTERFACE));
        }
        if !ipvs.servers.is_empty() {
            let first: Vec<String> = ipvs.servers.iter().take(3).map(ToString::to_string).collect();
            let count = ipvs.servers.len();
            line(
                "IPVS",
                format!("{count} virtual servers ({}, ...), {} connections", first.join(", "), ipvs.active()),
            );
        }
        if ipvs.others > 0 {
            line("IPVS", format!("{} virtual servers of others: they stay", ipvs.others));
        }
        if self.is_empty() {
            line("rules", "none".to_owned());
        }
        page
    }
}

fn describe(doomed: &Doomed, jumps: usize) -> String {
    const SHOWN: usize = 6;
    let mut shown: Vec<&str> = doomed.chains.iter().map(String::as_str).take(SHOWN).collect();
    if doomed.chains.len() > SHOWN {
        shown.push("...");
    }
    let mut text =
        format!("{} chains ({}), {jumps} rules that lead there", doomed.chains.len(), shown.join(", "));
    if !doomed.kept.is_empty() {
        let kept: Vec<&str> = doomed.kept.iter().map(String::as_str).collect();
        let _ = write!(text, "; {} stay, because chains of others use them", kept.join(", "));
    }
    text
}

fn page_of(proofs: &[Proof]) -> String {
    let mut page = String::from("proxy-agent on this node\n");
    for Proof { what, result } in proofs {
        let text = match result {
            Ok(seen) => format!("yes: {seen}"),
            Err(error) => format!("NO: {error:#}"),
        };
        let _ = writeln!(page, "  {what:<18} {text}");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str, arguments: &str) -> Process {
        let arguments = arguments.split(' ').map(str::to_owned).collect();
        Process { id: 7, name: name.to_owned(), arguments, ..Process::default() }
    }

    #[test]
    fn nothing_is_removed_without_proof() {
        let proofs = |works: bool| {
            let result = if works { Ok(String::new()) } else { Err(anyhow::anyhow!("no")) };
            [Proof { what: "a connection", result }]
        };
        let kube_proxy = [process("kube-proxy", "")];
        assert_eq!(objection(&[], &proofs(true), false), None);
        assert!(objection(&[], &proofs(false), false).is_some_and(|why| why.contains("a connection")));
        assert_eq!(objection(&[], &proofs(false), true), None);
        for force in [false, true] {
            let why = objection(&kube_proxy, &proofs(true), force);
            assert!(why.is_some_and(|why| why.contains("process 7")));
        }
    }
}
