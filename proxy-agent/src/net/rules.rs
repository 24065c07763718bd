//! Rules that choose routing tables (`ip rule`), read by netlink.

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};

/// Whether rules of the node choose routes by more than the destination. Then an endpoint's replies may leave by another interface than
/// those of the address that clients know: secondary interfaces of cloud CNIs, second uplinks.
///
/// # Errors
/// The kernel's.
pub async fn choose_by_source(handle: &Handle) -> Result<bool> {
    let mut found = false;
    for family in [IpVersion::V4, IpVersion::V6] {
        let mut rules = handle.rule().get(family).execute();
        // To the end: the socket takes no other request before.
        while let Some(rule) = rules.try_next().await.context("cannot list rules of routing")? {
            found |= chooses_by_source(&rule);
        }
    }
    Ok(found)
}

/// By the source, by where packets come from, or by a mark that rules of netfilter gave them.
fn chooses_by_source(rule: &RuleMessage) -> bool {
    let by_mark =
        |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Iifname(_) | RuleAttribute::FwMark(_));
    rule.header.src_len > 0 || rule.attributes.iter().any(by_mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_looks_at() {
        let rule = |src_len, attributes: &[RuleAttribute]| {
            let mut rule = RuleMessage::default();
            rule.header.src_len = src_len;
            rule.attributes = attributes.to_vec();
            rule
        };
        for (rule, by_source) in [
            (rule(0, &[RuleAttribute::Priority(32_766)]), false),
            (rule(0, &[RuleAttribute::L3MDev(true)]), false),
            (rule(32, &[]), true),
            (rule(0, &[RuleAttribute::Iifname("eth1".to_owned())]), true),
            (rule(0, &[RuleAttribute::FwMark(0x80)]), true),
        ] {
            assert_eq!(chooses_by_source(&rule), by_source, "{rule:?}");
        }
    }
}
