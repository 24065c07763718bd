use std::{
    net::UdpSocket,
    os::fd::{AsFd as _, AsRawFd as _},
};

use super::*;

#[test]
fn the_low_word_of_a_cookie_comes_first() {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&7u32.to_ne_bytes());
    bytes[4..].copy_from_slice(&1u32.to_ne_bytes());
    assert_eq!(cookie(bytes), 0x1_0000_0007);
}

#[test]
fn any_code_is_an_answer() {
    for code in [0, -libc::ENOENT, libc::ENOENT, i32::MIN, i32::MAX] {
        let mut done = vec![20, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        done.extend(code.to_ne_bytes());
        assert_eq!(sockets_of(&done, Transport::Udp).is_ok(), code == 0, "{code}");
    }
}

/// Listing needs no privileges.
#[test]
fn connected_sockets_are_found_by_their_peer() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = server.local_addr().unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sock_diag = SockDiag::open().unwrap();
    let count = || sock_diag.connected(Transport::Udp, &[], |socket| socket.peer == peer).unwrap().len();
    assert_eq!(count(), 0, "not connected yet");
    client.connect(peer).unwrap();
    assert_eq!(count(), 1);
}

/// As the kernel writes it: lengths are with the head, and without the padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len() as u16;
    let padding = vec![0; value.len().next_multiple_of(4) - value.len()];
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value, &padding].concat()
}

/// The last message of a list, before it one with a socket and these attributes.
fn answer(attributes: &[u8]) -> Vec<u8> {
    let message = |kind: u16, payload: &[u8]| {
        let length = 16 + payload.len() as u32;
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &2u16.to_ne_bytes(), &[0; 8], payload].concat()
    };
    let mut socket = vec![0; 72];
    socket[0] = AF_INET;
    [message(20, &[&socket, attributes].concat()), message(3, &[0; 4])].concat()
}

fn stored(answer: &[u8]) -> io::Result<Vec<Stored>> {
    let mut sockets = sockets_of(answer, Transport::Udp)?;
    assert_eq!(sockets.len(), 1);
    Ok(sockets.remove(0).stored)
}

const MAP: u16 = 2;
const VALUE: u16 = 3;

#[test]
fn what_programs_keep_is_found_among_the_attributes() {
    let id = |id: u32| attribute(MAP, &id.to_ne_bytes());
    let value = |bytes: &[u8]| attribute(VALUE, bytes);
    let one = |parts: &[Vec<u8>]| attribute(1, &parts.concat());
    // The list comes with the flag of nested ones since 5.10 or without, among others.
    let list = |kind: u16, parts: &[Vec<u8>]| {
        [attribute(8, &[0]), attribute(kind, &parts.concat()), attribute(21, &[0; 8])].concat()
    };
    let is = |map: u32, value: &[u8]| Stored { map, value: value.to_vec() };
    let padding = attribute(1, &[]);
    let whole = one(&[id(7), padding, value(&[1, 2, 3])]);
    let cases = [
        ("none", list(19, &[whole.clone()]), vec![]),
        ("an empty list", list(20, &[]), vec![]),
        ("one", list(20, &[whole.clone()]), vec![is(7, &[1, 2, 3])]),
        ("marked as nested", list(20 | 0x8000, &[whole.clone()]), vec![is(7, &[1, 2, 3])]),
        (
            "two",
            list(20, &[whole.clone(), one(&[value(&[4; 20]), id(8)])]),
            vec![is(7, &[1, 2, 3]), is(8, &[4; 20])],
        ),
        ("without a value", list(20, &[one(&[id(7)]), whole.clone()]), vec![is(7, &[1, 2, 3])]),
        ("without a map", list(20, &[one(&[value(&[1])])]), vec![]),
        ("of another kind", list(20, &[attribute(2, &[id(7), value(&[1])].concat())]), vec![]),
    ];
    for (case, attributes, expected) in cases {
        assert_eq!(stored(&answer(&attributes)).unwrap(), expected, "{case}");
    }
}

#[test]
fn attributes_that_cannot_be_read_are_an_error() {
    let good =
        attribute(20, &attribute(1, &[attribute(MAP, &[7, 0, 0, 0]), attribute(VALUE, &[1; 8])].concat()));
    assert_eq!(stored(&answer(&good)).unwrap().len(), 1);
    // Each place of a length: of the list, of its element, of the map, of the value.
    for at in [0, 4, 8, 16] {
        for length in [0u16, 3, 100, u16::MAX] {
            let mut bad = good.clone();
            bad[at..at + 2].copy_from_slice(&length.to_ne_bytes());
            assert!(stored(&answer(&bad)).is_err(), "{length} at {at}");
        }
    }
    for cut in (1..good.len()).filter(|cut| cut % 4 != 0) {
        let _ = stored(&answer(&good[..cut]));
    }
    let short_map = attribute(20, &attribute(1, &[attribute(MAP, &[7]), attribute(VALUE, &[1; 8])].concat()));
    assert!(stored(&answer(&short_map)).is_err());
}

#[test]
fn a_request_names_the_maps() {
    assert!(storage::request(&[]).is_empty(), "an empty list would ask for all maps");
    let files = [std::fs::File::open("/dev/null").unwrap(), std::fs::File::open("/dev/null").unwrap()];
    let maps = files.each_ref().map(|file| file.as_fd());
    let map = |fd: &BorrowedFd<'_>| attribute(1, &fd.as_raw_fd().to_ne_bytes());
    let expected = attribute(2 | 0x8000, &maps.each_ref().map(map).concat());
    assert_eq!(storage::request(&maps), expected);
}
