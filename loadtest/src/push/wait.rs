//! Campaigns that wait: what they cost while nothing changes, and how soon the next candidate is elected.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::{select_all, try_join_all};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::transport::Channel;

use super::{
    NODES, WITHIN,
    client::{Candidate, Led, connect_all},
    figures::Figures,
    memory, metric, spent, unless_failed, until_all, with_logs,
};
use crate::{
    bench::{
        loads::allow_connections,
        processes::{Agent, LONG_TERM, Redis, until},
        sink::Sink,
        write,
    },
    options::Wait,
    report::{Latencies, Quantiles, enter, latencies},
};

/// The goal for the 99th percentile of the time from a change to the next leader's reply, in ms.
const TOLD: f64 = 50.0;
/// The goal for claims per change and agent.
const CLAIMS: f64 = 2.0;
/// The goal for the CPU time of an agent whose waiters are idle, in % of a core.
const IDLE_CPU: f64 = 1.0;
/// The goal for the memory of a waiter, in KiB.
const MEMORY: f64 = 8.0;

/// The term of campaigns: that of the lease until the elected candidate extends it.
const TERM: Duration = Duration::from_secs(1);

/// In how many elections terms end at the same time. More would overload a small machine.
const LAPSING: usize = 10;

/// Measures, and prints each figure beside its goal.
///
/// # Errors
/// Returns an error if a reply was wrong or missing, or a required program is missing. A missed goal is no error.
pub async fn wait(options: &Wait) -> Result<(), String> {
    allow_connections(options.connections)?;
    let sink = Sink::start().await?;
    let servers = Redis::start_all(NODES).await?;
    let mut all = BTreeMap::new();
    for &number in &options.agents {
        let title = format!(
            "Agents: {number}; waiting campaigns: {}; elections: {}; connections: {}",
            options.waiters, options.elections, options.connections
        );
        eprintln!("{title}");
        let mut agents = Vec::new();
        for _ in 0..number {
            agents.push(Agent::start(&options.agent, &servers, &sink).await?);
        }
        let measured = measure(options, &agents).await;
        let figures = with_logs(&agents, measured)?;
        println!("{title}\n\n{}{}\n", figures.table(), figures.verdict());
        all.insert(number, figures);
    }
    println!(
        "a resignation counts from when its request was sent, the end of a term from when the leader's last extension \
         was sent plus the term; both count until the next leader's reply"
    );
    match &options.json {
        Some(path) => write(path, &all),
        None => Ok(()),
    }
}

async fn measure(options: &Wait, agents: &[Agent]) -> Result<Figures, String> {
    let channels = connect_all(agents, options.connections).await?;
    let mut waiting = Waiting::new(options.wait);
    let mut seats = Vec::new();
    for election in 0..options.elections {
        let channel = &channels[election as usize % channels.len()];
        // Agents of other measurements, on the same servers, had other elections.
        let election = format!("of-{}-{election}", agents.len());
        seats.push(waiting.seat(channel, election).await?);
    }
    let before = memory(agents)?;
    for waiter in 0..options.waiters {
        let (round, seat) = (waiter / options.elections, waiter % options.elections);
        let channel = &channels[round as usize % channels.len()];
        let seat = &seats[seat as usize];
        let candidate = Candidate::new(channel, &seat.election, format!("waiter-{waiter}"));
        // The first waits end at once, and all later ones evenly spread over time.
        let second = f64::from(waiter + 1) / f64::from(options.waiters);
        waiting.add(candidate, &seat.winner, options.wait.mul_f64(second));
    }
    let waiters = u64::from(options.waiters);
    let all = until_all(agents, "waiters", waiters);
    waiting
        .unless_wrong(while_all_lead(&mut seats, all))
        .await?;

    let mut figures = Figures::default();
    let renewed = Arc::clone(&waiting.renewed);
    let renewed = || renewed.load(Ordering::Relaxed);
    for renewing in [false, true] {
        let name = match renewing {
            false => "idle",
            true => "idle, waits are renewed",
        };
        eprintln!("{name}, {}", humantime::format_duration(options.idle));
        if renewing {
            let all = async {
                let limit = options.wait + WITHIN;
                let all = until(limit, async || (renewed() >= waiters).then_some(()));
                all.await.ok_or_else(|| "waits do not end".to_owned())
            };
            waiting
                .unless_wrong(while_all_lead(&mut seats, all))
                .await?;
        }
        let before_idle = renewed();
        let pause = async {
            sleep(options.idle).await;
            Ok(())
        };
        let quiet = waiting.unless_wrong(while_all_lead(&mut seats, pause));
        let ((), spent) = spent(agents, quiet).await?;
        let cpu = spent.agent_percent(agents);
        let rate = (renewed() - before_idle) as f64 / spent.took.as_secs_f64();
        if renewing {
            figures.plain(format!("{name}: CPU of an agent"), cpu, "%");
            figures.plain(format!("{name}: how many a second"), rate, "");
        } else {
            figures.goal(format!("{name}: CPU of an agent"), cpu, "%", IDLE_CPU);
        }
        let each = (memory(agents)? - before) / f64::from(options.waiters) / 1024.0;
        figures.goal(format!("{name}: memory of a waiter"), each, "KiB", MEMORY);
        let tool = spent.tool_percent();
        figures.plain(format!("{name}: CPU of this tool"), tool, "%");
    }

    for change in [Change::Resignation, Change::Lapse] {
        let name = change.name();
        eprintln!("{name}: {} times", options.changes);
        let claims = metric(agents, "board_claims_total").await?;
        let before: u64 = seats.iter().map(|seat| seat.changes).sum();
        let changing = change.happen(&mut seats, options.changes);
        let (told, busy) = spent(agents, waiting.unless_wrong(changing)).await?;
        let changes = seats.iter().map(|seat| seat.changes).sum::<u64>() - before;
        let claims = metric(agents, "board_claims_total").await? - claims;
        let each = |all: f64| all / changes as f64;
        let told = Quantiles::of(&told).ok_or("no change was in time to be measured")?;
        let of_agent = each(claims as f64) / agents.len() as f64;
        // With the renewals that come meanwhile.
        let agents_cpu = each(busy.agents * 1e6);
        figures.latency(name, told, TOLD);
        figures.goal(format!("{name}: claims an agent"), of_agent, "", CLAIMS);
        figures.plain(format!("{name}: CPU of all agents"), agents_cpu, "µs");
        figures.plain(
            format!("{name}: CPU of this tool"),
            each(busy.tool * 1e6),
            "µs",
        );
    }
    Ok(figures)
}

/// How a leader ends.
#[derive(Debug, Clone, Copy)]
enum Change {
    Resignation,
    /// The term ends.
    Lapse,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::Resignation => "resign → next leader",
            Self::Lapse => "end of term → next leader",
        }
    }

    /// Has this many leaders end at least, and returns how long it took until the next one had its reply.
    async fn happen(self, seats: &mut [Seat], times: u32) -> Result<Latencies, String> {
        let mut told = latencies();
        match self {
            // One after the other.
            Self::Resignation => {
                for turn in 0..times as usize {
                    let seat = &mut seats[turn % seats.len()];
                    if let Some(took) = seat.resign().await? {
                        enter(&mut told, took);
                    }
                    seat.accept(LONG_TERM).await?;
                }
            }
            // Some elections at once, because this takes as long as the terms.
            Self::Lapse => {
                let number = LAPSING.min(seats.len());
                let each = times.div_ceil(u32::try_from(number).unwrap_or(u32::MAX));
                let lapsing = seats.iter_mut().take(number).map(async |seat| {
                    // An extension does not shorten the long term of the present leader.
                    seat.resign().await?;
                    let mut took = Vec::new();
                    for _ in 0..each {
                        took.push(seat.lapse().await?);
                    }
                    Ok::<_, String>(took)
                });
                for took in try_join_all(lapsing).await?.into_iter().flatten() {
                    enter(&mut told, took);
                }
            }
        }
        Ok(told)
    }
}

/// An election: its leader, and who leads next.
struct Seat {
    election: String,
    wins: mpsc::UnboundedReceiver<Win>,
    winner: mpsc::UnboundedSender<Win>,
    leader: Win,
    /// How often the leader has changed.
    changes: u64,
}

/// A candidate that was elected.
struct Win {
    candidate: Candidate,
    led: Led,
    /// Lets it campaign again.
    again: oneshot::Sender<()>,
}

impl Seat {
    /// Extends the leader's term, which is the acceptance after a wait. Returns until when the lease is stored at the
    /// least, by a clock that runs as this one.
    async fn accept(&mut self, term: Duration) -> Result<Instant, String> {
        loop {
            let Win { candidate, led, .. } = &mut self.leader;
            if let Some(until) = candidate.extend(led, term).await? {
                return Ok(until);
            }
            // The acceptance was too late, and the next candidate is elected.
            let over = led.until;
            self.next(over).await?;
        }
    }

    /// Has the leader resign. Returns how long it took until the next one had its reply; `None` if the leader no longer
    /// led.
    async fn resign(&mut self) -> Result<Option<Duration>, String> {
        let Win { candidate, led, .. } = &mut self.leader;
        let resigned = candidate.resign(led).await?;
        let over = resigned.unwrap_or(led.until);
        let told = self.next(over).await?;
        Ok(resigned.map(|asked| told - asked))
    }

    /// Lets the leader's term end. Returns how long after that the next one had its reply.
    async fn lapse(&mut self) -> Result<Duration, String> {
        let term = TERM.mul_f64(1.0 + fastrand::f64());
        let end = self.accept(term).await?;
        let told = self.next(self.leader.led.until).await?;
        Ok(told.saturating_duration_since(end))
    }

    /// Waits for the next leader, and returns when it had its reply, which must not be before `over`. The former leader
    /// campaigns again.
    async fn next(&mut self, over: Instant) -> Result<Instant, String> {
        let next = timeout(WITHIN, self.wins.recv()).await.ok().flatten();
        let next = next.ok_or_else(|| format!("{} has no next leader", self.election))?;
        if next.led.at < over {
            return Err(self.has_two_leaders());
        }
        if next.led.token <= self.leader.led.token {
            return Err(format!("wrong: a token of {} is not larger", self.election));
        }
        let former = std::mem::replace(&mut self.leader, next);
        // Fails if all is over.
        let _ = former.again.send(());
        self.changes += 1;
        Ok(self.leader.led.at)
    }

    fn has_two_leaders(&self) -> String {
        format!("wrong: {} has two leaders", self.election)
    }
}

/// Runs a future, and fails as soon as a waiter is elected.
async fn while_all_lead<T>(
    seats: &mut [Seat],
    what: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let elected = seats.iter_mut().map(|seat| {
        Box::pin(async {
            seat.wins.recv().await;
            seat.has_two_leaders()
        })
    });
    tokio::select! {
        done = what => done,
        (wrong, ..) = select_all(elected) => Err(wrong),
    }
}

/// All candidates. They end when this is dropped.
struct Waiting {
    candidates: JoinSet<Result<Infallible, String>>,
    /// How long each waits.
    wait: Duration,
    /// How often a wait has ended and was renewed.
    renewed: Arc<AtomicU64>,
}

impl Waiting {
    fn new(wait: Duration) -> Self {
        Self {
            candidates: JoinSet::new(),
            wait,
            renewed: Arc::default(),
        }
    }

    /// Has the first leader of an election elected, for a long term.
    async fn seat(&mut self, channel: &Channel, election: String) -> Result<Seat, String> {
        let (winner, mut wins) = mpsc::unbounded_channel();
        let first = Candidate::new(channel, &election, "first".to_owned());
        self.add(first, &winner, self.wait);
        let leader = self.unless_wrong(async { wins.recv().await.ok_or(String::new()) });
        let mut seat = Seat {
            leader: leader.await?,
            election,
            wins,
            winner,
            changes: 0,
        };
        seat.accept(LONG_TERM).await?;
        Ok(seat)
    }

    /// Has one more candidate campaign, and wait. `second` is how long it waits after its first wait.
    fn add(
        &mut self,
        mut candidate: Candidate,
        winner: &mpsc::UnboundedSender<Win>,
        second: Duration,
    ) {
        let (renewed, winner) = (Arc::clone(&self.renewed), winner.clone());
        let mut waits = [self.wait, second].into_iter();
        let wait = self.wait;
        self.candidates.spawn(async move {
            loop {
                let wait = waits.next().unwrap_or(wait);
                let Some(led) = candidate.campaign(TERM, wait).await? else {
                    renewed.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                let (again, may) = oneshot::channel();
                let candidate = candidate.clone();
                let _ = winner.send(Win {
                    candidate,
                    led,
                    again,
                });
                may.await.map_err(|_| "all is over".to_owned())?;
            }
        });
    }

    /// Runs a future, and fails as soon as a candidate does.
    async fn unless_wrong<T>(
        &mut self,
        what: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        unless_failed(&mut self.candidates, what).await
    }
}
