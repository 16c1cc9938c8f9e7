//! Observers: how soon all of them receive a change, and what they cost.

use std::{convert::Infallible, slice::from_ref, time::Duration};

use election_proto::{
    Observation, ObserveRequest, leadership_client::LeadershipClient, observation::What as Said,
    observe_request::What, state::Phase,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval_at, sleep, timeout},
};
use tonic::{Streaming, transport::Channel};

use super::{
    NODES, WITHIN,
    client::{Candidate, connect, connect_all, failed},
    figures::Figures,
    memory, sent, spent, unless_failed, until_all, with_logs,
};
use crate::{
    bench::{
        loads::allow_connections,
        processes::{Agent, LONG_TERM, Redis},
        sink::Sink,
        write,
    },
    options::Observe,
    report::{Quantiles, enter, latencies},
};

/// The goal for the time until the last observer has a change, in ms.
const TOLD: f64 = 250.0;
/// The goal for the agent's CPU time for each observer and change, in µs.
const CPU: f64 = 10.0;
/// The goal for the commands that all servers together receive per second, for 1,000 observed elections.
const COMMANDS: f64 = 100.0;

/// The election that changes.
const ELECTION: &str = "observed";
/// The prefix of the names of the elections that do not.
const PREFIX: &str = "watched-";
/// Their term, and how often their leaders extend it.
const TERM: Duration = Duration::from_secs(15);
const EXTEND_EVERY: Duration = Duration::from_secs(5);
/// The longest heartbeat, in ms: the cost of heartbeats is not measured.
const HEARTBEAT: i32 = 60_000;

/// Measures, and prints each figure beside its goal.
///
/// # Errors
/// Returns an error if a reply was wrong or missing, or a required program is missing. A missed goal is no error.
pub async fn observe(options: &Observe) -> Result<(), String> {
    allow_connections(options.connections)?;
    let sink = Sink::start().await?;
    let servers = Redis::start_all(NODES).await?;
    let mut figures = Figures::default();
    for watching in [false, true] {
        let agent = Agent::start(&options.agent, &servers, &sink).await?;
        let measured = match watching {
            false => changes(options, &agent, &mut figures).await,
            true => watched(options, &agent, &servers, &mut figures).await,
        };
        with_logs(from_ref(&agent), measured)?;
    }
    println!(
        "Observers of one election: {}; connections: {}; elections of one more observer: {}\n\n{}{}\n",
        options.observers,
        options.connections,
        options.watched,
        figures.table(),
        figures.verdict()
    );
    println!(
        "a change counts from when the request for it was sent until the last observer has read it; commands are \
         calls of scripts and pings, at all {NODES} servers together"
    );
    match &options.json {
        Some(path) => write(path, &figures),
        None => Ok(()),
    }
}

/// Has all observers observe one election that changes now and then.
async fn changes(options: &Observe, agent: &Agent, figures: &mut Figures) -> Result<(), String> {
    let agents = from_ref(agent);
    let mut leader = Candidate::new(&connect(agent).await?, ELECTION, "leader".to_owned());
    let first = elect(&mut leader).await?;
    let channels = connect_all(agents, options.connections).await?;
    let before = memory(agents)?;
    let mut observers = Observers::new();
    for observer in 0..options.observers {
        observers.add(&channels[observer as usize % channels.len()]);
    }
    observers.all_have(first).await?;
    until_all(agents, "observers", u64::from(options.observers)).await?;

    eprintln!(
        "{} observers, idle for {}",
        options.observers,
        humantime::format_duration(options.idle)
    );
    let ((), idle) = spent(agents, observers.quiet(options.idle)).await?;
    let memory = memory(agents)? - before;

    eprintln!("{} changes", options.changes);
    let changing = async {
        let mut told = latencies();
        for _ in 0..options.changes {
            let asked = Instant::now();
            // The leader's own campaign gives it a new token: one request makes one change.
            let token = elect(&mut leader).await?;
            enter(&mut told, observers.all_have(token).await? - asked);
        }
        Ok(told)
    };
    let (told, busy) = spent(agents, changing).await?;
    let told = Quantiles::of(&told).ok_or("nothing has changed")?;
    let observers = f64::from(options.observers);
    let each = |seconds: f64| seconds * 1e6 / observers / f64::from(options.changes);
    figures.latency("change → the last observer has it", told, TOLD);
    let name = "an observer and change";
    figures.goal(
        format!("{name}: CPU of the agent"),
        each(busy.agents_over(&idle)),
        "µs",
        CPU,
    );
    figures.plain(format!("{name}: CPU of this tool"), each(busy.tool), "µs");
    figures.plain("idle: CPU of the agent", idle.agent_percent(agents), "%");
    figures.plain(
        "idle: memory of an observer",
        memory / observers / 1024.0,
        "KiB",
    );
    Ok(())
}

/// Has the leader elected, for a long term, and returns its token.
async fn elect(leader: &mut Candidate) -> Result<u64, String> {
    let led = leader.campaign(LONG_TERM, Duration::ZERO).await?;
    let led = led.ok_or_else(|| format!("wrong: {} has another leader", leader.election))?;
    Ok(led.token)
}

/// Opens a stream.
async fn observed(channel: &Channel, what: What) -> Result<Streaming<Observation>, String> {
    let request = ObserveRequest {
        what: Some(what),
        heartbeat: HEARTBEAT,
        ..ObserveRequest::default()
    };
    let stream = LeadershipClient::new(channel.clone())
        .observe(request)
        .await;
    Ok(stream
        .map_err(|status| failed("a stream", &status))?
        .into_inner())
}

/// Returns the stream's next message, except heartbeats.
async fn next(stream: &mut Streaming<Observation>) -> Result<Said, String> {
    loop {
        let message = stream
            .message()
            .await
            .map_err(|status| failed("a stream", &status))?;
        match message.and_then(|message| message.what) {
            Some(Said::Heartbeat(_)) => {}
            Some(Said::Goodbye(goodbye)) => {
                return Err(format!("a stream ends: {}", goodbye.reason));
            }
            Some(said) => return Ok(said),
            None => return Err("a stream has ended".to_owned()),
        }
    }
}

/// Streams of the election. They end when this is dropped.
struct Observers {
    streams: JoinSet<Result<Infallible, String>>,
    heard: mpsc::UnboundedReceiver<(u64, Instant)>,
    hears: mpsc::UnboundedSender<(u64, Instant)>,
}

impl Observers {
    fn new() -> Self {
        let (hears, heard) = mpsc::unbounded_channel();
        Self {
            streams: JoinSet::new(),
            heard,
            hears,
        }
    }

    fn add(&mut self, channel: &Channel) {
        let (channel, hears) = (channel.clone(), self.hears.clone());
        self.streams.spawn(async move {
            let mut stream = observed(&channel, What::Election(ELECTION.to_owned())).await?;
            loop {
                match next(&mut stream).await? {
                    Said::State(state) if state.phase() == Phase::Held => {
                        let _ = hears.send((state.token, Instant::now()));
                    }
                    Said::Synced(_) => {}
                    other => return Err(format!("wrong: a stream says {other:?}")),
                }
            }
        });
    }

    /// Waits until every observer has the state with this token, and returns when the last one had it.
    async fn all_have(&mut self, expected: u64) -> Result<Instant, String> {
        let Self { streams, heard, .. } = self;
        let all = streams.len();
        let arriving = async {
            let mut last = None;
            for have in 0..all {
                match timeout(WITHIN, heard.recv()).await.ok().flatten() {
                    Some((token, at)) if token == expected => last = last.max(Some(at)),
                    Some((token, _)) => {
                        return Err(format!(
                            "wrong: an observer has the token {token} instead of {expected}"
                        ));
                    }
                    None => return Err(format!("{have} of {all} observers have a change")),
                }
            }
            last.ok_or_else(|| "nobody observes".to_owned())
        };
        unless_failed(streams, arriving).await
    }

    /// Waits while nothing changes.
    async fn quiet(&mut self, time: Duration) -> Result<(), String> {
        let Self { streams, heard, .. } = self;
        let quiet = async {
            tokio::select! {
                () = sleep(time) => Ok(()),
                heard = heard.recv() => Err(format!("wrong: an observer got {heard:?} although nothing changes")),
            }
        };
        unless_failed(streams, quiet).await
    }
}

/// Has leaders extend their terms, and counts the servers' commands without and with an observer of their elections.
async fn watched(
    options: &Observe,
    agent: &Agent,
    servers: &[Redis],
    figures: &mut Figures,
) -> Result<(), String> {
    let channel = connect(agent).await?;
    let mut leaders = JoinSet::new();
    let (elected, mut election) = mpsc::unbounded_channel();
    for number in 0..options.watched {
        let leader = Candidate::new(&channel, &format!("{PREFIX}{number}"), "leader".to_owned());
        let after = EXTEND_EVERY.mul_f64(f64::from(number) / f64::from(options.watched));
        leaders.spawn(lead(leader, after, elected.clone()));
    }
    let all = async {
        for _ in 0..options.watched {
            election.recv().await;
        }
        Ok(())
    };
    unless_failed(&mut leaders, all).await?;
    let idle = humantime::format_duration(options.idle);
    eprintln!("{} leaders extend for {idle}, twice", options.watched);
    let without = unless_failed(
        &mut leaders,
        commands(servers, async {
            sleep(options.idle).await;
            Ok(())
        }),
    )
    .await?;

    let watching = async {
        let mut stream = observed(&channel, What::Prefix(PREFIX.to_owned())).await?;
        let mut states = 0;
        while let Said::State(_) = next(&mut stream).await? {
            states += 1;
        }
        match states == options.watched {
            true => Ok(stream),
            false => Err(format!("wrong: a stream begins with {states} states")),
        }
    };
    let mut stream = unless_failed(&mut leaders, watching).await?;
    let with = unless_failed(
        &mut leaders,
        commands(servers, async {
            tokio::select! {
                () = sleep(options.idle) => Ok(()),
                said = next(&mut stream) => Err(format!("wrong: a stream says {said:?} although nothing changes")),
            }
        }),
    )
    .await?;
    let goal = COMMANDS * f64::from(options.watched) / 1_000.0;
    let name = "Redis commands a second";
    figures.goal(
        format!("{name}: for the observer"),
        with - without,
        "",
        goal,
    );
    figures.plain(format!("{name}: without it"), without, "");
    Ok(())
}

/// Leads an election forever, after this delay.
async fn lead(
    mut leader: Candidate,
    after: Duration,
    elected: mpsc::UnboundedSender<()>,
) -> Result<Infallible, String> {
    sleep(after).await;
    let led = leader.campaign(TERM, Duration::ZERO).await?;
    let mut led = led.ok_or_else(|| format!("wrong: {} has another leader", leader.election))?;
    let _ = elected.send(());
    let mut due = interval_at(Instant::now() + EXTEND_EVERY, EXTEND_EVERY);
    loop {
        due.tick().await;
        if leader.extend(&mut led, TERM).await?.is_none() {
            return Err(format!(
                "the term of {} ended before it was extended",
                leader.election
            ));
        }
    }
}

/// Returns how many commands all servers together receive per second while a future runs.
async fn commands<T>(
    servers: &[Redis],
    what: impl Future<Output = Result<T, String>>,
) -> Result<f64, String> {
    let (before, began) = (sent(servers).await?, Instant::now());
    what.await?;
    let (after, took) = (sent(servers).await?, began.elapsed());
    Ok((after - before) as f64 / took.as_secs_f64())
}
