//! The clock that terms are measured with.
//!
//! It counts the time that a suspended machine misses: CLOCK_BOOTTIME on Linux and Android, CLOCK_MONOTONIC on macOS.
//! Elsewhere the monotonic clock is compared with the wall clock: when that is ahead by more than 1 % and 50 ms, the
//! machine may have slept, and the leadership is lost ([`Anchor`]).

use std::time::Duration;

/// An instant by the clock that goes on while the machine is suspended: until when a leader may act.
///
/// On Linux it is a time of CLOCK_BOOTTIME, which all processes of the machine share: another process can be given
/// [`as_nanos_since_boot`](Self::as_nanos_since_boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(u64);

impl Deadline {
    /// The instant that is so many nanoseconds after the machine's start.
    #[must_use]
    pub const fn from_nanos_since_boot(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the machine's start, by CLOCK_BOOTTIME on Linux.
    #[must_use]
    pub const fn as_nanos_since_boot(self) -> u64 {
        self.0
    }

    /// The present instant.
    #[must_use]
    pub fn now() -> Self {
        Self(now())
    }

    /// How long it is until then; zero when it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now()))
    }

    /// Whether the instant has passed.
    #[must_use]
    pub fn has_passed(self) -> bool {
        now() >= self.0
    }

    /// The instant that is earlier by so much; never before the machine's start.
    #[must_use]
    pub const fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(by)))
    }

    /// The instant that is later by so much.
    #[must_use]
    pub const fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

/// More than 500 years do not fit, and mean "never".
pub(crate) const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 {
        u64::MAX
    } else {
        nanos as u64
    }
}

#[cfg(unix)]
fn now() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(CLOCK);
    // Neither is negative: the clocks start with the machine.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(not(unix))]
fn now() -> u64 {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    nanos(START.elapsed())
}

/// Where clocks stood, to find out later whether one of them has jumped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anchor {
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    at: (u64, std::time::SystemTime),
}

impl Anchor {
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
            at: (now(), std::time::SystemTime::now()),
        }
    }

    /// Whether more time may have passed than the clock has counted.
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    pub(crate) const fn has_jumped(self) -> bool {
        false
    }

    /// Whether more time may have passed than the clock has counted.
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    pub(crate) fn has_jumped(self) -> bool {
        let counted = Duration::from_nanos(now().saturating_sub(self.at.0));
        let wall = self.at.1.elapsed().unwrap_or(Duration::ZERO);
        ahead(counted, wall)
    }
}

/// Whether the wall clock is ahead by more than 1 % and 50 ms.
#[cfg(any(
    test,
    not(any(target_os = "linux", target_os = "android", target_vendor = "apple"))
))]
fn ahead(counted: Duration, wall: Duration) -> bool {
    wall > counted + counted / 100 + Duration::from_millis(50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_measured_by_the_clock() {
        let deadline = Deadline::now().plus(Duration::from_secs(60));
        assert!(!deadline.has_passed());
        assert!(deadline.remaining() <= Duration::from_secs(60));
        assert!(deadline.remaining() > Duration::from_secs(50));
        let past = Deadline::now().minus(Duration::from_nanos(1));
        assert!(past.has_passed());
        assert_eq!(past.remaining(), Duration::ZERO);
        assert_eq!(Deadline::from_nanos_since_boot(7).as_nanos_since_boot(), 7);
        assert_eq!(Deadline(5).minus(Duration::MAX), Deadline(0));
        assert_eq!(Deadline(5).plus(Duration::MAX), Deadline(u64::MAX));
    }

    #[test]
    fn a_wall_clock_that_is_ahead_is_a_jump() {
        let minute = Duration::from_secs(60);
        assert!(!ahead(minute, minute));
        assert!(!ahead(minute, minute + Duration::from_millis(650)));
        assert!(ahead(minute, minute + Duration::from_millis(651)));
        // A wall clock that is set back says nothing about a suspended machine.
        assert!(!ahead(minute, Duration::ZERO));
    }
}
