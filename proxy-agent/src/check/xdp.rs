//! Which interfaces can have the XDP program that the settings request. Nothing is attached: that would reset the links of some
//! drivers.

use proxy_sys::ethtool::driver;

use super::finding::Finding;
use crate::{datapath::XdpMode, net::topology::Uplink};

const NAME: &str = "XDP";

/// Drivers that have native XDP, by the names that `ethtool -i` shows. Others are tried by `--xdp auto` as well.
const NATIVE: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "dpaa2-eth",
    "ena",
    "fsl_enetc",
    "gve",
    "hv_netvsc",
    "i40e",
    "iavf",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
];

/// An uplink for which XDP is configured.
#[derive(Debug)]
pub(super) struct Facts {
    interface: String,
    is_virtual: bool,
    has_link_header: bool,
    driver: Option<String>,
    mtu: u32,
}

pub(super) fn gather(uplinks: &[Uplink]) -> Vec<Facts> {
    let may_have = uplinks.iter().filter(|uplink| uplink.may_have_xdp);
    may_have
        .map(|uplink| Facts {
            interface: uplink.name.clone(),
            is_virtual: uplink.is_virtual,
            has_link_header: uplink.has_link_header,
            driver: driver(&uplink.name).ok().filter(|name| !name.is_empty()),
            mtu: uplink.mtu,
        })
        .collect()
}

pub(super) fn assess(uplinks: &[Facts], mode: XdpMode, version: Option<(u32, u32)>) -> Finding {
    /// A page, less the room around the packet.
    const LARGEST_BUFFER: u32 = 3500;
    if mode == XdpMode::Off {
        return Finding::skipped(NAME, "--xdp off: tc serves every uplink");
    }
    if uplinks.is_empty() {
        return Finding::skipped(NAME, "no uplink has a default route or was named");
    }
    let (mut seen, mut advice, mut is_impossible) = (Vec::new(), Vec::new(), false);
    for Facts { interface, is_virtual, has_link_header, driver, mtu } in uplinks {
        let driver = driver.as_deref().unwrap_or("unknown");
        let at = |text: &str| format!("{interface} ({driver}): {text}");
        let is_known = NATIVE.contains(&driver);
        seen.push(at(match mode {
            XdpMode::Generic => "generic",
            _ if !has_link_header && mode == XdpMode::Auto => "no, it has no Ethernet header; tc serves it",
            _ if !has_link_header => {
                is_impossible = true;
                "no, it has no Ethernet header"
            }
            XdpMode::Auto if *is_virtual => "no, it is virtual; tc serves it",
            XdpMode::Auto if !is_known => "the driver is not known to have native XDP; it is tried, else tc serves it",
            XdpMode::Native if !is_known => {
                is_impossible = true;
                "the driver is not known to have native XDP"
            }
            _ if *mtu > LARGEST_BUFFER && version.is_some_and(|version| version < (5, 18)) => {
                advice.push(format!("before Linux 5.18 drivers refuse XDP with an MTU of {mtu}: tc serves {interface} with --xdp auto"));
                "native, but the MTU is too large"
            }
            _ if *is_virtual => {
                advice.push(format!("native XDP at the virtual interface {interface} loses CHECKSUM_PARTIAL packets: --xdp auto"));
                "native, at a virtual interface"
            }
            _ => {
                advice.push("attaching resets the link with some drivers: `--xdp off` if that must not be (docs/operations.md, Native XDP)".to_owned());
                "native"
            }
        }));
        if mode == XdpMode::Generic && *is_virtual {
            advice.push(format!("generic XDP at the virtual interface {interface} needs full checksums from the sender: --xdp auto"));
        }
    }
    advice.sort();
    advice.dedup();
    let seen = seen.join("; ");
    if is_impossible {
        let advice = "use --xdp auto, which leaves such interfaces to tc";
        return Finding::warn(NAME, seen, advice);
    }
    if advice.is_empty() { Finding::pass(NAME, seen) } else { Finding::warn(NAME, seen, advice.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::State;

    #[test]
    fn interfaces_and_modes() {
        let new = Some((6, 12));
        for (driver, is_virtual, has_link_header, mtu, mode, version, expected) in [
            ("mlx5_core", false, true, 1500, XdpMode::Off, new, State::Skipped),
            ("mlx5_core", false, true, 1500, XdpMode::Auto, new, State::Warn),
            ("r8169", false, true, 1500, XdpMode::Auto, new, State::Pass),
            ("r8169", false, true, 1500, XdpMode::Native, new, State::Warn),
            ("veth", true, true, 1500, XdpMode::Auto, new, State::Pass),
            ("veth", true, true, 1500, XdpMode::Native, new, State::Warn),
            ("veth", true, true, 1500, XdpMode::Generic, new, State::Warn),
            ("r8169", false, true, 1500, XdpMode::Generic, new, State::Pass),
            ("tun", true, false, 1500, XdpMode::Auto, new, State::Pass),
            ("ena", false, true, 9001, XdpMode::Auto, Some((5, 10)), State::Warn),
        ] {
            let facts = Facts {
                interface: "eth0".into(),
                is_virtual,
                has_link_header,
                driver: Some(driver.into()),
                mtu,
            };
            let finding = assess(&[facts], mode, version);
            assert_eq!(finding.state, expected, "{finding:?}");
        }
        assert_eq!(assess(&[], XdpMode::Auto, new).state, State::Skipped);
    }
}
