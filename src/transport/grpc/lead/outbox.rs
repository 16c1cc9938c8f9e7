//! Events that have not been sent to the caller yet.

use std::collections::{HashSet, VecDeque};

use election_proto::{Goodbye, LeadEvent, Pong, Standing, Welcome, lead_event::What, standing::Is};

/// Events in order. A standing replaces earlier ones of its election with the same or a smaller token, and a pong
/// replaces the last one: a caller that does not read uses no more memory than its elections. All refusals are kept:
/// they are replies, not standings.
///
/// The order matters: a pong reports that the terms of all elections that earlier events reported as led are extended.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    events: VecDeque<What>,
    /// How many of them are refusals.
    refusals: usize,
}

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The next event.
    pub(super) fn pop(&mut self) -> Option<LeadEvent> {
        let what = self.events.pop_front();
        if let Some(What::Standing(standing)) = &what
            && is_refusal(standing)
        {
            self.refusals -= 1;
        }
        what.map(|what| LeadEvent { what: Some(what) })
    }

    pub(super) fn welcome(&mut self, welcome: Welcome) {
        self.events.push_back(What::Welcome(welcome));
    }

    /// The last event.
    pub(super) fn goodbye(&mut self, goodbye: Goodbye) {
        self.events.push_back(What::Goodbye(goodbye));
    }

    /// How many refusals there are.
    pub(super) fn refusals(&self) -> usize {
        self.refusals
    }

    /// Discards all events: the caller does not read.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn standing(&mut self, standing: Standing) {
        match is_refusal(&standing) {
            true => self.refusals += 1,
            false => self.events.retain(|what| match what {
                What::Standing(earlier) => {
                    !is_of(earlier, &standing)
                        || is_refusal(earlier)
                        || earlier.token > standing.token
                }
                _ => true,
            }),
        }
        self.events.push_back(What::Standing(standing));
    }

    pub(super) fn pong(&mut self, mut pong: Pong) {
        let earlier = self
            .events
            .iter()
            .position(|what| matches!(what, What::Pong(_)));
        if let Some(place) = earlier
            && let Some(What::Pong(earlier)) = self.events.remove(place)
        {
            // Later standings of an election replace those of the earlier pong.
            let later = self.events.iter().skip(place);
            let later = later.filter_map(|what| match what {
                What::Standing(standing) if !is_refusal(standing) => Some(standing),
                _ => None,
            });
            let later = later.chain(&pong.standings);
            let said: HashSet<_> = later.map(of).collect();
            let mut unsaid = earlier.standings;
            unsaid.retain(|standing| !said.contains(&of(standing)));
            drop(said);
            pong.standings.extend(unsaid);
        }
        self.events.push_back(What::Pong(pong));
    }
}

fn of(standing: &Standing) -> (&str, &str) {
    (&standing.election, &standing.kind)
}

fn is_of(standing: &Standing, other: &Standing) -> bool {
    of(standing) == of(other)
}

fn is_refusal(standing: &Standing) -> bool {
    standing.is() == Is::Refused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(election: &str, token: u64) -> Standing {
        Standing {
            election: election.to_owned(),
            token,
            ..Standing::default()
        }
    }

    fn pong(seq: u64, standings: &[(&str, u64)]) -> Pong {
        let standings = standings.iter().map(|(name, token)| standing(name, *token));
        Pong {
            seq,
            standings: standings.collect(),
        }
    }

    fn said(outbox: &mut Outbox) -> Vec<String> {
        let name = |standing: &Standing| format!("{}{}", standing.election, standing.token);
        std::iter::from_fn(|| outbox.pop())
            .filter_map(|event| event.what)
            .map(|what| match what {
                What::Standing(standing) => name(&standing),
                What::Pong(pong) => {
                    let names: Vec<_> = pong.standings.iter().map(name).collect();
                    format!("pong {} [{}]", pong.seq, names.join(" "))
                }
                other => format!("{other:?}"),
            })
            .collect()
    }

    /// Otherwise the caller would not know which terms its pings extend.
    #[test]
    fn neither_a_refusal_nor_the_end_of_an_earlier_term_takes_the_place_of_a_grant() {
        let mut outbox = Outbox::default();
        outbox.standing(standing("a", 2));
        let refused = Standing {
            is: Is::Refused.into(),
            ..standing("a", 0)
        };
        outbox.standing(refused);
        assert_eq!(outbox.refusals(), 1);
        outbox.standing(standing("a", 1));
        assert_eq!(said(&mut outbox), ["a2", "a0", "a1"]);
        assert_eq!(outbox.refusals(), 0);
    }

    #[test]
    fn the_last_standing_of_each_election_is_kept_in_its_place() {
        let mut outbox = Outbox::default();
        for (name, token) in [("a", 1), ("b", 1), ("a", 2)] {
            outbox.standing(standing(name, token));
        }
        assert_eq!(said(&mut outbox), ["b1", "a2"]);
        assert!(outbox.is_empty());
    }

    /// The caller takes all that it leads as extended by a pong: a grant that the ping did not extend follows its pong.
    #[test]
    fn what_is_said_after_a_pong_stays_after_it() {
        let mut outbox = Outbox::default();
        outbox.standing(standing("a", 1));
        outbox.pong(pong(1, &[]));
        outbox.standing(standing("b", 1));
        assert_eq!(said(&mut outbox), ["a1", "pong 1 []", "b1"]);
    }

    #[test]
    fn a_pong_that_was_not_sent_leaves_its_exceptions_to_the_next_one() {
        let mut outbox = Outbox::default();
        outbox.pong(pong(1, &[("a", 1), ("b", 1), ("c", 1)]));
        outbox.standing(standing("b", 2));
        outbox.pong(pong(2, &[("c", 2)]));
        assert_eq!(said(&mut outbox), ["b2", "pong 2 [c2 a1]"]);
    }
}
