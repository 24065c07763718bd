//! `new_flows`: ARRAY by family, written by the packet programs.

use crate::Family;

/// How many flows were opened lately that nobody answered: a bucket that leaks.
///
/// Each new flow pours as much in as there are jiffies in a second; each jiffy as much leaks as flows are allowed per
/// second. So both are whole numbers, whatever the kernel's HZ. A flow that is answered is taken out again, on whichever
/// CPU the answer is seen: therefore the bucket is not per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// What is in it. May be a little below 0 when CPUs meet.
    pub level: i64,
    /// When it was last made to leak, in jiffies (all 64 bits).
    pub since: u64,
}

/// The constants of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetRate {
    /// Flows per second; 0: no limit.
    pub flows: u32,
    /// Jiffies per second.
    pub hz: u32,
}

impl Budget {
    /// So many seconds' worth may come at once: handshakes that are under way are not answered yet either.
    pub const BURST: u32 = 15;

    /// A bucket is made to leak after so many jiffies, so that CPUs seldom meet there.
    pub const STEP: u64 = 16;

    /// Where a family's is.
    #[inline(always)]
    pub fn index<F: Family>() -> u32 {
        (size_of::<F::Addr>() != 4) as u32
    }

    /// The level after so many jiffies.
    #[inline(always)]
    pub fn leaked(level: i64, elapsed: u64, rate: BudgetRate) -> i64 {
        // After that time it is empty anyhow.
        let most = Self::BURST as u64 * rate.hz as u64;
        let elapsed = if elapsed > most { most } else { elapsed };
        let left = level - (elapsed * rate.flows as u64) as i64;
        if left < 0 { 0 } else { left }
    }

    /// Is there no room for another flow?
    #[inline(always)]
    pub fn is_full(level: i64, rate: BudgetRate) -> bool {
        level >= (Self::BURST as u64 * rate.flows as u64 * rate.hz as u64) as i64
    }
}

super::plain!(Budget);

const _: () = assert!(size_of::<Budget>() == 16);

#[cfg(test)]
mod tests {
    use super::{Budget, BudgetRate};

    /// Opens flows at a rate for some time; how many were let in.
    fn admitted(rate: BudgetRate, per_jiffy: u32, jiffies: u64, budget: &mut Budget) -> u32 {
        let mut count = 0;
        for now in budget.since..budget.since + jiffies {
            if now - budget.since >= Budget::STEP {
                budget.level = Budget::leaked(budget.level, now - budget.since, rate);
                budget.since = now;
            }
            for _ in 0..per_jiffy {
                if !Budget::is_full(budget.level, rate) {
                    budget.level += i64::from(rate.hz);
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn a_flood_gets_the_burst_and_then_the_rate() {
        for hz in [100, 250, 1000] {
            for flows in [1, 163, 2_621] {
                let rate = BudgetRate { flows, hz };
                let mut budget = Budget::default();
                let minute = admitted(rate, 100, 60 * u64::from(hz), &mut budget);
                let expected = flows * (60 + Budget::BURST);
                let off = minute.abs_diff(expected);
                assert!(off <= 1 + expected / 50, "{minute} instead of {expected} at {hz} Hz");
            }
        }
    }

    #[test]
    fn it_is_empty_after_the_burst_s_time() {
        let rate = BudgetRate { flows: 10, hz: 1000 };
        let mut budget = Budget::default();
        assert_eq!(admitted(rate, 1_000, 1, &mut budget), 150);
        assert!(Budget::is_full(budget.level, rate));
        assert_eq!(Budget::leaked(budget.level, 15_000, rate), 0);
        assert_eq!(Budget::leaked(budget.level, u64::MAX, rate), 0);
        assert_eq!(Budget::leaked(-5, 0, rate), 0);
    }
}
