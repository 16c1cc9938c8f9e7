//! Every Redis key, in one place.
//!
//! All keys of a partition share one hash tag, its number, so that a script's keys are always in one slot.

use crate::election::types::ElectionId;

/// Makes the keys of one partition under a prefix (`EA_REDIS_PREFIX`).
#[derive(Debug, Clone)]
pub(super) struct Keys {
    lease: String,
    floor: String,
    /// Hash: the `run` of the server that may grant, and `ready_at` in ms since the epoch.
    pub(super) marker: String,
    /// Hash, in partition 0 only: the list of `nodes` that agents use this one with, the longest `guard` in
    /// ms that any of them asks for, and `guard_at`, when it last did; expires when none comes any more.
    pub(super) agents: String,
    /// Sorted set of `kind/name` by name: what listings walk.
    pub(super) index: String,
    /// Sorted set of `kind/name` by the ms at which its lease may be over: what grants tidy.
    pub(super) expiry: String,
}

impl Keys {
    pub(super) fn new(prefix: &str, partition: u16) -> Self {
        let key = |name: &str| format!("{prefix}:{{{partition}}}:{name}");
        Self {
            lease: key("lease:"),
            floor: key("floor:"),
            marker: key("marker"),
            agents: key("agents"),
            index: key("index"),
            expiry: key("expiry"),
        }
    }

    /// Hash: `leader`, `token`, `value`, `request_id`, `elected_at`, and until the first extension
    /// `attempt` and `before`; expires with the term.
    pub(super) fn lease(&self, election: &ElectionId) -> String {
        [&self.lease, election.path()].concat()
    }

    /// String: the highest token accepted; expires after the retention.
    pub(super) fn floor(&self, election: &ElectionId) -> String {
        [&self.floor, election.path()].concat()
    }

    /// What all lease keys begin with.
    pub(super) fn lease_prefix(&self) -> &str {
        &self.lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_partition_share_one_hash_tag() {
        let keys = Keys::new("ela", 17);
        let election = ElectionId::new("batch", "nightly").expect("valid");
        assert_eq!(keys.lease(&election), "ela:{17}:lease:batch/nightly");
        assert_eq!(keys.floor(&election), "ela:{17}:floor:batch/nightly");
        for key in [&keys.marker, &keys.agents, &keys.index, &keys.expiry] {
            assert!(key.starts_with("ela:{17}:"), "{key}");
        }
    }
}
