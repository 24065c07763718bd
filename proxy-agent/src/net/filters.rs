//! Filters of the clsact qdisc that are eBPF programs, read by netlink.

use std::fmt;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::Handle;

/// A direction, seen from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Received packets.
    Ingress,
    /// Sent packets.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The name its owner gave it.
    pub name: String,
    /// Which it is among its owner's.
    pub handle: u32,
    /// Filters with smaller ones run first.
    pub priority: u16,
}

/// The filters of an interface, in the order they run. Without a clsact qdisc there are none.
pub async fn read(handle: &Handle, ifindex: u32, direction: Direction) -> Result<Vec<Filter>> {
    let request = handle.traffic_filter(ifindex as i32).get();
    let request = match direction {
        Direction::Ingress => request.ingress(),
        Direction::Egress => request.egress(),
    };
    let messages: Vec<TcMessage> =
        request.execute().try_collect().await.context("cannot list the filters of an interface")?;
    Ok(messages.iter().filter_map(bpf_filter).collect())
}

/// The kernel lists each group of filters, and behind it each of its filters: those have a handle.
fn bpf_filter(message: &TcMessage) -> Option<Filter> {
    let id = message.header.handle;
    let handle = u32::from(id.major) << 16 | u32::from(id.minor);
    let is_bpf = message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "bpf"));
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let name = options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    });
    let priority = (message.header.info >> 16) as u16;
    (is_bpf && handle != 0).then(|| Filter { name: name.unwrap_or_default(), handle, priority })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::tc::TcHandle;

    use super::*;

    #[test]
    fn only_programs_are_filters_of_interest() {
        let message = |kind: &str, handle: u32| {
            let mut message = TcMessage::default();
            message.header.handle = TcHandle::from(handle);
            message.header.info = 49_152 << 16 | 3;
            let name = TcOption::Bpf(TcFilterBpfOption::ProgName("cil_to_container".into()));
            message.attributes = vec![TcAttribute::Kind(kind.into()), TcAttribute::Options(vec![name])];
            message
        };
        let filter = Filter { name: "cil_to_container".into(), handle: 0x7_0001, priority: 49_152 };
        assert_eq!(bpf_filter(&message("bpf", 0x7_0001)), Some(filter));
        assert_eq!(bpf_filter(&message("bpf", 0)), None, "a group");
        assert_eq!(bpf_filter(&message("flower", 1)), None);
    }
}
