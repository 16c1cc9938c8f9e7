//! Loads on agents that this program has started.

use std::net::SocketAddr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::processes::{Agent, Redis};
use crate::{
    caller::Protocol,
    options::{Amount, Load, Scenario},
    report::Report,
    run::run,
};

/// A generous estimate of the files that a process has open, other than connections between clients and the
/// agent.
const OTHER_FILES: u64 = 200;

/// Runs clients against an agent, each on its own connection, and measures the agent and its servers.
///
/// # Errors
/// Returns an error if a connection fails or a reply is an error: figures of failed requests are meaningless.
pub(crate) async fn ask(
    agent: &Agent,
    servers: &[Redis],
    protocol: Protocol,
    scenario: Scenario,
    clients: u32,
    amount: Amount,
) -> Result<Report, String> {
    let address = match protocol {
        Protocol::Grpc => agent.grpc(),
        Protocol::Rest | Protocol::GrpcWeb => agent.http(),
    };
    let load = Load::of(uri(address)?, scenario, clients, amount);
    put(agent, servers, protocol, load).await
}

/// Puts a load on an agent, and measures the agent and its servers.
///
/// # Errors
/// As [`ask`].
pub(crate) async fn put(
    agent: &Agent,
    servers: &[Redis],
    protocol: Protocol,
    mut load: Load,
) -> Result<Report, String> {
    load.agent_pid = Some(agent.pid());
    load.redis_pid = servers.iter().map(Redis::pid).collect();
    let measured = |report: Report| match report.agent {
        Some(_) => Ok(report),
        None => Err("the agent ended while it was measured".to_owned()),
    };
    let asked = run(protocol, &load)
        .await
        .and_then(sound)
        .and_then(measured);
    asked.map_err(|error| format!("{error}\nthe agent's log ends:\n{}", agent.log()))
}

/// Returns the report if it is without errors.
///
/// # Errors
/// Returns an error if a request failed, or none was answered.
pub(crate) fn sound(report: Report) -> Result<Report, String> {
    if report.requests > 0 && report.errors.is_empty() {
        return Ok(report);
    }
    let counts: Vec<_> = report
        .errors
        .iter()
        .map(|(error, times)| format!("{times} × {error}"))
        .collect();
    Err(format!(
        "{} over {}: of {} answers these were errors: {}",
        report.scenario,
        report.protocol,
        report.requests,
        counts.join(", ")
    ))
}

/// Returns the URL of an address.
///
/// # Errors
/// None in practice.
pub(crate) fn uri(address: SocketAddr) -> Result<http::Uri, String> {
    let uri = format!("http://{address}").parse();
    uri.map_err(|error: http::uri::InvalidUri| error.to_string())
}

/// Raises the limit of open files for this program and its children to this number of connections, as far as
/// the system permits.
///
/// # Errors
/// Returns an error with the limit if it is lower.
pub(crate) fn allow_connections(connections: u32) -> Result<(), String> {
    let failed = |error: nix::errno::Errno| format!("the limit of open files: {error}");
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    let needed = u64::from(connections) + OTHER_FILES;
    if hard < needed {
        return Err(format!(
            "{connections} connections need {needed} open files, and the limit is {hard}: raise it with \
             `ulimit -Hn {needed}`, or ask for fewer clients"
        ));
    }
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::{Seen, enter};

    fn report(answers: u32, errors: &[(&str, u64)]) -> Report {
        let mut seen = Seen::default();
        for _ in 0..answers {
            enter(&mut seen.latencies, Duration::from_millis(1));
        }
        for (error, times) in errors {
            seen.errors.insert((*error).to_owned(), *times);
        }
        let report = Report {
            protocol: "grpc".to_owned(),
            scenario: "mixed".to_owned(),
            ..Report::default()
        };
        report.with(&seen, Duration::from_secs(1))
    }

    #[test]
    fn what_is_wrong_is_no_figure() {
        assert!(sound(report(5, &[])).is_ok());
        let found = sound(report(5, &[("Unavailable", 2), ("wrong: two leaders", 1)]));
        let found = found.expect_err("it has errors");
        assert!(found.contains("of 8 answers"), "{found}");
        assert!(
            found.contains("2 × Unavailable, 1 × wrong: two leaders"),
            "{found}"
        );
        assert!(sound(report(0, &[])).is_err(), "nothing was answered");
    }
}
