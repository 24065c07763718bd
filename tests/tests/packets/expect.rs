//! Compares a program's output for a packet with the expected one.

use anyhow::Result;
use proxy_packets::{Device, Frame, Host, Kernel, PacketFamily, SNAT, Transport, helpers::SYN, same_frame};

use crate::paths;

/// TCP and UDP.
pub(crate) const ALL: [Transport; 3] = [SYN, Transport::Udp, Transport::UdpUnchecked];

/// A frame of a family; TCP over IPv4 carries options, so that every program meets both header lengths.
pub(crate) fn frame<F: PacketFamily>(src: (Host, u16), dst: (Host, u16), transport: Transport) -> Frame {
    let options = if F::IS_V4 && transport == SYN { 12 } else { 0 };
    Frame { options, ..paths::frame::<F>(src, dst, transport) }
}

/// Runs programs and compares.
pub(crate) trait Expect {
    /// Where the programs are.
    fn kernel(&self) -> &Kernel;

    /// Runs a program on a frame and compares result and frame, byte by byte.
    #[track_caller]
    fn gives(
        &self,
        program: &str,
        device: Device,
        input: &Frame,
        result: u32,
        expected: &Frame,
    ) -> Result<()> {
        self.gives_bytes(program, device, &input.build()?, result, &expected.build()?)
    }

    /// The same with any bytes.
    #[track_caller]
    fn gives_bytes(
        &self,
        program: &str,
        device: Device,
        input: &[u8],
        result: u32,
        expected: &[u8],
    ) -> Result<()> {
        let run = self.kernel().run(program, input, device.index()?, 0)?;
        assert_eq!(run.result, result, "result of {program}");
        assert!(
            same_frame(expected, &run.packet),
            "{program}\n{input:02x?}\n{expected:02x?}\n{:02x?}",
            run.packet
        );
        Ok(())
    }

    /// The same for a source port chosen from the range; returns the frame that was sent.
    #[track_caller]
    fn forwards(&self, program: &str, input: &Frame, result: u32, mut expected: Frame) -> Result<Frame> {
        let run = self.kernel().run(program, &input.build()?, Device::Uplink.index()?, 0)?;
        assert_eq!(run.result, result, "result of {program}");
        let at = expected.transport_offset();
        let port = u16::from_be_bytes([run.packet[at], run.packet[at + 1]]);
        assert!(SNAT.contains(&port), "{port}");
        expected.src.set_port(port);
        assert!(same_frame(&expected.build()?, &run.packet), "{program}: {expected:?}\n{:02x?}", run.packet);
        Ok(expected)
    }
}

impl Expect for Kernel {
    fn kernel(&self) -> &Kernel {
        self
    }
}
