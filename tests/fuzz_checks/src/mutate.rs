//! Inputs for where libFuzzer is not: seeds with random changes, the same in every run.

/// Makes inputs out of seeds.
pub struct Mutator {
    seeds: Vec<Vec<u8>>,
    /// The state of xorshift.
    state: u64,
}

/// No input is longer.
const LONGEST: usize = 4096;

impl Mutator {
    /// Mutants of these seeds. The number makes another sequence; not 0.
    pub fn new(seeds: Vec<Vec<u8>>, number: u64) -> Self {
        Self { seeds, state: number }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        if limit == 0 { 0 } else { (self.state >> 16) as usize % limit }
    }

    /// A part of some seed: where it begins and ends.
    fn part(&mut self) -> Vec<u8> {
        let which = self.below(self.seeds.len());
        let length = self.seeds.get(which).map_or(0, Vec::len);
        let from = self.below(length + 1);
        let to = from + self.below((length - from + 1).min(64));
        self.seeds.get(which).map(|seed| seed[from..to].to_vec()).unwrap_or_default()
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        // Now and then one that no seed is like.
        if self.seeds.is_empty() || self.below(16) == 0 {
            return (0..self.below(200)).map(|_| self.below(256) as u8).collect();
        }
        let which = self.below(self.seeds.len());
        let mut bytes = self.seeds[which].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len() + 1);
            match self.below(7) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.below(256) as u8),
                2 => {
                    let end = bytes.len().min(at + self.below(16));
                    bytes.drain(at..end);
                }
                3 => {
                    let part = self.part();
                    bytes.splice(at..at, part);
                }
                4 => {
                    let part = self.part();
                    let end = bytes.len().min(at + part.len());
                    bytes.splice(at..end, part);
                }
                // Values at the borders of the allowed range.
                5 => {
                    let value = [0, 1, 0x7f, 0x80, 0xff, b'0', b'-', b'"', b'\n'][self.below(9)];
                    bytes.get_mut(at).into_iter().for_each(|byte| *byte = value);
                }
                _ => {
                    let bit = self.below(8);
                    bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit);
                }
            }
        }
        bytes.truncate(LONGEST);
        bytes
    }
}
