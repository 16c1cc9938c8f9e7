//! Points in time that outlive the process, and how much time has passed since.
//!
//! [`Instant`](tokio::time::Instant) means nothing to the next process. The stored form is instead a reading of two
//! clocks. The first is the time since the system started, with the id of that start: nothing sets it, and it continues
//! while the system is suspended. The second is the wall clock, for readings after the next start.

use std::{
    fmt, fs,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::types::millis;

/// The source of readings: the system, except in tests.
#[derive(Clone)]
pub(super) struct Clock(Arc<dyn Fn() -> Reading + Send + Sync>);

impl Clock {
    pub(super) fn system() -> Self {
        Self(Arc::new(Reading::of_system))
    }

    #[cfg(test)]
    pub(super) fn new(read: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    pub(super) fn now(&self) -> Reading {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The state of the clocks at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reading {
    /// Names the start of the system; empty where it is unknown, as in a sandbox without `/proc/sys`.
    pub(super) boot: String,
    /// In ms; negative in a reading that was [carried](Self::carried) over a start of the system.
    pub(super) since_boot_ms: i64,
    /// The wall clock, in ms since the Unix epoch.
    pub(super) unix_ms: i64,
}

impl Reading {
    fn of_system() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let since_boot = clock_gettime(ClockId::Boottime);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            boot: boot.trim().chars().take(64).collect(),
            since_boot_ms: since_boot.tv_sec * 1_000 + since_boot.tv_nsec / 1_000_000,
            unix_ms: signed_millis(unix.unwrap_or_default()),
        }
    }

    fn same_boot(&self, now: &Self) -> bool {
        !self.boot.is_empty() && self.boot == now.boot && self.since_boot_ms <= now.since_boot_ms
    }

    /// How much time has passed since, at least; `None` where the clocks do not show it, because the system was
    /// restarted and its wall clock is earlier than before.
    ///
    /// Without an id of the start, either clock may mislead: the wall clock may have been set forward, or the time
    /// since the start may belong to another start. The smaller of the two results is right or too small.
    fn elapsed(&self, now: &Self) -> Option<Duration> {
        let since_boot = now.since_boot_ms - self.since_boot_ms;
        let wall = now.unix_ms - self.unix_ms;
        let elapsed = if self.same_boot(now) {
            since_boot
        } else if (self.boot.is_empty() || now.boot.is_empty()) && since_boot >= 0 {
            since_boot.min(wall)
        } else {
            wall
        };
        u64::try_from(elapsed).ok().map(Duration::from_millis)
    }

    /// The reading as the clocks of the present start of the system would have shown it, so that the wall clock decides
    /// only once. Where it cannot, the reading is the present one.
    pub(super) fn carried(&self, now: &Self) -> Self {
        if self.same_boot(now) {
            return self.clone();
        }
        let elapsed = signed_millis(self.elapsed(now).unwrap_or_default());
        Self {
            boot: now.boot.clone(),
            since_boot_ms: now.since_boot_ms - elapsed,
            unix_ms: now.unix_ms - elapsed,
        }
    }

    /// Whether the clocks show how much time has passed since.
    pub(super) fn is_comparable(&self, now: &Self) -> bool {
        self.elapsed(now).is_some()
    }

    /// What is left of a wait that began then: never more than all of it, whatever the clocks show.
    pub(super) fn left(&self, wait: Duration, now: &Self) -> Duration {
        let elapsed = self.elapsed(now).unwrap_or_default();
        // Readings are in whole ms, so the elapsed time may be 1 ms too long.
        (wait + Duration::from_millis(1))
            .saturating_sub(elapsed)
            .min(wait)
    }
}

fn signed_millis(duration: Duration) -> i64 {
    i64::try_from(millis(duration)).unwrap_or(i64::MAX)
}

/// The end of a wait that continues across restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deadline {
    pub(super) since: Reading,
    wait_ms: u64,
}

impl Deadline {
    pub(super) fn new(since: Reading, wait: Duration) -> Self {
        let whole = millis(wait);
        let wait_ms = match Duration::from_millis(whole) < wait {
            true => whole + 1,
            false => whole,
        };
        Self { since, wait_ms }
    }

    pub(super) fn is_over_at_once(&self) -> bool {
        self.wait_ms == 0
    }

    /// What is left; never more than the whole wait.
    pub(super) fn left(&self, now: &Reading) -> Duration {
        self.since.left(Duration::from_millis(self.wait_ms), now)
    }

    /// See [`Reading::carried`].
    pub(super) fn carried(&self, now: &Reading) -> Self {
        Self {
            since: self.since.carried(now),
            wait_ms: self.wait_ms,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    pub(in crate::lease::embedded) fn reading(boot: &str, since_boot: i64, unix: i64) -> Reading {
        Reading {
            boot: boot.to_owned(),
            since_boot_ms: since_boot * 1_000,
            unix_ms: unix * 1_000,
        }
    }

    /// The remaining seconds of a minute.
    fn left(since: &Reading, now: &Reading) -> u64 {
        Deadline::new(since.clone(), MINUTE).left(now).as_secs()
    }

    #[test]
    fn the_time_since_the_start_of_the_system_decides_whatever_the_wall_clock_shows() {
        let since = reading("a", 100, 5_000);
        for wall in [0, 5_020, 9_000_000] {
            assert_eq!(left(&since, &reading("a", 120, wall)), 40);
        }
        assert_eq!(left(&since, &reading("a", 160, 5_060)), 0);
        assert_eq!(left(&since, &reading("a", 9_999, 5_000)), 0);
    }

    #[test]
    fn after_another_start_of_the_system_the_wall_clock_decides() {
        let since = reading("a", 100, 5_000);
        for since_boot in [5, 100, 9_999] {
            assert_eq!(left(&since, &reading("b", since_boot, 5_020)), 40);
        }
        assert_eq!(left(&since, &reading("b", 5, 5_100)), 0);
    }

    #[test]
    fn a_wall_clock_that_is_earlier_than_before_leaves_all_of_the_wait_and_no_more() {
        let since = reading("a", 100, 5_000);
        let now = reading("b", 5, 1_000);
        assert!(!since.is_comparable(&now));
        assert_eq!(left(&since, &now), 60);
        // From then on the new start's own clock counts: the wait ends, even if the wall clock stays wrong.
        let carried = since.carried(&now);
        assert_eq!(left(&carried, &reading("b", 25, 1_000)), 40);
        assert_eq!(left(&carried, &reading("b", 65, 1_000)), 0);
    }

    #[test]
    fn a_reading_that_was_carried_over_is_as_old_as_it_was() {
        let since = reading("a", 100, 5_000);
        let carried = since.carried(&reading("b", 5, 5_030));
        assert_eq!(left(&carried, &reading("b", 15, 9_000_000)), 20);
        assert_eq!(left(&carried, &reading("c", 1, 5_050)), 10);
    }

    #[test]
    fn without_the_id_of_a_start_the_smaller_passage_counts() {
        let since = reading("", 100, 5_000);
        assert_eq!(left(&since, &reading("", 110, 5_010)), 50);
        assert_eq!(left(&since, &reading("", 110, 9_000)), 50, "set forward");
        assert_eq!(left(&since, &reading("", 110, 4_000)), 60, "set back");
        assert_eq!(left(&since, &reading("", 5, 5_040)), 20, "started anew");
        assert_eq!(left(&since, &reading("b", 900, 5_040)), 20, "now known");
    }

    #[test]
    fn the_systems_clocks_go_on() {
        let clock = Clock::system();
        let since = clock.now();
        assert!(since.since_boot_ms > 0 && since.unix_ms > 1_577_836_800_000);
        assert!(since.is_comparable(&clock.now()));
        let rounded = Deadline::new(since.clone(), Duration::from_micros(1_500));
        assert_eq!(rounded.left(&since), Duration::from_millis(2));
    }
}
