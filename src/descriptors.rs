//! Open file descriptors: the limit of the process, and the share that client connections may use.
//!
//! A process at its limit accepts no connection, but also opens none to lease nodes, which must reconnect after a
//! restart, and cannot reload files. Clients therefore get the limit minus a reserve.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    config::Config,
    listener::admission::{Limits, SPARE},
    workers::Workers,
};

/// Reserve for short-lived files: reloaded files, the embedded store's files, name lookups, servers of keys and traces,
/// and connections that are accepted only to be closed.
const ROOM: usize = 16;
/// Reserve for watches and reads of a Kubernetes API server.
const KUBERNETES: usize = 8;
/// Divisor of the limit: clients get at least one eighth of it. With less the agent would be useless, and the reserve
/// is only an estimate.
const LEAST: usize = 8;

/// Raises the soft limit to the hard limit. Many systems start processes with a low soft limit for the sake of
/// `select`, which the agent does not use.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, limit = limit.current, "the limit of open files cannot be raised");
    }
}

/// Limits connections to the descriptors that the reserve leaves. Logs a warning if the configuration asks for more.
#[must_use]
pub fn bound(config: &Config, workers: &Workers) -> Limits {
    let limits = config.limits.connections;
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return limits;
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let askers = workers.askers().all().count();
    let reserve = open(askers) + reserve(config, askers);
    let left = left(limit, reserve);
    if left >= limits.connections {
        return limits;
    }
    tracing::warn!(
        open_files = limit,
        reserved = reserve,
        connections = left,
        "EA_MAX_CONNECTIONS is {}, but there is no room for as many open files: connections are refused beyond those \
         that fit; raise the hard limit of open files (ulimit -Hn, LimitNOFILE) to {}, or set EA_MAX_CONNECTIONS to \
         what fits",
        limits.connections,
        limits.connections.saturating_add(reserve),
    );
    Limits {
        connections: left,
        bound_by: "open files (ulimit -n)",
        ..limits
    }
}

fn left(limit: usize, reserve: usize) -> usize {
    limit.saturating_sub(reserve).max(limit / LEAST).max(1)
}

/// Returns the number of open descriptors: those of ports, log and threads.
fn open(askers: usize) -> usize {
    match fs::read_dir("/proc/self/fd") {
        Ok(files) => files.count(),
        // Measured: three per runtime, plus those of the process.
        Err(_) => 12 + 3 * askers,
    }
}

/// Returns the number of descriptors reserved for other uses than client connections.
fn reserve(config: &Config, askers: usize) -> usize {
    let deployments = config.store.deployments.iter().chain(&config.store.next);
    let nodes: usize = deployments
        // A replaced connection closes only after its last request has ended, so each may exist twice.
        .map(|deployment| 2 * deployment.connections(askers))
        .sum();
    let kubernetes = if config.kube.enable { KUBERNETES } else { 0 };
    nodes + kubernetes + ROOM + SPARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_is_left_and_never_nothing() {
        assert_eq!(left(1024, 100), 924);
        assert_eq!(left(64, 60), 8);
        assert_eq!(left(64, 1000), 8);
        assert_eq!(left(4, 1000), 1);
    }
}
