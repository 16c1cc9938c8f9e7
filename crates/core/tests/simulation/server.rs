//! A lease server that may be slow, paused or forgetful, and whose clock may run fast and be set.
//!
//! Each agent reaches it through its own [handle](crate::handle).

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use election_core::lease::{NodeError, Probe, ProbeRequest, Settings, embedded::Embedded};
use fastrand::Rng;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    faults::{Event, Faults, SLOWEST},
    lists::{Coming, Lists, Recorded, Told},
    record::Record,
};

/// How far the clocks of servers are initially ahead of this process's, so that they can be set back.
const AHEAD: Duration = Duration::from_secs(365 * 86_400);
/// The reading of a server's clock at the beginning of a run, in ms since the Unix epoch.
const EPOCH_MS: u64 = 1_800_000_000_000;
/// How long a server remembers a token after the last term with it.
pub(crate) const RETENTION: Duration = Duration::from_secs(3600);
/// How many saved copies of its data a server keeps.
const COPIES: usize = 3;

/// One simulated server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server(Arc<Inner>);

struct Inner {
    name: String,
    settings: Settings,
    clock: Clock,
    /// Replaced when the server restarts.
    memory: Mutex<Arc<Embedded>>,
    /// The saved copies, the oldest first.
    saved: Mutex<Vec<(Embedded, Lists)>>,
    rng: Mutex<Rng>,
    faults: Mutex<Faults>,
    /// Not a channel: tokio wakes its receivers in an order of its own, which no seed determines.
    paused_until: Mutex<Instant>,
    /// The lists of nodes with which agents use the server.
    lists: Mutex<Lists>,
}

/// A server's clock. Cheap to clone.
#[derive(Clone)]
struct Clock {
    started: Instant,
    /// The relative speed of the clock: positive if it runs faster than true time.
    fast: f64,
    /// The sum of its steps, in ms.
    set_ms: Arc<Mutex<i64>>,
}

impl Clock {
    fn now(&self) -> Instant {
        let elapsed = self.started.elapsed().mul_f64(1.0 + self.fast);
        let now = self.started + AHEAD + elapsed;
        let set = *self.set_ms.lock().expect("not poisoned");
        let step = Duration::from_millis(set.unsigned_abs());
        if set < 0 { now - step } else { now + step }
    }
}

impl Server {
    /// Creates a server without data. With a guard, it may have forgotten a leader as long as it has no
    /// incarnation record.
    pub(crate) fn new(name: &str, guard: Option<Duration>, fast: f64, rng: Rng) -> Self {
        let clock = Clock {
            started: Instant::now(),
            fast,
            set_ms: Arc::default(),
        };
        let settings = Settings {
            retention: RETENTION,
            guard,
            // Handles add the vote lifetime of their agents.
            vote: Duration::ZERO,
        };
        Self(Arc::new(Inner {
            name: name.to_owned(),
            memory: Mutex::new(Arc::new(empty(settings, &clock))),
            settings,
            clock,
            saved: Mutex::default(),
            rng: Mutex::new(rng),
            faults: Mutex::new(Faults::NONE),
            paused_until: Mutex::new(Instant::now()),
            lists: Mutex::default(),
        }))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn memory(&self) -> Arc<Embedded> {
        Arc::clone(&self.0.memory.lock().expect("not poisoned"))
    }

    /// The reading of the server's clock.
    pub(crate) fn now(&self) -> Instant {
        self.0.clock.now()
    }

    /// The reading of the server's clock, in ms since the Unix epoch.
    pub(crate) fn unix_ms(&self) -> u64 {
        let since = self.now() - self.0.clock.started;
        let ahead = since.as_millis() as i128 - AHEAD.as_millis() as i128;
        u64::try_from(i128::from(EPOCH_MS) + ahead).expect("after the epoch")
    }

    /// Steps the clock forward or back.
    pub(crate) fn set_clock(&self, by_ms: i64) {
        *self.0.clock.set_ms.lock().expect("not poisoned") += by_ms;
    }

    /// Registers the list of nodes with which an agent uses the server, after a probe of the server.
    pub(crate) fn register(&self, list: &str, request: ProbeRequest, probe: &Probe) -> Told {
        let coming = Coming {
            list,
            guard: request
                .own
                .guard
                .unwrap_or_default()
                .max(request.guard.bound),
            write: request.write,
            closed: request.closed,
        };
        let recorded = Recorded {
            guard: probe.longest_guard.bound,
            is_ready: probe.guard == Some(Duration::ZERO),
        };
        let mut lists = self.0.lists.lock().expect("not poisoned");
        lists.register(coming, recorded, self.now())
    }

    /// Restarts with empty memory.
    pub(crate) fn forget(&self) {
        *self.0.memory.lock().expect("not poisoned") =
            Arc::new(empty(self.0.settings, &self.0.clock));
        *self.0.lists.lock().expect("not poisoned") = Lists::default();
    }

    /// Saves a copy of the data.
    pub(crate) fn save(&self) {
        let mut saved = self.0.saved.lock().expect("not poisoned");
        let lists = self.0.lists.lock().expect("not poisoned").clone();
        saved.push((self.memory().restored(), lists));
        if saved.len() > COPIES {
            saved.remove(1);
        }
    }

    /// Restarts with a saved copy, if it exists; 0 is the last.
    pub(crate) fn go_back(&self, copy: usize) {
        let saved = self.0.saved.lock().expect("not poisoned");
        if let Some((copy, lists)) = saved.iter().rev().nth(copy) {
            *self.0.lists.lock().expect("not poisoned") = lists.clone();
            *self.0.memory.lock().expect("not poisoned") = Arc::new(copy.restored());
        }
    }

    /// Restarts with the current data.
    pub(crate) fn restart(&self) {
        let memory = self.memory().restored();
        *self.0.memory.lock().expect("not poisoned") = Arc::new(memory);
    }

    /// Pauses the server. Commands wait until the pause ends.
    pub(crate) fn pause(&self, time: Duration) {
        *self.0.paused_until.lock().expect("not poisoned") = Instant::now() + time;
    }

    pub(crate) async fn not_paused(&self) {
        loop {
            let until = *self.0.paused_until.lock().expect("not poisoned");
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        *self.0.faults.lock().expect("not poisoned") = faults;
    }

    /// Causes random faults until the time is over.
    pub(crate) async fn misbehave(self, faults: Faults, until: Instant, record: Record) {
        self.set_faults(faults);
        loop {
            let (wait, event) = {
                let mut rng = self.0.rng.lock().expect("not poisoned");
                let wait = faults.every.mul_f64(rng.f64() * 2.0);
                (wait, faults.event(&mut rng))
            };
            if Instant::now() + wait >= until {
                break;
            }
            sleep(wait).await;
            record.note(&format!("{}: {event:?}", self.0.name));
            self.happens(event);
        }
        sleep_until(until).await;
        self.set_faults(Faults::NONE);
        self.pause(Duration::ZERO);
    }

    pub(crate) fn happens(&self, event: Event) {
        match event {
            Event::Forget => self.forget(),
            Event::Save => self.save(),
            Event::GoBack(copy) => self.go_back(copy),
            Event::Restart => self.restart(),
            Event::Pause(time) => self.pause(time),
            Event::SetBack(ms) => self.set_clock(-ms),
        }
    }

    /// Draws whether a fault with this share per thousand messages occurs.
    pub(crate) fn chance(&self, of: impl Fn(&Faults) -> u32) -> bool {
        let share = of(&self.0.faults.lock().expect("not poisoned"));
        self.0.rng.lock().expect("not poisoned").u32(..1000) < share
    }

    /// Draws a number below this one.
    pub(crate) fn draw(&self, below: u64) -> u64 {
        self.0.rng.lock().expect("not poisoned").u64(..below)
    }

    /// Draws the transit time of a message.
    pub(crate) fn transit(&self) -> Duration {
        let slow = self.chance(|faults| faults.slow);
        let faults = *self.0.faults.lock().expect("not poisoned");
        let mut rng = self.0.rng.lock().expect("not poisoned");
        match slow {
            true => faults.slowest.min(SLOWEST).mul_f64(rng.f64()),
            false => Duration::from_micros(rng.u64(50..faults.quick_us)),
        }
    }

    /// Waits until an agent detects a broken connection.
    pub(crate) async fn broken(&self) -> NodeError {
        let broken = self.0.rng.lock().expect("not poisoned").u64(1..3_000);
        sleep(Duration::from_millis(broken)).await;
        NodeError::unknown("the connection broke")
    }
}

fn empty(settings: Settings, clock: &Clock) -> Embedded {
    let clock = clock.clone();
    Embedded::with_clock(settings, Arc::new(move || clock.now()))
}
