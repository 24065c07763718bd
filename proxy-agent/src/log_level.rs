//! `proxy-agent log-level`: the request and the agent's answer are in a map that is pinned for a moment beside the others. Only root can
//! write there, several agents have a directory each, and no port or socket is opened.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use crate::{
    cli::LogLevelArgs,
    datapath::{mailbox::Mailbox, pins::Pins},
    handover,
    logging::{LogControl, parse},
    output::print,
};

/// How often the agent looks for a request.
const RECHECK: Duration = Duration::from_secs(1);
/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to look for the answer.
const SOON: Duration = Duration::from_millis(20);

const OK: &str = "ok ";
const ERROR: &str = "error ";

/// Sends the filter to the running agent, and prints the one in use then.
///
/// # Errors
/// When no agent runs, or it refuses.
pub fn ask(args: &LogLevelArgs) -> Result<()> {
    let pins = Pins::new(&args.pins.bpffs);
    let filter = args.filter.as_deref().unwrap_or_default();
    parse(filter).with_context(|| format!("`{filter}` is not a filter"))?;
    if handover::is_free(pins.root()) {
        bail!("no agent runs with the pins of {}: name its directory with --bpffs", pins.root().display());
    }
    let mailbox = Mailbox::send(&pins, filter)?;
    let deadline = Instant::now() + PATIENCE;
    let answer = loop {
        if let Some(answer) = mailbox.answer()? {
            break answer;
        }
        if Instant::now() >= deadline {
            bail!("the agent did not answer within {PATIENCE:?}: is it of a release without `log-level`?");
        }
        std::thread::sleep(SOON);
    };
    match answer.strip_prefix(OK) {
        Some(filter) => print(&format!("{filter}\n")),
        None => bail!("{}", answer.strip_prefix(ERROR).unwrap_or(&answer)),
    }
}

/// Serves requests, for as long as it is polled.
pub async fn follow(control: LogControl, pins: Pins) {
    let mut recheck = interval(RECHECK);
    recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        recheck.tick().await;
        match Mailbox::receive(&pins) {
            Ok(None) => {}
            Ok(Some((mailbox, filter))) => {
                let answer = answer(&control, &filter);
                if let Err(error) = mailbox.reply(&answer) {
                    debug!("cannot answer a request for the log's level: {error:#}");
                }
            }
            Err(error) => debug!("cannot read a request for the log's level: {error:#}"),
        }
    }
}

fn answer(control: &LogControl, filter: &str) -> String {
    let wanted = (!filter.is_empty()).then_some(filter);
    match control.set(wanted) {
        Ok(present) => {
            if wanted.is_some() {
                info!("logging by the filter {present} from now on, as `log-level` asks");
            }
            format!("{OK}{present}")
        }
        Err(error) => format!("{ERROR}{error:#}"),
    }
}
