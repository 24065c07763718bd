//! `proxy-agent cleanup`.

use std::{io, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{
    cli::CleanupArgs,
    datapath::{Leftover, pins::Pins},
    handover::Lock,
    net::{
        filters::{self, Direction},
        interfaces::{self, Interface},
        nat_keeper::{self, NftFamily},
        untracked,
    },
};

/// The nftables tables that an agent or `migrate` makes.
const TABLES: [Table; 4] = [
    Table {
        name: "nftables table inet proxy-agent",
        is_there: untracked::is_there,
        remove: untracked::remove,
    },
    Table {
        name: "nftables table inet proxy-agent-fragments",
        is_there: untracked::is_there_for_fragments,
        remove: untracked::remove_for_fragments,
    },
    Table {
        name: "nftables table ip proxy-agent-nat",
        is_there: || nat_keeper::has_keeper(NftFamily::V4),
        remove: || nat_keeper::remove_keeper(NftFamily::V4),
    },
    Table {
        name: "nftables table ip6 proxy-agent-nat",
        is_there: || nat_keeper::has_keeper(NftFamily::V6),
        remove: || nat_keeper::remove_keeper(NftFamily::V6),
    },
];

struct Table {
    name: &'static str,
    is_there: fn() -> bool,
    remove: fn() -> io::Result<()>,
}

/// Detaches every program and removes every pinned map; prints what it removed, or would remove.
///
/// # Errors
/// While an agent runs, unless forced, and when something could not be removed; the rest is.
pub async fn run(args: &CleanupArgs) -> Result<()> {
    let root = &args.pins.bpffs;
    let lock = lock(root)?;
    let is_running = matches!(lock, State::Running);
    if is_running && !args.force && !args.dry_run {
        bail!(
            "an agent runs with --bpffs {}: stop it first; with --force its services end at once, and it starts again",
            root.display()
        );
    }
    let pins = Pins::new(root);
    let interfaces = interfaces::read(&interfaces::connect()?).await?;
    let tables: Vec<&Table> = TABLES.iter().filter(|table| (table.is_there)()).collect();
    let left = leftovers(&pins, &interfaces).await?;
    if tables.is_empty() && left.is_empty() {
        println!("nothing to remove: nothing is pinned below {}, no filters, no tables", root.display());
    } else {
        println!("{}", if args.dry_run { "would remove" } else { "removing" });
        tables.iter().for_each(|table| println!("  {}", table.name));
        left.iter().for_each(|leftover| println!("  {}", leftover.what()));
    }
    if args.dry_run {
        if is_running {
            println!("an agent runs with --bpffs {}: only --force would do it", root.display());
        }
        return Ok(());
    }
    let of_tables = tables.iter().map(|table| (table.remove)().context(table.name));
    let of_left = left.iter().map(|leftover| leftover.remove(&pins).with_context(|| leftover.what()));
    let mut failed = 0;
    for error in of_tables.chain(of_left).filter_map(Result::err) {
        eprintln!("cannot remove {error:#}");
        failed += 1;
    }
    // The directories.
    pins.remove_all()?;
    drop(lock);
    if failed > 0 {
        bail!("{failed} of {} could not be removed", tables.len() + left.len());
    }
    Ok(())
}

/// Whether an agent is present.
enum State {
    Running,
    /// None starts while this is held.
    Locked(#[expect(dead_code, reason = "held until everything is removed")] Lock),
    /// There is not even a directory.
    Nothing,
}

fn lock(root: &Path) -> Result<State> {
    match Lock::attempt(root) {
        Ok(Some(lock)) => Ok(State::Locked(lock)),
        Ok(None) => Ok(State::Running),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::Nothing),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", root.display())),
    }
}

async fn leftovers(pins: &Pins, interfaces: &[Interface]) -> Result<Vec<Leftover>> {
    let name = |index| {
        let interface = interfaces.iter().find(|interface| interface.index == index);
        interface.map(|interface| interface.name.clone())
    };
    let mut all = Leftover::pinned(pins, name)?;
    let netlink = interfaces::connect()?;
    for interface in interfaces {
        for direction in [Direction::Ingress, Direction::Egress] {
            // Most have no qdisc for them.
            let Ok(filters) = filters::read(&netlink, interface.index, direction).await else { continue };
            let ours =
                filters.into_iter().filter_map(|filter| Leftover::filter(&interface.name, direction, filter));
            all.extend(ours);
        }
    }
    all.sort();
    Ok(all)
}
