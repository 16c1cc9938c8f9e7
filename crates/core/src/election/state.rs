//! What callers learn of an election's state besides the leader: its position, and whether a token is current.

use std::{fmt, time::Duration};

use crate::lease::State;
use crate::types::{Token, drift};

/// Where a state stands in the sequence of an election's states: its token, and whether the election is held.
///
/// Its text is opaque to callers. Two equal texts of one election mean the same leadership, or the same vacancy. A text
/// that no state has, such as one of another version, equals none and is no error. Different texts may mean the same
/// vacancy: different nodes may remember different tokens of grants that did not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    held: bool,
    /// The leader's token or the high-water mark; 0 without one.
    token: u64,
}

impl Position {
    /// The position of a state.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let (held, token) = match state {
            State::Held(lease) => (true, Some(lease.token)),
            State::Vacant(mark) => (false, *mark),
        };
        let token = token.map_or(0, Token::get);
        Self { held, token }
    }

    /// Whether this state comes before the other one, if no grant is rolled back: a vacancy follows the term of its
    /// token, and the term of a larger token follows the vacancy.
    #[must_use]
    pub fn precedes(self, other: Self) -> bool {
        (self.token, !self.held) < (other.token, !other.held)
    }
}

/// `h` or `v`, and the token. It needs no escapes in URLs and HTTP entity tags.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = if self.held { 'h' } else { 'v' };
        write!(f, "{phase}{}", self.token)
    }
}

/// What a state says about a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The token is the leader's. No other candidate is elected for this long, counted from before the state was
    /// requested, unless the leader resigns or hands over.
    Current(Duration),
    /// The election is vacant, and the token is at most the highest that the nodes remember.
    NoTerm,
    /// The election is held with a larger token.
    Stale,
    /// The token is larger than every token of the election that the nodes know: no grant with it counts.
    NotGranted,
}

impl Standing {
    /// The standing of a token in a state that was requested this long ago.
    #[must_use]
    pub fn of(token: Token, state: &State, age: Duration) -> Self {
        match state {
            State::Held(lease) if token == lease.token => {
                let allowance = drift(lease.remaining) + age;
                Self::Current(lease.remaining.saturating_sub(allowance))
            }
            State::Held(lease) if token < lease.token => Self::Stale,
            State::Vacant(Some(mark)) if token <= *mark => Self::NoTerm,
            State::Held(_) | State::Vacant(_) => Self::NotGranted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lease::Lease,
        types::{Candidate, Value},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn token(n: u64) -> Token {
        Token::new(n).expect("in range")
    }

    fn held(n: u64, remaining: Duration) -> State {
        State::Held(Lease {
            leader: Candidate::new("leader", "a").expect("valid"),
            token: token(n),
            value: Value::default(),
            elected_at: 0,
            remaining,
        })
    }

    #[test]
    fn a_position_is_that_of_a_leadership_or_of_a_vacancy() {
        let text = |state| Position::of(&state).to_string();
        assert_eq!(text(held(7, SECOND)), "h7");
        assert_eq!(
            text(held(7, 2 * SECOND)),
            "h7",
            "an extension moves nothing"
        );
        assert_eq!(text(held(8, SECOND)), "h8");
        assert_eq!(text(State::Vacant(Some(token(8)))), "v8");
        assert_eq!(text(State::Vacant(None)), "v0");
    }

    #[test]
    fn states_follow_each_other_by_their_tokens_and_a_vacancy_follows_its_term() {
        let positions = [
            State::Vacant(None),
            held(7, SECOND),
            State::Vacant(Some(token(7))),
            held(9, SECOND),
        ]
        .map(|state| Position::of(&state));
        for (number, one) in positions.iter().enumerate() {
            for (other_number, other) in positions.iter().enumerate() {
                assert_eq!(one.precedes(*other), number < other_number, "{one} {other}");
            }
        }
    }

    #[test]
    fn a_token_is_current_only_while_its_own_lease_is_held() {
        let standing = |n, state| Standing::of(token(n), &state, Duration::ZERO);
        for (n, expected) in [
            (6, Standing::Stale),
            (7, Standing::Current(Duration::from_millis(988))),
            (8, Standing::NotGranted),
        ] {
            assert_eq!(standing(n, held(7, SECOND)), expected, "{n}");
        }
        for (n, expected) in [
            (6, Standing::NoTerm),
            (7, Standing::NoTerm),
            (8, Standing::NotGranted),
        ] {
            assert_eq!(standing(n, State::Vacant(Some(token(7)))), expected, "{n}");
        }
        assert_eq!(standing(1, State::Vacant(None)), Standing::NotGranted);
    }

    #[test]
    fn a_current_token_is_valid_for_what_its_lease_had_left_when_it_was_asked_for() {
        for (age, left) in [(100, 888), (988, 0), (5_000, 0)] {
            let age = Duration::from_millis(age);
            let standing = Standing::of(token(7), &held(7, SECOND), age);
            assert_eq!(standing, Standing::Current(Duration::from_millis(left)));
        }
    }
}
