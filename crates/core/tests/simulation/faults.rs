//! Faults of servers and of the network.

use std::time::Duration;

use fastrand::Rng;

/// The maximum transit time of a message in any run.
pub(crate) const SLOWEST: Duration = Duration::from_secs(8);
/// The maximum pause of a server in any run.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(14);

/// The rates and extents of faults in a run. Shares are per thousand messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) lost: u32,
    pub(crate) doubled: u32,
    pub(crate) slow: u32,
    /// The maximum transit time of a slow message.
    pub(crate) slowest: Duration,
    /// The maximum transit time of any other message, in µs.
    pub(crate) quick_us: u64,
    /// The mean interval between events of a server.
    pub(crate) every: Duration,
    /// Whether servers lose memory.
    pub(crate) forgetful: bool,
    /// Whether clocks of servers are set back.
    pub(crate) set_back: bool,
}

/// An event of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// It restarts with empty memory.
    Forget,
    /// It saves its memory.
    Save,
    /// It restarts with the saved copy of this age in saves; 0 is the last.
    GoBack(usize),
    /// It restarts with its current memory.
    Restart,
    /// It pauses.
    Pause(Duration),
    /// Its clock is set back by this many ms.
    SetBack(i64),
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        lost: 0,
        doubled: 0,
        slow: 0,
        slowest: Duration::ZERO,
        quick_us: 3_000,
        every: Duration::MAX,
        forgetful: false,
        set_back: false,
    };

    pub(crate) fn new(rng: &mut Rng, forgetful: bool) -> Self {
        Self {
            forgetful,
            lost: *rng.choice(&[0, 10, 50, 200]).expect("some"),
            doubled: *rng.choice(&[0, 10, 100]).expect("some"),
            slow: *rng.choice(&[0, 20, 200]).expect("some"),
            slowest: *rng
                .choice(&[Duration::from_millis(100), Duration::from_secs(2), SLOWEST])
                .expect("some"),
            every: Duration::from_secs(*rng.choice(&[10, 30, 300]).expect("some")),
            set_back: rng.u32(..4) == 0,
            ..Self::NONE
        }
    }

    pub(crate) fn event(&self, rng: &mut Rng) -> Event {
        let longest = LONGEST_PAUSE.as_millis() as u64;
        match rng.u32(..12) {
            0..2 if self.forgetful => Event::Forget,
            2..4 if self.forgetful => Event::Save,
            4..6 if self.forgetful => Event::GoBack(rng.usize(..3)),
            6 if self.forgetful => Event::Restart,
            7..9 if self.set_back => {
                let by = *rng
                    .choice(&[200, 3_000, 60_000, 3 * 3_600_000])
                    .expect("some");
                // An agent whose clock differs more from the nodes' clocks takes its tokens from theirs.
                Event::SetBack(if self.forgetful { by.min(60_000) } else { by })
            }
            _ => Event::Pause(Duration::from_millis(rng.u64(100..longest))),
        }
    }
}
