//! A candidate that follows the rules of the README. Now and then it dies, changes its mind, or stops waiting
//! for a reply.

use std::{sync::Arc, time::Duration};

use election_core::{
    board::Patience,
    election::{Campaign, Denial, Error, Handover, Outcome, Retry, Wait},
    lease::{
        Extend, Resign,
        rules::{Rule, holds},
    },
    types::{Candidate as Name, ElectionId, RequestId, Term, Token, Value},
};
use fastrand::Rng;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{Agent, PROVISIONAL},
    election,
    faults::{LONGEST_PAUSE, SLOWEST},
    record::Record,
};

/// The deadline of a request.
const DEADLINE: Duration = Duration::from_secs(3);

/// After this time without an election, a candidate counts as unable to win.
const NEVER: Duration = Duration::from_secs(300);

/// The longest wait of a campaign, in ms.
const LONGEST_WAIT: u64 = 6_000;

/// Agents, each with its own view of the nodes.
pub(crate) type Agents = Arc<Vec<Agent>>;

pub(crate) struct Candidate {
    name: String,
    agents: Agents,
    rng: Rng,
    record: Record,
    /// The speed of its clock: below 1 if it is slow, so that its terms last longer.
    clock: f64,
    /// Whether it has sent a resignation or handover since it was last elected. It has then given up the
    /// lease under its name and must not extend it.
    gave_up: bool,
}

/// A leadership as its leader knows it.
struct Leading {
    token: Option<Token>,
    until: Instant,
}

impl Candidate {
    pub(crate) fn new(name: &str, agents: Agents, rng: Rng, record: Record) -> Self {
        Self {
            name: name.to_owned(),
            agents,
            rng,
            record,
            clock: 1.0,
            gave_up: false,
        }
    }

    /// A candidate whose clock has this speed.
    pub(crate) fn with_clock(self, clock: f64) -> Self {
        Self { clock, ..self }
    }

    /// Campaigns until elected, then resigns.
    pub(crate) async fn be_elected_once_and_resign(mut self) {
        let began = Instant::now();
        loop {
            if let Some(leading) = self.campaign(None, Waits::Not).await {
                return self.resign(&leading).await;
            }
            sleep(Duration::from_millis(20)).await;
            assert!(
                began.elapsed() < NEVER,
                "{} is never elected:\n{}",
                self.name,
                self.record.history()
            );
        }
    }

    /// Campaigns repeatedly until the time is over, with pauses of up to `pause_ms`.
    pub(crate) async fn challenge(mut self, pause_ms: u64, until: Instant) {
        while Instant::now() < until {
            self.campaign(None, Waits::Not).await;
            self.pause(pause_ms).await;
        }
    }

    /// Campaigns and leads until the time is over.
    pub(crate) async fn contend(mut self, until: Instant) {
        let mut tries = 0;
        while Instant::now() < until {
            self.pause(400).await;
            tries += 1;
            let id = self.rng.bool().then(|| format!("{} {tries}", self.name));
            let wait = Duration::from_millis(self.rng.u64(..LONGEST_WAIT));
            let waits = match self.rng.u32(..6) {
                0 => Waits::Idly(wait),
                1 => Waits::OnTheBoard(wait),
                _ => Waits::Not,
            };
            let mut leading = self.campaign(id.as_deref(), waits).await;
            if leading.is_none() && self.rng.u32(..4) == 0 {
                leading = match id {
                    // A retry, perhaps through another agent.
                    Some(id) => self.campaign(Some(&id), Waits::Not).await,
                    // The campaign may have been granted: an extension by name alone finds out.
                    None if !self.gave_up => self.extend(None).await,
                    None => None,
                };
            }
            if let Some(leading) = leading {
                self.lead(leading).await;
            }
        }
    }

    async fn lead(&mut self, mut leading: Leading) {
        loop {
            let left = leading.until.saturating_duration_since(Instant::now());
            sleep(left.mul_f64(self.rng.f64() * 0.9)).await;
            if Instant::now() >= leading.until {
                return self.record.ended(&self.name, "lapses");
            }
            match self.rng.u32(..20) {
                0..12 => {
                    let token = leading.token.filter(|_| self.rng.u32(..10) > 0);
                    match self.extend_term(token).await {
                        Some(Ok(until)) => leading.until = leading.until.max(until),
                        Some(Err(())) => {
                            return self
                                .record
                                .ended(&self.name, "learns that it does not lead");
                        }
                        None => {}
                    }
                }
                12..14 => {
                    if let Some(again) = self.campaign(None, Waits::Not).await {
                        leading = Leading {
                            token: again.token,
                            until: leading.until.max(again.until),
                        };
                    }
                }
                14..17 => return self.resign(&leading).await,
                17 => return self.hand_over(&leading).await,
                18 => {
                    // Paused, or busy: it checks the time before it acts again.
                    self.pause(6_000).await;
                }
                _ => {
                    // The candidate is dead and does not act, but its term continues until it expires.
                    sleep(leading.until.saturating_duration_since(Instant::now())).await;
                    return self
                        .record
                        .ended(&self.name, "is dead, and its time is over");
                }
            }
        }
    }

    async fn campaign(&mut self, request_id: Option<&str>, waits: Waits) -> Option<Leading> {
        let asked = Instant::now();
        let agent = self.agent();
        let term = self.term(&agent);
        let request = Campaign {
            election: election(),
            candidate: self.as_candidate(),
            term,
            value: Value::default(),
            request_id: RequestId::new(request_id.unwrap_or_default()).expect("valid"),
            wait: None,
        };
        let transit = Duration::from_micros(self.rng.u64(..20_000));
        let answer = waits.campaign(&agent, request, transit);
        let answer = match self.rng.bool() {
            true => self.or_gives_up(answer, waits.time()).await,
            false => self.or_gives_up(answer, Duration::ZERO).await,
        };
        if self.rng.u32(..10) == 0 {
            // It is paused, and reads the reply late.
            self.pause(2_000).await;
        }
        // Copies of the grant arrive until the vote is over. A dead agent rolls nothing back.
        let lasts = Instant::now() + agent.vote + slowly(term);
        if agent.is_dead() || matches!(answer, Some(Ok(Outcome::Elected { .. }))) {
            self.record.may_lead(&self.name, lasts);
        }
        agent.asked(&self.name, lasts);
        match answer {
            Some(Ok(Outcome::Elected {
                token,
                valid_for,
                provisional,
                ..
            })) => {
                let until = self.ends(asked, valid_for);
                if until <= Instant::now() {
                    // The reply came after the end of the term.
                    self.record.unknown(&self.name, "campaign, late");
                    return None;
                }
                self.gave_up = false;
                self.record.elected(&self.name, Some(token), asked, until);
                if provisional {
                    self.record.provisional();
                }
                Some(Leading {
                    token: Some(token),
                    until,
                })
            }
            Some(Ok(Outcome::Used)) => {
                self.record.refused(&self.name, "its request is over");
                None
            }
            Some(Ok(Outcome::NotElected(lease))) => {
                self.record
                    .refused(&self.name, &format!("{} leads", lease.leader));
                None
            }
            Some(Err(_)) | None => {
                self.record.unknown(&self.name, "campaign");
                None
            }
        }
    }

    /// Extends, and treats success as being the leader.
    async fn extend(&mut self, token: Option<Token>) -> Option<Leading> {
        let until = self.extend_term(token).await?.ok()?;
        (until > Instant::now()).then_some(Leading { token, until })
    }

    /// The end of the extended term; `Err` if the candidate does not lead, `None` if the outcome is unknown.
    async fn extend_term(&mut self, token: Option<Token>) -> Option<Result<Instant, ()>> {
        let asked = Instant::now();
        let agent = self.agent();
        let term = self.term(&agent);
        // The request may reach a server late, whether or not a reply arrives.
        let latest = asked + DEADLINE + LONGEST_PAUSE + SLOWEST;
        self.record.may_lead(&self.name, latest + slowly(term));
        let request = Extend {
            election: election(),
            leader: self.as_candidate(),
            token,
            term,
        };
        let retry = Retry::new(self.rng.i64(0..3), 50).expect("in range");
        let deadline = asked + DEADLINE;
        let together = self.rng.bool();
        let answer = async {
            if !together {
                return agent.elections.extend(request, retry, deadline).await;
            }
            let other = Extend {
                election: ElectionId::new("", "nobody's").expect("valid"),
                ..request.clone()
            };
            let both = vec![Arc::new(other), Arc::new(request)];
            let mut answers = agent.elections.extend_many(both, deadline).await;
            answers.pop().expect("an answer for each")
        };
        match self.or_gives_up(answer, Duration::ZERO).await {
            Some(Ok(valid_for)) => {
                let until = self.ends(asked, valid_for);
                if until > Instant::now() {
                    self.record.extended(&self.name, until);
                }
                Some(Ok(until))
            }
            Some(Err(Error::Denied(denial))) => {
                self.record.refused(&self.name, denied(denial));
                Some(Err(()))
            }
            Some(Err(_)) | None => {
                self.record.unknown(&self.name, "extension");
                None
            }
        }
    }

    async fn resign(&mut self, leading: &Leading) {
        // A candidate stops acting as leader before it resigns.
        self.gave_up = true;
        self.record.ended(&self.name, "resigns");
        let request = Resign {
            election: election(),
            leader: self.as_candidate(),
            token: leading.token,
        };
        let agent = self.agent();
        let answer = agent.elections.resign(request, Instant::now() + DEADLINE);
        match self.or_gives_up(answer, Duration::ZERO).await {
            Some(Ok(()) | Err(Error::Denied(_))) => {}
            Some(Err(_)) | None => self.record.unknown(&self.name, "resignation"),
        }
    }

    async fn hand_over(&mut self, leading: &Leading) {
        self.gave_up = true;
        self.record.ended(&self.name, "hands over");
        let to = format!("c{}", self.rng.usize(..5));
        let agent = self.agent();
        let term = self.term(&agent);
        let request = Handover {
            election: election(),
            leader: Name::new("leader", &to).expect("valid"),
            term,
            current_leader: Some(self.as_candidate()),
            token: leading.token,
        };
        let answer = agent
            .elections
            .handover(request, false, Instant::now() + DEADLINE);
        let answer = self.or_gives_up(answer, Duration::ZERO).await;
        let lasts = Instant::now() + agent.vote + slowly(term);
        if agent.is_dead() || matches!(answer, Some(Ok(_))) {
            self.record.may_lead(&to, lasts);
        }
        agent.asked(&to, lasts);
        match answer {
            Some(Ok(_) | Err(Error::Denied(_))) => {}
            Some(Err(_)) | None => self.record.unknown(&self.name, "handover"),
        }
    }

    /// The instant at which this time is over by its clock.
    fn ends(&self, asked: Instant, time: Duration) -> Instant {
        counted_from(asked) + time.div_f64(self.clock)
    }

    /// Awaits the reply, unless the candidate stops waiting, soon after this time.
    async fn or_gives_up<T>(
        &mut self,
        answer: impl Future<Output = Result<T, Error>>,
        after: Duration,
    ) -> Option<Result<T, Error>> {
        if self.rng.u32(..20) > 0 {
            return Some(answer.await);
        }
        let patience = after + Duration::from_micros(self.rng.u64(..40_000));
        timeout(patience, answer).await.ok()
    }

    /// Picks an agent that has started. It may be dead, which candidates cannot know.
    fn agent(&mut self) -> Agent {
        let started: Vec<_> = self.agents.iter().filter(|agent| agent.serves()).collect();
        let agent = self.rng.usize(..started.len());
        started[agent].clone()
    }

    fn term(&mut self, agent: &Agent) -> Term {
        let longest = agent.longest.as_millis() as i64;
        Term::from_millis(self.rng.i64(1_050..=longest), agent.longest).expect("in range")
    }

    fn as_candidate(&self) -> Name {
        Name::new("candidate", &self.name).expect("valid")
    }

    async fn pause(&mut self, most_ms: u64) {
        sleep(Duration::from_millis(self.rng.u64(..most_ms))).await;
    }
}

/// How a campaign waits for a vacancy.
#[derive(Debug, Clone, Copy)]
enum Waits {
    Not,
    /// It claims when the time is over.
    Idly(Duration),
    /// It claims when the agent's board gives it the turn, until the time is over.
    OnTheBoard(Duration),
}

impl Waits {
    fn time(self) -> Duration {
        match self {
            Self::Not => Duration::ZERO,
            Self::Idly(time) | Self::OnTheBoard(time) => time,
        }
    }

    async fn campaign(
        self,
        agent: &Agent,
        request: Campaign,
        transit: Duration,
    ) -> Result<Outcome, Error> {
        sleep(transit).await;
        let since = Instant::now();
        match self {
            Self::Not => agent.elections.campaign(&request, since + DEADLINE).await,
            Self::Idly(time) => {
                sleep(time).await;
                let deadline = Instant::now() + DEADLINE;
                let request = waited(request, since);
                agent.elections.campaign(&request, deadline).await
            }
            Self::OnTheBoard(time) => {
                let patience = Patience {
                    since,
                    waiter: None,
                    until: since + time,
                    deadline: since + time + DEADLINE,
                    ending: CancellationToken::new(),
                };
                agent.board.campaign(&request, &patience).await
            }
        }
    }
}

/// The request of a campaign that has waited since then.
pub(crate) fn waited(request: Campaign, since: Instant) -> Campaign {
    let stored = request.term.at_most(PROVISIONAL + since.elapsed() / 100);
    Campaign {
        wait: Some(Wait { since, stored }),
        ..request
    }
}

/// From when a candidate counts its time.
pub(crate) fn counted_from(asked: Instant) -> Instant {
    match holds(Rule::CountsFromTheRequest) {
        true => asked,
        false => Instant::now(),
    }
}

/// The length of a term by a server's slow clock.
fn slowly(term: Term) -> Duration {
    term.duration().mul_f64(1.02)
}

fn denied(denial: Denial) -> &'static str {
    match denial {
        Denial::NoTerm => "its term is over",
        Denial::HeldByOther => "another leads",
        Denial::StaleToken => "its token is not current",
    }
}
