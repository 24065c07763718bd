//! A datapath of Open vSwitch (`linux/openvswitch.h`) that a test makes by generic netlink. Its flows send whatever comes in by one port out by
//! the other. With ovs-vswitchd the flows come from its tables; to the node's interfaces and routes it makes no difference.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
    },
};

use super::{Network, ends::both};
use proxy_harness::cluster::Netns;

/// As ovs-vswitchd calls the kernel's datapath. Bridges are further internal ports of it.
const DATAPATH: &str = "ovs-system";

/// `enum ovs_vport_type`.
const NETDEV: u32 = 1;
const INTERNAL: u32 = 2;

/// Makes a datapath in a node: packets that the node sends by `internal`, a new interface, leave by `other`, which becomes a port, and
/// the other way round.
///
/// # Errors
/// When the kernel has no such datapaths, or refuses this one.
pub(super) fn connect_ports(node: &Netns, internal: &str, other: &str) -> Result<()> {
    const OVS_DP_ATTR_NAME: u16 = 1;
    const OVS_DP_ATTR_UPCALL_PID: u16 = 2;
    node.run(|| {
        let mut kernel = Kernel::open()?;
        let mut datapath = Attributes::default();
        datapath.add(OVS_DP_ATTR_NAME, &name(DATAPATH));
        datapath.add(OVS_DP_ATTR_UPCALL_PID, &0u32.to_ne_bytes());
        kernel.create("ovs_datapath", 0, &datapath)?;
        let index = if_nametoindex(DATAPATH).context(DATAPATH)?;
        for (number, kind, port) in [(1, INTERNAL, internal), (2, NETDEV, other)] {
            kernel.create("ovs_vport", index, &vport(number, kind, port)).context(port.to_owned())?;
        }
        for (from, to) in [(1, 2), (2, 1)] {
            kernel.create("ovs_flow", index, &flow(from, to)).context("a flow")?;
        }
        Ok(())
    })
}

/// Removes the datapath with its internal ports, if it exists.
fn remove(node: &Netns) -> Result<()> {
    const OVS_DP_CMD_DEL: u8 = 2;
    node.run(|| {
        let Ok(index) = if_nametoindex(DATAPATH) else { return Ok(()) };
        let mut kernel = Kernel::open()?;
        let family = kernel.family("ovs_datapath")?;
        kernel.ask(family, OVS_DP_CMD_DEL, &header(index, &Attributes::default())).map(drop)
    })
}

/// Removes those of both nodes.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn remove_all(network: &Network) -> Result<()> {
    both().into_iter().try_for_each(|ends| remove(network.node(ends)))
}

fn vport(number: u32, kind: u32, port: &str) -> Attributes {
    const OVS_VPORT_ATTR_PORT_NO: u16 = 1;
    const OVS_VPORT_ATTR_TYPE: u16 = 2;
    const OVS_VPORT_ATTR_NAME: u16 = 3;
    const OVS_VPORT_ATTR_UPCALL_PID: u16 = 5;
    let mut vport = Attributes::default();
    vport.add(OVS_VPORT_ATTR_PORT_NO, &number.to_ne_bytes());
    vport.add(OVS_VPORT_ATTR_TYPE, &kind.to_ne_bytes());
    vport.add(OVS_VPORT_ATTR_NAME, &name(port));
    vport.add(OVS_VPORT_ATTR_UPCALL_PID, &0u32.to_ne_bytes());
    vport
}

/// Every frame of a port to another.
fn flow(from: u32, to: u32) -> Attributes {
    const OVS_FLOW_ATTR_KEY: u16 = 1;
    const OVS_FLOW_ATTR_ACTIONS: u16 = 2;
    const OVS_FLOW_ATTR_MASK: u16 = 7;
    const OVS_KEY_ATTR_IN_PORT: u16 = 3;
    const OVS_KEY_ATTR_ETHERNET: u16 = 4;
    const OVS_ACTION_ATTR_OUTPUT: u16 = 1;
    let key = |port: u32| {
        let mut key = Attributes::default();
        key.add(OVS_KEY_ATTR_IN_PORT, &port.to_ne_bytes());
        // Two addresses, of which the mask leaves nothing.
        key.add(OVS_KEY_ATTR_ETHERNET, &[0; 12]);
        key
    };
    let mut actions = Attributes::default();
    actions.add(OVS_ACTION_ATTR_OUTPUT, &to.to_ne_bytes());
    let mut flow = Attributes::default();
    flow.add(OVS_FLOW_ATTR_KEY, &key(from).0);
    flow.add(OVS_FLOW_ATTR_MASK, &key(u32::MAX).0);
    flow.add(OVS_FLOW_ATTR_ACTIONS, &actions.0);
    flow
}

fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// `struct ovs_header`, and the attributes behind it.
fn header(datapath: u32, attributes: &Attributes) -> Vec<u8> {
    [&datapath.to_ne_bytes(), attributes.0.as_slice()].concat()
}

/// Netlink attributes, one after the other.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn add(&mut self, kind: u16, value: &[u8]) {
        let length = (ATTRIBUTE_HEADER + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

const ATTRIBUTE_HEADER: usize = 4;
const MESSAGE_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

/// A socket of generic netlink in a network namespace.
struct Kernel(OwnedFd);

impl Kernel {
    fn open() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// `OVS_DP_CMD_NEW`, `OVS_VPORT_CMD_NEW` and `OVS_FLOW_CMD_NEW` are the same number.
    fn create(&mut self, family: &str, datapath: u32, attributes: &Attributes) -> Result<()> {
        const NEW: u8 = 1;
        let number = self.family(family)?;
        self.ask(number, NEW, &header(datapath, attributes)).context(family.to_owned()).map(drop)
    }

    /// The number of a family. There is none where the module is missing.
    fn family(&mut self, family: &str) -> Result<u16> {
        const CTRL_CMD_GETFAMILY: u8 = 3;
        const CTRL_ATTR_FAMILY_ID: u16 = 1;
        const CTRL_ATTR_FAMILY_NAME: u16 = 2;
        let mut wanted = Attributes::default();
        wanted.add(CTRL_ATTR_FAMILY_NAME, &name(family));
        let found = match self.ask(libc::GENL_ID_CTRL as u16, CTRL_CMD_GETFAMILY, &wanted.0) {
            Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => {
                bail!("no family `{family}` of generic netlink: Operation not supported")
            }
            found => found?,
        };
        let mut rest = found.as_slice();
        while let Some((header, after)) = rest.split_at_checked(ATTRIBUTE_HEADER) {
            let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
            if u16::from_ne_bytes([header[2], header[3]]) == CTRL_ATTR_FAMILY_ID {
                let (number, _) = after.split_first_chunk().context("a number is cut off")?;
                return Ok(u16::from_ne_bytes(*number));
            }
            rest = rest.get(length.max(ATTRIBUTE_HEADER).next_multiple_of(4)..).unwrap_or_default();
        }
        bail!("the family `{family}` has no number")
    }

    /// Sends a request; the attributes of the answer, if there is one beside the acknowledgment.
    fn ask(&mut self, family: u16, command: u8, payload: &[u8]) -> Result<Vec<u8>> {
        const VERSION: u8 = 2;
        const FLAGS: i32 = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let length = MESSAGE_HEADER + GENERIC_HEADER + payload.len();
        let mut request = (length as u32).to_ne_bytes().to_vec();
        request.extend(family.to_ne_bytes());
        request.extend((FLAGS as u16).to_ne_bytes());
        // No sequence number and no sender: there is one request at a time.
        request.extend([0; 8]);
        request.extend([command, VERSION, 0, 0]);
        request.extend(payload);
        send(self.0.as_raw_fd(), &request, MsgFlags::empty())?;
        let (mut answer, mut buffer) = (Vec::new(), [0; 8192]);
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((header, body)) = rest.split_first_chunk::<MESSAGE_HEADER>() {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let kind = i32::from(u16::from_ne_bytes([header[4], header[5]]));
                ensure!(length >= MESSAGE_HEADER && length <= rest.len(), "a message of {length} bytes");
                if kind == libc::NLMSG_ERROR {
                    let (code, _) = body.split_first_chunk().context("an error is cut off")?;
                    return match i32::from_ne_bytes(*code) {
                        0 => Ok(answer),
                        code => Err(Errno::from_raw(-code).into()),
                    };
                }
                answer = body.get(GENERIC_HEADER..length - MESSAGE_HEADER).unwrap_or_default().to_vec();
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}
