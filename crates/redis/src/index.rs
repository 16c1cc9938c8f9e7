//! Keeps the index of held elections complete. Listings are made from this index.
//!
//! Grants and repairs write the index. Extensions do not, as they are the most frequent requests to a node. A lost
//! entry would therefore stay lost for as long as its leader extends. The probe, once a second, looks up elections that
//! were extended since the last one, and restores missing entries:
//!
//! - all elections of partitions that are in **doubt**, each until it has been found or restored. A partition is in
//!   doubt when a server is used for the first time, or in another incarnation, when the partition moves, and when a
//!   script was redirected or deferred;
//! - of all others a few, as **spot checks**. When one was missing, all partitions are in doubt.
//!
//! The probe also tidies partitions in which listings have met entries without a lease.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use election_core::{
    lease::{LIST_EXAMINES, NodeError},
    types::ElectionId,
};
use futures_util::{StreamExt as _, stream};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout};

use super::{
    AT_ONCE, Redis,
    script::{Call, SCRIPTS},
};

/// How many elections each probe looks up as spot checks.
const SPOT_CHECKS: usize = 8;
/// How many elections are noted at most until the next probe. One that does not fit is noted when it is extended again.
const NOTED: usize = 10_000;
/// How many elections of a partition in doubt are remembered as settled; others are looked up again.
const SETTLED: usize = 100_000;
/// How many elections one script looks up: other commands wait for it.
const BATCH: usize = 100;
/// How long all lookups may take: the probe waits for them. An election that is left out is looked up when it is
/// extended again.
const WITHIN: Duration = Duration::from_secs(1);
/// How often the log repeats that an index cannot be maintained.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// The elections to be looked up in the index.
#[derive(Debug)]
pub(super) struct Index {
    /// Whether extensions are noted at all: most extensions read nothing else.
    notes_extensions: AtomicBool,
    notes: Mutex<Notes>,
    hasher: RandomState,
    /// Every leader extends at least once within this time.
    longest_term: Duration,
    /// The number of partitions.
    partitions: u16,
}

#[derive(Debug, Default)]
struct Notes {
    /// How many elections are still wanted for spot checks.
    wanted: usize,
    doubts: HashMap<u16, Doubt>,
    /// Partitions in which entries were missing, and until when others may be.
    lacking: HashMap<u16, Instant>,
    /// Elections that were extended, by partition, and their number.
    extended: BTreeMap<u16, HashSet<Box<str>>>,
    noted: usize,
    /// Partitions with entries that have no lease.
    untidy: BTreeSet<u16>,
    complained: Option<Instant>,
}

#[derive(Debug)]
struct Doubt {
    until: Instant,
    /// Hashes of the paths that the index has. A collision costs at worst a lost entry, which a spot check finds.
    settled: HashSet<u64>,
}

impl Index {
    pub(super) fn new(longest_term: Duration, partitions: u16) -> Self {
        Self {
            notes_extensions: AtomicBool::new(false),
            notes: Mutex::default(),
            hasher: RandomState::new(),
            longest_term,
            partitions,
        }
    }

    /// Notes that an election was extended, if it is to be looked up.
    pub(super) fn extended(&self, partition: u16, election: &ElectionId) {
        if !self.notes_extensions.load(Ordering::Relaxed) {
            return;
        }
        let path = election.path();
        let mut notes = self.notes();
        let notes = &mut *notes;
        let doubt = notes.doubts.get(&partition);
        let doubted = doubt.is_some_and(|doubt| !doubt.settled.contains(&self.hash(path)));
        // By chance, so that leaders which extend in step with the probe are all looked up eventually.
        let spot_check = !doubted && notes.wanted > 0 && fastrand::bool();
        if !(doubted || spot_check) || notes.noted == NOTED {
            return;
        }
        let elections = notes.extended.entry(partition).or_default();
        if !elections.contains(path) {
            elections.insert(path.into());
            notes.noted += 1;
            notes.wanted -= usize::from(spot_check);
        }
        self.watch(notes);
    }

    /// Puts the index of these partitions in doubt.
    pub(super) fn doubt(&self, partitions: impl IntoIterator<Item = u16>) {
        let mut partitions = partitions.into_iter().peekable();
        if partitions.peek().is_none() {
            return;
        }
        let mut notes = self.notes();
        // Twice, so that an election whose first lookup failed gets another one.
        let until = Instant::now() + 2 * self.longest_term;
        for partition in partitions {
            let settled = HashSet::new();
            notes.doubts.insert(partition, Doubt { until, settled });
        }
        self.watch(&notes);
    }

    /// Whether held elections may be missing: some were, and not all leaders have extended since.
    pub(super) fn lacks(&self, partition: u16) -> bool {
        let notes = self.notes();
        let until = notes.lacking.get(&partition);
        until.is_some_and(|until| Instant::now() < *until)
    }

    /// Requests that the index of a partition is tidied: it has entries without a lease.
    pub(super) fn untidy(&self, partition: u16) {
        self.notes().untidy.insert(partition);
    }

    /// Takes the lookups to do now: for each partition the elections, and whether it must be tidied.
    fn take(&self) -> BTreeMap<u16, (Vec<Box<str>>, bool)> {
        let mut notes = self.notes();
        let now = Instant::now();
        notes.doubts.retain(|_, doubt| now < doubt.until);
        notes.lacking.retain(|_, until| now < *until);
        notes.wanted = SPOT_CHECKS;
        notes.noted = 0;
        let extended = std::mem::take(&mut notes.extended);
        let untidy = std::mem::take(&mut notes.untidy);
        self.watch(&notes);
        drop(notes);
        let mut work: BTreeMap<_, _> = extended
            .into_iter()
            .map(|(partition, paths)| (partition, (paths.into_iter().collect(), false)))
            .collect();
        for partition in untidy {
            work.entry(partition).or_insert((Vec::new(), false)).1 = true;
        }
        work
    }

    /// Notes the index script's reply for these elections.
    fn looked_up(&self, partition: u16, paths: &[Box<str>], reply: &str) {
        if reply.contains('2') {
            // The cause is unknown: other entries may be lost, in other partitions, too.
            let doubted = self.notes().doubts.contains_key(&partition);
            if !doubted {
                self.doubt(0..self.partitions);
            }
            let until = Instant::now() + self.longest_term;
            self.notes().lacking.entry(partition).or_insert(until);
        }
        let mut notes = self.notes();
        let Some(doubt) = notes.doubts.get_mut(&partition) else {
            return;
        };
        for (path, state) in paths.iter().zip(reply.bytes()) {
            if state != b'0' && doubt.settled.len() < SETTLED {
                doubt.settled.insert(self.hash(path));
            }
        }
    }

    /// Whether it is time to log again that an index cannot be maintained.
    fn complains(&self) -> bool {
        let mut notes = self.notes();
        let lately = notes.complained;
        let complains = lately.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
        if complains {
            notes.complained = Some(Instant::now());
        }
        complains
    }

    fn watch(&self, notes: &Notes) {
        let watches = notes.wanted > 0 || !notes.doubts.is_empty();
        self.notes_extensions.store(watches, Ordering::Relaxed);
    }

    fn hash(&self, path: &str) -> u64 {
        self.hasher.hash_one(path)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock()
    }
}

impl Redis {
    /// Looks up recently extended elections in the index, and restores missing entries.
    pub(super) async fn keep_index(&self) {
        // An error means that a server does not reply, which the probe reports.
        let _ = timeout(WITHIN, self.look_up_extended()).await;
    }

    async fn look_up_extended(&self) {
        let mut calls = Vec::new();
        for (partition, (mut paths, untidy)) in self.index.take() {
            if untidy {
                calls.push((partition, Vec::new(), true));
            }
            while !paths.is_empty() {
                let rest = paths.split_off(paths.len().min(BATCH));
                calls.push((partition, paths, false));
                paths = rest;
            }
        }
        let mut replies = stream::iter(calls)
            .map(|(partition, paths, untidy)| async move {
                let reply = self.look_up_in_index(partition, &paths, untidy).await;
                (partition, paths, reply)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((partition, paths, reply)) = replies.next().await {
            match reply {
                Ok(reply) => self.index.looked_up(partition, &paths, &reply),
                // This is expected while a slot is moving: elections in doubt are looked up again.
                Err(NodeError::NotSent(_)) => {}
                Err(error) => {
                    if self.index.complains() {
                        tracing::warn!(
                            node = self.name,
                            partition,
                            %error,
                            "the index of held elections cannot be maintained: listings may lack some"
                        );
                    }
                }
            }
        }
    }

    async fn look_up_in_index(
        &self,
        partition: u16,
        paths: &[Box<str>],
        untidy: bool,
    ) -> Result<String, NodeError> {
        let keys = &self.keys[usize::from(partition)];
        let keys_of_index = [(&keys.index).into(), (&keys.expiry).into()];
        let call = Call::new(&SCRIPTS.index, keys_of_index)
            .arg(keys.lease_prefix())
            .arg(if untidy { LIST_EXAMINES } else { 0 });
        let call = paths.iter().fold(call, |call, path| call.arg(&**path));
        self.reply(partition, &call).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(60);

    fn election(name: &str) -> ElectionId {
        ElectionId::new("k", name).expect("valid")
    }

    fn looks_up(index: &Index, partition: u16) -> Vec<String> {
        let work = index.take();
        let paths = work
            .get(&partition)
            .into_iter()
            .flat_map(|(paths, _)| paths);
        let mut paths: Vec<_> = paths.map(ToString::to_string).collect();
        paths.sort_unstable();
        paths
    }

    #[tokio::test(start_paused = true)]
    async fn elections_of_a_partition_in_doubt_are_looked_up_until_the_index_has_them() {
        let index = Index::new(TERM, 4);
        index.extended(1, &election("a"));
        assert_eq!(looks_up(&index, 1), [""; 0], "nothing was in doubt");
        index.doubt([1]);
        let extend = || {
            for name in ["a", "b", "c"] {
                index.extended(1, &election(name));
            }
        };
        extend();
        let all = ["k/a", "k/b", "k/c"];
        assert_eq!(looks_up(&index, 1), all);
        index.looked_up(1, &all.map(Into::into), "120");
        // No spot checks: the index has had enough lookups.
        index.notes().wanted = 0;
        extend();
        assert_eq!(looks_up(&index, 1), ["k/c"], "it was not there");
        index.doubt([1]);
        index.notes().wanted = 0;
        extend();
        assert_eq!(looks_up(&index, 1), all, "what was there may be lost again");
        tokio::time::advance(2 * TERM).await;
        looks_up(&index, 1);
        index.notes().wanted = 0;
        index.watch(&index.notes());
        extend();
        assert_eq!(
            looks_up(&index, 1),
            [""; 0],
            "all that are held were extended"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_elections_are_looked_up_without_a_reason_and_one_that_is_missing_is_one() {
        let index = Index::new(TERM, 4);
        index.take();
        for _ in 0..10 {
            for n in 0..50 {
                index.extended(1, &election(&format!("e{n}")));
            }
        }
        let looked_up = looks_up(&index, 1);
        assert_eq!(looked_up.len(), SPOT_CHECKS);
        let paths: Vec<Box<str>> = looked_up.iter().map(|path| path.as_str().into()).collect();
        index.looked_up(1, &paths, "11111111");
        assert!(index.notes().doubts.is_empty());
        index.looked_up(1, &paths, "11111121");
        assert_eq!(index.notes().doubts.len(), 4);
        assert!(index.lacks(1) && !index.lacks(2));
        for n in 0..50 {
            index.extended(1, &election(&format!("e{n}")));
        }
        let left = looks_up(&index, 1).len();
        assert!((50 - SPOT_CHECKS..=50).contains(&left), "{left}");
        tokio::time::advance(TERM).await;
        assert!(!index.lacks(1), "every leader has extended");
    }

    #[test]
    fn what_is_noted_is_bounded() {
        let index = Index::new(TERM, 4);
        index.doubt([1, 2]);
        for n in 0..NOTED {
            index.extended(1, &election(&format!("e{n}")));
            index.extended(2, &election(&format!("e{n}")));
        }
        let work = index.take();
        let noted: usize = work.values().map(|(paths, _)| paths.len()).sum();
        assert_eq!(noted, NOTED);
    }
}
