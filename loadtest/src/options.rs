//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures an election agent from outside.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, about)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sends requests over gRPC (HTTP/2)
    Grpc(Load),
    /// Sends requests over REST (HTTP/1.1)
    Rest(Load),
    /// Sends requests over gRPC-Web (HTTP/1.1)
    GrpcWeb(Load),
    /// Serves a bare tonic echo of CampaignResult: the least that a gRPC call costs here
    Floor {
        /// Where to listen; port 0 is any free one, which is printed
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Prints the figures of B as ratios of those of A
    Compare {
        /// A result that --json wrote
        a: PathBuf,
        /// Another
        b: PathBuf,
    },
    /// Starts three Redis servers, the floor and an agent, measures what the agent costs, and fails if it costs
    /// more than its bars allow
    Bench(Bench),
    /// Starts Redis servers and agents, and shows how cost grows with clients, nodes and elections
    Growth(Growth),
    /// Starts Redis servers and agents, and measures campaigns that wait
    Wait(Wait),
    /// Starts Redis servers and an agent, and measures observers
    Observe(Observe),
    /// Starts Redis servers and an agent, and measures streams that lead
    Lead(Lead),
}

/// What `bench` measures with.
#[derive(Debug, Clone, Args)]
pub struct Bench {
    /// The agent's binary
    #[arg(long)]
    pub agent: PathBuf,
    /// How often everything is measured; medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// How long each load lasts in a round, such as 5s
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub duration: Duration,
    /// How many clients send requests at once, each on its own connection
    #[arg(short, long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// How many connections are open when memory is measured
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub open: u32,
    /// Writes all figures to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What `growth` measures with.
#[derive(Debug, Clone, Args)]
pub struct Growth {
    /// What grows [default: each of them]
    #[arg(value_enum)]
    pub what: Option<Grows>,
    /// The agent's binary
    #[arg(long)]
    pub agent: PathBuf,
    /// How long each load lasts, such as 5s
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub duration: Duration,
    /// How many clients, each on its own connection
    #[arg(long, value_delimiter = ',', default_value = "100,1000,3000,10000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: Vec<u32>,
    /// How many Redis servers
    #[arg(long, value_delimiter = ',', default_value = "1,3,5", value_parser = clap::value_parser!(u32).range(1..=15))]
    pub nodes: Vec<u32>,
    /// How many elections are held
    #[arg(long, value_delimiter = ',', default_value = "1000,100000,1000000", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub elections: Vec<u32>,
    /// Writes all figures to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What `wait` measures with.
#[derive(Debug, Clone, Args)]
pub struct Wait {
    /// The agent's binary
    #[arg(long)]
    pub agent: PathBuf,
    /// How many agents, each number in turn
    #[arg(long, value_delimiter = ',', default_value = "1,10", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub agents: Vec<u32>,
    /// How many campaigns wait
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub waiters: u32,
    /// For how many elections
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub elections: u32,
    /// How many connections they share
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// How long each waits before it campaigns again; an agent permits up to its EA_MAX_WAIT
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub wait: Duration,
    /// How often a leader resigns, and how often a term ends
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub changes: u32,
    /// How long nothing changes while the cost of waiting is measured
    #[arg(long, default_value = "20s", value_parser = duration)]
    pub idle: Duration,
    /// Writes all figures to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What `observe` measures with.
#[derive(Debug, Clone, Args)]
pub struct Observe {
    /// The agent's binary
    #[arg(long)]
    pub agent: PathBuf,
    /// How many streams observe one election
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub observers: u32,
    /// How many connections they share
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// How often the election changes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub changes: u32,
    /// How many held elections one more stream observes
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub watched: u32,
    /// How long nothing changes while idle costs are measured
    #[arg(long, default_value = "20s", value_parser = duration)]
    pub idle: Duration,
    /// Writes all figures to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What `lead` measures with.
#[derive(Debug, Clone, Args)]
pub struct Lead {
    /// The agent's binary
    #[arg(long)]
    pub agent: PathBuf,
    /// How many elections one stream leads, besides a stream of 100
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub elections: u32,
    /// How often each stream pings, one ping after the other
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pings: u32,
    /// How long the cost of keeping terms is measured, after as long without any activity
    #[arg(long, default_value = "20s", value_parser = duration)]
    pub idle: Duration,
    /// Writes all figures to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub enum Grows {
    /// Clients, each on its own connection; three nodes
    Clients,
    /// Redis servers; 100 clients
    Nodes,
    /// Elections that are held; three nodes, 100 clients
    Elections,
}

/// How to send requests.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// The agent: http://HOST:PORT or https://HOST:PORT
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub host: http::Uri,
    /// What to request
    #[arg(long, value_enum, default_value_t = Scenario::Mixed)]
    pub scenario: Scenario,
    /// How many clients send requests at once
    #[arg(short, long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// How many requests each client makes
    #[arg(short, long, conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub iterations: Option<u64>,
    /// How long to send requests, such as 10s or 2m [default: 10s, unless iterations are given]
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// How many requests a second all clients make together, regardless of replies (open loop): latencies count from
    /// when a request was due. Without it each client sends a request as soon as it has the reply (closed loop)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// How many connections all clients share [default: one for each client]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: Option<u32>,
    /// Certificates (PEM) of the authorities that may have signed the agent's
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// A bearer token
    #[arg(long, env = "LOADTEST_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The prefix of candidates' names: NAME/leader-0, NAME/rival; the agent lets a token's owner act only for its own
    /// names [default: leader-0, rival]
    #[arg(long, value_name = "NAME")]
    pub candidate: Option<String>,
    /// The term of campaigns, such as 60s
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub term: Duration,
    /// The namespace that `pods` requests
    #[arg(long, default_value = "default")]
    pub namespace: String,
    /// The deployment that `pods` requests
    #[arg(long, default_value = "web")]
    pub deployment: String,
    /// The agent's process on this machine, to report CPU and memory
    #[arg(long)]
    pub agent_pid: Option<u32>,
    /// A Redis server's process on this machine; may be given more than once
    #[arg(long)]
    pub redis_pid: Vec<u32>,
    /// Writes the result to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Shows no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// What clients request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub enum Scenario {
    /// Each client wins one election, then extends its term and loses campaigns of a second candidate in turn
    Mixed,
    /// Each client campaigns for its own election again and again, and wins
    Campaign,
    /// Each client campaigns for a new election each time, and wins
    Hold,
    /// Each client wins one election, and extends its term
    Extend,
    /// Each client wins one election, and reads its leader
    Leader,
    /// Each client checks the agent's health: gRPC health, or /livez
    Health,
    /// Each client requests a deployment's pods
    Pods,
    /// Each client's leader stops extending; reports how long after the end of its term the next one leads
    Failover,
}

impl Scenario {
    /// Returns whether each client first wins an election, which it then must lead.
    #[must_use]
    pub fn has_leader(self) -> bool {
        matches!(self, Self::Mixed | Self::Extend | Self::Leader)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}: give a duration such as 500ms, 10s or 2m"))
}

/// By how much a term may end sooner by another clock than by this one: 1 % and 2 ms.
pub(crate) fn allowance(term: Duration) -> Duration {
    term / 100 + Duration::from_millis(2)
}

/// How much to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// As many requests by each client.
    Iterations(u64),
    /// For as long.
    Duration(Duration),
}

impl Load {
    /// Creates options with these values and the command line's defaults, for a run without progress.
    #[must_use]
    pub fn of(host: http::Uri, scenario: Scenario, clients: u32, amount: Amount) -> Self {
        let (iterations, duration) = match amount {
            Amount::Iterations(iterations) => (Some(iterations), None),
            Amount::Duration(duration) => (None, Some(duration)),
        };
        Self {
            host,
            scenario,
            clients,
            iterations,
            duration,
            rate: None,
            connections: None,
            ca: None,
            token: None,
            candidate: None,
            term: Duration::from_secs(60),
            namespace: "default".to_owned(),
            deployment: "web".to_owned(),
            agent_pid: None,
            redis_pid: Vec::new(),
            json: None,
            quiet: true,
        }
    }

    /// How much to request.
    #[must_use]
    pub fn amount(&self) -> Amount {
        match (self.iterations, self.duration) {
            (Some(iterations), _) => Amount::Iterations(iterations),
            (None, duration) => Amount::Duration(duration.unwrap_or(Duration::from_secs(10))),
        }
    }

    /// Checks that the options do not conflict.
    ///
    /// # Errors
    /// Names the options that conflict.
    pub fn check(&self) -> Result<(), String> {
        if self.scenario != Scenario::Failover {
            return Ok(());
        }
        if self.rate.is_some() {
            return Err("failover makes requests when terms end: give it no --rate".to_owned());
        }
        match self.duration {
            Some(duration) if duration < self.term => Err(format!(
                "failover lasts a term at the least: give a --duration of {} or more, or a --term of {} or less",
                humantime::format_duration(self.term),
                humantime::format_duration(duration)
            )),
            _ => Ok(()),
        }
    }

    /// The name of a candidate.
    #[must_use]
    pub fn candidate(&self, name: &str) -> String {
        match &self.candidate {
            Some(owner) => format!("{owner}/{name}"),
            None => name.to_owned(),
        }
    }

    /// The minimum duration of a term by any clock: 1 % and 2 ms less than the nominal term.
    #[must_use]
    pub fn least_term(&self) -> Duration {
        self.term.saturating_sub(allowance(self.term))
    }

    /// The term in ms.
    #[must_use]
    pub fn term_millis(&self) -> i32 {
        i32::try_from(self.term.as_millis()).unwrap_or(i32::MAX)
    }
}
