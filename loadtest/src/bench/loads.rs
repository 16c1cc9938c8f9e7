//! Loads on what this program has started.

use std::net::SocketAddr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::processes::{Agent, Redis};
use crate::{
    caller::Protocol,
    options::{Amount, Load, Scenario},
    report::Report,
    run::run,
};

/// Files that a process has open besides its connections to clients, or this program's to it, with room to spare.
const OTHER_FILES: u64 = 200;

/// Has clients ask an agent, each on its own connection, and looks at the agent and its servers.
///
/// # Errors
/// There are no connections, or an answer was an error: what is quick but wrong is no figure.
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

/// Puts a load on an agent, and looks at the agent and its servers.
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

/// A report without errors.
///
/// # Errors
/// It has some, or nothing was answered at all.
pub(crate) fn sound(report: Report) -> Result<Report, String> {
    if report.requests > 0 && report.errors.is_empty() {
        return Ok(report);
    }
    let told: Vec<_> = report
        .errors
        .iter()
        .map(|(error, times)| format!("{times} × {error}"))
        .collect();
    Err(format!(
        "{} over {}: of {} answers these were errors: {}",
        report.scenario,
        report.protocol,
        report.requests,
        told.join(", ")
    ))
}

/// The URL of an address.
///
/// # Errors
/// None that could come.
pub(crate) fn uri(address: SocketAddr) -> Result<http::Uri, String> {
    let uri = format!("http://{address}").parse();
    uri.map_err(|error: http::uri::InvalidUri| error.to_string())
}

/// Lets this program, and those that it starts, have as many connections open, as far as the system lets it.
///
/// # Errors
/// Tells the limit if that is lower.
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
        let told = sound(report(5, &[("Unavailable", 2), ("wrong: two leaders", 1)]));
        let told = told.expect_err("it has errors");
        assert!(told.contains("of 8 answers"), "{told}");
        assert!(
            told.contains("2 × Unavailable, 1 × wrong: two leaders"),
            "{told}"
        );
        assert!(sound(report(0, &[])).is_err(), "nothing was answered");
    }
}
