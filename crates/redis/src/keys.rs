//! Every Redis key, in one place.
//!
//! All keys of a partition share one hash tag, its number, so that a script's keys are always in one slot.

use std::{fmt, io::Write as _};

use election_core::types::ElectionId;
use redis::{RedisWrite, ToRedisArgs, ToSingleRedisArg};

/// A key: the prefix of a partition's keys of one sort, and an election's path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key<'a> {
    prefix: &'a str,
    path: &'a str,
}

impl<'a> From<&'a String> for Key<'a> {
    fn from(key: &'a String) -> Self {
        Self {
            prefix: key,
            path: "",
        }
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.prefix, self.path)
    }
}

/// Written straight into the command: every request has several keys.
impl ToRedisArgs for Key<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut argument = out.writer_for_next_arg();
        // Writing to a command in memory cannot fail.
        let _ = argument.write_all(self.prefix.as_bytes());
        let _ = argument.write_all(self.path.as_bytes());
    }
}

impl ToSingleRedisArg for Key<'_> {}

/// The keys of one partition under a prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    lease: String,
    high_water_mark: String,
    /// Hash, the incarnation record: the incarnation that may grant (`run`), `of`, the same unless version 0.1.0 wrote
    /// the record, `since` when it remembers and from when on it may grant, `ready_at`, in ms since the epoch (0:
    /// always, of a new server); the longest `guard` and `vote` lifetime in ms that agents have registered, and
    /// `guard_at` and `vote_at`, the time of their last registration.
    pub(super) incarnation_record: String,
    /// String, in partition 0 only: the lists of nodes with which agents use this one, and when an agent with each last
    /// registered.
    pub(super) lists: String,
    /// Hash, in partition 0 only, for version 0.1.0: the list of `nodes`, `guard`, and `guard_at`, which is `told_at`
    /// where this version wrote the guard; expires when no agent registers any more.
    pub(super) agents: String,
    /// Sorted set of `kind/name` by name: the source of listings.
    pub(super) index: String,
    /// Sorted set of `kind/name` by the ms at which its lease may be over: the source of entries for grants to tidy.
    pub(super) expiry: String,
    /// The channel on which scripts announce changes.
    pub(super) changes: String,
}

impl Keys {
    pub(super) fn new(prefix: &str, partition: u16) -> Self {
        let key = |name: &str| format!("{prefix}:{{{partition}}}:{name}");
        Self {
            lease: key("lease:"),
            high_water_mark: key("floor:"),
            incarnation_record: key("marker"),
            lists: key("lists"),
            agents: key("agents"),
            index: key("index"),
            expiry: key("expiry"),
            changes: key("changes"),
        }
    }

    /// Hash: `leader`, `token`, `value`, `request_id`, `elected_at`, and until the first extension `attempt`, `before`
    /// and `low`; expires with the term.
    ///
    /// The scripts derive two more keys from it. `past:` and the path is a hash of what outlives leases
    /// (`acknowledged`, the least token that a repair may write, and `used`, the last request ids); it expires after
    /// the retention. `rolled-back:`, a grant id and the path expires when no copy of that grant can arrive any more.
    pub(super) fn lease<'a>(&'a self, election: &'a ElectionId) -> Key<'a> {
        Key {
            prefix: &self.lease,
            path: election.path(),
        }
    }

    /// String: the highest token accepted; expires after the retention.
    pub(super) fn high_water_mark<'a>(&'a self, election: &'a ElectionId) -> Key<'a> {
        Key {
            prefix: &self.high_water_mark,
            path: election.path(),
        }
    }

    /// The prefix of all lease keys.
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
        let of_election =
            [keys.lease(&election), keys.high_water_mark(&election)].map(|key| key.to_string());
        let expected = [
            "ela:{17}:lease:batch/nightly",
            "ela:{17}:floor:batch/nightly",
        ];
        assert_eq!(of_election, expected);
        let others = [
            &keys.incarnation_record,
            &keys.lists,
            &keys.agents,
            &keys.index,
            &keys.expiry,
            &keys.changes,
        ];
        for key in others {
            assert!(key.starts_with("ela:{17}:"), "{key}");
        }
    }
}
