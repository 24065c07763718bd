//! Limits and timeouts of the kernel's connection tracking, as kube-proxy sets them: the NAT of CNI plugins relies on them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::host;

/// Where the kernel has them, once `nf_conntrack` is loaded. Those of this thread's network namespace.
const FOLDER: &str = "/proc/sys/net/netfilter";

/// Entries of a hash bucket at most, for a table of the wanted size.
const PER_BUCKET: u32 = 4;

/// The wanted values. Other settings are left unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackSysctls {
    /// Entries that the table has room for, at least.
    pub max: Option<u32>,
    /// Seconds that an established TCP connection stays without a packet.
    pub tcp_established: Option<u32>,
    /// The same for one that the other side closed.
    pub tcp_close_wait: Option<u32>,
    /// Packets of TCP whose sequence numbers are out of the window are tracked all the same.
    pub tcp_be_liberal: bool,
    /// Seconds that UDP without a reply stays.
    pub udp: Option<u32>,
    /// The same with replies.
    pub udp_stream: Option<u32>,
}

/// The result.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The kernel tracks connections.
    pub is_loaded: bool,
    /// Changed settings, like `nf_conntrack_udp_timeout: 30 -> 60`.
    pub changed: Vec<String>,
    /// Settings that cannot be written here, because they are those of the host's first network namespace.
    pub of_host: Vec<String>,
    /// Failed settings, and why.
    pub failed: Vec<String>,
    /// For want of a mount that can be written to.
    pub is_read_only: bool,
}

impl ConntrackSysctls {
    /// Sets the differing ones. Nothing happens while the kernel tracks no connections.
    pub fn apply(&self) -> Outcome {
        self.apply_below(Path::new(FOLDER), &|path, value| host::write(&path.display().to_string(), value))
    }

    fn apply_below(&self, folder: &Path, write: &dyn Fn(&Path, &str) -> io::Result<()>) -> Outcome {
        let mut outcome = Outcome { is_loaded: folder.join(MAX).exists(), ..Outcome::default() };
        if !outcome.is_loaded {
            return outcome;
        }
        let (at_least, exactly): (IsWell, IsWell) =
            (|before, wanted| before >= wanted, |before, wanted| before == wanted);
        let liberal = self.tcp_be_liberal.then_some(1);
        let settings: [(&str, Option<u32>, IsWell); 7] = [
            (MAX, self.max, at_least),
            // kube-proxy writes the module parameter `hashsize`, which is the same number, in a place that takes another mount.
            (BUCKETS, self.max.map(|max| max / PER_BUCKET), at_least),
            ("nf_conntrack_tcp_timeout_established", self.tcp_established, exactly),
            ("nf_conntrack_tcp_timeout_close_wait", self.tcp_close_wait, exactly),
            ("nf_conntrack_tcp_be_liberal", liberal, exactly),
            ("nf_conntrack_udp_timeout", self.udp, exactly),
            ("nf_conntrack_udp_timeout_stream", self.udp_stream, exactly),
        ];
        for (name, wanted, is_well) in settings {
            let Some(wanted) = wanted else { continue };
            let path = folder.join(name);
            let before = match read(&path) {
                Ok(before) if is_well(before, wanted) => continue,
                Ok(before) => before,
                Err(error) => {
                    outcome.failed.push(format!("{name} cannot be read: {error}"));
                    continue;
                }
            };
            match write(&path, &wanted.to_string()) {
                Ok(()) => outcome.changed.push(format!("{name}: {before} -> {wanted}")),
                Err(_) if is_of_host(&path) => {
                    outcome.of_host.push(format!("{name} is {before}, not {wanted}"))
                }
                Err(error) => {
                    outcome.is_read_only |= error.kind() == io::ErrorKind::ReadOnlyFilesystem;
                    outcome.failed.push(format!("{name} stays {before}, not {wanted}: {error}"));
                }
            }
        }
        outcome
    }
}

/// Whether the present value is as good as the wanted one.
type IsWell = fn(u32, u32) -> bool;

const MAX: &str = "nf_conntrack_max";
const BUCKETS: &str = "nf_conntrack_buckets";

fn read(path: &PathBuf) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("it is `{}`", text.trim())))
}

/// The table is one for all network namespaces. In all but the first one the kernel refuses writes of its size
/// (`nf_conntrack_standalone_init_sysctl`).
fn is_of_host(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.permissions().readonly())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NAMES: [&str; 7] = [
        MAX,
        BUCKETS,
        "nf_conntrack_tcp_timeout_established",
        "nf_conntrack_tcp_timeout_close_wait",
        "nf_conntrack_tcp_be_liberal",
        "nf_conntrack_udp_timeout",
        "nf_conntrack_udp_timeout_stream",
    ];
    const BEFORE: [u32; 7] = [65_536, 16_384, 432_000, 60, 0, 30, 120];

    fn kernel() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in NAMES.iter().zip(BEFORE) {
            fs::write(folder.path().join(name), format!("{value}\n")).unwrap();
        }
        folder
    }

    fn values(folder: &Path) -> Vec<u32> {
        NAMES.iter().map(|name| read(&folder.join(name)).unwrap()).collect()
    }

    fn wanted() -> ConntrackSysctls {
        ConntrackSysctls {
            max: Some(131_072),
            tcp_established: Some(86_400),
            tcp_close_wait: Some(3_600),
            ..ConntrackSysctls::default()
        }
    }

    #[test]
    fn what_differs_is_set_and_no_more() {
        let folder = kernel();
        let write = |path: &Path, value: &str| fs::write(path, value);
        let outcome = wanted().apply_below(folder.path(), &write);
        assert_eq!(outcome.changed.len(), 4, "{outcome:?}");
        assert!(outcome.failed.is_empty() && outcome.is_loaded);
        assert_eq!(values(folder.path()), [131_072, 32_768, 86_400, 3_600, 0, 30, 120]);
        // Once more changes nothing, and a larger table stays.
        for max in [131_072, 1_000_000] {
            fs::write(folder.path().join(MAX), max.to_string()).unwrap();
            assert_eq!(wanted().apply_below(folder.path(), &write).changed, [""; 0]);
            assert_eq!(values(folder.path())[0], max);
        }
        let others = ConntrackSysctls {
            tcp_be_liberal: true,
            udp: Some(31),
            udp_stream: Some(121),
            ..ConntrackSysctls::default()
        };
        assert_eq!(others.apply_below(folder.path(), &write).changed.len(), 3);
        assert_eq!(values(folder.path())[4..], [1, 31, 121]);
    }

    #[test]
    fn nothing_is_done_before_connections_are_tracked() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &Path, _: &str| panic!("{}", path.display());
        assert_eq!(wanted().apply_below(folder.path(), &write), Outcome::default());
    }

    #[test]
    fn failed_writes_are_reported() {
        let folder = kernel();
        let refuse = |_: &Path, _: &str| Err(io::ErrorKind::ReadOnlyFilesystem.into());
        let outcome = wanted().apply_below(folder.path(), &refuse);
        assert!(outcome.is_read_only);
        assert_eq!((outcome.failed.len(), outcome.changed.len()), (4, 0), "{outcome:?}");
        assert!(outcome.failed[0].starts_with("nf_conntrack_max stays 65536, not 131072: "), "{outcome:?}");
        // The size of the table, in another network namespace than the first.
        for name in [MAX, BUCKETS] {
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o444)).unwrap();
        }
        let outcome = wanted().apply_below(folder.path(), &refuse);
        assert_eq!((outcome.of_host.len(), outcome.failed.len()), (2, 2), "{outcome:?}");
    }
}
