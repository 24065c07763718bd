//! Why targets are missed, as profiles of the slices tell (perf, 3 kHz, call graphs below our programs).

use crate::{
    measure::{Path, Row},
    stand::{From, Variant},
    wire::Kind,
};

/// What dominates where we are slower than wanted in this row; none if that is not known.
pub(crate) fn cause(ours: Variant, row: Row) -> Option<&'static str> {
    use Kind::{Bulk, Datagram, Datagrams, KeepAlive, Short};
    Some(match (ours, row.path, row.kind) {
        (_, _, Bulk) => {
            "within what two clusters without services differ by; our programs run once for a segment of up to 64 KiB"
        }
        (_, Path::NodePortRemote, _) => {
            "the way through the first node; routing alone, without any service, is slower still (last table)"
        }
        (_, Path::NodePortLocal, _) => {
            "3.4 % of the CPU time is in our programs, a quarter of it to insert both entries of the flow, the rest look-ups \
             and rewriting; 1.5 % more is the kernel's around them"
        }
        (Variant::Sockets, _, Datagram) => {
            "`connect` takes 4.4 % of the CPU time and `recvmsg` 1.3 %: 2.0 % to make the socket's storage (and 0.4 % to free \
             it), 1.9 % for an entry in the LRU map of sockets, which pushes another one out each time, 1.1 % to find it \
             again in a map larger than the caches. One place for a socket's backend instead of two would halve it"
        }
        (Variant::Sockets, _, Short) => {
            "0.9 % of the CPU time is in `connect`, nearly all of it to make the socket's storage, which `getpeername` \
             needs; 2.2 % in uplink programs of both nodes for packets that are of no flow, half of that for look-ups that \
             find nothing. A filter of endpoints that have flows, like that of VIPs, would spare these"
        }
        (Variant::Sockets, _, KeepAlive | Datagrams) => {
            "what is left are the uplink programs of both nodes, for packets that are of no flow (1.3 % of the CPU time), \
             and `sendmsg` and `recvmsg` for datagrams of sockets that are not connected"
        }
        (Variant::Tc, path, Short | Datagram) if path.from() == From::Pod => {
            "7 % of the CPU time is in our programs: 3.8 % in `pod_ingress` and `pod_egress`, half of it look-ups, many of \
             which find nothing (the backend's interface asks, too), 1.3 % to insert both entries of the flow, 0.7 % to \
             rewrite. conntrack follows the same packets in every cluster here, so that rules only add to what is there"
        }
        (Variant::Tc, _, KeepAlive | Datagrams) => {
            "a request and its answer meet up to eight of our programs (3.6 % of the CPU time), half of them where there \
             is nothing to translate. conntrack follows the same packets in every cluster here, so that rules only add \
             rewriting"
        }
        _ => return None,
    })
}
