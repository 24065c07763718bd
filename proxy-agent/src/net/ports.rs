//! Ranges of ports.

use std::str::FromStr;

/// An inclusive range of ports.
///
/// ```
/// use proxy_agent::net::ports::PortRange;
///
/// let range: PortRange = "30000-32767".parse()?;
/// assert_eq!(range.count(), 2768);
/// assert!(range.contains(30_080) && !range.contains(80));
/// assert!("9-8".parse::<PortRange>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl PortRange {
    /// Whether the port is in the range.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many ports it has.
    pub fn count(&self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let range = Self { first: first.parse().ok()?, last: last.parse().ok()? };
            (range.first > 0 && range.first <= range.last).then_some(range)
        };
        parse().ok_or_else(|| format!("`{text}` is not a range of ports like 30000-32767"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges() {
        let range = |text: &str| text.parse::<PortRange>();
        for wrong in ["", "1", "0-5", "9-8", "1-70000", "a-b"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
        for (text, count) in [("1-9", 9), ("9-9", 1), ("1-65535", 65_535)] {
            let range = range(text).unwrap();
            assert_eq!((range.to_string(), range.count()), (text.to_owned(), count));
        }
    }
}
