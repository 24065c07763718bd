//! Which qdisc stands where clsact belongs: it shares its place with the older `ingress`.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_ECHO, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Its kind, as `tc qdisc show` shows it; `None` without a qdisc.
///
/// # Errors
/// When the kernel refuses.
pub fn at_ingress(ifindex: u32) -> io::Result<Option<String>> {
    let mut request = TcMessage::with_index(i32::try_from(ifindex).map_err(io::Error::other)?);
    request.header.parent = TcHandle::from(u32::from(TcHandle::INGRESS));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetQueueDiscipline(request));
    // Without ECHO the kernel informs only the listeners of changes.
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let mut kind = None;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(qdisc)) => {
                    kind = qdisc.attributes.into_iter().find_map(|attribute| match attribute {
                        TcAttribute::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => Ok(kind),
                        // The kernel has nothing to report.
                        Some(code) if matches!(-code.get(), libc::ENOENT | libc::EINVAL) => Ok(kind),
                        Some(_) => Err(error.to_io()),
                    };
                }
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
