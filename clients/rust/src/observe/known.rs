//! What was reported to an observer last, and what may be reported next.

use std::collections::HashMap;

use crate::{Cause, State};

/// How many vacant elections are remembered, beside those that are held.
const VACANT: usize = 20_000;

/// Of each election, what was reported last.
#[derive(Debug, Default)]
pub(crate) struct Known {
    states: HashMap<(String, String), Standing>,
}

/// States of an election follow each other so: held with a token, vacant with it, held with a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    token: u64,
    vacant: bool,
}

impl Standing {
    fn of(state: &State) -> Self {
        Self {
            token: state.token,
            vacant: !state.is_held(),
        }
    }
}

/// What to do with a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was not reported before.
    News,
    /// It was reported last.
    Same,
    /// The last reported state is later, unless something was rolled back or forgotten: a quorum has to decide.
    Older,
}

impl Known {
    /// Compares a state with those that were reported before.
    pub(crate) fn judge(&self, state: &State) -> Verdict {
        let standing = Standing::of(state);
        match self.states.get(&key(state)) {
            None => Verdict::News,
            Some(known) if *known == standing => Verdict::Same,
            Some(known) if standing < *known && state.cause != Cause::RolledBack => Verdict::Older,
            Some(_) => Verdict::News,
        }
    }

    /// The state is reported.
    pub(crate) fn put(&mut self, state: &State) {
        self.states.insert(key(state), Standing::of(state));
        if self.states.len() > 2 * VACANT {
            // Any may be dropped: a quorum verifies what they would have decided.
            let mut vacant = 0;
            self.states.retain(|_, standing| {
                vacant += usize::from(standing.vacant);
                !standing.vacant || vacant <= VACANT
            });
        }
    }

    /// Whether anything was reported of the election.
    pub(crate) fn has(&self, state: &State) -> bool {
        self.states.contains_key(&key(state))
    }

    /// The kinds and names of the elections that were reported as held and are not among these states.
    pub(crate) fn held_beside(
        &self,
        states: &HashMap<(String, String), State>,
    ) -> Vec<(String, String)> {
        let held = self.states.iter().filter(|(_, standing)| !standing.vacant);
        held.map(|(key, _)| key.clone())
            .filter(|key| !states.contains_key(key))
            .collect()
    }
}

pub(crate) fn key(state: &State) -> (String, String) {
    (state.kind.clone(), state.election.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Leader;

    fn state(token: u64, held: bool, cause: Cause) -> State {
        let leader = held.then(|| Leader {
            kind: "k".into(),
            election: "e".into(),
            name: "a".into(),
            token,
            remaining: std::time::Duration::ZERO,
            value: String::new(),
            elected_at: 0,
        });
        State {
            kind: "k".into(),
            election: "e".into(),
            leader,
            token,
            cause,
            position: String::new(),
            missed: false,
        }
    }

    #[test]
    fn states_follow_each_other() {
        let mut known = Known::default();
        let judge = |known: &Known, token, held| known.judge(&state(token, held, Cause::Present));
        assert_eq!(judge(&known, 5, true), Verdict::News);
        known.put(&state(5, true, Cause::Campaign));
        assert_eq!(judge(&known, 5, true), Verdict::Same);
        assert_eq!(judge(&known, 4, false), Verdict::Older);
        assert_eq!(judge(&known, 5, false), Verdict::News);
        known.put(&state(5, false, Cause::Resign));
        assert_eq!(judge(&known, 5, false), Verdict::Same);
        assert_eq!(judge(&known, 5, true), Verdict::Older);
        assert_eq!(judge(&known, 6, true), Verdict::News);
        known.put(&state(6, true, Cause::Campaign));
        assert_eq!(
            known.judge(&state(5, true, Cause::RolledBack)),
            Verdict::News
        );
    }

    #[test]
    fn what_was_held_and_is_not_listed_is_found() {
        let mut known = Known::default();
        known.put(&state(5, true, Cause::Campaign));
        assert_eq!(
            known.held_beside(&HashMap::new()),
            [("k".into(), "e".into())]
        );
        let listed = state(6, true, Cause::Present);
        assert!(
            known
                .held_beside(&HashMap::from([(key(&listed), listed)]))
                .is_empty()
        );
        known.put(&state(5, false, Cause::Resign));
        assert!(known.held_beside(&HashMap::new()).is_empty());
    }
}
