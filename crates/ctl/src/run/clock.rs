//! CLOCK_BOOTTIME: a clock that cannot be set, and that goes on while the machine is suspended.

use std::{
    fmt, io,
    ops::{Add, Sub},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

const NANOS: u64 = 1_000_000_000;

/// An instant of CLOCK_BOOTTIME, in nanoseconds since the machine has started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// The instant so many nanoseconds after the start of the machine.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the start of the machine.
    #[must_use]
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// The present instant.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let part = |part: i64| u64::try_from(part).unwrap_or_default();
        Self(part(now.tv_sec) * NANOS + part(now.tv_nsec))
    }

    /// How long it is until this instant: zero if it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(Self::now().0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, time: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot + {:?}", Duration::from_nanos(self.0))
    }
}

/// A timer by CLOCK_BOOTTIME, which also fires after a suspension that has lasted beyond the instant.
#[derive(Debug)]
pub(crate) struct Alarm(OwnedFd);

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Makes the descriptor readable at this instant.
    pub(crate) fn set(&self, at: Instant) -> io::Result<()> {
        let never_zero = at.0.max(1);
        let signed = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        let at = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: signed(never_zero / NANOS),
                tv_nsec: signed(never_zero % NANOS),
            },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &at)?;
        Ok(())
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The same for a future. `tokio::time` sleeps by CLOCK_MONOTONIC, which stands still during a suspension.
#[derive(Debug)]
pub(crate) struct Sleep(AsyncFd<OwnedFd>, Alarm);

impl Sleep {
    pub(crate) fn new() -> io::Result<Self> {
        let alarm = Alarm::new()?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types whose descriptor changes; this one's does not"
        )]
        Ok(Self(AsyncFd::new(alarm.0.try_clone()?)?, alarm))
    }

    /// Waits until this instant.
    pub(crate) async fn until(&self, at: Instant) -> io::Result<()> {
        while Instant::now() < at {
            // Setting the timer also clears that it has fired for an instant before.
            self.1.set(at)?;
            let mut fired = self.0.readable().await?;
            fired.clear_ready();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleep_ends_at_its_instant_and_not_before() {
        let sleep = Sleep::new().expect("a timer");
        for _ in 0..3 {
            let at = Instant::now() + Duration::from_millis(5);
            sleep.until(at).await.expect("sleeps");
            assert!(Instant::now() >= at);
        }
        sleep.until(Instant::from_nanos(0)).await.expect("at once");
    }
}
