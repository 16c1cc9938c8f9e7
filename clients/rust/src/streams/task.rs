//! The task of a stream.

use std::{collections::HashMap, future::pending, pin::Pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;

use super::{
    Command, Joining, Left, Told,
    entry::{Entry, Extends, Stage},
    session::{NotOpen, Session},
};
use crate::{
    Deadline, Error, Lost,
    lead::Settings,
    pool::{Pool, describe},
    proto::{self, lead_event::What, standing::Is},
    term::{Shared, Who},
    types::duration,
    unary::{Alive, jittered, request_id},
};

/// The shortest and the longest time in which a ping is to be answered before another agent is tried.
const PONG: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(750));
/// How long an agent may take to confirm that an election has left.
const LEAVE: Duration = Duration::from_secs(2);
/// After how many attempts in a row streams are given up: what is between may let calls pass only.
const FAILURES: u32 = 2;
/// The longest pause between attempts to open a stream.
const PAUSE: Duration = Duration::from_millis(500);

type Opening = Pin<Box<dyn Future<Output = Result<Session, NotOpen>> + Send>>;

type Asking = Pin<Box<dyn Future<Output = Result<(), &'static str>> + Send>>;

/// What a stream's task knows.
pub(super) struct Task {
    pool: Arc<Pool>,
    candidate: String,
    ping_every: Duration,
    alive: Arc<Alive>,
    not_offered: Arc<Mutex<Option<Instant>>>,
    commands: mpsc::UnboundedReceiver<Command>,
    entries: HashMap<usize, Entry>,
    names: HashMap<(String, String), usize>,
    /// Elections that join when the one of the same name has left.
    queue: Vec<Joining>,
    session: Option<Session>,
    /// The next stream, while it is being opened.
    opening: Option<Opening>,
    /// The present stream ends soon, whatever it answers.
    leaving: bool,
    /// How long a ping may be unanswered.
    pong: Duration,
    /// The last pause before an attempt; zero since a ping was answered.
    pause: Duration,
    /// How often in a row agents were reached and gave no stream, or one that brought nothing.
    failures: u32,
    worth: Worth,
    ping_at: Instant,
    /// The check that the application is alive, before a ping.
    asking: Option<Asking>,
}

/// What the present stream has been good for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Worth {
    Nothing,
    /// The agent has reported on an election.
    Heard,
    /// A ping was answered.
    Answered,
}

/// What has happened.
enum Event {
    Command(Option<Command>),
    Opened(Result<Box<Session>, NotOpen>),
    Message(Result<Option<proto::LeadEvent>, Status>),
    PingDue,
    Asked(Result<(), &'static str>),
    Silent,
    Lapsed,
}

impl Task {
    pub(super) fn new(
        pool: Arc<Pool>,
        settings: &Settings,
        alive: Alive,
        not_offered: Arc<Mutex<Option<Instant>>>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let third = settings.term / 3;
        Self {
            pool,
            candidate: settings.candidate.clone(),
            ping_every: third.clamp(Duration::from_millis(100), Duration::from_secs(60)),
            alive: Arc::new(alive),
            not_offered,
            commands,
            entries: HashMap::new(),
            names: HashMap::new(),
            queue: Vec::new(),
            session: None,
            opening: None,
            leaving: false,
            pong: (third / 3).clamp(PONG.0, PONG.1),
            pause: Duration::ZERO,
            failures: 0,
            worth: Worth::Nothing,
            ping_at: Instant::now(),
            asking: None,
        }
    }

    /// Runs until no leadership is left on it, or agents offer no streams.
    pub(super) async fn run(mut self) {
        self.open(Duration::ZERO);
        loop {
            match self.event().await {
                Event::Command(Some(command)) => self.command(command),
                Event::Command(None) => return,
                Event::Opened(Ok(session)) => self.opened(*session),
                Event::Opened(Err(NotOpen::NotOffered)) => {
                    tracing::debug!(
                        "the agent offers no streams to lead by: falling back to calls"
                    );
                    self.not_offered();
                    return self.fall_back();
                }
                Event::Opened(Err(NotOpen::NotAlive(reason))) => {
                    let reason = reason.to_owned();
                    self.not_opened(&Error::NotKnown { reason });
                }
                Event::Opened(Err(NotOpen::Refused(why))) => {
                    tracing::warn!(
                        why,
                        "the agent refuses a stream to lead by: falling back to calls"
                    );
                    return self.fall_back();
                }
                Event::Opened(Err(NotOpen::Failed { error, silent })) => {
                    // Silence took as long as several failures.
                    self.failures += match error {
                        Error::NotKnown { .. } if silent => FAILURES,
                        Error::NotKnown { .. } => 1,
                        _ => 0,
                    };
                    if self.failures >= FAILURES && self.session.is_none() {
                        return self.give_up(&error.to_string());
                    }
                    self.not_opened(&error);
                }
                Event::Message(Ok(Some(event))) => {
                    if let Some(what) = event.what {
                        self.message(what);
                    }
                }
                Event::Message(Ok(None)) => {
                    let why = "the agent has ended the stream";
                    if !self.goes_on_after(why) {
                        return self.give_up(why);
                    }
                }
                Event::Message(Err(status)) => {
                    let why = describe(&status);
                    if !self.goes_on_after(&why) {
                        return self.give_up(&why);
                    }
                }
                Event::PingDue => {
                    self.forget_leaving(|since| since.elapsed() > LEAVE);
                    let alive = Arc::clone(&self.alive);
                    let within = self.ping_every / 2;
                    self.ping_at = Instant::now() + self.ping_every;
                    self.asking = Some(Box::pin(async move { alive.ask(within).await }));
                }
                Event::Asked(alive) => {
                    self.asking = None;
                    match alive {
                        Ok(()) => self.ping(),
                        Err(reason) => {
                            self.jeopardize(reason);
                            self.ping_at = Instant::now() + jittered(self.ping_every / 4);
                        }
                    }
                }
                Event::Silent => self.silent(),
                Event::Lapsed => self.lapsed(),
            }
        }
    }

    async fn event(&mut self) -> Event {
        let silent = self
            .session
            .as_ref()
            .and_then(Session::silent_since)
            .map(|since| since + self.pong);
        let silent = silent.filter(|_| self.opening.is_none());
        let lapse = self.entries.values().filter_map(|entry| match entry.stage {
            Stage::Lapsing { until, .. } => Some(until),
            _ => None,
        });
        let lapse = lapse.min().map(Deadline::remaining);
        let has_session = self.session.is_some();
        let idle = self.asking.is_none();
        tokio::select! {
            biased;
            command = self.commands.recv() => Event::Command(command),
            message = async {
                match &mut self.session {
                    Some(session) => session.events.message().await,
                    None => pending().await,
                }
            } => Event::Message(message),
            opened = async {
                match &mut self.opening {
                    Some(opening) => opening.await,
                    None => pending().await,
                }
            } => Event::Opened(opened.map(Box::new)),
            alive = async {
                match &mut self.asking {
                    Some(asking) => asking.await,
                    None => pending().await,
                }
            } => Event::Asked(alive),
            () = sleep_until(self.ping_at), if has_session && idle => Event::PingDue,
            () = until(silent) => Event::Silent,
            () = async {
                match lapse {
                    Some(lapse) => sleep(lapse).await,
                    None => pending().await,
                }
            } => Event::Lapsed,
        }
    }

    fn not_offered(&self) {
        *self.not_offered.lock() = Some(Instant::now());
    }

    /// Begins to open another stream.
    fn open(&mut self, after: Duration) {
        let leads = self
            .entries
            .values()
            .any(|entry| matches!(entry.stage, Stage::Leading { .. }));
        let open = Session::open(
            Arc::clone(&self.pool),
            self.candidate.clone(),
            self.ping_every,
            leads,
        );
        let alive = Arc::clone(&self.alive);
        let within = self.ping_every / 2;
        self.opening = Some(Box::pin(async move {
            sleep(after).await;
            // To join with a token extends its term.
            if leads {
                alive.ask(within).await.map_err(NotOpen::NotAlive)?;
            }
            open.await
        }));
    }

    /// Goes on with a new stream, and leaves the old one.
    fn opened(&mut self, session: Session) {
        self.opening = None;
        self.leaving = false;
        self.worth = Worth::Nothing;
        self.pong = self.pong_within(session.answers_in());
        self.session = Some(session);
        for entry in self.entries.values_mut() {
            if let Stage::Leading { extends, .. } = &mut entry.stage {
                // Until the new stream says that it leads.
                *extends = None;
            }
        }
        // The old stream received their Leave, or did not.
        self.forget_leaving(|_| true);
        for entry in self.entries.values() {
            if let Some(join) = entry.join() {
                self.send(join);
            }
        }
        // Hello counts as the first ping.
        self.ping_at = Instant::now() + self.ping_every;
    }

    fn not_opened(&mut self, error: &Error) {
        self.opening = None;
        tracing::debug!(%error, "no stream to lead by");
        if let Some(session) = &self.session {
            if session.is_late() {
                self.jeopardize("a ping is not answered");
            }
        } else {
            self.jeopardize(&error.to_string());
            for entry in self.entries.values() {
                if matches!(entry.stage, Stage::Waiting) {
                    entry.tell(Told::NotKnown(error.clone()));
                }
            }
        }
        let pause = self.next_pause();
        self.open(pause);
    }

    /// How long to wait before the next attempt, which grows until a stream has been of use.
    fn next_pause(&mut self) -> Duration {
        self.pause = (self.pause * 2).clamp(Duration::from_millis(50), PAUSE);
        jittered(self.pause)
    }

    /// Goes on with another stream after the present one has ended. Returns `false` if streams do not work here.
    fn goes_on_after(&mut self, why: &str) -> bool {
        tracing::debug!(why, "a stream to lead by has ended");
        if let Some(session) = self.session.take() {
            self.pool.discard(&session.connection);
            self.pool.avoid(session.route);
        }
        self.forget_leaving(|_| true);
        if self.opening.is_some() {
            return true;
        }
        // Opened again at once, one that ends as soon as it is open would keep both sides busy with nothing else.
        let pause = match self.worth {
            Worth::Answered => Duration::ZERO,
            Worth::Heard => self.next_pause(),
            Worth::Nothing => {
                self.failures += 1;
                self.next_pause()
            }
        };
        if self.failures >= FAILURES {
            return false;
        }
        self.open(pause);
        true
    }

    /// Gives up on streams.
    fn give_up(self, why: &str) {
        tracing::warn!(why, "there is no stream to lead by: falling back to calls");
        self.not_offered();
        self.fall_back();
    }

    /// Whether these were given up is not known: calls determine it, if a caller waits.
    fn forget_leaving(&mut self, which: impl Fn(Instant) -> bool) {
        let leaving = self
            .entries
            .iter()
            .filter_map(|(number, entry)| match entry.stage {
                Stage::Leaving { since, .. } if which(since) => Some(*number),
                _ => None,
            });
        for number in leaving.collect::<Vec<_>>() {
            if let Some(entry) = self.remove(number) {
                entry.fall_back();
            }
        }
        self.join_queued();
    }

    /// A ping is not answered: another agent may do better. The old stream stays until there is a new one.
    fn silent(&mut self) {
        if let Some(session) = &self.session {
            if session.is_late() {
                self.jeopardize("a ping is not answered");
            }
            self.pool.discard(&session.connection);
            self.pool.avoid(session.route);
        }
        // The agent may be slow rather than gone.
        self.pong = (self.pong * 2).min(self.ping_every);
        self.open(Duration::ZERO);
    }

    /// How long an agent that took so long to answer may leave a ping unanswered.
    fn pong_within(&self, answers_in: Duration) -> Duration {
        let usual = (self.ping_every / 3).clamp(PONG.0, PONG.1);
        // No longer than this, so that there is time for another agent.
        usual.max(2 * answers_in).min(self.ping_every.max(usual))
    }

    fn send(&self, what: proto::lead_request::What) {
        if let Some(session) = &self.session {
            session.send(what);
        }
    }

    fn ping(&mut self) {
        if let Some(session) = &mut self.session {
            session.ping();
        }
    }

    fn jeopardize(&self, reason: &str) {
        for entry in self.entries.values() {
            if let Stage::Leading { term, .. } = &entry.stage {
                term.jeopardize(reason);
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Join(joining) => self.join(*joining),
            Command::Leave(number, left) => {
                let Some(entry) = self.entries.get_mut(&number) else {
                    let _ = left.send(Err(Left::NotJoined));
                    return;
                };
                let token = match &entry.stage {
                    Stage::Leading { term, .. } => term.token,
                    Stage::Unconfirmed { token, .. }
                    | Stage::Lapsing { token, .. }
                    | Stage::Leaving { token, .. } => *token,
                    Stage::Waiting => 0,
                };
                if self.session.is_none() {
                    // No agent to send Leave to: a call resigns.
                    self.remove(number);
                    let _ = left.send(Err(Left::NotJoined));
                    return;
                }
                entry.stage = Stage::Leaving {
                    token,
                    since: Instant::now(),
                    left: Some(left),
                };
                let leave = entry.leave(token);
                self.send(leave);
            }
            Command::Lapse(number) => {
                self.queue.retain(|joining| joining.number != number);
                let Some(entry) = self.entries.get_mut(&number) else {
                    return;
                };
                match &entry.stage {
                    Stage::Leading { term, .. } => {
                        entry.stage = Stage::Lapsing {
                            token: term.token,
                            until: term.valid_until(),
                        };
                    }
                    Stage::Waiting | Stage::Unconfirmed { .. } => {
                        // Nobody has worked under it.
                        entry.stage = Stage::Leaving {
                            token: 0,
                            since: Instant::now(),
                            left: None,
                        };
                        let leave = entry.leave(0);
                        if self.session.is_some() {
                            self.send(leave);
                        } else {
                            self.remove(number);
                        }
                    }
                    Stage::Lapsing { .. } | Stage::Leaving { .. } => {}
                }
            }
        }
    }

    fn join(&mut self, joining: Joining) {
        let name = (
            joining.settings.kind.clone(),
            joining.settings.election.clone(),
        );
        if self.names.contains_key(&name) {
            self.queue.push(joining);
            return;
        }
        let Ok(request_id) = request_id() else {
            let _ = joining.told.send(Told::Fallback);
            return;
        };
        let stage = match joining.term {
            Some(term) => Stage::Leading {
                term,
                extends: None,
            },
            None => Stage::Waiting,
        };
        let entry = Entry {
            settings: joining.settings,
            hooks: joining.hooks,
            request_id,
            told: joining.told,
            stage,
        };
        if let Some(join) = entry.join() {
            self.send(join);
        }
        self.names.insert(name, joining.number);
        self.entries.insert(joining.number, entry);
    }

    fn join_queued(&mut self) {
        for joining in std::mem::take(&mut self.queue) {
            self.join(joining);
        }
    }

    fn remove(&mut self, number: usize) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        self.names
            .remove(&(entry.settings.kind.clone(), entry.settings.election.clone()));
        Some(entry)
    }

    /// The time of terms under which nobody works is over.
    fn lapsed(&mut self) {
        let over: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(number, entry)| match entry.stage {
                Stage::Lapsing { token, until } if until.has_passed() => Some((*number, token)),
                _ => None,
            })
            .collect();
        for (number, token) in over {
            // The clock ends the term for work that still checks it. The pings went on for the others.
            if let Some(entry) = self.entries.get_mut(&number) {
                let leave = entry.leave(token);
                entry.stage = Stage::Leaving {
                    token,
                    since: Instant::now(),
                    left: None,
                };
                self.send(leave);
            }
            if self.session.is_none() {
                self.remove(number);
            }
        }
    }

    fn fall_back(mut self) {
        // Later joins find no task, and fall back, too.
        self.commands.close();
        for (_, entry) in self.entries.drain() {
            entry.fall_back();
        }
        for joining in self.queue.drain(..) {
            let _ = joining.told.send(Told::Fallback);
        }
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Join(joining) => {
                    let _ = joining.told.send(Told::Fallback);
                }
                Command::Leave(_, left) => {
                    let _ = left.send(Err(Left::NotJoined));
                }
                Command::Lapse(_) => {}
            }
        }
    }

    fn message(&mut self, what: What) {
        match what {
            What::Welcome(_) => {}
            What::Standing(standing) => {
                if self.worth == Worth::Nothing {
                    self.worth = Worth::Heard;
                }
                self.standing(standing);
            }
            What::Pong(pong) => {
                self.worth = Worth::Answered;
                self.pong(pong);
            }
            What::Goodbye(goodbye) => {
                tracing::debug!(
                    reason = goodbye.reason,
                    "a stream to lead by is about to end"
                );
                if let Some(session) = &self.session {
                    // Its connection ends, too; an agent that shuts down does not come back soon.
                    self.pool.discard(&session.connection);
                    if goodbye.reason != "AGE" {
                        self.pool.avoid(session.route);
                    }
                }
                self.leaving = true;
                let after = u64::try_from(goodbye.reconnect_after).unwrap_or(0);
                let mut after = Duration::from_millis(after);
                if self.worth == Worth::Nothing {
                    after = after.max(self.next_pause());
                }
                self.open(after);
            }
        }
    }

    fn pong(&mut self, pong: proto::Pong) {
        let Some(session) = &mut self.session else {
            return;
        };
        let sent = session.sent(pong.seq);
        session.answered(pong.seq);
        let answers_in = session.answers_in();
        self.pong = self.pong_within(answers_in);
        self.failures = 0;
        self.pause = Duration::ZERO;
        if !self.leaving && self.session.is_some() {
            // The stream works, after all.
            self.opening = None;
        }
        // A listed election was not extended, or carries its own validity.
        let listed = |entry: &Entry| {
            let named = |standing: &proto::Standing| {
                standing.election == entry.settings.election && standing.kind == entry.settings.kind
            };
            pong.standings.iter().any(named)
        };
        let mut confirmed = Vec::new();
        for entry in self.entries.values() {
            match &entry.stage {
                Stage::Leading {
                    term,
                    extends: Some(extends),
                } if pong.seq > extends.after && !listed(entry) => {
                    term.extend(sent.at.plus(extends.by), sent.anchor);
                }
                Stage::Unconfirmed { token, extends }
                    if pong.seq > extends.after && !listed(entry) =>
                {
                    confirmed.push(proto::Standing {
                        kind: entry.settings.kind.clone(),
                        election: entry.settings.election.clone(),
                        is: Is::Leading.into(),
                        token: *token,
                        valid_for: extends.millis,
                        of_ping: pong.seq,
                        ping_valid_for: extends.millis,
                        ..proto::Standing::default()
                    });
                }
                _ => {}
            }
        }
        for standing in confirmed {
            self.standing(standing);
        }
        for standing in pong.standings {
            self.standing(standing);
        }
    }

    fn standing(&mut self, standing: proto::Standing) {
        let name = (standing.kind.clone(), standing.election.clone());
        let Some(number) = self.names.get(&name).copied() else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&number) else {
            return;
        };
        match standing.is() {
            Is::Unspecified => {}
            Is::Waiting => {
                if matches!(entry.stage, Stage::Waiting) {
                    let leader = standing.leader.map(|leader| leader.name);
                    entry.tell(Told::Waiting { leader });
                }
            }
            Is::Leading => self.leading(number, &standing),
            Is::Jeopardy => {
                if let Stage::Leading { term, extends } = &mut entry.stage {
                    *extends = None;
                    term.jeopardize(&standing.reason);
                }
            }
            Is::Lost => {
                let why = Lost::of_reason(&standing.reason).unwrap_or(Lost::NoTerm);
                match &mut entry.stage {
                    Stage::Waiting | Stage::Unconfirmed { .. } => self.campaign_again(number),
                    Stage::Leading { .. } | Stage::Lapsing { .. } | Stage::Leaving { .. } => {
                        self.ended(number, Some(why));
                    }
                }
            }
            Is::Resigned => match &entry.stage {
                Stage::Leaving { .. } => self.ended(number, None),
                // Somebody gave it up in the candidate's name.
                Stage::Leading { term, .. } if term.token == standing.token => {
                    self.ended(number, Some(Lost::NoTerm));
                }
                _ => {}
            },
            Is::Refused => {
                tracing::debug!(
                    reason = standing.reason,
                    "a stream to lead by refuses an election: falling back to calls"
                );
                if let Some(entry) = self.remove(number) {
                    entry.fall_back();
                }
                self.join_queued();
            }
        }
    }

    fn ended(&mut self, number: usize, why: Option<Lost>) {
        if let Some(entry) = self.remove(number) {
            entry.end(why);
        }
        self.join_queued();
    }

    /// What was granted was lost before anybody worked under it.
    fn campaign_again(&mut self, number: usize) {
        let Some(entry) = self.entries.get_mut(&number) else {
            return;
        };
        let Ok(id) = request_id() else {
            if let Some(entry) = self.remove(number) {
                entry.fall_back();
            }
            return;
        };
        entry.request_id = id;
        entry.stage = Stage::Waiting;
        if let Some(join) = entry.join() {
            self.send(join);
        }
    }

    fn leading(&mut self, number: usize, standing: &proto::Standing) {
        let (Some(session), Some(entry)) = (&self.session, self.entries.get_mut(&number)) else {
            return;
        };
        let sent = session.sent(standing.of_ping);
        let valid_until = sent.at.plus(duration(standing.valid_for));
        let extending = Extends {
            after: standing.of_ping,
            by: duration(standing.ping_valid_for),
            millis: standing.ping_valid_for,
        };
        match &mut entry.stage {
            Stage::Leading { term, extends } => {
                if standing.token == term.token {
                    term.extend(valid_until, sent.anchor);
                    *extends = Some(extending);
                } else if standing.token > term.token {
                    self.ended(number, Some(Lost::StaleToken));
                }
            }
            Stage::Waiting | Stage::Unconfirmed { .. } => {
                let settings = &entry.settings;
                let enough = settings.margin() + settings.term / 3;
                if standing.provisional || valid_until.remaining() <= enough {
                    entry.stage = Stage::Unconfirmed {
                        token: standing.token,
                        extends: extending,
                    };
                    // The acceptance.
                    self.ping();
                    return;
                }
                let who = Who {
                    kind: settings.kind.clone(),
                    election: settings.election.clone(),
                    candidate: settings.candidate.clone(),
                };
                let hooks = entry.hooks.clone();
                let term = Shared::start(
                    who,
                    standing.token,
                    valid_until,
                    sent.anchor,
                    settings.margin(),
                    hooks,
                );
                entry.stage = Stage::Leading {
                    term: Arc::clone(&term),
                    extends: Some(extending),
                };
                entry.tell(Told::Granted(term));
            }
            Stage::Lapsing { .. } | Stage::Leaving { .. } => {}
        }
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}
