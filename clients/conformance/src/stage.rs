//! Agents, what stands before them, programs, and a witness.

use std::{net::SocketAddr, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use election_proto::{
    ObserveRequest,
    leadership_client::LeadershipClient,
    observation, observe_request,
    state::{Cause, Phase},
};
use parking_lot::Mutex;
use test_agent::Agent;
use test_servers::{Clock, Redis};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin},
    task::AbortHandle,
};
use tonic::transport::Endpoint;

use crate::{
    forwarder::Forwarder,
    mutants::{FOUND_BY, Mutant},
    protocol::{Body, Command, Event, Lead, Name, now},
    proxy::Proxy,
    record::{Book, Record, Seen},
};

/// How long something may take that has no bound of its own, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The kind of all elections here.
pub const KIND: &str = "conformance";

/// A conformance program.
#[derive(Clone, Debug)]
pub struct Program {
    /// The language, or whatever names it in a test's output.
    pub name: String,
    /// The file to run.
    pub file: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Faults that its library can be given, by `--mutant` and their name.
    pub mutants: Vec<Mutant>,
    /// How long it may take to start until it reads commands.
    pub starts_within: Duration,
}

impl Program {
    /// A program whose library has no mutants.
    #[must_use]
    pub fn new(name: impl Into<String>, file: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        Self {
            name: name.into(),
            file: file.into(),
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            mutants: Vec::new(),
            starts_within: PATIENCE,
        }
    }

    /// With all mutants, except for those that its library cannot be given.
    #[must_use]
    pub fn with_mutants_but(mut self, lacking: &[Mutant]) -> Self {
        let mutants = FOUND_BY.iter().map(|(mutant, ..)| *mutant);
        self.mutants = mutants.filter(|mutant| !lacking.contains(mutant)).collect();
        self.mutants.dedup();
        self
    }

    /// Its library with a fault.
    #[must_use]
    pub fn mutant(&self, mutant: Mutant) -> Self {
        let mut program = self.clone();
        program.name = format!("{}::mutant::{mutant}", self.name);
        program
            .arguments
            .extend(["--mutant".to_owned(), mutant.to_string()]);
        program
    }
}

/// What all scenarios share.
#[derive(Debug)]
pub struct Stage {
    /// An agent that keeps leases in memory, and to which nothing is done: faults are before it.
    agent: Agent,
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    /// Starts the agent.
    #[must_use]
    pub fn new() -> Self {
        Self {
            agent: Agent::start(),
        }
    }

    /// Where the agent listens.
    #[must_use]
    pub fn agent(&self) -> SocketAddr {
        address(&self.agent)
    }
}

/// Where an agent listens.
///
/// # Panics
///
/// Never: agents say so when they start.
#[must_use]
pub(crate) fn address(agent: &Agent) -> SocketAddr {
    agent.address().parse().expect("an address")
}

/// Starts an agent whose leases are kept by these servers, with settings besides.
pub async fn agent_on(servers: &[Redis], settings: &[(&'static str, &'static str)]) -> Agent {
    let urls: Vec<_> = servers.iter().map(Redis::url).collect();
    let urls = urls.join(",");
    let settings = settings.to_vec();
    let start = move || {
        let mut all = vec![("EA_STORE", "redis"), ("EA_REDIS_URLS", urls.as_str())];
        all.extend(settings);
        Agent::with(&all)
    };
    tokio::task::spawn_blocking(start).await.expect("it starts")
}

/// Starts an agent that keeps leases in memory.
pub async fn agent_with(settings: &[(&'static str, &'static str)]) -> Agent {
    let settings = settings.to_vec();
    let start = move || Agent::with(&settings);
    tokio::task::spawn_blocking(start).await.expect("it starts")
}

/// A proxy, and behind it, unless the agent is to be reached without it, a forwarder.
#[derive(Debug)]
pub struct Front {
    /// What clients connect to.
    pub proxy: Proxy,
    forwarder: Option<Forwarder>,
}

impl Front {
    /// Keeps a record of what goes to the agent, under this number.
    pub async fn recording(agent: SocketAddr, number: usize, book: &Book) -> Self {
        let forwarder = Forwarder::to(agent, number, book.clone()).await;
        Self {
            proxy: Proxy::to(forwarder.address()).await,
            forwarder: Some(forwarder),
        }
    }

    /// The agent's own HTTP/2 reaches the client.
    pub async fn plain(agent: SocketAddr) -> Self {
        Self {
            proxy: Proxy::to(agent).await,
            forwarder: None,
        }
    }

    /// The forwarder.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn forwarder(&self) -> &Forwarder {
        self.forwarder.as_ref().expect("a front that records")
    }
}

/// A program that runs. Killed when dropped.
#[derive(Debug)]
pub struct Player {
    name: &'static str,
    child: Child,
    stdin: ChildStdin,
    reading: AbortHandle,
    errors: Arc<Mutex<String>>,
}

impl Player {
    /// Tells it what to do.
    ///
    /// # Errors
    ///
    /// It has ended, and what it said about it.
    pub async fn tell(&mut self, command: &Command) -> Result<(), String> {
        let mut line = serde_json::to_string(command).map_err(|error| error.to_string())?;
        line.push('\n');
        let written = async {
            self.stdin.write_all(line.as_bytes()).await?;
            self.stdin.flush().await
        };
        written
            .await
            .map_err(|error| format!("{} has ended: {error}: {}", self.name, self.errors()))
    }

    /// Leads, for terms of 3 s unless it is changed.
    ///
    /// # Errors
    ///
    /// The program has ended.
    pub async fn lead(
        &mut self,
        election: &str,
        change: impl FnOnce(&mut Lead),
    ) -> Result<(), String> {
        let mut lead = Lead {
            id: 1,
            kind: KIND.to_owned(),
            election: election.to_owned(),
            candidate: self.name.to_owned(),
            term_ms: 3_000,
            wait_ms: None,
            grace_ms: 1_000,
            margin_ms: None,
            asks_alive: false,
            body: Body::Cooperative,
        };
        change(&mut lead);
        self.tell(&Command::Lead(lead)).await
    }

    /// Sends it a signal, such as `STOP`.
    pub fn signal(&self, name: &str) {
        if let Some(id) = self.child.id() {
            test_servers::signal(id, name);
        }
    }

    fn errors(&self) -> String {
        let errors = self.errors.lock();
        errors.clone()
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.reading.abort();
        // Also one that is stopped.
        let _ = self.child.start_kill();
    }
}

/// A scenario that is being played with a program.
pub struct Play {
    program: Program,
    /// What happens.
    pub book: Book,
    /// An election of this play alone.
    pub election: String,
    witness: Option<AbortHandle>,
}

impl Play {
    /// With the agent of this address as the witness's.
    #[must_use]
    pub fn new(program: &Program, name: &str, agent: SocketAddr) -> Self {
        let election = format!("{name}-{}-{:08x}", program.name, fastrand::u32(..));
        let book = Book::default();
        let witness = tokio::spawn(witness(agent, election.clone(), book.clone()));
        Self {
            program: program.clone(),
            book,
            election,
            witness: Some(witness.abort_handle()),
        }
    }

    /// Starts the program under a name, as a client of the agents behind these fronts.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn start(&self, name: &'static str, fronts: &[&Front]) -> Result<Player, String> {
        self.start_with(name, fronts, None).await
    }

    /// As [`start`](Self::start), with another clock.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn start_with(
        &self,
        name: &'static str,
        fronts: &[&Front],
        clock: Option<&Clock>,
    ) -> Result<Player, String> {
        let mut command = tokio::process::Command::new(&self.program.file);
        command
            .args(&self.program.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(clock) = clock {
            command.envs(clock.environment());
        }
        let started = command.spawn();
        let mut child =
            started.map_err(|error| format!("{}: {error}", self.program.file.display()))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err("no pipes".to_owned());
        };
        let book = self.book.clone();
        let errors = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&errors);
        let reading = tokio::spawn(async move {
            let mut events = BufReader::new(stdout).lines();
            let mut complaints = BufReader::new(stderr).lines();
            loop {
                tokio::select! {
                    line = events.next_line() => {
                        let Ok(Some(line)) = line else { return };
                        match serde_json::from_str::<Event>(&line) {
                            Ok(mut event) => {
                                name.clone_into(&mut event.program);
                                book.write(|record| record.events.push(event));
                            }
                            Err(error) => {
                                let mut kept = kept.lock();
                                *kept += &format!("{error}: {line}\n");
                            }
                        }
                    }
                    Ok(Some(line)) = complaints.next_line() => {
                        let mut kept = kept.lock();
                        *kept += &line;
                        kept.push('\n');
                    }
                }
            }
        })
        .abort_handle();
        let mut player = Player {
            name,
            child,
            stdin,
            reading,
            errors,
        };
        let ready = self.event(self.program.starts_within, name, Name::Ready, 1);
        if ready.await.is_none() {
            return Err(format!("{name} is not ready: {}", player.errors()));
        }
        let agents: Vec<_> = fronts.iter().map(|front| front.proxy.address()).collect();
        let agents = agents.join(",");
        player.tell(&Command::Connect { agents }).await?;
        Ok(player)
    }

    /// Waits for the `nth` report of this name by a program. `None`: not within the limit.
    pub async fn event(
        &self,
        limit: Duration,
        program: &str,
        name: Name,
        nth: usize,
    ) -> Option<Event> {
        let look = |record: &Record| record.of(program, name).nth(nth - 1).cloned();
        self.book.until(limit, look).await
    }

    /// Waits for a report that the scenario cannot go on without.
    ///
    /// # Errors
    ///
    /// There is none in time.
    pub async fn must(&self, program: &str, name: Name, nth: usize) -> Result<Event, String> {
        let found = self.event(PATIENCE, program, name, nth).await;
        found.ok_or_else(|| format!("setup: {program} does not report {name:?} {nth} times"))
    }

    /// The time in which something would be seen that must not happen.
    pub async fn pause(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Until when a program's leadership may act, by what it has reported.
    #[must_use]
    pub fn valid_until(&self, program: &str) -> u64 {
        let read = |record: &Record| record.valid_until(program, 1, u64::MAX);
        self.book.read(read).unwrap_or(0)
    }

    /// Waits until an instant has passed by so much.
    pub async fn after(&self, instant: u64, ms: u64) {
        let left = (instant + ms * 1_000_000).saturating_sub(now());
        tokio::time::sleep(Duration::from_nanos(left)).await;
    }

    /// What has happened.
    #[must_use]
    pub fn record(&self) -> Record {
        self.book.read(Record::clone)
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        if let Some(witness) = self.witness.take() {
            witness.abort();
        }
    }
}

/// Writes down what the agent says of an election.
async fn witness(agent: SocketAddr, election: String, book: Book) {
    let channel = Endpoint::from_shared(format!("http://{agent}"))
        .expect("an address")
        .connect_lazy();
    loop {
        let request = ObserveRequest {
            kind: KIND.to_owned(),
            what: Some(observe_request::What::Election(election.clone())),
            ..ObserveRequest::default()
        };
        if let Ok(answer) = LeadershipClient::new(channel.clone())
            .observe(request)
            .await
        {
            let mut stream = answer.into_inner();
            while let Ok(Some(observation)) = stream.message().await {
                if let Some(observation::What::State(state)) = observation.what {
                    let cause = match state.cause() {
                        Cause::Unspecified => "?",
                        cause => cause.as_str_name(),
                    };
                    let held = state.phase() == Phase::Held;
                    let leader = state.leader.as_ref().filter(|_| held);
                    let seen = Seen {
                        at: now(),
                        leader: leader.map(|leader| leader.name.clone()),
                        token: state.token,
                        cause: cause.to_owned(),
                    };
                    book.write(|record| record.seen.push(seen));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
