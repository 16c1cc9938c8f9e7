//! Leading by calls: campaigns that wait, and an extension every third of the term.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    Code, Deadline, Error, Lost, Standing, Term,
    clock::Anchor,
    hooks::Hooks,
    lead::Settings,
    pool::{Failure, Plan, Pool},
    proto,
    term::Shared,
    types::{duration, millis},
};

/// How long one call waits for a vacancy: after it the client detects an agent that has silently gone.
const WAIT: Duration = Duration::from_secs(20);
/// How much longer than the wait a call may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a campaign that does not wait may take, with all its attempts.
const AT_ONCE: Duration = Duration::from_secs(10);
/// How often such a campaign goes round the agents: with the pauses between, for about a second if all fail at once.
const ROUNDS: u32 = 6;
/// A last campaign may take so long when the wait is over.
const LAST: Duration = Duration::from_secs(1);
/// The shortest and the longest time that giving up may take, with all its attempts: a third of the term between them.
const RESIGN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// A term that was granted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granted {
    pub(crate) token: u64,
    pub(crate) valid_until: Deadline,
    /// Clocks, before the grant was asked for.
    pub(crate) anchor: Anchor,
    /// When to extend the term.
    pub(crate) extend_at: Instant,
}

/// When to stop to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience(Option<Instant>);

impl Patience {
    pub(crate) fn new(wait: Option<Duration>) -> Self {
        Self(wait.and_then(|wait| Instant::now().checked_add(wait)))
    }

    pub(crate) fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// Resolves when it is over.
    pub(crate) async fn over(self) {
        match self.0 {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    async fn pause(self, pause: Duration) {
        sleep(jittered(pause).min(self.left())).await;
    }
}

/// From half to one and a half times as long.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64())
}

/// A name for one attempt to get elected, unique among all.
///
/// # Errors
///
/// The system has no random numbers.
pub(crate) fn request_id() -> Result<String, Error> {
    use std::fmt::Write as _;
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Config(format!("no random numbers: {error}")))?;
    let mut id = String::with_capacity(32);
    for byte in bytes {
        // Strings take everything.
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

/// Reports a wait, once for each leader.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    hooks: &'a Hooks,
    told: Option<Standing>,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(hooks: &'a Hooks) -> Self {
        Self { hooks, told: None }
    }

    pub(crate) fn tell(&mut self, standing: Standing) {
        if self.told.as_ref() != Some(&standing) {
            self.hooks.state(standing.clone());
            self.told = Some(standing);
        }
    }
}

/// Waits until elected.
///
/// # Errors
///
/// The patience is over, or the agent refuses.
pub(crate) async fn campaign(
    pool: &Arc<Pool>,
    settings: &Settings,
    hooks: &Hooks,
    patience: Patience,
) -> Result<Granted, Error> {
    let mut waiting = Waiting::new(hooks);
    let mut id = request_id()?;
    let mut may_wait = settings.wait != Some(Duration::ZERO);
    let mut pause = Duration::from_millis(100);
    // How many answers in a row came before the wait was over.
    let mut early = 0;
    loop {
        let wait = if may_wait {
            WAIT.min(patience.left())
        } else {
            Duration::ZERO
        };
        let request = proto::CampaignRequest {
            election: settings.election.clone(),
            candidate: settings.candidate.clone(),
            term: millis(settings.term, "the term")?,
            kind: settings.kind.clone(),
            value: settings.value.clone(),
            request_id: id.clone(),
            wait: millis(wait, "the wait")?,
        };
        let anchor = Anchor::new();
        let asked = Instant::now();
        let answer = if wait.is_zero() {
            let within = match settings.wait {
                Some(Duration::ZERO) => AT_ONCE,
                _ => AT_ONCE.min(patience.left().max(LAST)),
            };
            let mut plan = Plan::one_by_one(within);
            if settings.wait == Some(Duration::ZERO) {
                plan.rounds = ROUNDS;
            }
            pool.call(plan, &request, |mut client, request| async move {
                client.campaign(request).await
            })
            .await
        } else {
            let (lane, _guard) = pool.wait_lane();
            let attempt = wait + ANSWER;
            let plan = Plan {
                attempt,
                until: Instant::now() + 2 * attempt,
                again: false,
                lane,
                ..Plan::one_by_one(attempt)
            };
            pool.call(plan, &request, |mut client, request| async move {
                client.campaign(request).await
            })
            .await
        };
        let failure = match answer {
            Ok(answer) if answer.value.elected => {
                let result = answer.value;
                let granted = Granted {
                    token: result.token,
                    valid_until: answer.sent.plus(duration(result.valid_for)),
                    anchor,
                    extend_at: asked + settings.term / 3,
                };
                match confirm(pool, settings, granted, result.provisional).await? {
                    Some(granted) => return Ok(granted),
                    // The grant was lost before anybody worked under it.
                    None => {
                        id = request_id()?;
                        patience.pause(Duration::from_millis(50)).await;
                        continue;
                    }
                }
            }
            Ok(answer) => {
                let leader = (!answer.value.leader.is_empty()).then_some(answer.value.leader);
                if patience.is_over() || settings.wait == Some(Duration::ZERO) {
                    return Err(Error::NotElected { leader });
                }
                waiting.tell(Standing::Waiting { leader });
                id = request_id()?;
                // Of an older agent, which does not wait, or of one that shuts down.
                early = if asked.elapsed() < wait / 2 || wait.is_zero() {
                    early + 1
                } else {
                    0
                };
                match early {
                    0 => {}
                    1 => patience.pause(Duration::from_millis(100)).await,
                    _ => patience.pause(Duration::from_millis(750)).await,
                }
                if patience.is_over() {
                    // One last try, at once.
                    may_wait = false;
                }
                pause = Duration::from_millis(100);
                continue;
            }
            Err(failure) => failure,
        };
        match failure.refusal.as_ref().map(|(code, _)| *code) {
            // The grant of an earlier attempt is over.
            Some(Code::AlreadyExists) => id = request_id()?,
            // The agent may be set to shorter waits than this.
            Some(Code::InvalidArgument) if may_wait => {
                may_wait = false;
                continue;
            }
            Some(Code::ResourceExhausted) => {}
            Some(_) => return Err(failure.of_change()),
            None => {}
        }
        if patience.is_over() || settings.wait == Some(Duration::ZERO) {
            return Err(failure.of_change());
        }
        tracing::warn!(
            kind = settings.kind,
            election = settings.election,
            reason = failure.reason(),
            "a campaign was not answered"
        );
        waiting.tell(Standing::NotKnown {
            reason: failure.reason(),
        });
        // With the same id: if the attempt was granted, this is the same one.
        patience.pause(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Accepts a grant that is provisional or has little time left, before anybody works under it. `None`: it is lost.
async fn confirm(
    pool: &Pool,
    settings: &Settings,
    mut granted: Granted,
    provisional: bool,
) -> Result<Option<Granted>, Error> {
    let enough = settings.margin() + settings.term / 3;
    if !provisional && granted.valid_until.remaining() > enough {
        return Ok(Some(granted));
    }
    loop {
        let within = (settings.term / 3).min(granted.valid_until.remaining());
        if within.is_zero() {
            return Ok(None);
        }
        let asked = Instant::now();
        match extend(pool, settings, granted.token, within).await {
            Extended::Until(valid_until, anchor) => {
                if valid_until > granted.valid_until {
                    granted.valid_until = valid_until;
                    granted.anchor = anchor;
                }
                granted.extend_at = asked + settings.term / 3;
                let alive =
                    granted.valid_until.minus(settings.margin()).remaining() > Duration::ZERO;
                return Ok(alive.then_some(granted));
            }
            Extended::Denied(_) => return Ok(None),
            Extended::Failed(failure) => match &failure.refusal {
                Some((Code::ResourceExhausted, _)) | None => {
                    sleep(jittered(Duration::from_millis(50))).await;
                }
                Some(_) => return Err(failure.of_change()),
            },
        }
    }
}

/// How an extension ended.
pub(crate) enum Extended {
    /// Until when, and clocks before it was asked for.
    Until(Deadline, Anchor),
    Denied(Lost),
    Failed(Failure),
}

/// Extends a term once, by whichever agent answers within the time.
pub(crate) async fn extend(
    pool: &Pool,
    settings: &Settings,
    token: u64,
    within: Duration,
) -> Extended {
    let request = proto::ExtendElectedTermRequest {
        election: settings.election.clone(),
        leader: settings.candidate.clone(),
        // Checked when the campaign began.
        term: i32::try_from(settings.term.as_millis()).unwrap_or(i32::MAX),
        kind: settings.kind.clone(),
        token,
        retries: 0,
        retry_interval: 0,
    };
    let anchor = Anchor::new();
    let plan = Plan {
        // An answer that comes late is as good: it counts from when its request was sent.
        attempt: within,
        ..Plan::idempotent(within)
    };
    let answer = pool
        .call(plan, &request, |mut client, request| async move {
            client.extend_elected_term(request).await
        })
        .await;
    match answer {
        Ok(answer) if answer.value.value => Extended::Until(
            answer.sent.plus(promised(&answer.value, settings.term)),
            anchor,
        ),
        Ok(answer) => {
            Extended::Denied(Lost::of_reason(&answer.value.reason).unwrap_or(Lost::NoTerm))
        }
        Err(failure) => Extended::Failed(failure),
    }
}

/// For how long an extension is good. Older agents leave the allowance for clock drift to their callers.
pub(crate) fn promised(value: &proto::BoolValue, term: Duration) -> Duration {
    match value.valid_for {
        0 => term.saturating_sub(term / 100 + Duration::from_millis(2)),
        valid_for => duration(valid_for),
    }
}

/// Extends a term every third of it, until it is lost for certain, or `grace` after a loss by the clock was reported to
/// the work.
pub(crate) async fn keep(
    pool: Arc<Pool>,
    settings: Settings,
    hooks: Hooks,
    term: Arc<Shared>,
    mut extend_at: Instant,
) {
    let third = settings.term / 3;
    let over = grace_over(&term, settings.grace);
    let extending = async {
        let mut refused = None;
        let alive = Alive::new(&hooks);
        loop {
            sleep_until(extend_at).await;
            if let Err(reason) = alive.ask(third / 2).await {
                term.jeopardize(reason);
                extend_at = Instant::now() + jittered(third / 4);
                continue;
            }
            let asked = Instant::now();
            match extend(&pool, &settings, term.token, third).await {
                Extended::Until(valid_until, anchor) => {
                    term.extend(valid_until, anchor);
                    refused = None;
                    extend_at = asked + third;
                }
                Extended::Denied(why) => {
                    term.lose(why);
                    return;
                }
                Extended::Failed(failure) => {
                    report(&settings, &hooks, &term, &failure, &mut refused);
                    extend_at =
                        Instant::now() + jittered((third / 20).min(Duration::from_millis(250)));
                    if failure.refusal.is_some() {
                        extend_at += jittered(third / 8);
                    }
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = over => {}
        () = extending => {}
    }
}

/// Resolves when the term need not be extended any more: after a grace, if the clock has ended the term.
pub(crate) async fn grace_over(term: &Arc<Shared>, grace: Duration) {
    let why = Term::new(Arc::clone(term)).lost().await;
    // The present leader has a larger token: there is nothing to extend.
    if matches!(why, Lost::TermOver | Lost::ClockJumped) {
        sleep(grace).await;
    }
}

/// Reports why a term was not extended. A refusal is no loss: the term goes on until its time is over.
fn report(
    settings: &Settings,
    hooks: &Hooks,
    term: &Arc<Shared>,
    failure: &Failure,
    refused: &mut Option<(Code, String)>,
) {
    if let Some((code, message)) = &failure.refusal
        && *code != Code::ResourceExhausted
        && refused.as_ref() != Some(&(*code, message.clone()))
    {
        tracing::error!(
            kind = settings.kind,
            election = settings.election,
            %code,
            message,
            "the agent refuses to extend the term"
        );
        hooks.state(Standing::Refused {
            code: *code,
            message: message.clone(),
        });
        *refused = Some((*code, message.clone()));
    }
    term.jeopardize(&failure.reason());
}

/// Asks the application whether it is alive.
pub(crate) struct Alive {
    ask: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
    /// The answer that is awaited. One call at a time: an application that hangs is asked once.
    asked: tokio::sync::Mutex<Option<tokio::sync::oneshot::Receiver<bool>>>,
}

impl Alive {
    pub(crate) fn new(hooks: &Hooks) -> Self {
        Self {
            ask: hooks.alive.clone(),
            asked: tokio::sync::Mutex::new(None),
        }
    }

    /// # Errors
    ///
    /// Why the term must not be extended.
    pub(crate) async fn ask(&self, within: Duration) -> Result<(), &'static str> {
        let Some(ask) = &self.ask else {
            return Ok(());
        };
        let mut asked = self.asked.lock().await;
        let receiver = match &mut *asked {
            Some(receiver) => receiver,
            none => {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                let ask = Arc::clone(ask);
                // Not a thread of the runtime: that would wait for a function that hangs when it shuts down.
                let spawned = std::thread::Builder::new()
                    .name("election-alive".to_owned())
                    // Nothing waits any more if the leadership has ended. A panic drops the sender.
                    .spawn(move || _ = sender.send(ask()));
                if spawned.is_err() {
                    return Err("no thread to call alive() on");
                }
                none.insert(receiver)
            }
        };
        let answer = match tokio::time::timeout(within, receiver).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err("alive() returned false"),
            Ok(Err(_)) => Err("alive() panicked"),
            Err(_) => return Err("alive() did not return"),
        };
        *asked = None;
        answer
    }
}

/// Gives a term up. `uncertain`: it may have been given up before.
///
/// # Errors
///
/// The candidate did not lead any more, or no agent answered.
pub(crate) async fn resign(
    pool: &Pool,
    settings: &Settings,
    token: u64,
    uncertain: bool,
) -> Result<(), Error> {
    let request = proto::ResignRequest {
        election: settings.election.clone(),
        leader: settings.candidate.clone(),
        kind: settings.kind.clone(),
        token,
    };
    let plan = Plan::idempotent((settings.term / 3).clamp(RESIGN.0, RESIGN.1));
    let answer = pool
        .call(plan, &request, |mut client, request| async move {
            client.resign(request).await
        })
        .await;
    match answer {
        Ok(answer) if answer.value.value => Ok(()),
        // An earlier attempt has done it.
        Ok(answer) if (uncertain || answer.uncertain) && answer.value.reason == "NO_TERM" => Ok(()),
        Ok(answer) => Err(Error::Lost(
            Lost::of_reason(&answer.value.reason).unwrap_or(Lost::NoTerm),
        )),
        Err(failure) => Err(failure.of_change()),
    }
}
