//! Where proposed fencing tokens come from.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::election::types::Token;

/// Tells the wall clock's time; tests give their own.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// 2020 to 2200 in µs since the epoch. Outside of it the clock is not to be believed, and a token taken
/// from it could leave the range that is exact in Lua and JSON.
const PLAUSIBLE: RangeInclusive<u64> = 1_577_836_800_000_000..=7_258_118_400_000_000;

/// Proposes tokens that rise whatever the clock does; the clock only makes them survive lost floors.
pub(super) struct TokenSource {
    last: AtomicU64,
    clock: WallClock,
}

impl TokenSource {
    pub(super) fn new(clock: WallClock) -> Self {
        Self {
            last: AtomicU64::new(0),
            clock,
        }
    }

    /// A token above every one this agent has proposed or seen, if there is any left.
    pub(super) fn next(&self) -> Option<Token> {
        let now = self
            .micros()
            .filter(|now| PLAUSIBLE.contains(now))
            .unwrap_or(0);
        let above = |last: u64| now.max(last.saturating_add(1));
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(above(last))
            })
            .unwrap_or_else(|last| last);
        Token::new(above(last))
    }

    /// Notes a token that some node has accepted.
    pub(super) fn seen(&self, token: Token) {
        self.last.fetch_max(token.get(), Ordering::Relaxed);
    }

    /// Now, in ms since the epoch; 0 before it.
    pub(super) fn unix_millis(&self) -> u64 {
        self.micros().unwrap_or(0) / 1000
    }

    fn micros(&self) -> Option<u64> {
        let since = (self.clock)().duration_since(UNIX_EPOCH).ok()?;
        u64::try_from(since.as_micros()).ok()
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use super::*;

    fn source_at(start: SystemTime) -> (TokenSource, Arc<Mutex<SystemTime>>) {
        let time = Arc::new(Mutex::new(start));
        let clock = Arc::clone(&time);
        let source = TokenSource::new(Arc::new(move || *clock.lock().expect("not poisoned")));
        (source, time)
    }

    #[test]
    fn tokens_rise_while_the_clock_steps_back() {
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (source, time) = source_at(start);
        let first = source.next().expect("in range");
        assert_eq!(first.get(), 1_800_000_000_000_000);
        *time.lock().expect("not poisoned") = start - Duration::from_secs(3600);
        let second = source.next().expect("in range");
        assert!(second > first);
        *time.lock().expect("not poisoned") = start + Duration::from_secs(1);
        assert_eq!(
            source.next().expect("in range").get(),
            1_800_000_001_000_000
        );
    }

    #[test]
    fn a_clock_that_is_off_is_ignored() {
        for off in [0, 1, 8_000_000_000] {
            let (source, _) = source_at(UNIX_EPOCH + Duration::from_secs(off));
            assert_eq!(source.next().map(Token::get), Some(1));
        }
    }

    #[test]
    fn a_proposal_is_above_every_floor_seen_and_never_out_of_range() {
        let (source, _) = source_at(UNIX_EPOCH);
        source.seen(Token::new(41).expect("in range"));
        source.seen(Token::new(7).expect("in range"));
        assert_eq!(source.next().map(Token::get), Some(42));
        source.seen(Token::MAX);
        assert_eq!(source.next(), None);
    }
}
