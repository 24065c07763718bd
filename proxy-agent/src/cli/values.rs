//! How values of flags are spelt, of which the types are defined where they are used.

use std::time::Duration;

use clap::{ValueEnum, builder::PossibleValue};

use crate::{
    datapath::{KernelLogLevel, MonitorVerdict, Reject, XdpMode},
    logging::LogFormat,
    model::objects::Protocol,
    net::topology::PodDatapath,
    output::OutputFormat,
};

/// The values of a type, each with its help.
macro_rules! values {
    ($type:ident { $($variant:ident = $name:literal: $help:literal),+ $(,)? }) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$variant),+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(match self {
                    $(Self::$variant => PossibleValue::new($name).help($help)),+
                })
            }
        }
    };
}

values!(PodDatapath {
    Auto = "auto": "Socket hooks, or tc programs for those pods that need them",
    Socket = "socket": "Socket hooks",
    Tc = "tc": "tc programs on pod interfaces",
    Both = "both": "Both",
});

values!(XdpMode {
    Auto = "auto": "Native where the driver has it",
    Native = "native": "Native or an error",
    Generic = "generic": "The kernel's emulation",
    Off = "off": "No XDP",
});

values!(Reject {
    Icmp = "icmp": "ICMP port unreachable, as kube-proxy does",
    TcpReset = "tcp-reset": "TCP: a reset. Everything else: ICMP port unreachable",
});

values!(KernelLogLevel {
    Warn = "warn": "Drops",
    Info = "info": "And connects",
    Debug = "debug": "And every translated packet",
});

values!(LogFormat {
    Text = "text": "For people",
    Json = "json": "One JSON object a line",
});

values!(OutputFormat {
    Table = "table": "For people",
    Json = "json": "One JSON document",
    Yaml = "yaml": "One YAML document",
});

values!(Protocol {
    Tcp = "tcp": "TCP",
    Udp = "udp": "UDP",
    Sctp = "sctp": "SCTP",
});

values!(MonitorVerdict {
    Translated = "translated": "A new flow, or a socket that got an endpoint",
    Rejected = "rejected": "Rejected: the client gets an error that nothing listens, or that access is denied",
    Dropped = "dropped": "Dropped",
    Reset = "reset": "A TCP connection was reset",
    Answered = "answered": "A ping of a cluster IP was answered",
});

/// The format of the log, as a configuration file has it.
pub(crate) fn log_format(text: &str) -> Result<LogFormat, String> {
    LogFormat::from_str(text, false)
}

/// A duration as Go writes it, like `1s`, `1h0m0s` or `500ms`. Not negative.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    // The library's parser panics at numbers out of range, and at a sign amid the text.
    const MAX_DIGITS: usize = 9;
    let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    let in_range = !text.is_empty() && !text.contains(['-', '+']) && digits <= Some(MAX_DIGITS);
    in_range
        .then(|| text.parse::<kube::core::Duration>().ok())
        .flatten()
        .map(Into::into)
        .ok_or_else(|| format!("`{text}` is not a duration like 1s, 500ms or 1h0m0s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, expected) in [
            ("0s", Duration::ZERO),
            ("0", Duration::ZERO),
            ("500ms", Duration::from_millis(500)),
            ("1h0m1s", Duration::from_secs(3601)),
            ("1.5s", Duration::from_millis(1500)),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for wrong in ["", "5", "-1s", "1s-1s", "99999999999999999999h", "1y", "NaNs", "infs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
