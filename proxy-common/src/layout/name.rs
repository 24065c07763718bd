//! `service_names`: HASH by service id, written by the agent for display: the programs never read it.

/// Enough for the longest name: namespace, Service and port (63 bytes each, DNS labels), and separators. The
/// next agent identifies the port of an id by it.
pub const NAME_LEN: usize = 193;

/// Name of a service port, like `default/web:http`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ServiceName {
    /// Bytes used of `text`.
    pub len: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub ip_version: u8,
    /// UTF-8; zero behind `len`.
    pub text: [u8; NAME_LEN],
}

super::plain!(ServiceName);

const _: () = assert!(size_of::<ServiceName>() == 196);

impl ServiceName {
    /// Stores a name; a longer one is truncated.
    pub fn new(name: &str, protocol: u8, ip_version: u8) -> Self {
        let mut len = name.len().min(NAME_LEN);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        let mut text = [0; NAME_LEN];
        text[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self { len: len as u8, protocol, ip_version, text }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        self.text.get(..self.len as usize).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or("?")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_and_long_ones_are_cut() {
        assert_eq!(ServiceName::new("default/web:http", 6, 4).as_str(), "default/web:http");
        let label = "a".repeat(63);
        let longest = [&*label, "/", &*label, ":", &*label].concat();
        assert_eq!(ServiceName::new(&longest, 6, 4).as_str(), longest);
        let long = "é".repeat(100);
        assert_eq!(ServiceName::new(&long, 6, 4).as_str(), "é".repeat(96));
    }
}
