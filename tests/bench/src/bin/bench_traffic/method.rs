//! How it is measured, in words.

use std::fmt;

use crate::{
    forward::{FLOWS, FRAME},
    measure::Plan,
    services::{ENDPOINTS, OTHER_ENDPOINTS},
};

/// The parameters in the text.
pub(crate) struct Method<'p> {
    pub(crate) plan: &'p Plan,
    /// Which iptables made the rules.
    pub(crate) iptables: Option<&'static str>,
}

impl fmt::Display for Method<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { rounds, slice, services, .. } = self.plan;
        let counts: Vec<_> = services.iter().map(ToString::to_string).collect();
        write!(
            f,
            "Each way to serve has a cluster of network namespaces of its own, all alike: two nodes on a switch, a router, a \
             client behind it; pods behind veth devices; on the nodes conntrack, masquerade and `ct state invalid drop`, \
             as a CNI leaves them. Both nodes have the service proxy. *direct* has none: there clients talk to \
             endpoints, pods by the same way as through a cluster IP, the outside client by way of the endpoint's own \
             node. *nftables* and *iptables* are rules of the shape that kube-proxy 1.36 gives them, made by this \
             benchmark, because no kube-proxy is at hand"
        )?;
        match self.iptables {
            Some("iptables-legacy") => write!(
                f,
                "; iptables is `iptables-legacy`, which is faster for each packet than `iptables-nft`, the default of \
                 most distributions"
            )?,
            Some(other) => write!(f, "; iptables is `{other}`, as the kernel does not have the legacy one")?,
            None => {}
        }
        write!(
            f,
            ".\n\nThere are {} services; two of them, in the middle of any list, are measured and have {ENDPOINTS} \
             endpoints each (on the first node; on the second), the others {OTHER_ENDPOINTS}. Where the number of services \
             cannot matter, because flows are known, it is measured with the first number only.\n\n\
             Client, server, and with them every softirq of all namespaces, run on one CPU, one operation at a time. So \
             it is never idle, and a rate is the inverse of the CPU time of an operation on its whole way, wire to wire and \
             both applications included. CPU times beside the rates are those of the whole machine, all that was neither \
             idle nor stolen, agents included; the kernel tells them in steps of 10 ms, so they are of all rounds together. \
             Endpoints keep no sockets in TIME_WAIT, and conntrack keeps that state for 30 s: one client makes the \
             connections of thousands, and would meet itself. ",
            counts.join(", ")
        )?;
        write!(
            f,
            "A short connection is connect, a byte, a byte back, and close by the server.\n\nEach of {rounds} rounds \
             measures every row, in slices of {} ms, one way to serve after the other, another one first each time. \
             Ratios are against the slice of *direct* in the same round; the number is the median of the rounds.\n\n\
             Packets per second of CPU time: the kernel makes UDP frames of {FRAME} bytes, of {FLOWS} flows, at the uplink \
             of the first node (live frames of `BPF_PROG_TEST_RUN`), for a nodePort with backends on the other node; \
             they are counted and dropped where they come into the switch. CPU time is that of the thread that makes \
             them, in which all softirqs run, making them included. *routing alone* forwards to a pod's address. For \
             XDP this is native XDP on veth, whose driver is not a network card's.",
            slice.as_millis()
        )
    }
}
