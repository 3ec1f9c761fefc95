//! How long to wait before the next attempt. Every node of a cluster loses its control plane at
//! the same moment, so each waits a time of its own.

use std::time::Duration;

/// The longest first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(15);

/// Waits that double with each failure.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The last attempt led to something.
    pub(super) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next wait: between half of it and all of it, by chance.
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
    fn waits_double_up_to_a_limit_and_begin_anew() {
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
    fn two_nodes_do_not_wait_the_same_time() {
        let waits: Vec<_> = (0..20).map(|_| Backoff::default().next()).collect();
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }
}
