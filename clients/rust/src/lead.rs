//! Leading: the caller's interface.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    Agent, Error, Lost, Standing, Term,
    hooks::Hooks,
    pool::Pool,
    seats::Seated,
    streams::{Joined, Left, Told},
    term::{Shared, Who},
    types::{DEFAULT_KIND, millis},
    unary::{self, Granted, Patience, Waiting},
};

/// How long an agent may take to confirm that a stream has given an election up, before a call does it.
const LEAVE: Duration = Duration::from_secs(1);

/// How long a leadership lasts unless it is extended, if not said otherwise.
const TERM: Duration = Duration::from_secs(15);

/// How long work may go on after the loss was reported to it, if not said otherwise.
const GRACE: Duration = Duration::from_secs(5);

/// The longest margin, unless it is asked for.
const MARGIN: Duration = Duration::from_secs(1);

/// How a candidate leads an election: made by [`Agent::lead`], and used by [`run`](Self::run), [`start`](Self::start)
/// or [`terms`](Self::terms).
#[derive(Clone, Debug)]
#[must_use = "nobody campaigns before `run`, `start` or `terms`"]
pub struct Lead {
    pub(crate) agent: Agent,
    pub(crate) settings: Settings,
    pub(crate) hooks: Hooks,
}

/// The settings, without the functions.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) kind: String,
    pub(crate) election: String,
    pub(crate) candidate: String,
    pub(crate) term: Duration,
    pub(crate) value: String,
    /// `None`: for ever.
    pub(crate) wait: Option<Duration>,
    pub(crate) grace: Duration,
    pub(crate) margin: Option<Duration>,
}

impl Settings {
    pub(crate) fn margin(&self) -> Duration {
        self.margin.unwrap_or_else(|| MARGIN.min(self.term / 10))
    }

    fn who(&self) -> Who {
        Who {
            kind: self.kind.clone(),
            election: self.election.clone(),
            candidate: self.candidate.clone(),
        }
    }

    /// # Errors
    ///
    /// The settings are wrong in a way that no agent can detect.
    fn check(&self) -> Result<(), Error> {
        millis(self.term, "the term")?;
        if self.term < Duration::from_secs(1) {
            return Err(Error::Config(format!(
                "the term is {:?}: at least 1 s",
                self.term
            )));
        }
        if self.margin() > self.term / 2 {
            return Err(Error::Config(format!(
                "the margin is {:?}: at most half of the term, which is {:?}",
                self.margin(),
                self.term
            )));
        }
        Ok(())
    }
}

impl Lead {
    pub(crate) fn new(agent: Agent, election: String) -> Self {
        let candidate = agent.candidate().to_owned();
        Self {
            agent,
            settings: Settings {
                kind: DEFAULT_KIND.to_owned(),
                election,
                candidate,
                term: TERM,
                value: String::new(),
                wait: None,
                grace: GRACE,
                margin: None,
            },
            hooks: Hooks::default(),
        }
    }

    /// The election's kind; `default` unless given.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.settings.kind = kind.into();
        self
    }

    /// The name to campaign under; the agent's [`candidate`](Agent::candidate) unless given. It has to be unique among
    /// processes: one that campaigns under the name of the leader takes its leadership over.
    pub fn candidate(mut self, candidate: impl Into<String>) -> Self {
        self.settings.candidate = candidate.into();
        self
    }

    /// How long the leadership lasts unless it is extended, which is done every third of it: 1 s to what the agent
    /// allows, 60 s unless configured. 15 s unless given.
    pub fn term(mut self, term: Duration) -> Self {
        self.settings.term = term;
        self
    }

    /// Public data of the leader, such as its address: at most 1024 bytes.
    pub fn value(mut self, value: impl Into<String>) -> Self {
        self.settings.value = value.into();
        self
    }

    /// How long to wait to be elected; zero: not at all. For ever unless given.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.settings.wait = Some(wait);
        self
    }

    /// For how long the client still tries to extend the term after it reported to the work that the term is lost for
    /// lack of an extension: the time that the work has to end. 5 s unless given. After it the client drops the work's
    /// future.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// How long before the end of the term the leadership counts as lost: at most half of the term. A tenth of the
    /// term, but at most 1 s, unless given.
    pub fn margin(mut self, margin: Duration) -> Self {
        self.settings.margin = Some(margin);
        self
    }

    /// Is called when the term could not be extended, and it is not known whether the candidate leads.
    ///
    /// This and the other functions are called in order by one thread of the library. None holds an extension up; one
    /// that does not return holds up those after it.
    pub fn on_jeopardy(mut self, hook: impl Fn(&Term) + Send + Sync + 'static) -> Self {
        self.hooks.on_jeopardy = Some(Arc::new(hook));
        self
    }

    /// Is called when the leadership is lost.
    pub fn on_lost(mut self, hook: impl Fn(Lost) + Send + Sync + 'static) -> Self {
        self.hooks.on_lost = Some(Arc::new(hook));
        self
    }

    /// Is called whenever the candidate's standing changes.
    pub fn on_state(mut self, hook: impl Fn(&Standing) + Send + Sync + 'static) -> Self {
        self.hooks.on_state = Some(Arc::new(hook));
        self
    }

    /// Is called before each extension, on a thread of its own: while it returns `false`, or does not return, the term
    /// is not extended, so that an application that hangs does not lead on.
    pub fn alive(mut self, hook: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.hooks.alive = Some(Arc::new(hook));
        self
    }

    /// Waits until elected.
    ///
    /// # Errors
    ///
    /// [`Error::NotElected`] after the time to wait, [`Error::NotKnown`] or [`Error::Unreachable`] if no agent answered
    /// at its end; [`Error::Refused`] and [`Error::Config`] at once.
    pub async fn start(self) -> Result<Leadership, Error> {
        let Self {
            agent,
            mut settings,
            hooks,
        } = self;
        if settings.kind.is_empty() {
            DEFAULT_KIND.clone_into(&mut settings.kind);
        }
        settings.check()?;
        let patience = Patience::new(settings.wait);
        let who = settings.who();
        let seat = tokio::select! {
            biased;
            seat = agent.seats().take(&who) => seat,
            () = patience.over() => None,
        };
        let Some(seat) = seat else {
            // A leadership of this process has not ended.
            return Err(Error::NotElected {
                leader: Some(settings.candidate),
            });
        };
        let pool = agent.pool();
        let streams = agent.streams();
        let mut led = None;
        // Noted by a campaign that was not made by a stream.
        let mut extend_at = None;
        let waits = settings.wait != Some(Duration::ZERO);
        if waits && streams.are_offered() {
            let (joined, mut told) = streams.join(pool, &settings, &hooks, None);
            led = granted(&mut told, &hooks, patience)
                .await?
                .map(|term| (term, Some((joined, told))));
        }
        let (term, joined) = match led {
            Some(led) => led,
            None => {
                let granted = unary::campaign(pool, &settings, &hooks, patience).await?;
                let margin = settings.margin();
                let Granted {
                    token,
                    valid_until,
                    anchor,
                    ..
                } = granted;
                extend_at = Some(granted.extend_at);
                let term = Shared::start(who, token, valid_until, anchor, margin, hooks.clone());
                let joined = streams.are_offered().then(|| {
                    let term = Some(Arc::clone(&term));
                    streams.join(pool, &settings, &hooks, term)
                });
                (term, joined)
            }
        };
        let seated = Seated::new(seat, Arc::clone(&term));
        tracing::info!(
            kind = settings.kind,
            election = settings.election,
            candidate = settings.candidate,
            token = term.token,
            "elected"
        );
        hooks.state(Standing::Leading {
            token: term.token,
            valid_until: term.valid_until(),
        });
        let keeping = Keeping {
            pool: Arc::clone(pool),
            settings,
            hooks,
            term: Arc::clone(&term),
        };
        let (joined, told) = joined
            .map(|(joined, told)| (Arc::new(joined), told))
            .unzip();
        let keeper = tokio::spawn(keeping.clone().run(joined.clone(), told, extend_at));
        Ok(Leadership {
            term: Term::new(term),
            keeper: Keeper(keeper),
            joined,
            seated,
            keeping,
        })
    }

    /// Waits until elected, runs the work, and resigns after it has ended.
    ///
    /// [`Term::lost`] reports the loss of the leadership to the work. If it goes on for longer than the
    /// [`grace`](Self::grace), its future is dropped, and the term lapses. If it panics, the candidate resigns before
    /// the panic goes on.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start), and [`Error::Lost`] if the leadership was lost before the work had ended.
    pub async fn run<F, W>(self, work: F) -> Result<W::Output, Error>
    where
        F: FnOnce(Term) -> W,
        W: Future,
    {
        let leadership = self.start().await?;
        let term = leadership.term().clone();
        let loss = term.lost();
        // What it does before its first pause may panic, too.
        let work = async move { work(term).await };
        let mut work = Box::pin(AssertUnwindSafe(work).catch_unwind());
        let grace = leadership.keeping.settings.grace;
        let too_long = async {
            let why = loss.await;
            sleep(grace).await;
            why
        };
        let ended = tokio::select! {
            biased;
            ended = &mut work => ended,
            why = too_long => {
                tracing::error!(
                    kind = leadership.term.kind(),
                    election = leadership.term.election(),
                    "the work has not ended within the grace after the loss: it is dropped, and the term lapses"
                );
                drop(work);
                return Err(Error::Lost(why));
            }
        };
        drop(work);
        let led = leadership.term.check();
        // A leader that lost to another has nothing to give up. Otherwise the work has ended: the next may lead at
        // once, also if the time was over.
        if matches!(led, Ok(()) | Err(Lost::TermOver | Lost::ClockJumped))
            && let Err(error) = leadership.resign().await
        {
            tracing::warn!(%error, "the work has ended, but its term was not given up: it lapses");
        }
        match ended {
            Ok(output) => led.map(|()| output).map_err(Error::Lost),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Leads again and again.
    pub fn terms(self) -> Terms {
        Terms { lead: self }
    }
}

/// Leads an election again and again.
#[derive(Clone, Debug)]
#[must_use = "nobody campaigns before `next`"]
pub struct Terms {
    lead: Lead,
}

impl Terms {
    /// Waits until elected.
    ///
    /// # Errors
    ///
    /// Those of [`Lead::start`].
    pub async fn next(&mut self) -> Result<Leadership, Error> {
        self.lead.clone().start().await
    }
}

/// A leadership that is extended in the background.
///
/// When it is dropped, the term is not extended any more and lapses. [`resign`](Self::resign) lets the next candidate
/// lead at once: call it when the work has ended.
#[must_use = "a leadership that is dropped lapses"]
pub struct Leadership {
    term: Term,
    keeper: Keeper,
    /// The place in a stream, if it leads by one.
    joined: Option<Arc<Joined>>,
    seated: Seated,
    keeping: Keeping,
}

/// What a term is extended with.
#[derive(Clone)]
struct Keeping {
    pool: Arc<Pool>,
    settings: Settings,
    hooks: Hooks,
    term: Arc<Shared>,
}

impl Keeping {
    /// Extends the term, by its stream as long as that does it.
    async fn run(
        self,
        joined: Option<Arc<Joined>>,
        told: Option<mpsc::UnboundedReceiver<Told>>,
        extend_at: Option<Instant>,
    ) {
        let Self {
            pool,
            settings,
            hooks,
            term,
        } = self;
        let mut extend_at = extend_at.unwrap_or_else(Instant::now);
        if let (Some(joined), Some(mut told)) = (joined, told) {
            let fallback = async {
                while let Some(told) = told.recv().await {
                    if matches!(told, Told::Fallback) {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                () = unary::grace_over(&term, settings.grace) => {
                    joined.lapse();
                    return;
                }
                () = fallback => {}
            }
            // How long ago the stream extended it last is not known.
            extend_at = Instant::now();
        }
        unary::keep(pool, settings, hooks, term, extend_at).await;
    }
}

/// Waits until elected over a stream. `None`: the caller falls back to calls.
async fn granted(
    told: &mut mpsc::UnboundedReceiver<Told>,
    hooks: &Hooks,
    patience: Patience,
) -> Result<Option<Arc<Shared>>, Error> {
    let mut waiting = Waiting::new(hooks);
    let mut last = Error::NotKnown {
        reason: "no answer in time".to_owned(),
    };
    loop {
        let told = tokio::select! {
            biased;
            told = told.recv() => told,
            () = patience.over() => return Err(last),
        };
        match told {
            Some(Told::Granted(term)) => return Ok(Some(term)),
            Some(Told::Waiting { leader }) => {
                waiting.tell(Standing::Waiting {
                    leader: leader.clone(),
                });
                last = Error::NotElected { leader };
            }
            Some(Told::NotKnown(error)) => {
                let reason = error.to_string();
                waiting.tell(Standing::NotKnown { reason });
                last = error;
            }
            Some(Told::Fallback) | None => return Ok(None),
        }
    }
}

/// The task that extends a term. It ends when this is dropped.
struct Keeper(JoinHandle<()>);

impl Keeper {
    /// Returns when the task has ended.
    async fn stop(mut self) {
        self.0.abort();
        // It was cancelled, or had ended.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Leadership {
    /// The term. The work takes a clone of it.
    #[must_use]
    pub fn term(&self) -> &Term {
        &self.term
    }

    /// Gives the leadership up. No work may be under way that needs it.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the candidate did not lead any more. [`Error::NotKnown`] and [`Error::Unreachable`] if no
    /// agent answered: the term lapses.
    pub async fn resign(self) -> Result<(), Error> {
        let Self {
            keeper,
            joined,
            seated,
            keeping,
            ..
        } = self;
        let Keeping {
            pool,
            settings,
            hooks,
            term,
        } = keeping;
        // First, so that no extension is sent after this.
        keeper.stop().await;
        let known = match term.look().lost {
            Some(why @ (Lost::HeldByOther | Lost::StaleToken | Lost::NoTerm)) => Err(why),
            _ => Ok(()),
        };
        term.give_up();
        if let Err(why) = known {
            // There is nothing to give up.
            seated.free();
            return Err(Error::Lost(why));
        }
        let left = match &joined {
            Some(joined) => timeout(LEAVE, joined.leave())
                .await
                .unwrap_or(Err(Left::NotKnown)),
            None => Err(Left::NotJoined),
        };
        let resigned = match left {
            Ok(()) => Ok(()),
            Err(Left::Lost(why)) => Err(Error::Lost(why)),
            Err(Left::NotJoined) => unary::resign(&pool, &settings, term.token, false).await,
            Err(Left::NotKnown) => unary::resign(&pool, &settings, term.token, true).await,
        };
        if matches!(resigned, Ok(()) | Err(Error::Lost(_))) {
            seated.free();
        }
        if resigned.is_ok() {
            tracing::info!(
                kind = settings.kind,
                election = settings.election,
                token = term.token,
                "resigned"
            );
            hooks.state(Standing::Resigned);
        }
        resigned
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership")
            .field("term", &self.term)
            .finish()
    }
}
