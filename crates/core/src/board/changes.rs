//! The changes that the board remembers.

use std::{collections::VecDeque, sync::Arc};

use super::Seen;
use crate::types::ElectionId;

/// How many changes are remembered of all elections. Each holds a leader's name and value, at most a few KiB.
const MOST: usize = 1_000;
/// How many of them are returned for one election.
const OF_ONE: usize = 64;

/// The last changes, the oldest first.
#[derive(Default)]
pub(super) struct Changes(VecDeque<Arc<Seen>>);

impl Changes {
    pub(super) fn push(&mut self, change: Arc<Seen>) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(change);
    }

    /// The changes of this election, the newest first.
    pub(super) fn of(&self, election: &ElectionId) -> Vec<Arc<Seen>> {
        let newest_first = self.0.iter().rev();
        let of_election = newest_first.filter(|change| *change.election == *election);
        of_election.take(OF_ONE).cloned().collect()
    }
}
