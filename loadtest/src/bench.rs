//! Measures the cost of an agent relative to a minimal server, and reports whether it stays within its bars.
//!
//! This program starts everything: three Redis servers, the floor (a bare tonic server), and agents with
//! every layer on. The machine may have other work. The loads therefore alternate in every round, each figure
//! is compared with one of the same round, and the median of the rounds counts. Clients share the machine
//! with the measured processes. Their CPU time is not part of the figures.

mod bars;
mod http;
pub(crate) mod loads;
mod monitor;
pub(crate) mod processes;
mod scripts;
pub(crate) mod sink;
pub(crate) mod table;

pub(crate) use http::get;

use std::{path::Path, time::Duration};

use serde::Serialize;

use crate::{
    caller::Protocol,
    options::{Amount, Bench, Load, Scenario},
    report::Report,
    run::run,
    usage,
};
use bars::{Figure, missed, table};
use loads::{allow_connections, ask, put, sound, uri};
use processes::{Agent, Floor, Redis, until};
use scripts::{BENCHMARK, Cost, Scripts};
use sink::Sink;

/// The bar for the CPU time of a gRPC health check, relative to a call of the floor.
const HEALTH: f64 = 1.25;
/// The bar for the CPU time of a mixed request over gRPC, relative to a health check.
const GRPC: f64 = 1.35;
/// The bar for the CPU time of a mixed request over REST, relative to one over gRPC.
const REST: f64 = 1.0;
/// The bar for the memory of an open gRPC connection, in KiB.
const CONNECTION: f64 = 32.0;
/// The bar for Redis' CPU time of a mixed request, relative to the same scripts sent by `redis-benchmark`.
const REDIS: f64 = 1.2;

/// The number of lease nodes of each agent.
const NODES: u32 = 3;
/// The maximum duration of a warm-up load.
const WARM_UP: Duration = Duration::from_secs(1);
/// How many calls `redis-benchmark` makes for each second of a load.
const CALLS_PER_SECOND: f64 = 40_000.0;
/// How long to wait for traces. The agent batches them for up to 5 s.
const TRACED_WITHIN: Duration = Duration::from_secs(15);

/// The results of a benchmark.
#[derive(Debug, Serialize)]
struct Measured {
    figures: Vec<Figure>,
    met: bool,
    memory: Memory,
    rounds: Vec<Round>,
}

/// The results of one round.
#[derive(Debug, Serialize)]
struct Round {
    floor: Report,
    health: Report,
    grpc: Report,
    rest: Report,
    scripts: Cost,
}

/// The memory of open connections.
#[derive(Debug, Serialize)]
struct Memory {
    connections: u32,
    idle_bytes: u64,
    peak_bytes: u64,
    /// With all clients in a closed loop: each sends its next request as soon as it has a reply.
    busy_peak_bytes: u64,
}

impl Memory {
    /// The memory of one connection at this peak, in KiB.
    fn each(&self, peak_bytes: u64) -> f64 {
        let over_idle = peak_bytes.saturating_sub(self.idle_bytes);
        over_idle as f64 / f64::from(self.connections) / 1024.0
    }
}

/// Measures, prints a table, and writes the requested files.
///
/// # Errors
/// Returns an error if a bar is missed, a load had errors, or a required program is missing.
pub async fn bench(options: &Bench) -> Result<(), String> {
    allow_connections(options.open.max(options.clients))?;
    if cfg!(debug_assertions) {
        eprintln!(
            "this is a debug build, and so is its floor: `make bench` measures a release build"
        );
    }
    processes::look_for(BENCHMARK).await?;
    let sink = Sink::start().await?;
    let servers = Redis::start_all(NODES).await?;
    let memory = memory(options, &servers, &sink).await?;
    let rounds = rounds(options, &servers, &sink).await?;
    let figures = figures(&rounds, &memory);
    print!("{}", table(&figures));
    println!(
        "{:.1} KiB a connection while requests of all {} wait for an answer",
        memory.each(memory.busy_peak_bytes),
        memory.connections
    );
    let missed = missed(&figures);
    if let Some(path) = &options.json {
        let met = missed.is_none();
        write(
            path,
            &Measured {
                figures,
                met,
                memory,
                rounds,
            },
        )?;
    }
    match missed {
        None => {
            println!("all bars met");
            Ok(())
        }
        Some(names) => Err(format!("missed: {names}")),
    }
}

/// Writes figures as JSON.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub(crate) fn write(path: &Path, what: &impl Serialize) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = serde_json::to_string_pretty(what).map_err(|error| failed(&error))?;
    std::fs::write(path, text + "\n").map_err(|error| failed(&error))
}

/// Opens connections to a fresh agent. Each sends a request once a second, as leaders with a short term do:
/// this measures the memory of open connections. Pending requests take more memory. A second load in a closed
/// loop measures that separately.
async fn memory(options: &Bench, servers: &[Redis], sink: &Sink) -> Result<Memory, String> {
    eprintln!("memory of {} connections", options.open);
    let peak = async |rate| {
        let agent = Agent::start(&options.agent, servers, sink).await?;
        let idle = usage::memory(agent.pid())?;
        let amount = Amount::Duration(options.duration);
        let mut load = Load::of(uri(agent.grpc())?, Scenario::Mixed, options.open, amount);
        load.rate = rate;
        let report = put(&agent, servers, Protocol::Grpc, load).await?;
        let peak = report.agent.map(|used| used.peak_memory);
        Ok::<_, String>((idle, peak.unwrap_or_default()))
    };
    let (idle_bytes, peak_bytes) = peak(Some(options.open)).await?;
    let (idle_too, busy) = peak(None).await?;
    Ok(Memory {
        connections: options.open,
        idle_bytes,
        peak_bytes,
        busy_peak_bytes: idle_bytes + busy.saturating_sub(idle_too),
    })
}

async fn rounds(options: &Bench, servers: &[Redis], sink: &Sink) -> Result<Vec<Round>, String> {
    let floor = Floor::start().await?;
    let agent = Agent::start(&options.agent, servers, sink).await?;
    let scripts = Scripts::capture(&agent, &servers[0]).await?;
    let round = async |duration: Duration| {
        let amount = Amount::Duration(duration);
        let asked =
            |protocol, scenario| ask(&agent, servers, protocol, scenario, options.clients, amount);
        let mut bare = Load::of(
            uri(floor.address())?,
            Scenario::Campaign,
            options.clients,
            amount,
        );
        bare.agent_pid = Some(floor.pid());
        let calls = (duration.as_secs_f64() * CALLS_PER_SECOND).max(1_000.0);
        Ok::<_, String>(Round {
            floor: run(Protocol::Grpc, &bare).await.and_then(sound)?,
            health: asked(Protocol::Grpc, Scenario::Health).await?,
            grpc: asked(Protocol::Grpc, Scenario::Mixed).await?,
            rest: asked(Protocol::Rest, Scenario::Mixed).await?,
            scripts: scripts.cost(servers, calls as u32).await?,
        })
    };
    eprintln!("warming up");
    round(options.duration.min(WARM_UP)).await?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        eprintln!("round {number} of {}", options.rounds);
        rounds.push(round(options.duration).await?);
    }
    let traced = until(TRACED_WITHIN, async || (sink.posts() > 0).then_some(()));
    traced.await.ok_or(
        "the agent has sent no traces: what was measured is not an agent with every layer on",
    )?;
    Ok(rounds)
}

fn figures(rounds: &[Round], memory: &Memory) -> Vec<Figure> {
    let pairs = |pair: fn(&Round) -> (f64, f64)| rounds.iter().map(pair).collect::<Vec<_>>();
    vec![
        Figure::ratio(
            "agent CPU a health check (gRPC)",
            "bare tonic echo",
            HEALTH,
            &pairs(|round| (cpu(&round.health), cpu(&round.floor))),
        ),
        Figure::ratio(
            "agent CPU a mixed request (gRPC)",
            "health check",
            GRPC,
            &pairs(|round| (cpu(&round.grpc), cpu(&round.health))),
        ),
        Figure::ratio(
            "agent CPU a mixed request (REST)",
            "over gRPC",
            REST,
            &pairs(|round| (cpu(&round.rest), cpu(&round.grpc))),
        ),
        Figure::plain(
            "agent memory an open connection (gRPC)",
            "KiB",
            CONNECTION,
            memory.each(memory.peak_bytes),
        ),
        Figure::ratio(
            "Redis CPU a mixed request (gRPC), all servers",
            "redis-benchmark -P 16",
            REDIS,
            &pairs(|round| {
                let redis = round.grpc.redis_cpu_micros.unwrap_or(f64::NAN);
                (redis, round.scripts.mixed_micros())
            }),
        ),
    ]
}

fn cpu(report: &Report) -> f64 {
    report.agent_cpu_micros.unwrap_or(f64::NAN)
}
