//! Decides whether the database may be older than what was promised, and how an opening begins.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{
    clock::{Deadline, Reading},
    generation::{Found, Generation, Longest},
    log::LeaseRecord,
    store::{Content, Node, new_lineage},
};
use crate::types::millis;

/// Why a database may be older than what was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The number of its last commit, and the one that its side file has.
    Older(u64, u64),
    /// The side file has another lineage.
    Other,
    /// Something other than the agent changed the side file, or it is a copy.
    Touched,
    /// There is no side file.
    Missing,
    /// The side file cannot be used, and why.
    Unusable(String),
    /// There is a side file, but the database is new.
    Lost,
    /// The database was written by a version that kept no side file.
    Upgraded,
    /// `election-agent restore` put the database in place.
    Restored,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Older(has, known) => write!(
                f,
                "the lease database is older than what was promised: its last commit is number {has}, and \
                 number {known} was made"
            ),
            Self::Other => f.write_str(
                "the lease database is not the one that was used here last: its side file belongs to another",
            ),
            Self::Touched => f.write_str(
                "the lease database may be a copy: something other than the agent has written, moved or \
                 changed its side file",
            ),
            Self::Missing => f.write_str(
                "the lease database may be a copy from another place or time: its side file is missing",
            ),
            Self::Unusable(why) => write!(
                f,
                "the lease database may be an older copy: its side file cannot be used: {why}"
            ),
            Self::Lost => f.write_str(
                "the lease database is new, but its side file shows that there was one before",
            ),
            Self::Upgraded => f.write_str(
                "the lease database was written by a version that did not notice older copies; this happens \
                 once",
            ),
            Self::Restored => f.write_str("the lease database was restored from a copy"),
        }
    }
}

/// Compares the database with its side file. A side file that is behind is no reason for doubt: it is not synced with
/// each commit.
fn doubt(content: &Content, found: &Found) -> Option<Doubt> {
    let Some(node) = &content.node else {
        return match found {
            Found::Missing if content.is_used() => Some(Doubt::Upgraded),
            Found::Missing => None,
            _ if content.is_new => Some(Doubt::Lost),
            _ => Some(Doubt::Other),
        };
    };
    match found {
        _ if node.restored => Some(Doubt::Restored),
        // The agent died on its first start, before it could have granted anything.
        Found::Missing if !content.is_used() => None,
        Found::Missing => Some(Doubt::Missing),
        Found::Unusable(why) => Some(Doubt::Unusable(why.clone())),
        Found::Generation { generation, .. } if generation.lineage != node.lineage => {
            Some(Doubt::Other)
        }
        Found::Generation { generation, .. } if generation.sequence > node.sequence => {
            Some(Doubt::Older(node.sequence, generation.sequence))
        }
        Found::Generation { touched: true, .. } => Some(Doubt::Touched),
        Found::Generation { .. } => None,
    }
}

/// How an agent begins with the database.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) number: u64,
    pub(super) node: Node,
    /// The times of this and earlier openings, as far as they matter.
    pub(super) openings: BTreeMap<u64, Reading>,
    pub(super) doubt: Option<Doubt>,
    /// Whether the clocks cannot show how long ago earlier openings were.
    pub(super) clocks_went_back: bool,
    now: Reading,
}

impl Opening {
    /// Decides at `now`, when no other process can use the database any more, for an agent whose nodes are in
    /// quarantine for `guard` after they may have lost memory.
    pub(super) fn new(
        content: &Content,
        found: &Found,
        guard: Option<Duration>,
        now: Reading,
    ) -> Self {
        let doubt = doubt(content, found);
        let generation = match found {
            Found::Generation { generation, .. } => Some(generation),
            Found::Missing | Found::Unusable(_) => None,
        };
        let clocks_went_back = {
            let quarantine = content
                .node
                .as_ref()
                .and_then(|node| node.quarantine.as_ref());
            let since = quarantine.map(|quarantine| &quarantine.since);
            let mut earlier = content.openings.values().chain(since);
            earlier.any(|earlier| !earlier.is_comparable(&now))
        };
        let mut node = content.node.clone().unwrap_or_else(|| Node {
            marked: content.is_used(),
            ..Node::new()
        });
        node.longest = longest(content, generation, guard, doubt.is_some(), &now);
        node.sequence = generation
            .map_or(0, |generation| generation.sequence)
            .max(node.sequence)
            + 1;
        node.restored = false;
        if doubt.is_some() {
            node.lineage = new_lineage();
            node.marked = true;
            let wait = Duration::from_millis(node.longest.wait_ms);
            node.quarantine = Some(Deadline::new(now.clone(), wait));
        } else {
            node.quarantine = node
                .quarantine
                .filter(|quarantine| !quarantine.left(&now).is_zero())
                .map(|quarantine| quarantine.carried(&now));
        }

        let longest_term = content.longest_term();
        let number = content.openings.keys().last().map_or(1, |last| last + 1);
        let mut openings: BTreeMap<_, _> = content
            .openings
            .iter()
            .filter(|(_, opened)| !opened.left(longest_term, &now).is_zero())
            .map(|(number, opened)| (*number, opened.carried(&now)))
            .collect();
        openings.insert(number, now.clone());
        Self {
            number,
            node,
            openings,
            doubt,
            clocks_went_back,
            now,
        }
    }

    /// How long a stored lease still counts.
    ///
    /// Only the first extension after an opening is written. The leader may therefore have had a reply with a full term
    /// until the process that last granted or extended the lease ended. That was before the opening that followed.
    pub(super) fn left(&self, lease: &LeaseRecord) -> Duration {
        let term = Duration::from_millis(lease.term_ms);
        match self.openings.get(&lease.opening.saturating_add(1)) {
            Some(opened) => opened.left(term, &self.now),
            // The opening was so long ago that its record is gone.
            None if lease.opening < self.number => Duration::ZERO,
            None => term,
        }
    }

    /// How long the node is in quarantine; `None`: it has no incarnation record yet.
    pub(super) fn quarantine(&self) -> Option<Duration> {
        let left = self.node.quarantine.as_ref();
        let left = left.map_or(Duration::ZERO, |quarantine| quarantine.left(&self.now));
        self.node.marked.then_some(left)
    }

    pub(super) fn generation(&self) -> Generation {
        generation(&self.node)
    }
}

pub(super) fn generation(node: &Node) -> Generation {
    Generation::new(&node.lineage, node.sequence, &node.longest)
}

/// The longest wait that leaders may need: the agent's own, or that of earlier agents, until the last of their terms
/// are over.
fn longest(
    content: &Content,
    generation: Option<&Generation>,
    guard: Option<Duration>,
    in_doubt: bool,
    now: &Reading,
) -> Longest {
    let stored = content.node.as_ref().map(|node| &node.longest);
    let remembered = match stored {
        Some(stored) => stored.wait(now),
        // Format 1 does not record it; no guard was shorter than a granted term.
        None => content.longest_term(),
    };
    let aside = generation.map_or(Duration::ZERO, |generation| generation.longest.wait(now));
    let remembered = remembered.max(aside);
    // Without a guard, the length of terms is unknown until they are granted.
    let own = guard.unwrap_or(remembered);
    let longest = own.max(remembered);
    let running = stored
        .filter(|stored| !in_doubt && stored.last_ms == millis(own))
        .and_then(|stored| stored.lowered.as_ref())
        .map(|lowered| lowered.carried(now));
    Longest {
        wait_ms: millis(longest),
        last_ms: millis(own),
        lowered: (longest > own)
            .then(|| running.unwrap_or_else(|| Deadline::new(now.clone(), longest))),
    }
}
