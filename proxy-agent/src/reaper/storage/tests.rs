use super::*;

const MAPS: [u32; 2] = [70, 71];

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The layout, written out: VIP 10.96.0.10:53, backend 10.244.0.3:5353.
fn v4() -> Vec<u8> {
    let (vip, backend) = ([10, 96, 0, 10], [10, 244, 0, 3]);
    let ports = [53u16.to_be_bytes(), 5353u16.to_be_bytes()].concat();
    [&vip[..], &backend, &ports, &words([5, 6])].concat()
}

/// VIP [fd00::a]:53, backend [fd01::3]:5353.
fn v6() -> Vec<u8> {
    let address = |first: u8, last: u8| [&[0xfd, first][..], &[0; 13], &[last]].concat();
    let ports = [53u16.to_be_bytes(), 5353u16.to_be_bytes()].concat();
    [address(0, 0xa), address(1, 3), ports, words([7, 8])].concat()
}

fn found(stored: &[(u32, Vec<u8>)], peer: &str) -> Option<Translation> {
    let stored: Vec<Stored> =
        stored.iter().map(|(map, value)| Stored { map: *map, value: value.clone() }).collect();
    translation(&stored, peer.parse().unwrap(), MAPS)
}

#[test]
fn a_translation_is_of_the_socket_while_the_backend_is_its_peer() {
    let got = found(&[(MAPS[0], v4())], "10.244.0.3:5353").unwrap();
    assert_eq!(got.vip, "10.96.0.10:53".parse().unwrap());
    assert_eq!((got.backend_id, got.service), (Id(5), Id(6)));
    for elsewhere in ["10.244.0.3:53", "10.244.0.4:5353", "10.96.0.10:53", "[fd01::3]:5353"] {
        assert_eq!(found(&[(MAPS[0], v4())], elsewhere), None, "{elsewhere}");
    }
}

#[test]
fn of_what_a_socket_keeps_of_both_families_its_peer_decides() {
    let both = [(MAPS[0], v4()), (MAPS[1], v6())];
    assert_eq!(found(&both, "10.244.0.3:5353").unwrap().backend_id, Id(5));
    let got = found(&both, "[fd01::3]:5353").unwrap();
    assert_eq!((got.vip, got.service), ("[fd00::a]:53".parse().unwrap(), Id(8)));
}

#[test]
fn what_is_in_other_maps_or_too_short_is_passed_over() {
    let peer = "10.244.0.3:5353";
    assert_eq!(found(&[], peer), None);
    assert_eq!(found(&[(1, v4())], peer), None);
    assert_eq!(found(&[(MAPS[1], v4())], peer), None);
    assert_eq!(found(&[(MAPS[0], v4()[..19].to_vec()), (MAPS[0], vec![])], peer), None);
}
