//! How a node's servers are reached.

use std::time::Duration;

use super::Askers;

/// What errors call the settings that they advise to change.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The servers' URLs, with users and passwords.
    pub urls: &'static str,
    /// What the servers are; its values are `single`, `failover` and `cluster`.
    pub mode: &'static str,
    /// The primary's name with the Sentinels.
    pub master: &'static str,
    /// The user that Sentinels are asked as.
    pub sentinel_username: &'static str,
    /// That user's password.
    pub sentinel_password: &'static str,
    /// What all keys begin with.
    pub prefix: &'static str,
    /// [`Use::allow_eviction`](super::Use::allow_eviction); its values are `true` and `false`.
    pub allow_eviction: &'static str,
}

/// Who connects to servers, and how long that may take.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    pub(super) askers: Askers,
    /// Bounds every attempt to connect, ping and question.
    pub(super) limit: Duration,
    pub(super) names: Names,
}
