//! How a node's servers are reached.

use std::time::Duration;

use super::Askers;

/// The names that errors use for the settings that they advise to change.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The servers' URLs, with users and passwords.
    pub urls: &'static str,
    /// What the servers are; its values are `single`, `failover` and `cluster`.
    pub mode: &'static str,
    /// The name of the primary that the Sentinels use.
    pub master: &'static str,
    /// The user for queries of Sentinels.
    pub sentinel_username: &'static str,
    /// That user's password.
    pub sentinel_password: &'static str,
    /// The prefix of all keys.
    pub prefix: &'static str,
    /// [`Use::allow_eviction`](super::Use::allow_eviction); its values are `true` and `false`.
    pub allow_eviction: &'static str,
}

/// The runtimes that connect to servers, and how long that may take.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    pub(super) askers: Askers,
    /// Bounds every attempt to connect, every ping and every query.
    pub(super) limit: Duration,
    pub(super) names: Names,
}
