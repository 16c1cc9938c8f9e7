//! Measures the cost of immediate notification: campaigns that wait, observers, and streams that lead.
//!
//! This program starts three Redis servers and agents. Its own clients share the machine with them, so their CPU time
//! is printed, too.

mod client;
mod figures;
mod lead;
mod observe;
mod wait;

pub use lead::lead;
pub use observe::observe;
pub use wait::wait;

use std::{convert::Infallible, ffi::OsStr, time::Duration};

use futures_util::future::try_join_all;
use http::StatusCode;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    bench::{
        get,
        processes::{Agent, Redis, until},
    },
    usage,
};

/// The number of lease nodes of each agent.
const NODES: u32 = 3;
/// How long agents may take to start everything that is to be measured, and a due reply or message to arrive. Far
/// longer than anything measured here.
const WITHIN: Duration = Duration::from_secs(60);

/// The value of a metric without labels, summed over the agents.
async fn metric(agents: &[Agent], name: &str) -> Result<u64, String> {
    let name = format!("election_agent_{name}");
    let mut sum = 0;
    for agent in agents {
        let (status, body) = get(agent.http(), "/metrics").await?;
        let body = String::from_utf8_lossy(&body);
        let value = body.lines().find_map(|line| {
            line.strip_prefix(&*name)?
                .strip_prefix(' ')?
                .parse::<u64>()
                .ok()
        });
        match value {
            Some(value) if status == StatusCode::OK => sum += value,
            _ => return Err(format!("/metrics ({status}) has no value of {name}")),
        }
    }
    Ok(sum)
}

/// Waits until the metric of all agents together has this value, and no agent may miss changes.
async fn until_all(agents: &[Agent], name: &str, expected: u64) -> Result<(), String> {
    let mut last = Err("there are no metrics".to_owned());
    let settled = until(WITHIN, async || {
        last = metric(agents, name).await;
        let deaf = metric(agents, "board_deaf").await;
        (last.as_ref() == Ok(&expected) && deaf == Ok(0)).then_some(())
    });
    match (settled.await, last) {
        (Some(()), _) => Ok(()),
        (None, Ok(last)) => Err(format!("{name} is {last} instead of {expected}")),
        (None, Err(error)) => Err(error),
    }
}

/// The resident memory of all agents together, in bytes.
fn memory(agents: &[Agent]) -> Result<f64, String> {
    let each = agents.iter().map(|agent| usage::memory(agent.pid()));
    Ok(each.sum::<Result<u64, _>>()? as f64)
}

/// CPU time, in seconds, and wall time.
#[derive(Debug, Clone, Copy)]
struct Spent {
    /// Of all agents together.
    agents: f64,
    /// Of this program.
    tool: f64,
    took: Duration,
}

impl Spent {
    /// The CPU time of an agent on average, in % of a core.
    fn agent_percent(&self, agents: &[Agent]) -> f64 {
        self.agents / self.took.as_secs_f64() / agents.len() as f64 * 100.0
    }

    /// The CPU time of all agents beyond what they need while idle, in seconds.
    fn agents_over(&self, idle: &Self) -> f64 {
        self.agents - idle.agents / idle.took.as_secs_f64() * self.took.as_secs_f64()
    }

    /// The CPU time of this program, in % of a core.
    fn tool_percent(&self) -> f64 {
        self.tool / self.took.as_secs_f64() * 100.0
    }
}

/// Measures CPU time while a future runs.
async fn spent<T>(
    agents: &[Agent],
    what: impl Future<Output = Result<T, String>>,
) -> Result<(T, Spent), String> {
    let mut pids = vec![std::process::id()];
    pids.extend(agents.iter().map(Agent::pid));
    let began = Instant::now();
    let (done, used) = usage::during(&pids, what).await?;
    let took = began.elapsed();
    let done = done?;
    let used: Vec<_> = used.into_iter().collect::<Result<_, _>>()?;
    let all: f64 = used.iter().map(|used| used.cpu_seconds).sum();
    let tool = used.first().map_or(0.0, |used| used.cpu_seconds);
    let agents = all - tool;
    Ok((done, Spent { agents, tool, took }))
}

/// Runs a future, and fails as soon as one of the tasks does.
async fn unless_failed<T>(
    tasks: &mut JoinSet<Result<Infallible, String>>,
    what: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    tokio::select! {
        done = what => done,
        Some(failed) = tasks.join_next() => Err(match failed {
            Ok(Err(error)) => error,
            Err(error) => error.to_string(),
        }),
    }
}

/// Adds the last lines of the agents' logs to an error.
fn with_logs<T>(agents: &[Agent], done: Result<T, String>) -> Result<T, String> {
    done.map_err(|error| {
        let logs: Vec<_> = agents.iter().map(Agent::log).collect();
        format!("{error}\nthe agents' logs end:\n{}", logs.join("\n"))
    })
}

/// How many scripts and pings all servers have been sent.
async fn sent(servers: &[Redis]) -> Result<u64, String> {
    let infos = servers
        .iter()
        .map(|server| server.ask(["INFO", "commandstats"].map(OsStr::new)));
    Ok(try_join_all(infos)
        .await?
        .iter()
        .map(|info| calls(info))
        .sum())
}

/// How many scripts were called and pings sent. The server also counts the commands that scripts call; these are no
/// round trips.
fn calls(info: &str) -> u64 {
    let calls = info.lines().filter_map(|line| {
        let (command, figures) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        let sent = command.starts_with("eval") || command.starts_with("fcall") || command == "ping";
        let (calls, _) = figures.strip_prefix("calls=")?.split_once(',')?;
        calls.parse::<u64>().ok().filter(|_| sent)
    });
    calls.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_scripts_are_no_commands_of_clients() {
        let info = "# Commandstats\r\n\
            cmdstat_evalsha:calls=30,usec=1,usec_per_call=0.03\r\n\
            cmdstat_evalsha_ro:calls=5,usec=1\r\n\
            cmdstat_hmget:calls=400,usec=1\r\n\
            cmdstat_ping:calls=2,usec=1\r\n\
            cmdstat_config|get:calls=1,usec=1\r\n";
        assert_eq!(calls(info), 37);
    }
}
