//! Fuzz targets without a fuzzer: the seeds, and a bounded number of inputs made of them, the same in every run.

use std::panic::catch_unwind;

use anyhow::{Result, bail};
use proxy_fuzz_checks::{Mutator, TARGETS, Target, seeds};

/// Inputs of a target besides its seeds.
const MUTANTS: usize = 1_500;
/// Another number makes other inputs.
const NUMBER: u64 = 0x5eed;

fn replay(name: &str) -> Result<()> {
    let Some((_, run)) = TARGETS.iter().find(|(target, _)| *target == name) else {
        bail!("no target {name}")
    };
    let seeds = seeds(name)?;
    assert!(!seeds.is_empty(), "no seeds of {name}");
    for (path, bytes) in &seeds {
        assert!(catch_unwind(|| run(bytes)).is_ok(), "{}", path.display());
    }
    let mut mutator = Mutator::new(seeds.into_iter().map(|(_, bytes)| bytes).collect(), NUMBER);
    for number in 0..MUTANTS {
        let bytes = mutator.next_input();
        let text = String::from_utf8_lossy(&bytes);
        assert!(catch_unwind(|| run(&bytes)).is_ok(), "input {number} of {name}: {bytes:?}\n{text}");
    }
    Ok(())
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test] fn $name() -> Result<()> { replay(stringify!($name)) })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            let names: Vec<_> = TARGETS.iter().map(|(name, _): &Target| *name).collect();
            assert_eq!(names, replayed);
        }
    };
}

replays! { parse_packet flows manifests objects watch configuration values arguments sock_diag }
