//! What a caller has not been sent yet.

use std::collections::VecDeque;

use election_proto::{Goodbye, LeadEvent, Pong, Standing, Welcome, lead_event::What};

/// Events in their order. Of an election only the last standing is kept, and of pongs only the last: a caller that does not
/// read takes no more room than its elections.
///
/// The order of what is kept matters: a pong says that all elections which the caller has been told to lead are extended.
#[derive(Debug, Default)]
pub(super) struct Outbox(VecDeque<What>);

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next event.
    pub(super) fn pop(&mut self) -> Option<LeadEvent> {
        let what = self.0.pop_front();
        what.map(|what| LeadEvent { what: Some(what) })
    }

    pub(super) fn welcome(&mut self, welcome: Welcome) {
        self.0.push_back(What::Welcome(welcome));
    }

    /// The last event.
    pub(super) fn goodbye(&mut self, goodbye: Goodbye) {
        self.0.push_back(What::Goodbye(goodbye));
    }

    /// Forgets everything: the caller does not read.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn standing(&mut self, standing: Standing) {
        self.0
            .retain(|what| !matches!(what, What::Standing(earlier) if is_of(earlier, &standing)));
        self.0.push_back(What::Standing(standing));
    }

    pub(super) fn pong(&mut self, mut pong: Pong) {
        let earlier = self.0.iter().position(|what| matches!(what, What::Pong(_)));
        if let Some(place) = earlier
            && let Some(What::Pong(earlier)) = self.0.remove(place)
        {
            // What has been said of an election since then counts.
            let later = self.0.iter().skip(place);
            let later: Vec<_> = later
                .filter_map(|what| match what {
                    What::Standing(standing) => Some(standing),
                    _ => None,
                })
                .collect();
            let unsaid = |standing: &Standing| {
                let mut since = later.iter().copied().chain(&pong.standings);
                !since.any(|later| is_of(later, standing))
            };
            let unsaid: Vec<_> = earlier.standings.into_iter().filter(unsaid).collect();
            pong.standings.extend(unsaid);
        }
        self.0.push_back(What::Pong(pong));
    }
}

fn is_of(standing: &Standing, other: &Standing) -> bool {
    standing.election == other.election && standing.kind == other.kind
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

    #[test]
    fn the_last_standing_of_each_election_is_kept_in_its_place() {
        let mut outbox = Outbox::default();
        for (name, token) in [("a", 1), ("b", 1), ("a", 2)] {
            outbox.standing(standing(name, token));
        }
        assert_eq!(said(&mut outbox), ["b1", "a2"]);
        assert!(outbox.is_empty());
    }

    /// A caller takes what it leads for extended by a pong: a grant that the ping did not extend comes after its pong.
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
