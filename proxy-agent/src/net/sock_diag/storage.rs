//! What BPF programs keep with a socket (maps of the type `SK_STORAGE`), as attributes of requests and answers:
//! linux/inet_diag.h, linux/sock_diag.h; since Linux 5.7.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{DecodeError, DefaultNla, Emitable as _, NLA_F_NESTED, NlasIterator, parse_u32};

// Of a request: a list of maps.
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;

// Of an answer: a list of what the socket has in these maps.
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_ID: u16 = 2;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;

/// What a program keeps with a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The kernel's id of the map.
    pub map: u32,
    /// The map's value.
    pub value: Vec<u8>,
}

/// The attribute of a request that asks for what sockets have in these maps. Without maps there is none: an empty one would
/// ask for all.
pub(super) fn request(maps: &[BorrowedFd<'_>]) -> Vec<u8> {
    if maps.is_empty() {
        return Vec::new();
    }
    let map = |map: &BorrowedFd<'_>| {
        attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, map.as_raw_fd().to_ne_bytes().to_vec())
    };
    attribute(INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED, maps.iter().flat_map(map).collect())
}

fn attribute(kind: u16, value: Vec<u8>) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value);
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// Finds it among the attributes of an answer; most sockets have none.
///
/// # Errors
/// When the attributes cannot be read.
pub(super) fn parse(attributes: &[u8]) -> Result<Vec<Stored>, DecodeError> {
    let mut found = Vec::new();
    for list in NlasIterator::new(attributes) {
        let list = list?;
        if list.kind() != INET_DIAG_SK_BPF_STORAGES {
            continue;
        }
        for stored in NlasIterator::new(list.value()) {
            let stored = stored?;
            if stored.kind() == SK_DIAG_BPF_STORAGE {
                found.extend(parse_one(stored.value())?);
            }
        }
    }
    Ok(found)
}

fn parse_one(attributes: &[u8]) -> Result<Option<Stored>, DecodeError> {
    let (mut map, mut value) = (None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            SK_DIAG_BPF_STORAGE_MAP_ID => map = Some(parse_u32(attribute.value())?),
            SK_DIAG_BPF_STORAGE_MAP_VALUE => value = Some(attribute.value().to_vec()),
            _ => {}
        }
    }
    Ok(map.zip(value).map(|(map, value)| Stored { map, value }))
}
