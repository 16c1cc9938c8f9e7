//! The task of an observer: opens a stream, and the next one when that ends or is about to.

use std::{collections::HashMap, pin::Pin, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Status, Streaming};

use super::{
    Event,
    known::{Known, Verdict, key},
};
use crate::{
    Agent, Code, Error, Scope, State,
    error::listed,
    pool::{Connection, Route, WaitGuard, describe},
    proto::{self, leadership_client::LeadershipClient, observation::What},
    unary::jittered,
};

/// After how long without another message agents send a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After how long without any message a stream counts as broken.
const SILENCE: Duration = Duration::from_secs(12);
/// How long an agent may take to open a stream.
const OPEN: Duration = Duration::from_secs(3);
/// How long a broken stream is not reported: another is usually open by then.
const QUIET: Duration = Duration::from_secs(1);
/// How often in a row an agent may refuse for reasons that may pass.
const REFUSALS: u32 = 4;
/// The shortest and the longest pause between attempts to open a stream.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A stream that ends sooner than this is followed by the next after a pause only.
const BRIEF: Duration = Duration::from_secs(1);

type Events = mpsc::Sender<Result<Event, Error>>;

type Opening = Pin<Box<dyn Future<Output = Result<(Session, Present), Error>> + Send>>;

/// Follows until the observer is gone, or the agent refuses.
pub(super) async fn follow(agent: Agent, scope: Scope, events: Events) {
    let mut observer = Follower {
        agent,
        scope,
        events,
        known: Known::default(),
        synced: false,
        certain: true,
        pause: PAUSE.0,
        confirmed: Instant::now(),
    };
    if let Err(End::Failed(error)) = observer.run().await {
        // The observer may have gone.
        let _ = observer.events.send(Err(error)).await;
    }
}

/// Why there is nothing more to do.
enum End {
    /// The observer was dropped.
    Gone,
    /// Trying again does not help.
    Failed(Error),
}

/// A stream, and where it comes from.
struct Session {
    stream: Streaming<proto::Observation>,
    route: Route,
    connection: Connection,
    opened: Instant,
    _wait: WaitGuard,
}

/// What a stream said first.
#[derive(Default)]
struct Present {
    states: HashMap<(String, String), State>,
    doubt: Option<proto::Certainty>,
}

struct Follower {
    agent: Agent,
    scope: Scope,
    events: Events,
    known: Known,
    /// Whether `Synced` was reported.
    synced: bool,
    /// The certainty that was reported last.
    certain: bool,
    /// How long to wait after a stream that was brief.
    pause: Duration,
    /// When a stream last sent something certain.
    confirmed: Instant,
}

impl Follower {
    async fn run(&mut self) -> Result<(), End> {
        let (mut session, present) = self.reopen("no agent has answered", Duration::ZERO).await?;
        self.take_over(present).await?;
        loop {
            let why = match self.read(&mut session).await? {
                Ended::Broken(why) => why,
                Ended::Next(next, present) => {
                    session = *next;
                    self.take_over(present).await?;
                    continue;
                }
            };
            tracing::debug!(why, "a stream of observations has ended");
            self.agent.pool().discard(&session.connection);
            self.agent.pool().avoid(session.route);
            let after = self.pause_after(&session);
            let present;
            (session, present) = self.reopen(&why, after).await?;
            self.take_over(present).await?;
        }
    }

    /// An agent that ends its streams as soon as they are open is not kept busy with opening more of them.
    fn pause_after(&mut self, session: &Session) -> Duration {
        if session.opened.elapsed() >= BRIEF {
            self.pause = PAUSE.0;
            return Duration::ZERO;
        }
        let pause = jittered(self.pause);
        self.pause = (self.pause * 2).min(PAUSE.1);
        pause
    }

    async fn tell(&self, event: Event) -> Result<(), End> {
        self.events.send(Ok(event)).await.map_err(|_| End::Gone)
    }

    /// Opens a stream, however long it takes; reports uncertainty when it takes long.
    async fn reopen(&mut self, why: &str, mut after: Duration) -> Result<(Session, Present), End> {
        let mut why = why.to_owned();
        let (mut refusals, mut pause) = (0, PAUSE.0);
        loop {
            let (agent, scope, rest) = (self.agent.clone(), self.scope.clone(), after);
            let opening = async {
                sleep(rest).await;
                open(&agent, &scope).await
            };
            tokio::pin!(opening);
            let result = loop {
                let quiet = QUIET.saturating_sub(self.confirmed.elapsed());
                tokio::select! {
                    biased;
                    result = &mut opening => break result,
                    () = sleep(quiet), if self.certain => {
                        self.certain = false;
                        self.tell(Event::Certainty {
                            certain: false,
                            unconfirmed_for: self.confirmed.elapsed(),
                            reason: why.clone(),
                        })
                        .await?;
                    }
                }
            };
            match result {
                Ok(opened) => return Ok(opened),
                Err(Error::Refused { code, message }) => {
                    refusals += 1;
                    let may_pass = code == Code::ResourceExhausted
                        || code == Code::Unauthenticated && self.synced;
                    if !may_pass || refusals >= REFUSALS {
                        return Err(End::Failed(Error::Refused { code, message }));
                    }
                    why = format!("{code}: {message}");
                }
                Err(error @ Error::Config(_)) => return Err(End::Failed(error)),
                Err(error) => why = error.to_string(),
            }
            tracing::debug!(why, "no stream of observations");
            after = jittered(pause);
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Reads until the stream has broken, or another has taken its place.
    async fn read(&mut self, session: &mut Session) -> Result<Ended, End> {
        let mut next: Opening = Box::pin(std::future::pending());
        let mut leaving = false;
        loop {
            let message = tokio::select! {
                biased;
                opened = &mut next => match opened {
                    Ok((session, present)) => return Ok(Ended::Next(Box::new(session), present)),
                    // The old one goes on for a moment; then `reopen` determines what is wrong.
                    Err(error) => {
                        tracing::debug!(%error, "no stream to go on with");
                        next = Box::pin(std::future::pending());
                        continue;
                    }
                },
                message = timeout(SILENCE, session.stream.message()) => message,
            };
            let what = match message {
                Ok(Ok(Some(message))) => message.what,
                Ok(Ok(None)) if leaving => {
                    // The new one may be about to be open.
                    return Ok(match timeout(OPEN, next).await {
                        Ok(Ok((session, present))) => Ended::Next(Box::new(session), present),
                        Ok(Err(error)) => Ended::Broken(error.to_string()),
                        Err(_) => Ended::Broken("the agent has ended the stream".to_owned()),
                    });
                }
                Ok(Ok(None)) => {
                    return Ok(Ended::Broken("the agent has ended the stream".to_owned()));
                }
                Ok(Err(status)) => return Ok(Ended::Broken(describe(&status))),
                Err(_) => return Ok(Ended::Broken(format!("no heartbeat within {SILENCE:?}"))),
            };
            match what {
                Some(What::State(state)) => {
                    if let Some(state) = State::of(state) {
                        self.state(state, false).await?;
                    }
                }
                Some(What::Certainty(certainty)) => self.certainty(certainty).await?,
                Some(What::Goodbye(goodbye)) => {
                    tracing::debug!(
                        reason = goodbye.reason,
                        "a stream of observations is about to end"
                    );
                    leaving = true;
                    let pool = self.agent.pool();
                    // Its connection ends, too; an agent that shuts down does not come back soon.
                    pool.discard(&session.connection);
                    if goodbye.reason != "AGE" {
                        pool.avoid(session.route);
                    }
                    let (agent, scope) = (self.agent.clone(), self.scope.clone());
                    let after = u64::try_from(goodbye.reconnect_after).unwrap_or(0);
                    let after = Duration::from_millis(after).max(self.pause_after(session));
                    next = Box::pin(async move {
                        sleep(after).await;
                        open(&agent, &scope).await
                    });
                }
                Some(What::Synced(_) | What::Heartbeat(_)) | None => {}
            }
            if self.certain {
                self.confirmed = Instant::now();
            }
        }
    }

    /// A stream has begun: reports what is new in its first messages.
    async fn take_over(&mut self, present: Present) -> Result<(), End> {
        let gone = self.known.held_beside(&present.states);
        for state in present.states.into_values() {
            self.state(state, true).await?;
        }
        // A listing may lack an election that is held: no vacancy is reported before a quorum has confirmed it.
        for (kind, election) in gone {
            let state = self.ask(&kind, &election).await?;
            self.report(state, true).await?;
        }
        if !self.synced {
            self.synced = true;
            self.tell(Event::Synced).await?;
        }
        let certain = present.doubt.unwrap_or(proto::Certainty {
            certain: true,
            unconfirmed_for: 0,
            reason: String::new(),
        });
        self.certainty(certain).await
    }

    async fn state(&mut self, state: State, again: bool) -> Result<(), End> {
        match self.known.judge(&state) {
            Verdict::Same => Ok(()),
            Verdict::News => self.report(state, again).await,
            Verdict::Older => {
                let state = self.ask(&state.kind, &state.election).await?;
                self.report(state, again).await
            }
        }
    }

    /// Reports a state unless it was the last.
    async fn report(&mut self, mut state: State, again: bool) -> Result<(), End> {
        if self.known.judge(&state) == Verdict::Same {
            return Ok(());
        }
        state.missed |= again && self.known.has(&state);
        self.known.put(&state);
        self.tell(Event::State(state)).await
    }

    /// Asks a quorum for a state, until there is an answer.
    async fn ask(&self, kind: &str, election: &str) -> Result<State, End> {
        let mut pause = PAUSE.0;
        loop {
            match self.agent.state(election, kind).await {
                Ok(state) => return Ok(state),
                Err(error @ (Error::Refused { .. } | Error::Config(_)))
                    if !matches!(
                        error,
                        Error::Refused {
                            code: Code::ResourceExhausted,
                            ..
                        }
                    ) =>
                {
                    return Err(End::Failed(error));
                }
                Err(error) => tracing::debug!(%error, "a state is not known"),
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn certainty(&mut self, certainty: proto::Certainty) -> Result<(), End> {
        if certainty.certain {
            self.confirmed = Instant::now();
            if self.certain {
                return Ok(());
            }
        }
        self.certain = certainty.certain;
        self.tell(Event::Certainty {
            certain: certainty.certain,
            unconfirmed_for: Duration::from_millis(
                u64::try_from(certainty.unconfirmed_for).unwrap_or(0),
            ),
            reason: certainty.reason,
        })
        .await
    }
}

enum Ended {
    Broken(String),
    Next(Box<Session>, Present),
}

/// Opens a stream at the first agent that answers, and reads the present states.
async fn open(agent: &Agent, scope: &Scope) -> Result<(Session, Present), Error> {
    let pool = agent.pool();
    let (routes, mut tried) = pool.routes().await;
    let mut older = None;
    let mut others_failed = !tried.is_empty();
    for route in routes {
        let (lane, wait) = pool.wait_lane();
        let connection = pool.connection(route, lane);
        let mut request = Request::new(request(scope));
        let opening = async {
            pool.dress(request.metadata_mut())
                .await
                .map_err(Status::unavailable)?;
            let mut client = LeadershipClient::new(connection.channel.clone());
            client.observe(request).await
        };
        let why = match timeout(OPEN, opening).await {
            Ok(Ok(response)) => {
                let mut session = Session {
                    stream: response.into_inner(),
                    route,
                    connection,
                    opened: Instant::now(),
                    _wait: wait,
                };
                match present(&mut session.stream).await {
                    Ok(present) => {
                        pool.prefer(route);
                        return Ok((session, present));
                    }
                    Err(status) => (status, session.connection),
                }
            }
            Ok(Err(status)) => (status, connection),
            Err(_) => (
                Status::deadline_exceeded(format!("no stream within {OPEN:?}")),
                connection,
            ),
        };
        let (status, connection) = why;
        if let Some(code) = Code::of(status.code()) {
            let message = status.message().to_owned();
            let refused = Error::Refused { code, message };
            if code != Code::Unimplemented {
                return Err(refused);
            }
            // Another of the agents may be newer.
            older = Some(refused);
            tried.push((pool.label(route), describe(&status)));
            continue;
        }
        pool.discard(&connection);
        tried.push((pool.label(route), describe(&status)));
        others_failed = true;
    }
    pool.forget_addresses();
    let reason = listed(&tried);
    // Newer ones may be unreachable at the moment.
    let older = older.filter(|_| !others_failed);
    Err(older.unwrap_or(Error::NotKnown { reason }))
}

/// Reads what a stream says first.
async fn present(stream: &mut Streaming<proto::Observation>) -> Result<Present, Status> {
    let mut present = Present::default();
    loop {
        let message = timeout(SILENCE, stream.message()).await;
        let message = message
            .map_err(|_| Status::deadline_exceeded(format!("no heartbeat within {SILENCE:?}")))?;
        match message?.and_then(|message| message.what) {
            Some(What::State(state)) => {
                if let Some(state) = State::of(state) {
                    present.states.insert(key(&state), state);
                }
            }
            Some(What::Synced(_)) => return Ok(present),
            Some(What::Certainty(certainty)) => {
                present.doubt = (!certainty.certain).then_some(certainty);
            }
            Some(What::Heartbeat(_)) => {}
            Some(What::Goodbye(goodbye)) => {
                return Err(Status::unavailable(format!("goodbye: {}", goodbye.reason)));
            }
            None => return Err(Status::unavailable("the agent has ended the stream")),
        }
    }
}

fn request(scope: &Scope) -> proto::ObserveRequest {
    use proto::observe_request::What;
    let (kind, what) = match scope {
        Scope::Election { kind, election } => {
            (kind.clone(), Some(What::Election(election.clone())))
        }
        Scope::Prefix { kind, prefix } => (kind.clone(), Some(What::Prefix(prefix.clone()))),
        Scope::Kind(kind) => (kind.clone(), None),
        Scope::All => (String::new(), Some(What::AllKinds(true))),
    };
    proto::ObserveRequest {
        kind,
        what,
        heartbeat: i32::try_from(HEARTBEAT.as_millis()).unwrap_or(0),
        after: String::new(),
    }
}
