//! `peer bulk`: bytes that both sides can compute, so that both compare every one.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    time::Instant,
};

use proxy_harness::cluster::{Answer, BulkReport};

use crate::{Target, client::connect_tcp};

const BLOCK: usize = 64 * 1024;

/// A block of numbers without a pattern; each block of a transfer starts elsewhere in it.
fn material() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(next).take(2 * BLOCK / 8).flat_map(u64::to_le_bytes).collect()
}

/// The blocks of a transfer: where each starts in the material and how long it is.
fn blocks(bytes: u64) -> impl Iterator<Item = (usize, usize)> {
    (0..bytes.div_ceil(BLOCK as u64)).map(move |number| {
        let length = (bytes - number * BLOCK as u64).min(BLOCK as u64) as usize;
        ((number as usize * 257) % BLOCK, length)
    })
}

/// Writes the bytes of a transfer.
pub(crate) fn send(to: &mut impl Write, bytes: u64) -> io::Result<()> {
    let material = material();
    blocks(bytes).try_for_each(|(start, length)| to.write_all(&material[start..start + length]))
}

/// Reads the bytes of a transfer and compares them.
pub(crate) fn receive(from: &mut impl Read, bytes: u64) -> io::Result<()> {
    let material = material();
    let mut buffer = vec![0; BLOCK];
    for (number, (start, length)) in blocks(bytes).enumerate() {
        from.read_exact(&mut buffer[..length])?;
        if buffer[..length] != material[start..start + length] {
            return Err(io::Error::other(format!("block {number} arrived with other content")));
        }
    }
    Ok(())
}

/// Sends bytes, reads the answer, reads as many bytes back.
pub(crate) fn client(target: &Target, bytes: u64) -> io::Result<()> {
    let start = Instant::now();
    let mut stream = connect_tcp(target, target.bind)?;
    writeln!(stream, "bulk {bytes}")?;
    send(&mut stream, bytes)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let answer: Answer = serde_json::from_str(&line)?;
    receive(&mut reader, bytes)?;
    let report = BulkReport { bytes, server: answer.server, elapsed_ms: start.elapsed().as_millis() as u64 };
    writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)
}
