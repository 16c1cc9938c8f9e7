//! Streams that lead: what it costs to extend many terms by one ping, and to keep them.

use std::{collections::HashSet, slice::from_ref, time::Duration};

use election_proto::{
    Hello, Join, LeadEvent, LeadRequest, Ping, lead_event::What as Said, lead_request::What,
    leadership_client::LeadershipClient, standing::Is,
};
use tokio::{
    sync::mpsc,
    time::{Instant, interval_at, sleep, timeout},
};
use tonic::Streaming;

use super::{
    NODES, WITHIN,
    client::{connect, failed, millis},
    figures::Figures,
    sent, spent, with_logs,
};
use crate::{
    bench::{
        processes::{Agent, Redis},
        sink::Sink,
        write,
    },
    options::Lead,
    report::{Latencies, Quantiles, enter, latencies},
};

/// The goal for the agent's CPU time for each extension of a batch, in µs.
const EXTENSION: f64 = 6.0;
/// The goal for the agent's CPU time while it keeps all terms, in % of a core.
const KEEPING: f64 = 1.0;
/// How many terms the smaller stream has.
const BATCH: u32 = 100;

/// The terms, and how often a caller pings to keep them.
const TERM: Duration = Duration::from_secs(15);
const PING_EVERY: Duration = Duration::from_secs(5);

/// Measures, and prints each figure beside its goal.
///
/// # Errors
/// Returns an error if a reply was wrong or missing, or a required program is missing. A missed goal is no error.
pub async fn lead(options: &Lead) -> Result<(), String> {
    let sink = Sink::start().await?;
    let servers = Redis::start_all(NODES).await?;
    let agent = Agent::start(&options.agent, &servers, &sink).await?;
    let mut figures = Figures::default();
    let measured = measure(options, &agent, &servers, &mut figures).await;
    with_logs(from_ref(&agent), measured)?;
    println!(
        "Elections of one stream: {}; terms: {TERM:?}, a ping every {PING_EVERY:?}\n\n{}{}\n",
        options.elections,
        figures.table(),
        figures.verdict()
    );
    println!("a ping counts from when it was sent until its pong was read");
    match &options.json {
        Some(path) => write(path, &figures),
        None => Ok(()),
    }
}

async fn measure(
    options: &Lead,
    agent: &Agent,
    servers: &[Redis],
    figures: &mut Figures,
) -> Result<(), String> {
    let agents = from_ref(agent);
    let pause = async {
        sleep(options.idle).await;
        Ok(())
    };
    eprintln!("idle, {}", humantime::format_duration(options.idle));
    let ((), idle) = spent(agents, pause).await?;
    for elections in [BATCH, options.elections] {
        let mut stream = Stream::open(agent, elections).await?;
        eprintln!("{elections} elections: {} pings", options.pings);
        let before = sent(servers).await?;
        let (told, busy) = spent(agents, stream.pings(options.pings)).await?;
        let commands = (sent(servers).await? - before) as f64;
        let name = |what: &str| format!("{elections} elections: {what}");
        let extended = f64::from(options.pings) * f64::from(elections);
        let each = busy.agents_over(&idle) / extended * 1e6;
        figures.goal(name("CPU of an extension"), each, "µs", EXTENSION);
        let of_node = commands / f64::from(options.pings) / f64::from(NODES);
        figures.plain(name("Redis commands of a ping and node"), of_node, "");
        let told = Quantiles::of(&told).ok_or("no ping was in time to be measured")?;
        for (which, micros) in [("median", told.p50), ("p99", told.p99)] {
            let took = micros as f64 / 1e3;
            figures.plain(name(&format!("ping → pong, {which}")), took, "ms");
        }
        figures.plain(name("CPU of this tool"), busy.tool_percent(), "%");
    }
    let mut stream = Stream::open(agent, options.elections).await?;
    eprintln!(
        "keeping {} terms, {}",
        options.elections,
        humantime::format_duration(options.idle)
    );
    let ((), keeping) = spent(agents, stream.keeps(options.idle)).await?;
    let name = |what: &str| format!("{} terms are kept: {what}", options.elections);
    figures.goal(
        name("CPU of the agent"),
        keeping.agent_percent(agents),
        "%",
        KEEPING,
    );
    figures.plain(name("of that while idle"), idle.agent_percent(agents), "%");
    Ok(())
}

/// A stream that leads some elections.
struct Stream {
    messages: mpsc::UnboundedSender<LeadRequest>,
    events: Streaming<LeadEvent>,
    seq: u64,
}

impl Stream {
    /// Opens a stream that leads this many elections under its own name.
    async fn open(agent: &Agent, elections: u32) -> Result<Self, String> {
        let (messages, mut queue) = mpsc::unbounded_channel();
        let queue = futures_util::stream::poll_fn(move |cx| queue.poll_recv(cx));
        let mut client = LeadershipClient::new(connect(agent).await?);
        let events = client.lead(queue).await;
        let events = events.map_err(|status| failed("a stream", &status))?;
        let mut stream = Self {
            messages,
            events: events.into_inner(),
            seq: 0,
        };
        let run = fastrand::u64(..);
        stream.send(What::Hello(Hello {
            candidate: format!("leader-{run}"),
            ping_every: millis(PING_EVERY),
        }));
        for number in 0..elections {
            stream.send(What::Join(Join {
                election: format!("of-{run}-{number}"),
                term: millis(TERM),
                request_id: format!("{run}"),
                ..Join::default()
            }));
        }
        let mut led = HashSet::new();
        while led.len() < elections as usize {
            match stream.next().await? {
                Said::Welcome(_) => {}
                Said::Standing(standing) if standing.is() == Is::Leading => {
                    led.insert(standing.election);
                }
                other => return Err(format!("wrong: {other:?}")),
            }
        }
        Ok(stream)
    }

    fn send(&self, what: What) {
        // If the stream has ended, reading it reports that.
        let _ = self.messages.send(LeadRequest { what: Some(what) });
    }

    async fn next(&mut self) -> Result<Said, String> {
        let next = timeout(WITHIN, self.events.message()).await;
        let next = next.map_err(|_| "the stream sends nothing".to_owned())?;
        let next = next.map_err(|status| failed("a stream", &status))?;
        let said = next.and_then(|event| event.what);
        said.ok_or_else(|| "the stream has ended".to_owned())
    }

    /// Pings, and returns how long the pong took. It must extend all.
    async fn ping(&mut self) -> Result<Duration, String> {
        self.seq += 1;
        let asked = Instant::now();
        self.send(What::Ping(Ping { seq: self.seq }));
        match self.next().await? {
            Said::Pong(pong) if pong.seq == self.seq && pong.standings.is_empty() => {
                Ok(asked.elapsed())
            }
            other => Err(format!("wrong: ping {} got {other:?}", self.seq)),
        }
    }

    async fn pings(&mut self, times: u32) -> Result<Latencies, String> {
        let mut told = latencies();
        for _ in 0..times {
            enter(&mut told, self.ping().await?);
        }
        Ok(told)
    }

    /// Keeps all terms for this long.
    async fn keeps(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        while pings.tick().await < end {
            self.ping().await?;
        }
        Ok(())
    }
}
