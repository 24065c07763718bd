//! Settings of the data path: the constants of the programs ([`constants`]), and the copy that the agent stores
//! for `debug`.

pub mod constants;

pub use constants::{CONSTANTS, Constant, Constants, Settings};

use super::flow::{FlowState, flags};
use crate::packet::PROTOCOL_TCP;

/// `snat_sources_v4`, `snat_sources_v6`: ARRAY of so many addresses, written by the agent: configured source
/// addresses for connections to remote endpoints.
pub const MAX_SNAT_SOURCES: u32 = 16;

/// `settings`: ARRAY of one, written by the agent for `debug`; the programs have the same values as constants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StoredSettings {
    /// First port for forwarded connections, host byte order.
    pub snat_first: u16,
    /// Last one.
    pub snat_last: u16,
    /// See [`Settings::idle`].
    pub idle: u32,
    /// 1: cluster IPs are translated for clients outside.
    pub external_cluster_ips: u8,
    /// 1: socket programs serve the node's own sockets only.
    pub sockets_of_node_only: u8,
    /// 1: connections to removed endpoints are reset.
    pub reset_removed_tcp: u8,
    /// 1: TCP connections are rejected with a reset.
    pub reject_with_reset: u8,
    /// How many source addresses are configured for connections to remote endpoints, by family; 0: the route's.
    pub snat_sources: [u16; 2],
    /// Flow timeouts.
    pub timeouts: Timeouts,
}

/// Seconds without a packet after which the agent removes a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Timeouts {
    /// TCP whose handshake is not complete.
    pub tcp_new: u32,
    /// TCP, established.
    pub tcp_established: u32,
    /// TCP that one side closed.
    pub tcp_half_closed: u32,
    /// TCP, closed by both sides or reset.
    pub closed: u32,
    /// The same with SNAT, while the endpoint keeps TIME-WAIT: more than [`Settings::rest`].
    pub time_wait_snat: u32,
    /// Datagrams without a reply, or with a single request and reply.
    pub datagram_new: u32,
    /// Datagrams in both directions, more than a request and its reply.
    pub datagram_answered: u32,
}

impl Timeouts {
    /// The defaults of kube-proxy, and of nf_conntrack where kube-proxy does not set a value.
    pub const DEFAULT: Self = Self {
        tcp_new: 60,
        tcp_established: 24 * 3600,
        tcp_half_closed: 3600,
        closed: 12,
        time_wait_snat: 65,
        datagram_new: 30,
        datagram_answered: 120,
    };

    /// The timeout of a flow with these [`flags`].
    pub fn of(&self, protocol: u8, state: u8, flags: u8) -> u32 {
        const NEW: u8 = FlowState::New as u8;
        const SYN_RECEIVED: u8 = FlowState::SynReceived as u8;
        const CLIENT: u8 = FlowState::ClosingByClient as u8;
        const SERVER: u8 = FlowState::ClosingByServer as u8;
        const TIME_WAIT: u8 = FlowState::TimeWait as u8;
        let is_tcp = protocol == PROTOCOL_TCP;
        match state {
            TIME_WAIT if flags & flags::SNAT != 0 => self.time_wait_snat,
            state if FlowState::is_closed(state) => self.closed,
            NEW | SYN_RECEIVED if is_tcp => self.tcp_new,
            CLIENT | SERVER if is_tcp => self.tcp_half_closed,
            _ if is_tcp => self.tcp_established,
            NEW | SYN_RECEIVED => self.datagram_new,
            _ => self.datagram_answered,
        }
    }
}

impl StoredSettings {
    /// The stored copy of the constants.
    pub fn new(constants: &Constants, timeouts: Timeouts) -> Self {
        Self {
            snat_first: constants.snat_first,
            snat_last: constants.snat_last,
            idle: constants.idle,
            external_cluster_ips: constants.external_cluster_ips as u8,
            sockets_of_node_only: constants.sockets_of_node_only as u8,
            reset_removed_tcp: constants.reset_removed_tcp as u8,
            reject_with_reset: constants.reject_with_reset as u8,
            snat_sources: constants.snat_sources.map(|count| count as u16),
            timeouts,
        }
    }

    /// The settings that the decision core reads.
    ///
    /// `family` is the index of the family: 0 for IPv4.
    pub fn settings(&self, family: usize) -> Settings {
        let constants = Constants {
            snat_first: self.snat_first,
            snat_last: self.snat_last,
            idle: self.idle,
            snat_sources: self.snat_sources.map(u32::from),
            external_cluster_ips: self.external_cluster_ips != 0,
            reset_removed_tcp: self.reset_removed_tcp != 0,
            ..Constants::default()
        };
        constants.settings(family)
    }
}

super::plain!(StoredSettings, Timeouts);

const _: () = assert!(size_of::<StoredSettings>() == 44);

/// ```
/// use proxy_common::layout::config::Constants;
///
/// // Source ports for forwarded connections, taken modulo their number.
/// let constants = Constants { snat_first: 61_000, snat_last: 61_003, ..Constants::default() };
/// let settings = constants.settings(0);
/// assert_eq!(settings.snat_count(), 4);
/// assert_eq!(settings.snat_port(5), 61_001u16.to_be());
/// assert!(settings.is_snat_port(61_003u16.to_be()) && !settings.is_snat_port(443u16.to_be()));
/// ```
impl Settings {
    /// Whether it is a port for SNAT, in network byte order.
    #[inline(always)]
    pub fn is_snat_port(&self, port: u16) -> bool {
        let port = u16::from_be(port);
        (port >= self.snat_first) & (port <= self.snat_last)
    }

    /// Jiffies for which Linux keeps TIME-WAIT at the endpoint: 60 s with 10 s of `idle`.
    #[inline(always)]
    pub fn rest(&self) -> u32 {
        self.idle.wrapping_mul(6)
    }

    /// Jiffies after which an unconfirmed flow gives its source port to another one: about a second.
    #[inline(always)]
    pub fn unconfirmed(&self) -> u32 {
        self.idle >> 3
    }

    /// Jiffies after which a datagram flow of a request and its reply gives its source port to another one if
    /// no other port is free: about 80 ms, for a reply of several datagrams.
    #[inline(always)]
    pub fn replied(&self) -> u32 {
        self.idle >> 7
    }

    /// Jiffies for which a tuple in `outbound` stands for a flow of kernel NAT: three minutes, longer than its timeout for
    /// datagrams (120 s).
    #[inline(always)]
    pub fn outbound(&self) -> u32 {
        self.idle.wrapping_mul(18)
    }

    /// Number of source ports for SNAT.
    #[inline(always)]
    pub fn snat_count(&self) -> u32 {
        self.snat_last.wrapping_sub(self.snat_first) as u32 + 1
    }

    /// The source port at a position in the range, modulo its size; network byte order.
    #[inline(always)]
    pub fn snat_port(&self, position: u32) -> u16 {
        let position = position % self.snat_count();
        self.snat_first.wrapping_add(position as u16).to_be()
    }
}
