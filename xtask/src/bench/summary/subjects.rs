//! The lines of the summary, and which figures each is computed from. A test checks that the committed results have them all.

use super::{Against, Select, Subject, Words};

const ANY: Words = Words(&[], &[]);
const ONE_FLOW: Words = Words(&["One flow at a time"], &[]);
const SHORT: Words = Words(&["Short connections", "rate over direct"], &[]);
const NFTABLES: Against = Against::Peer("kube-proxy's nftables rules", "nftables");
const IPTABLES: Against = Against::Peer("kube-proxy's iptables rules", "iptables");
const MASQUERADE: Against = Against::Peer("the kernel's masquerade", "kernel masquerade");

/// From single packets to the whole agent.
pub(super) const ALL: [Subject; 14] = [
    Subject {
        what: "Packet of no Service, added time",
        against: Against::EmptyProgram,
        bench: "packet",
        figures: Select { table: ONE_FLOW, row: Words(&["not for a service"], &[]), columns: &[] },
        targets: Words(&["not for a service"], &["in turn"]),
    },
    Subject {
        what: "Packet of an established flow, added time",
        against: Against::EmptyProgram,
        bench: "packet",
        figures: Select {
            table: ONE_FLOW,
            row: Words(&[], &["not for a service", "new flow"]),
            columns: &[],
        },
        targets: Words(&[], &["not for a service", "new flow", "65,536 flows", "services over"]),
    },
    Subject {
        what: "First packet of a new flow, added time",
        against: Against::EmptyProgram,
        bench: "packet",
        figures: Select { table: ONE_FLOW, row: Words(&["new flow"], &[]), columns: &[] },
        targets: Words(&["new flow"], &["full flow map", "services over"]),
    },
    Subject {
        what: "Packets forwarded per second of CPU time, tc to XDP",
        against: NFTABLES,
        bench: "traffic",
        figures: Select {
            table: Words(&["Packets that a node forwards"], &[]),
            row: ANY,
            columns: &["ours, tc", "ours, XDP"],
        },
        targets: Words(&["packets forwarded", "against nftables"], &[]),
    },
    Subject {
        what: "Short connections, socket hooks",
        against: NFTABLES,
        bench: "traffic",
        figures: Select { table: SHORT, row: ANY, columns: &["ours, sockets"] },
        targets: Words(&["ours, sockets against nftables", "short connections"], &[]),
    },
    Subject {
        what: "Short connections, socket hooks",
        against: IPTABLES,
        bench: "traffic",
        figures: Select { table: SHORT, row: ANY, columns: &["ours, sockets"] },
        targets: Words(&["ours, sockets against iptables", "short connections"], &[]),
    },
    Subject {
        what: "Short connections, tc programs",
        against: NFTABLES,
        bench: "traffic",
        figures: Select { table: SHORT, row: ANY, columns: &["ours, tc"] },
        targets: Words(&["ours, tc against nftables", "short connections"], &[]),
    },
    Subject {
        what: "Short connections, tc programs",
        against: IPTABLES,
        bench: "traffic",
        figures: Select { table: SHORT, row: ANY, columns: &["ours, tc"] },
        targets: Words(&["ours, tc against iptables", "short connections"], &[]),
    },
    Subject {
        what: "Successes per second under sustained load",
        against: MASQUERADE,
        bench: "traffic",
        figures: Select {
            table: Words(&["Sustained load", "successes per second"], &[]),
            row: ANY,
            columns: &["ours"],
        },
        targets: Words(&["sustained load", "rate against"], &[]),
    },
    Subject {
        what: "New connections that succeed during a SYN flood",
        against: NFTABLES,
        bench: "traffic",
        figures: Select {
            table: Words(&["Flood", "new connections"], &[]),
            row: Words(&[], &["no flood"]),
            columns: &["ours"],
        },
        targets: Words(&["flood of", "new connections"], &[]),
    },
    Subject {
        what: "One change of an endpoint until it is in the maps, median",
        against: Against::Target,
        bench: "sync",
        figures: Select { table: Words(&["One change"], &[]), row: ANY, columns: &["p50"] },
        targets: Words(&["one change, p50"], &[]),
    },
    Subject {
        what: "Cold start until the last of 10,000 Services is in the maps",
        against: Against::Target,
        bench: "sync",
        figures: Select {
            table: Words(&["Cold start"], &[]),
            row: Words(&["10,000 x 10"], &[]),
            columns: &["start to last service in the map"],
        },
        targets: Words(&["cold start", "10,000 x 10"], &[]),
    },
    Subject {
        what: "Resident memory of the agent with 10,000 Services",
        against: Against::Target,
        bench: "memory",
        figures: Select {
            table: Words(&["Agent"], &[]),
            row: Words(&["10,000 x 10"], &[]),
            columns: &["resident, without mapped maps"],
        },
        targets: Words(&["resident memory", "10,000 x 10"], &[]),
    },
    Subject {
        what: "Kernel memory of the maps with 10,000 Services",
        against: Against::Target,
        bench: "memory",
        figures: Select {
            table: Words(&["Maps"], &[]),
            row: Words(&["10,000 x 10"], &[]),
            columns: &["services and endpoints", "connections"],
        },
        targets: Words(&["memory of the maps", "10,000 x 10"], &[]),
    },
];
