//! The wait before the next attempt. All nodes of a cluster lose their control plane at the same
//! moment, so the wait is random.

use std::time::Duration;

/// The longest first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(15);

/// A wait that doubles with each failure.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Starts again after a successful attempt.
    pub(super) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next wait: a random time between half of the limit and the limit.
    pub(super) fn next(&mut self) -> Duration {
        let whole = whole(self.failures);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(rand::random_range(0.5..1.0))
    }
}

fn whole(failures: u32) -> Duration {
    FIRST
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_start_again() {
        let millis = |failures| whole(failures).as_millis();
        assert_eq!((millis(0), millis(1), millis(5)), (100, 200, 3200));
        assert_eq!((millis(8), millis(1_000_000)), (15_000, 15_000));
        let mut backoff = Backoff::default();
        for expected in [100, 200, 400] {
            let wait = backoff.next().as_millis();
            assert!(
                (expected / 2..=expected).contains(&wait),
                "{wait} {expected}"
            );
        }
        backoff.reset();
        assert!(backoff.next().as_millis() <= 100);
    }

    #[test]
    fn waits_are_random() {
        let waits: Vec<_> = (0..20).map(|_| Backoff::default().next()).collect();
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }
}
