//! The source of proposed fencing tokens.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::types::{Token, millis};

/// Returns the wall clock's time; tests supply their own.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// 2020 to 2200 in µs since the epoch. A clock outside of this range is implausible, and a token taken from it could
/// leave the range that is exact in Lua and JSON.
const PLAUSIBLE: RangeInclusive<u64> = 1_577_836_800_000_000..=7_258_118_400_000_000;

/// How far this agent's clock may differ from the nodes' clocks and still count as right, and how far a token may be
/// ahead of it and still count as one that a clock gave.
const OFF: Duration = Duration::from_secs(3600);

/// Proposes tokens that rise whatever the clock does; the clock only makes them survive lost high-water marks.
pub(super) struct TokenSource {
    last: AtomicU64,
    clock: WallClock,
    /// The correction of the clock, in ms: where the clock is far from the nodes' clocks, those are right.
    correction: AtomicI64,
}

impl TokenSource {
    pub(super) fn new(clock: WallClock) -> Self {
        Self {
            last: AtomicU64::new(0),
            clock,
            correction: AtomicI64::new(0),
        }
    }

    /// Compares the clock with those of the nodes, in ms since the epoch: an agent whose clock is far ahead would raise
    /// every agent's tokens for ever.
    pub(super) fn judge(&self, mut nodes: Vec<u64>) {
        nodes.sort_unstable();
        let Some(median) = nodes.get(nodes.len().saturating_sub(1) / 2) else {
            return;
        };
        let own = self.uncorrected().unwrap_or_default() / 1000;
        let correction = match own.abs_diff(*median) > millis(OFF) {
            true => i64::try_from(*median).unwrap_or(0) - i64::try_from(own).unwrap_or(0),
            false => 0,
        };
        let was = self.correction.swap(correction, Ordering::Relaxed);
        if was == 0 && correction != 0 {
            // Later tokens need not follow a token that the wrong clock gave, such as before the first probe: a node
            // that has accepted it reports that.
            let latest = self.latest_of_a_clock();
            let forgotten = |last| (last > latest).then_some(0);
            let _ = self
                .last
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, forgotten);
        }
        if (was == 0) != (correction == 0) {
            match correction {
                0 => tracing::info!("this host's clock agrees with the lease nodes' again"),
                _ => tracing::warn!(
                    off_by_ms = -correction,
                    "this host's clock is far from the lease nodes': fencing tokens are taken from theirs"
                ),
            }
        }
    }

    /// Returns a token above every one that this agent has proposed, above those that it has seen and a clock may have
    /// given, and above `least`, if any is left.
    pub(super) fn next(&self, least: Option<Token>) -> Option<Token> {
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
        let least = least.map_or(0, |token| token.get().saturating_add(1));
        Token::new(above(last).max(least))
    }

    /// Notes a token that some node has accepted. Tokens of other elections need not follow one that is far ahead of
    /// the clock: its own election's nodes report it when it matters.
    pub(super) fn seen(&self, token: Token) {
        if token.get() <= self.last.load(Ordering::Relaxed) {
            return;
        }
        if token.get() <= self.latest_of_a_clock() {
            self.last.fetch_max(token.get(), Ordering::Relaxed);
        }
    }

    /// The largest token that counts as one that a clock gave.
    fn latest_of_a_clock(&self) -> u64 {
        let ahead = u64::try_from(OFF.as_micros()).unwrap_or(u64::MAX);
        self.micros().unwrap_or(0).saturating_add(ahead)
    }

    /// Now, in ms since the epoch; 0 before it.
    pub(super) fn unix_millis(&self) -> u64 {
        self.micros().unwrap_or(0) / 1000
    }

    fn micros(&self) -> Option<u64> {
        let correction = self.correction.load(Ordering::Relaxed);
        self.uncorrected()?.checked_add_signed(correction * 1000)
    }

    fn uncorrected(&self) -> Option<u64> {
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
    use std::sync::Mutex;

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
        let first = source.next(None).expect("in range");
        assert_eq!(first.get(), 1_800_000_000_000_000);
        *time.lock().expect("not poisoned") = start - Duration::from_secs(3600);
        let second = source.next(None).expect("in range");
        assert!(second > first);
        *time.lock().expect("not poisoned") = start + Duration::from_secs(1);
        assert_eq!(
            source.next(None).expect("in range").get(),
            1_800_000_001_000_000
        );
    }

    #[test]
    fn a_clock_that_is_off_is_ignored() {
        for off in [0, 1, 8_000_000_000] {
            let (source, _) = source_at(UNIX_EPOCH + Duration::from_secs(off));
            assert_eq!(source.next(None).map(Token::get), Some(1));
        }
    }

    #[test]
    fn a_proposal_is_above_every_high_water_mark_seen_and_never_out_of_range() {
        let (source, _) = source_at(UNIX_EPOCH);
        source.seen(Token::new(41).expect("in range"));
        source.seen(Token::new(7).expect("in range"));
        assert_eq!(source.next(None).map(Token::get), Some(42));
        assert_eq!(source.next(Some(Token::MAX)), None);
    }

    #[test]
    fn a_clock_that_is_far_from_the_nodes_is_not_followed() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (source, time) = source_at(now + 100 * Duration::from_secs(365 * 86_400));
        let nodes = || vec![1_800_000_000_000, 1_800_000_000_400, 0];
        source.judge(nodes());
        let token = source.next(None).expect("in range").get();
        assert_eq!(token, 1_800_000_000_000_000);
        assert_eq!(source.unix_millis(), 1_800_000_000_000);
        *time.lock().expect("not poisoned") = now;
        source.judge(nodes());
        assert_eq!(source.next(None).map(Token::get), Some(token + 1));

        // Nor does it follow tokens that another agent's clock has given to one election.
        let ahead = Token::new(7_000_000_000_000_000).expect("in range");
        source.seen(ahead);
        assert_eq!(source.next(None).map(Token::get), Some(token + 2));
        assert_eq!(
            source.next(Some(ahead)).map(Token::get),
            Some(ahead.get() + 1)
        );
        assert_eq!(source.next(None).map(Token::get), Some(token + 4));
    }
}
