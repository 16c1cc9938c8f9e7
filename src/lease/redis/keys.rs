//! Every Redis key, in one place.
//!
//! All keys of a partition share one hash tag, its number, so that a script's keys are always in one slot.

use std::{fmt, io::Write as _};

use redis::{RedisWrite, ToRedisArgs, ToSingleRedisArg};

use crate::election::types::ElectionId;

/// A key: what a partition's keys of a sort begin with, and an election's path.
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

/// Written straight into the command: every request has several.
impl ToRedisArgs for Key<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut argument = out.writer_for_next_arg();
        // A command in memory takes all that is written.
        let _ = argument.write_all(self.prefix.as_bytes());
        let _ = argument.write_all(self.path.as_bytes());
    }
}

impl ToSingleRedisArg for Key<'_> {}

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
    pub(super) fn lease<'a>(&'a self, election: &'a ElectionId) -> Key<'a> {
        Key {
            prefix: &self.lease,
            path: election.path(),
        }
    }

    /// String: the highest token accepted; expires after the retention.
    pub(super) fn floor<'a>(&'a self, election: &'a ElectionId) -> Key<'a> {
        Key {
            prefix: &self.floor,
            path: election.path(),
        }
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
        let of_election = [keys.lease(&election), keys.floor(&election)].map(|key| key.to_string());
        let expected = [
            "ela:{17}:lease:batch/nightly",
            "ela:{17}:floor:batch/nightly",
        ];
        assert_eq!(of_election, expected);
        for key in [&keys.marker, &keys.agents, &keys.index, &keys.expiry] {
            assert!(key.starts_with("ela:{17}:"), "{key}");
        }
    }
}
