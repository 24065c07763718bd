//! Why targets are missed, from profiles of the slices (perf, 10 kHz, call graphs below our programs).

use crate::{
    measure::{Path, Row},
    setup::{From, Variant},
    wire::Kind,
};

/// The dominant cost where we are slower than wanted in this row; `None` if it is not known.
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
            "4.2 % of the CPU time of a short connection is in our programs: 1.9 % to choose a backend and insert both entries \
             of the flow, the rest for packets of known flows"
        }
        (Variant::Sockets, _, Datagram) => {
            "`recvmsg` takes 0.8 % of the CPU time and `sendmsg` 0.7 % (the server's socket is not connected, and is looked for \
             in vain), uplink programs of both nodes 1.6 % for packets that are of no flow"
        }
        (Variant::Sockets, _, Short) => {
            "1.1 % of the CPU time is in uplink programs of both nodes for packets that are of no flow and not looked up; the \
             rest does not show in our programs"
        }
        (Variant::Sockets, _, KeepAlive | Datagrams) => {
            "what is left are the uplink programs of both nodes, for packets that are of no flow (about 1 % of the CPU time), \
             and `sendmsg` and `recvmsg` for datagrams of sockets that are not connected"
        }
        (Variant::Tc, path, Datagram) if path.from() == From::Pod => {
            "12.5 % of the CPU time is in our programs: 5.3 % in look-ups, most of which find nothing and wait for memory, because the \
             tables are larger than the caches; 2.6 % to insert both entries of a flow, for each datagram anew, and to move them when \
             it is confirmed; 0.4 % to look whether the port has a socket. conntrack follows the same packets in every cluster here, \
             so that rules only add to what is there"
        }
        (Variant::Tc, path, Short) if path.from() == From::Pod => {
            "7.9 % of the CPU time is in our programs: 1.7 % in `pod_ingress` and `pod_egress` themselves, 1.5 % to insert both entries \
             of a flow and to move them when it is confirmed, 1.3 % in look-ups that wait for memory, 0.4 % to look whether the port has \
             a socket. conntrack follows the same packets in every cluster here, so that rules only add to what is there"
        }
        (Variant::Tc, _, KeepAlive | Datagrams) => {
            "a request and its answer meet up to eight of our programs, half of them where there is nothing to translate. \
             conntrack follows the same packets in every cluster here, so that rules only add rewriting"
        }
        _ => return None,
    })
}
