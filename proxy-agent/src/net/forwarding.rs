//! Does the kernel pass packets on at all?

const SWITCHES: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// The switches that are off. One that is not there belongs to a family that the kernel does not have.
pub fn switched_off() -> impl Iterator<Item = &'static str> {
    SWITCHES.into_iter().filter(|file| std::fs::read_to_string(file).is_ok_and(|value| value.trim() == "0"))
}
