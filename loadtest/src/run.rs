//! Clients that send requests, and their observations.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, interval, sleep, sleep_until},
};

use crate::{
    caller::{Answer, Ask, Caller, Connector, Failed, Protocol},
    options::{Amount, Load, Scenario},
    report::{Report, Seen, enter},
    usage,
};

/// The interval between campaigns of a challenger.
const CHALLENGE_EVERY: Duration = Duration::from_millis(5);
/// How long a client waits after its connection was lost.
const RECONNECT_EVERY: Duration = Duration::from_millis(100);
/// How long a challenger campaigns beyond the end of the term.
const CHALLENGE_FOR: Duration = Duration::from_secs(30);

/// Runs a load with these options.
///
/// # Errors
/// Returns an error if a connection fails, a process to be measured does not exist, or options conflict.
pub async fn run(protocol: Protocol, load: &Load) -> Result<Report, String> {
    load.check()?;
    let shared = load.connections.unwrap_or(load.clients).min(load.clients);
    let alpn: &[u8] = if protocol == Protocol::Grpc {
        b"h2"
    } else {
        b"http/1.1"
    };
    let connector = Connector::new(load, alpn)?;
    let connecting = (0..shared).map(|_| Caller::connect(protocol, &connector, load));
    let callers = try_join_all(connecting)
        .await
        .map_err(|error| error.to_string())?;

    // Distinguishes the elections from those of an earlier run, which may still be held.
    let run = format!("{:08x}", fastrand::u32(..));
    let progress = Progress::new(load);
    let start = Arc::new(Barrier::new(load.clients as usize + 1));
    let mut clients = JoinSet::new();
    for number in 0..load.clients {
        let client = Client {
            number,
            caller: callers[(number % shared) as usize].clone(),
            election: format!("loadtest-{run}-{number}"),
            leader: load.candidate(&format!("leader-{number}")),
            rival: load.candidate("rival"),
            leads_until: Instant::now(),
            load: load.clone(),
            done: Arc::clone(&progress.done),
            seen: Seen::default(),
        };
        clients.spawn(client.run(Arc::clone(&start)));
    }
    let mut pids = load.redis_pid.clone();
    pids.extend(load.agent_pid);
    // The preparation is not measured: all tasks pass this barrier twice, and the processes are sampled in
    // between.
    start.wait().await;
    let asking = async {
        start.wait().await;
        let began = Instant::now();
        let mut seen = Seen::default();
        while let Some(client) = clients.join_next().await {
            seen.add(&client.map_err(|error| error.to_string())?);
        }
        Ok::<_, String>((seen, began.elapsed()))
    };
    let (asked, used) = usage::during(&pids, asking).await?;
    let (seen, took) = asked?;
    progress.finish();
    let report = Report {
        protocol: protocol.to_string(),
        scenario: load.scenario.to_string(),
        clients: load.clients,
        connections: shared,
        rate: load.rate,
        ..Report::default()
    };
    let mut report = report.with(&seen, took);
    match used.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(mut used) => report.charge(load.agent_pid.and_then(|_| used.pop()), used),
        // The observations of the clients are still reported.
        Err(error) => eprintln!("CPU and memory are not reported: {error}"),
    }
    Ok(report)
}

struct Client {
    number: u32,
    caller: Caller,
    election: String,
    leader: String,
    rival: String,
    /// Until when the leader is certain to lead, by its last reply.
    leads_until: Instant,
    load: Load,
    /// How many requests all clients have sent.
    done: Arc<AtomicU64>,
    seen: Seen,
}

impl Client {
    async fn run(mut self, start: Arc<Barrier>) -> Seen {
        // Happens once, and is not measured.
        let won = match self.load.scenario.has_leader() {
            true => self.win().await,
            false => Ok(()),
        };
        start.wait().await;
        start.wait().await;
        if let Err(error) = won {
            self.note(Err(error), Duration::ZERO).await;
            return self.seen;
        }
        if self.load.scenario == Scenario::Failover {
            return self.fail_over().await;
        }
        let began = Instant::now();
        for round in 0_u64.. {
            let due = self.due(began, round);
            let over = match self.load.amount() {
                Amount::Iterations(iterations) => round >= iterations,
                // A request that was due before the end is sent, however late it is.
                Amount::Duration(duration) => due.unwrap_or_else(Instant::now) >= began + duration,
            };
            if over {
                break;
            }
            if let Some(due) = due {
                sleep_until(due).await;
            }
            // In an open loop, the latency includes the time that a request waited for those before it.
            let asked = due.unwrap_or_else(Instant::now);
            let answered = self.ask(round).await;
            self.note(answered, asked.elapsed()).await;
        }
        self.seen
    }

    /// When a request is due in an open loop. The requests of all clients are evenly spaced.
    fn due(&self, began: Instant, round: u64) -> Option<Instant> {
        let place = round * u64::from(self.load.clients) + u64::from(self.number);
        let after = place as f64 / f64::from(self.load.rate?);
        Some(began + Duration::from_secs_f64(after))
    }

    async fn win(&mut self) -> Result<(), Failed> {
        let campaign = Ask::Campaign {
            election: &self.election,
            candidate: &self.leader,
        };
        let asked = Instant::now();
        let answer = self.caller.call(campaign).await?;
        expect(answer, Answer::Yes, "a campaign that should be won")?;
        self.leads_until = asked + self.load.least_term();
        Ok(())
    }

    async fn ask(&mut self, round: u64) -> Result<(), Failed> {
        if self.load.scenario == Scenario::Hold {
            let election = format!("{}-{round}", self.election);
            let campaign = Ask::Campaign {
                election: &election,
                candidate: &self.leader,
            };
            return expect(
                self.caller.call(campaign).await?,
                Answer::Yes,
                "a campaign that should be won",
            );
        }
        let (election, leader) = (&*self.election, &*self.leader);
        let campaign = |candidate| Ask::Campaign {
            election,
            candidate,
        };
        let extend = Ask::Extend { election, leader };
        let (ask, expected, what) = match self.load.scenario {
            Scenario::Mixed if round.is_multiple_of(2) => {
                (extend, Answer::Yes, "a leader that does not lead")
            }
            Scenario::Mixed => (campaign(&self.rival), Answer::No, "two leaders"),
            Scenario::Campaign => (campaign(leader), Answer::Yes, "a campaign that was lost"),
            Scenario::Extend => (extend, Answer::Yes, "a leader that does not lead"),
            Scenario::Leader => (Ask::Leader { election }, Answer::Yes, "no leader"),
            Scenario::Health => (Ask::Health, Answer::Yes, "an agent that is not well"),
            // The other scenarios do not call this method.
            Scenario::Pods | Scenario::Failover | Scenario::Hold => {
                (Ask::Pods, Answer::Yes, "no pods")
            }
        };
        let asked = Instant::now();
        let answered = expect(self.caller.call(ask).await?, expected, what);
        let leads = self.load.scenario.has_leader();
        match (&answered, ask) {
            (Ok(()), Ask::Extend { .. }) => self.leads_until = asked + self.load.least_term(),
            (Err(_), _) if leads && Instant::now() >= self.leads_until => {
                return Err(Failed::answered(
                    "a term was over before it was extended",
                    "give a longer --term, fewer clients or a higher --rate",
                ));
            }
            _ => {}
        }
        answered
    }

    /// Lets the term of a leader expire, and has another candidate campaign until it leads.
    async fn fail_over(mut self) -> Seen {
        let rounds = match self.load.amount() {
            Amount::Iterations(iterations) => iterations,
            Amount::Duration(duration) => {
                let rounds = duration.as_millis() / self.load.term.as_millis().max(1);
                u64::try_from(rounds).unwrap_or(u64::MAX).max(1)
            }
        };
        let name = self.election.clone();
        for round in 0..rounds {
            self.election = format!("{name}-{round}");
            let asked = Instant::now();
            let won = self.win().await;
            let leads = won.is_ok();
            self.note(won, asked.elapsed()).await;
            if !leads {
                continue;
            }
            // The term began at the request at the earliest.
            let end = asked + self.load.term;
            sleep_until(end).await;
            loop {
                let asked = Instant::now();
                let challenge = Ask::Campaign {
                    election: &self.election,
                    candidate: &self.rival,
                };
                let answered = self.caller.call(challenge).await;
                let leads = answered == Ok(Answer::Yes);
                self.note(answered.map(drop), asked.elapsed()).await;
                if leads {
                    enter(&mut self.seen.failovers, end.elapsed());
                    break;
                }
                if end.elapsed() > CHALLENGE_FOR {
                    let none = Failed::answered("no next leader", "");
                    self.note(Err(none), Duration::ZERO).await;
                    break;
                }
                sleep(CHALLENGE_EVERY).await;
            }
        }
        self.seen
    }

    async fn note(&mut self, answered: Result<(), Failed>, took: Duration) {
        self.done.fetch_add(1, Ordering::Relaxed);
        match answered {
            Ok(()) => enter(&mut self.seen.latencies, took),
            Err(failed) => {
                self.seen.error(&failed.code, &failed.message);
                if failed.lost {
                    // Without this pause, an unreachable agent would cause a busy loop.
                    sleep(RECONNECT_EVERY).await;
                }
            }
        }
    }
}

fn expect(answer: Answer, expected: Answer, otherwise: &str) -> Result<(), Failed> {
    match answer == expected {
        true => Ok(()),
        false => Err(Failed::answered(format!("wrong: {otherwise}"), "")),
    }
}

/// Shows the progress.
struct Progress {
    done: Arc<AtomicU64>,
    bar: ProgressBar,
}

impl Progress {
    fn new(load: &Load) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        if load.quiet {
            return Self {
                done,
                bar: ProgressBar::hidden(),
            };
        }
        let (length, template) = match load.amount() {
            Amount::Iterations(iterations) => (
                iterations * u64::from(load.clients),
                "{wide_bar} {pos}/{len} requests",
            ),
            Amount::Duration(duration) => (duration.as_secs(), "{wide_bar} {pos}/{len} s"),
        };
        let bar = ProgressBar::new(length);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let (shown, counted, timed) = (bar.clone(), Arc::clone(&done), load.iterations.is_none());
        let began = Instant::now();
        tokio::spawn(async move {
            let mut looks = interval(Duration::from_millis(200));
            while !shown.is_finished() {
                looks.tick().await;
                shown.set_position(match timed {
                    true => began.elapsed().as_secs(),
                    false => counted.load(Ordering::Relaxed),
                });
            }
        });
        Self { done, bar }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
