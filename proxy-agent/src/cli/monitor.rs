//! Arguments of `monitor`, `top` and `log-level`.

use std::{net::IpAddr, time::Duration};

use clap::Args;

use super::{PinArgs, duration, filter::parse_service};
use crate::{datapath::MonitorVerdict, model::objects::Protocol};

/// Arguments of `monitor`.
#[derive(Args, Clone, Debug)]
pub struct MonitorArgs {
    /// Where the maps are.
    #[command(flatten)]
    pub pins: PinArgs,

    /// Only of this Service, or of one port of it.
    #[arg(long, value_name = "NAMESPACE/NAME[:PORT]", value_parser = parse_service)]
    pub service: Option<String>,

    /// Only with this address: the client's, the frontend's or the endpoint's.
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,

    /// Only with this port: the client's, the frontend's or the endpoint's.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,

    /// Only of this protocol.
    #[arg(long, value_enum)]
    pub protocol: Option<Protocol>,

    /// Only these verdicts (may be repeated).
    #[arg(long = "verdict", value_name = "VERDICT,...", value_enum, value_delimiter = ',')]
    pub verdicts: Vec<MonitorVerdict>,

    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,

    /// End after so many decisions.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,

    /// End after this time.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub time: Option<Duration>,

    /// Report at most so many decisions a second and CPU. More are counted as lost.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// Arguments of `top`.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Where the maps are.
    #[command(flatten)]
    pub pins: PinArgs,

    /// Print one interval and end.
    #[arg(long)]
    pub once: bool,

    /// Print it as JSON.
    #[arg(long, requires = "once")]
    pub json: bool,

    /// How long an interval is.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub interval: Duration,

    /// Show at most so many Services and endpoints.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
}

/// Arguments of `log-level`.
#[derive(Args, Clone, Debug)]
pub struct LogLevelArgs {
    /// Where the maps are.
    #[command(flatten)]
    pub pins: PinArgs,

    /// `info`, `debug` and `trace` mean what no -v, -v and -vv mean; `default` is what the agent began with. Anything else is a filter as in
    /// RUST_LOG. Without it the present one is printed.
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
}
