//! `counters`: PERCPU_ARRAY, written by the programs.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)*) => {
        /// What the programs count. The discriminant is the index in the map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Counter { $($(#[doc = $doc])+ $name,)* }

        impl Counter {
            /// All, by index.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Name in metrics and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)* }
            }
        }
    };
}

counters! {
    /// New flows whose packets are translated.
    FlowNew = "flow_new",
    /// Packets of known flows, client to backend.
    FlowForward = "flow_forward",
    /// Packets of known flows, backend to client.
    FlowReverse = "flow_reverse",
    /// Evicted flow entries that were recreated.
    FlowRepaired = "flow_repaired",
    /// Sockets connected to a backend instead of a VIP.
    SocketConnect = "socket_connect",
    /// Datagrams of unconnected sockets sent to a backend instead of a VIP.
    SocketSend = "socket_send",
    /// Rejected: the service has no endpoints.
    NoEndpoints = "no_endpoints",
    /// Dropped (sockets: rejected as unreachable): the service's traffic policy is Local and no endpoint is here.
    NoLocalEndpoints = "no_local_endpoints",
    /// Dropped (sockets: rejected as not permitted): the client is in none of the load balancer's source ranges.
    SourceDenied = "source_denied",
    /// Sockets left to the network: the frontend has source ranges and the client's address is not known.
    SourceUnknown = "source_unknown",
    /// Rejected: a cluster IP, but not one of its ports.
    UndefinedPort = "undefined_port",
    /// Dropped: in the range of service addresses, but no service's, and about to leave the node.
    Unallocated = "unallocated",
    /// Rejects sent back as packets.
    RejectSent = "reject_sent",
    /// Rejects not sent because there were too many at once; the packet is dropped.
    RejectLimited = "reject_limited",
    /// Pings to cluster IPs that were answered.
    EchoReply = "echo_reply",
    /// TCP connections that were reset because their endpoint is gone.
    FlowReset = "flow_reset",
    /// TCP packets to a frontend of connections that neither the proxy nor the kernel knows, answered by a reset when they were about to
    /// leave the node again.
    ConnectionUnknown = "connection_unknown",
    /// Dropped: for a load balancer's address, but for no port of a Service, and about to leave the node again.
    Loop = "loop",
    /// Flows that were confirmed, by the client's ACK or by a reply.
    FlowConfirmed = "flow_confirmed",
    /// Datagrams to a frontend that are replies to what this node sent, and were left alone.
    ReplyToNode = "reply_to_node",
    /// New flows and sockets that kept the backend their client had before.
    AffinityKept = "affinity_kept",
    /// Dropped: no free source port towards the backend.
    SnatExhausted = "snat_exhausted",
    /// Dropped: no route to the backend or back to the client.
    NoRoute = "no_route",
    /// Dropped: no address to send from towards the backend.
    NoSnatAddress = "no_snat_address",
    /// Dropped, and the sender told: the hop limit ran out here.
    HopLimit = "hop_limit",
    /// Dropped, and the sender told: larger than the way to the backend or the client allows.
    TooBig = "too_big",
    /// Dropped: the flow map took no entry.
    FlowMapFull = "flow_map_full",
    /// Dropped: a packet could not be rewritten.
    RewriteFailed = "rewrite_failed",
    /// ICMP errors about packets of flows that were translated.
    IcmpError = "icmp_error",
    /// Fragments without ports that went the way of their first one.
    FragmentFollowed = "fragment_followed",
    /// Fragments without ports whose first one is not known: left alone, or queued until it comes.
    FragmentUnknown = "fragment_unknown",
    /// Fragments that came before their first one, and were queued until it came.
    FragmentReleased = "fragment_released",
    /// Packets XDP left to tc: the next hop is not known or not reachable for XDP.
    XdpToTc = "xdp_to_tc",
    /// A look-up met a frontend that was just being replaced and gave up.
    FrontendTorn = "frontend_torn",
    /// Frontends that lead to a slot that is not there: a defect.
    BadSlot = "bad_slot",
}

impl Counter {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}
