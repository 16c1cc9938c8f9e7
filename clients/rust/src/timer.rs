//! The timer that ends terms: a thread of its own, shared by the process, which needs neither a runtime nor a network.
//!
//! On Linux it sleeps in a `timerfd` of CLOCK_BOOTTIME, which fires on time also when the machine was suspended
//! meanwhile, and which another thread can set to an earlier time without waking the sleeper: `clock_nanosleep` would
//! need a signal for that. Elsewhere, and when the process has no file descriptor left, the thread waits for a
//! condition variable, whose clock may stop during a suspension: in steps, after each of which it checks the clock.

use std::{
    any::Any,
    collections::BinaryHeap,
    sync::{Arc, LazyLock, Weak},
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::Deadline;

/// How long the condition variable waits at the most before the thread checks the clock again.
const STEP: Duration = Duration::from_millis(100);

/// Checks the clock when its time has come.
pub(crate) trait Timed: Send + Sync {
    /// Checks the clock. Returns when to check next, if at all.
    fn due(&self) -> Option<Deadline>;
}

/// Makes `timed` check the clock at the deadline, and again when it says so, as long as it has another owner.
pub(crate) fn watch(at: Deadline, timed: Weak<dyn Timed>) {
    TIMER.add(at, Task::Look(timed));
}

/// Keeps a value until the deadline.
pub(crate) fn keep_until(at: Deadline, value: impl Any + Send) {
    TIMER.add(at, Task::Drop(Box::new(value)));
}

enum Task {
    Look(Weak<dyn Timed>),
    Drop(#[expect(dead_code, reason = "held until then")] Box<dyn Any + Send>),
}

/// The earliest is the greatest, as the heap has that on top.
struct Entry {
    at: Deadline,
    task: Task,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.at.cmp(&self.at)
    }
}

static TIMER: LazyLock<Arc<Timer>> = LazyLock::new(Timer::start);

struct Timer {
    entries: Mutex<BinaryHeap<Entry>>,
    alarm: Alarm,
}

impl Timer {
    fn start() -> Arc<Self> {
        let timer = Arc::new(Self {
            entries: Mutex::default(),
            alarm: Alarm::new(),
        });
        let thread = Arc::clone(&timer);
        let spawned = std::thread::Builder::new()
            .name("election-timer".to_owned())
            .spawn(move || thread.run());
        if let Err(error) = spawned {
            // Terms still end by the clock, for callers that check it.
            tracing::error!(%error, "no thread for the timer: `Term::lost` resolves only when it is polled");
        }
        timer
    }

    fn entries(&self) -> MutexGuard<'_, BinaryHeap<Entry>> {
        self.entries.lock()
    }

    fn add(&self, at: Deadline, task: Task) {
        let mut entries = self.entries();
        let earliest = entries.peek().is_none_or(|first| at < first.at);
        entries.push(Entry { at, task });
        if earliest {
            // Under the lock, so that the alarm is always that of the first entry.
            self.alarm.set(at);
        }
    }

    fn run(&self) {
        loop {
            let mut due = Vec::new();
            {
                let mut entries = self.entries();
                while let Some(first) = entries.peek() {
                    if !first.at.has_passed() {
                        self.alarm.set(first.at);
                        break;
                    }
                    due.extend(entries.pop());
                }
            }
            // Without the lock: a callback may start other timers.
            for entry in due {
                if let Task::Look(timed) = entry.task
                    && let Some(strong) = timed.upgrade()
                    && let Some(next) = strong.due()
                {
                    self.add(next, Task::Look(timed));
                }
            }
            self.alarm.wait();
        }
    }
}

/// Sleeps until a time by the clock of terms.
struct Alarm {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    timerfd: Option<std::os::fd::OwnedFd>,
    at: Mutex<Option<Deadline>>,
    changed: Condvar,
}

impl Alarm {
    fn new() -> Self {
        Self {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            timerfd: rustix::time::timerfd_create(
                rustix::time::TimerfdClockId::Boottime,
                rustix::time::TimerfdFlags::CLOEXEC,
            )
            .ok(),
            at: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Without the file descriptor, for tests of what other systems do.
    #[cfg(test)]
    fn portable() -> Self {
        Self {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            timerfd: None,
            at: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn at(&self) -> MutexGuard<'_, Option<Deadline>> {
        self.at.lock()
    }

    fn set(&self, at: Deadline) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(timerfd) = &self.timerfd {
            let nanos = at.as_nanos_since_boot().max(1);
            let value = rustix::time::Timespec {
                tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
                // Below 10^9.
                tv_nsec: i64::try_from(nanos % 1_000_000_000).unwrap_or(0),
            };
            let once = rustix::time::Itimerspec {
                it_interval: rustix::time::Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: value,
            };
            let absolute = rustix::time::TimerfdTimerFlags::ABSTIME;
            if let Err(error) = rustix::time::timerfd_settime(timerfd, absolute, &once) {
                tracing::error!(%error, "timerfd_settime");
            }
            return;
        }
        *self.at() = Some(at);
        self.changed.notify_one();
    }

    /// Returns when the time has come, and perhaps before.
    fn wait(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(timerfd) = &self.timerfd {
            // An interruption is a reason to check, as well.
            let _ = rustix::io::read(timerfd, &mut [0; 8]);
            return;
        }
        let mut at = self.at();
        while !at.is_some_and(Deadline::has_passed) {
            match *at {
                Some(until) => {
                    self.changed.wait_for(&mut at, until.remaining().min(STEP));
                }
                None => self.changed.wait(&mut at),
            }
        }
        *at = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    const SHORT: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(3_600);

    #[test]
    fn an_alarm_rings_at_its_time_and_an_earlier_time_counts() {
        for alarm in [Alarm::new(), Alarm::portable()] {
            let (alarm, at) = (Arc::new(alarm), Deadline::now().plus(SHORT));
            alarm.set(Deadline::now().plus(LONG));
            let (sender, rung) = mpsc::channel();
            let waits = Arc::clone(&alarm);
            std::thread::spawn(move || {
                while !at.has_passed() {
                    waits.wait();
                }
                let _ = sender.send(());
            });
            alarm.set(at);
            rung.recv_timeout(Duration::from_secs(20))
                .expect("it rings");
            assert!(at.has_passed());
        }
    }

    /// Looks again until it was looked at so often.
    struct Looked(AtomicUsize, mpsc::Sender<Deadline>);

    impl Timed for Looked {
        fn due(&self) -> Option<Deadline> {
            let left = self.0.fetch_sub(1, Ordering::SeqCst) - 1;
            let _ = self.1.send(Deadline::now());
            (left > 0).then(|| Deadline::now().plus(SHORT))
        }
    }

    #[test]
    fn what_is_watched_is_looked_at_when_it_is_due_and_again_when_it_says_so() {
        let (sender, looked) = mpsc::channel();
        let timed = Arc::new(Looked(AtomicUsize::new(3), sender));
        let weak = Arc::downgrade(&timed);
        let weak: Weak<dyn Timed> = weak;
        let mut due = Deadline::now().plus(SHORT);
        watch(Deadline::now().plus(LONG), Weak::clone(&weak));
        watch(due, weak);
        for _ in 0..3 {
            let at = looked
                .recv_timeout(Duration::from_secs(20))
                .expect("it is looked at");
            assert!(at >= due, "too early");
            due = at.plus(SHORT);
        }
        assert_eq!(timed.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn what_is_kept_is_dropped_at_its_time() {
        struct Ends(mpsc::Sender<Deadline>);
        impl Drop for Ends {
            fn drop(&mut self) {
                let _ = self.0.send(Deadline::now());
            }
        }
        let (sender, ended) = mpsc::channel();
        let until = Deadline::now().plus(SHORT);
        keep_until(until, Ends(sender));
        assert!(
            ended
                .recv_timeout(Duration::from_secs(20))
                .expect("it ends")
                >= until
        );
    }
}
