//! `proxy-agent cleanup`.

use anyhow::{Context as _, Result};

use crate::{
    cli::PinArgs,
    datapath::{clean_up, pins::Pins},
    net::{interfaces, untracked},
};

/// Detaches every program and removes every pinned map; says what it did.
pub async fn run(args: &PinArgs) -> Result<()> {
    let interfaces = interfaces::read(&interfaces::connect()?).await?;
    untracked::remove().context("cannot remove the nftables table `proxy-agent`")?;
    untracked::remove_for_fragments().context("cannot remove the nftables table `proxy-agent-fragments`")?;
    let removed = clean_up(&Pins::new(&args.bpffs), &interfaces)?;
    if removed == 0 {
        println!("nothing was pinned below {}", args.bpffs.display());
    } else {
        println!("removed {removed} pinned maps and links below {}", args.bpffs.display());
    }
    Ok(())
}
