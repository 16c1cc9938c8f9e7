//! Open files: how many the process may have, and how many of them connections of clients may take.
//!
//! A process that has as many files open as it may accepts no connection, but opens none either: to lease nodes, which
//! have to come back after a restart, and to files that are read anew. So clients get what is left beside a reserve.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    config::Config,
    listener::admission::{Limits, SPARE},
    workers::Workers,
};

/// For what comes and goes: files that are read anew, the embedded store's, name lookups, servers of keys and traces,
/// connections that are accepted to be closed.
const ROOM: usize = 16;
/// For watches and reads of a Kubernetes API server.
const KUBERNETES: usize = 8;
/// How much of the limit is left to clients at the least: with less the agent would do nothing for anybody, and the
/// reserve is an estimate.
const LEAST: usize = 8;

/// Raises the limit as far as the process may. Many systems start processes with a low one for the sake of `select`,
/// which nothing here uses.
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

/// Bounds connections by what is left beside the reserve; logs if that is less than the configuration says.
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

/// How many files are open: the ports', the log's, the threads'.
fn open(askers: usize) -> usize {
    match fs::read_dir("/proc/self/fd") {
        Ok(files) => files.count(),
        // As measured: three a runtime, and the process's own.
        Err(_) => 12 + 3 * askers,
    }
}

/// How many files will be needed for other things than connections of clients.
fn reserve(config: &Config, askers: usize) -> usize {
    let deployments = config.store.deployments.iter().chain(&config.store.next);
    let nodes: usize = deployments
        // One that is replaced is closed when its last request is done with it.
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
