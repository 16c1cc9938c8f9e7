//! The cost of the agent's scripts on Redis servers without any other load, in pipelines of 16.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, process::Stdio, time::Duration};

use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::{process::Command, time::timeout};

use super::{
    loads::uri,
    monitor::{Arguments, parse},
    processes::{Agent, LONG_TERM, Redis, missing},
};
use crate::{
    caller::{Answer, Ask, Caller, Connector, Protocol},
    options::{Amount, Load, Scenario},
    usage,
};

/// The program that sends a command many times.
pub(super) const BENCHMARK: &str = "redis-benchmark";
/// The placeholder that it replaces with twelve digits, different in each command.
const ANY: &str = "__rand_int__";
/// The number of elections that are used in turn. With a single election, most extensions would come within
/// the same ms as the one before, and change nothing.
const HELD: u32 = 1_000;
/// How many commands each connection sends at once.
const PIPELINE: &str = "16";
/// How long a command may take to appear in MONITOR.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
const LEADER: &str = "leader";

/// The commands by which an agent extends a term and loses a campaign, for any of the held elections.
#[derive(Debug)]
pub(super) struct Scripts {
    extension: Arguments,
    campaign: Arguments,
}

/// The cost of one call: CPU time of all servers together, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Cost {
    /// An extension.
    extension_micros: f64,
    /// A lost campaign.
    campaign_micros: f64,
}

impl Cost {
    /// The cost of a request of the mixed load, which alternates between the two.
    pub(super) fn mixed_micros(self) -> f64 {
        f64::midpoint(self.extension_micros, self.campaign_micros)
    }
}

impl Scripts {
    /// Has an agent win elections for a long term, and captures its commands to a server for an extension and
    /// a lost campaign.
    ///
    /// # Errors
    /// Returns an error if a reply is wrong, or no command appears.
    pub(super) async fn capture(agent: &Agent, server: &Redis) -> Result<Self, String> {
        let mut load = Load::of(
            uri(agent.grpc())?,
            Scenario::Mixed,
            1,
            Amount::Iterations(1),
        );
        load.term = LONG_TERM;
        let connector = Connector::new(&load, b"h2")?;
        let caller = Caller::connect(Protocol::Grpc, &connector, &load).await;
        let caller = caller.map_err(|error| error.to_string())?;
        let ask = async |ask: Ask<'_>, expected| {
            let answered = caller.clone().call(ask).await;
            match answered.map_err(|error| format!("{ask:?}: {error}"))? {
                answer if answer == expected => Ok(()),
                _ => Err(format!("{ask:?}: the answer is wrong")),
            }
        };
        let names: Vec<_> = (0..HELD)
            .map(|number| name(&format!("{number:012}")))
            .collect();
        let winning = names.iter().map(|election| {
            let candidate = LEADER;
            ask(
                Ask::Campaign {
                    election,
                    candidate,
                },
                Answer::Yes,
            )
        });
        try_join_all(winning).await?;

        let mut monitor = server.monitor().await?;
        let election = &*name(&format!("{:012}", 0));
        // The agent may also repair a server that missed the election of the leader.
        let mut seen = async |candidate: &str, other_than: Option<&Arguments>| {
            let seeing = async {
                while let Some(line) = monitor.next().await {
                    let Some(command) = parse(&line) else {
                        continue;
                    };
                    let same = other_than.is_some_and(|other| other.get(1) == command.get(1));
                    let names = command
                        .iter()
                        .any(|argument| argument == candidate.as_bytes());
                    if let Some(command) = of_any(&command, election).filter(|_| names && !same) {
                        return Ok(command);
                    }
                }
                Err("MONITOR has ended".to_owned())
            };
            let unseen =
                |_| "MONITOR shows no command of the agent that names the election".to_owned();
            timeout(SEEN_WITHIN, seeing).await.map_err(unseen)?
        };
        let leader = LEADER;
        ask(Ask::Extend { election, leader }, Answer::Yes).await?;
        let extension = seen(leader, None).await?;
        let candidate = "rival";
        ask(
            Ask::Campaign {
                election,
                candidate,
            },
            Answer::No,
        )
        .await?;
        let campaign = seen(candidate, Some(&extension)).await?;
        Ok(Self {
            extension,
            campaign,
        })
    }

    /// Has `redis-benchmark` send each of the commands to all servers, `calls` times.
    ///
    /// # Errors
    /// Returns an error if `redis-benchmark` is missing, or a server does not reply as it does to the agent.
    pub(super) async fn cost(&self, servers: &[Redis], calls: u32) -> Result<Cost, String> {
        let cost = async |command, outcome| {
            let pids: Vec<_> = servers.iter().map(Redis::pid).collect();
            check(servers, command, outcome).await?;
            let sending = servers.iter().map(|server| send(server, command, calls));
            let (sent, used) = usage::during(&pids, try_join_all(sending)).await?;
            sent?;
            // Verifies that the measured commands did what they do for the agent.
            check(servers, command, outcome).await?;
            let seconds = used.into_iter().map(|used| Ok(used?.cpu_seconds));
            let seconds = seconds.sum::<Result<f64, String>>()?;
            Ok::<_, String>(seconds * 1e6 / f64::from(calls))
        };
        Ok(Cost {
            extension_micros: cost(&self.extension, "renewed").await?,
            campaign_micros: cost(&self.campaign, "held").await?,
        })
    }
}

fn name(number: &str) -> String {
    format!("bench-{number}")
}

/// Replaces the election in the command by the placeholder; `None` if the command does not contain the
/// election.
fn of_any(command: &Arguments, election: &str) -> Option<Arguments> {
    let any = replaced(command, election, &name(ANY));
    (any != *command).then_some(any)
}

fn replaced(command: &Arguments, what: &str, by: &str) -> Arguments {
    let argument = |argument: &Vec<u8>| {
        let mut replaced = Vec::new();
        let mut rest = &**argument;
        while let Some(next) = rest.first() {
            match rest.strip_prefix(what.as_bytes()) {
                Some(after) => {
                    replaced.extend_from_slice(by.as_bytes());
                    rest = after;
                }
                None => {
                    replaced.push(*next);
                    rest = &rest[1..];
                }
            }
        }
        replaced
    };
    command.iter().map(argument).collect()
}

/// Sends the command to every server once, for one of the elections.
async fn check(servers: &[Redis], command: &Arguments, outcome: &str) -> Result<(), String> {
    let command = replaced(command, ANY, &format!("{:012}", HELD - 1));
    for server in servers {
        let words = command.iter().map(|word| OsStr::from_bytes(word));
        let answer = server.ask(words).await;
        let answer = answer.map_err(|error| format!("the agent's command: {error}"))?;
        if answer.lines().next() != Some(outcome) {
            return Err(format!(
                "the agent's command is answered {answer:?} instead of {outcome}"
            ));
        }
    }
    Ok(())
}

async fn send(server: &Redis, command: &Arguments, calls: u32) -> Result<(), String> {
    let output = Command::new(BENCHMARK)
        .args(["-h", "127.0.0.1", "-p", &server.port().to_string()])
        .args(["-P", PIPELINE, "-r", &HELD.to_string()])
        .args(["-n", &calls.to_string(), "-q"])
        .args(command.iter().map(|argument| OsStr::from_bytes(argument)))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| missing(BENCHMARK, &error))?;
    if !output.status.success() {
        let output_text = String::from_utf8_lossy(&output.stdout);
        let output_text = format!("{output_text}{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!("{BENCHMARK}: {}: {output_text}", output.status));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_for_any_election_where_they_name_one() {
        let arguments = |texts: &[&str]| -> Arguments {
            texts.iter().map(|text| text.as_bytes().to_vec()).collect()
        };
        let command = arguments(&[
            "EVALSHA",
            "ab",
            "lease:bench-000000000000:bench-000000000000",
            "x",
        ]);
        let any = of_any(&command, "bench-000000000000").expect("it names one");
        let expected = [
            "EVALSHA",
            "ab",
            "lease:bench-__rand_int__:bench-__rand_int__",
            "x",
        ];
        assert_eq!(any, arguments(&expected));
        assert_eq!(replaced(&any, ANY, "000000000000"), command);
        assert_eq!(
            of_any(&arguments(&["PING", ""]), "bench-000000000000"),
            None
        );
    }

    #[test]
    fn a_mixed_request_is_the_mean_of_both_scripts() {
        let cost = Cost {
            extension_micros: 30.0,
            campaign_micros: 20.0,
        };
        assert_eq!(cost.mixed_micros(), 25.0);
    }
}
