//! Capabilities that older kernels lack, so that a test names what it could not show instead of passing silently.

use std::{fmt, sync::OnceLock};

use anyhow::{Context, Result, bail};
use nix::sys::utsname::uname;

/// Begins every message of a [`MissingCapability`]. `cargo xtask vm` looks for it: a test that fails with it in its error is "not
/// possible" there, one that passes and has printed it was possible in part.
pub const MARK: &str = "not possible on this kernel: ";

/// Something that this kernel lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingCapability {
    /// `BPF_PROG_TEST_RUN` gives an XDP program no device (5.15).
    XdpTestDevice,
    /// `BPF_PROG_TEST_RUN` has no parameter for the device that a packet came in by.
    TestIngress,
    /// XDP programs for packets of several buffers cannot be loaded (5.18).
    XdpFrags,
    /// `BPF_PROG_TEST_RUN` does not check the sum of the whole packet.
    ChecksumComplete,
    /// Network namespaces have no cookie that a program can read (5.14).
    NetnsCookie,
    /// The kernel lacks this kind of network device.
    Device(&'static str),
    /// The kernel lacks IPVS.
    Ipvs,
}

impl fmt::Display for MissingCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MARK)?;
        match self {
            Self::XdpTestDevice => f.write_str("test runs give XDP programs no device (Linux 5.15)"),
            Self::TestIngress => f.write_str("test runs do not tell where packets came in"),
            Self::XdpFrags => f.write_str("no XDP programs for packets of several buffers (Linux 5.18)"),
            Self::ChecksumComplete => f.write_str("test runs do not check CHECKSUM_COMPLETE"),
            Self::NetnsCookie => f.write_str("programs cannot tell network namespaces apart (Linux 5.14)"),
            Self::Device(kind) => write!(f, "no network devices of the kind {kind}"),
            Self::Ipvs => f.write_str("no IPVS"),
        }
    }
}

impl std::error::Error for MissingCapability {}

impl MissingCapability {
    /// Whether this kernel lacks it: by its release, or by trying.
    ///
    /// # Errors
    /// When the kernel's release cannot be read.
    pub fn is_here(self) -> Result<bool> {
        let since = match self {
            Self::XdpTestDevice => (5, 15),
            Self::XdpFrags => (5, 18),
            Self::NetnsCookie => (5, 14),
            Self::ChecksumComplete | Self::TestIngress | Self::Device(_) | Self::Ipvs => {
                bail!("{self:?} came with no release: try it")
            }
        };
        Ok(release()? < since)
    }

    /// Prints it, in a test that continues without.
    pub fn note(self) {
        println!("{self}");
    }
}

/// Whether maps and programs count as locked memory (before 5.11).
///
/// # Errors
/// When the kernel's release cannot be read.
pub fn counts_locked_memory() -> Result<bool> {
    Ok(release()? < (5, 11))
}

/// The kernel's release, its first two numbers.
fn release() -> Result<(u32, u32)> {
    static RELEASE: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    let read = || {
        let name = uname().ok()?;
        let mut numbers = name.release().to_str()?.split(['.', '-']).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    RELEASE.get_or_init(read).context("the kernel's release cannot be read")
}
