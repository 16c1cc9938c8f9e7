//! A program that wants to lead, and does what the README says under "How to lead"; now and then it dies,
//! is paused, changes its mind, or stops waiting for an answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use election_proto::{
    CampaignRequest, ExtendElectedTermRequest, GetLeaderRequest, HandoverRequest, ResignRequest,
    election_client::ElectionClient,
};
use fastrand::Rng;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Response, Status, transport::Channel};

use super::record::{Hold, Naming, Record, What};

/// The shortest term, in ms.
const SHORTEST: i32 = 1_000;
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long a request to a server may be on its way after the reply: the longest operation timeout of any agent,
/// and the time that processes take on a busy machine.
const IN_FLIGHT: Duration = Duration::from_millis(2_000);
/// For how long servers stand still, at most. They carry out extensions when they go on, but no grants.
const STANDSTILL: Duration = Duration::from_secs(15);
/// How often the leader is read.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// An agent to call.
#[derive(Clone)]
struct Known {
    channel: Channel,
    /// Its longest term, in ms.
    max_term: i32,
}

/// Connections to the agents, and their longest terms in ms; an agent that was replaced has others.
#[derive(Clone)]
pub(crate) struct Agents {
    known: Arc<Mutex<Vec<Known>>>,
}

impl Agents {
    pub(crate) fn new(agents: Vec<(Channel, i32)>) -> Self {
        let known = agents
            .into_iter()
            .map(|(channel, max_term)| Known { channel, max_term });
        Self {
            known: Arc::new(Mutex::new(known.collect())),
        }
    }

    pub(crate) fn replace(&self, agent: usize, channel: Channel, max_term: i32) {
        let mut known = self.known.lock();
        known[agent] = Known { channel, max_term };
    }

    /// An agent, and its longest term.
    fn any(&self, rng: &mut Rng) -> (ElectionClient<Channel>, i32) {
        let known = self.known.lock();
        let agent = rng.choice(known.iter()).expect("agents").clone();
        (ElectionClient::new(agent.channel), agent.max_term)
    }

    /// Reads the leader of an election all the time, and records it.
    pub(crate) async fn watch(
        self,
        election: &'static str,
        mut rng: Rng,
        record: Record,
        stop: Arc<AtomicBool>,
    ) {
        while !stop.load(Ordering::Relaxed) {
            let (mut agent, _) = self.any(&mut rng);
            let asked = Instant::now();
            let request = GetLeaderRequest {
                election: election.to_owned(),
                ..Default::default()
            };
            if let Ok(leader) = agent.get_leader(limited(request)).await {
                record.naming(Naming {
                    election: election.to_owned(),
                    candidate: leader.into_inner().value,
                    asked,
                    answered: Instant::now(),
                });
            }
            sleep(ASK_EVERY).await;
        }
    }
}

pub(crate) struct Candidate {
    number: usize,
    /// How often it has died.
    deaths: usize,
    election: String,
    /// The longest term that it requests, in ms.
    longest: i32,
    /// Whether it does nothing but extend when it leads, and leads on when it has to stop.
    steady: bool,
    agents: Agents,
    rng: Rng,
    record: Record,
    /// Whether it has requested to resign or hand over since it was last elected: what it holds by its name is
    /// given up, and must not be extended.
    gave_up: bool,
}

/// A leadership as its leader knows it.
struct Leading {
    /// 0: not known.
    token: u64,
    until: Instant,
}

impl Candidate {
    pub(crate) fn new(
        number: usize,
        election: &str,
        longest: i32,
        agents: Agents,
        rng: Rng,
        record: Record,
    ) -> Self {
        Self {
            number,
            deaths: 0,
            election: election.to_owned(),
            longest,
            steady: false,
            agents,
            rng,
            record,
            gave_up: false,
        }
    }

    /// One that leads for as long as it can.
    pub(crate) fn steady(self) -> Self {
        Self {
            steady: true,
            ..self
        }
    }

    /// A name of its own: one that died comes back under another.
    pub(crate) fn name(&self) -> String {
        format!("c{}.{}", self.number, self.deaths)
    }

    /// Campaigns and leads until it has to stop.
    pub(crate) async fn contend(mut self, stop: Arc<AtomicBool>) {
        let mut tries = 0;
        while !stop.load(Ordering::Relaxed) {
            self.pause(10..100).await;
            tries += 1;
            let id = match self.rng.bool() {
                true => format!("{} {tries}", self.name()),
                false => String::new(),
            };
            let mut leading = self.campaign(&id).await;
            if leading.is_none() && self.rng.u32(..4) == 0 {
                leading = if !id.is_empty() {
                    // A retry, perhaps through another agent.
                    self.campaign(&id).await
                } else if !self.gave_up {
                    // Perhaps it was granted after all: the name alone suffices for the request.
                    self.extend_unasked().await
                } else {
                    None
                };
            }
            if let Some(leading) = leading {
                self.lead(leading, &stop).await;
            }
        }
    }

    async fn lead(&mut self, mut leading: Leading, stop: &AtomicBool) {
        loop {
            let left = leading.until.saturating_duration_since(Instant::now());
            // Well before it is over.
            sleep(left.mul_f64(0.1 + self.rng.f64() * 0.3)).await;
            if Instant::now() >= leading.until {
                return self.note(What::Stops);
            }
            let choice = match (self.steady, stop.load(Ordering::Relaxed)) {
                (true, true) => return,
                (true, false) => 0,
                (false, true) => 70,
                (false, false) => self.rng.u32(..100),
            };
            match choice {
                0..60 => match self.extend(leading.token).await {
                    Some(Ok(until)) => leading.until = leading.until.max(until),
                    Some(Err(())) => return self.note(What::Stops),
                    None => {}
                },
                60..66 => {
                    if let Some(again) = self.campaign("").await {
                        leading.token = again.token;
                        leading.until = leading.until.max(again.until);
                    }
                }
                66..82 => return self.resign(leading.token).await,
                82..88 => return self.hand_over(leading.token).await,
                88..93 => {
                    // Paused, perhaps past its term: it checks the time before it acts again.
                    let longest = u64::from(self.longest.unsigned_abs());
                    self.pause(0..longest + 500).await;
                }
                _ => {
                    self.note(What::Dies);
                    self.deaths += 1;
                    self.gave_up = false;
                    return;
                }
            }
        }
    }

    async fn campaign(&mut self, request_id: &str) -> Option<Leading> {
        let (mut agent, term) = self.agent_and_term();
        let request = CampaignRequest {
            election: self.election.clone(),
            candidate: self.name(),
            term,
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let asked = Instant::now();
        let answer = self.answer(agent.campaign(limited(request))).await;
        let granted = answer.as_ref().map(|answer| answer.elected);
        self.may_lead(self.name(), asked, term, granted, Duration::ZERO);
        let answer = answer?;
        if !answer.elected {
            self.note(What::NotElected);
            return None;
        }
        let valid_for = u64::try_from(answer.valid_for).expect("not negative");
        let leading = Leading {
            token: answer.token,
            until: asked + Duration::from_millis(valid_for),
        };
        self.note(What::Elected {
            asked,
            token: leading.token,
            until: leading.until,
        });
        // Else the answer came too late to be of use.
        let in_time = leading.until > Instant::now();
        self.gave_up &= !in_time;
        in_time.then_some(leading)
    }

    /// Extends by the name alone, and takes success for being the leader.
    async fn extend_unasked(&mut self) -> Option<Leading> {
        let until = self.extend(0).await?.ok()?;
        (until > Instant::now()).then_some(Leading { token: 0, until })
    }

    /// Until when the extension lasts; `Err` when the candidate does not lead, `None` when that is not
    /// known.
    async fn extend(&mut self, token: u64) -> Option<Result<Instant, ()>> {
        let (mut agent, term) = self.agent_and_term();
        let request = ExtendElectedTermRequest {
            election: self.election.clone(),
            leader: self.name(),
            term,
            token,
            retries: self.rng.i32(0..3),
            retry_interval: 50,
            ..Default::default()
        };
        let asked = Instant::now();
        let answer = agent.extend_elected_term(limited(request));
        let answer = self.answer(answer).await;
        let granted = answer.as_ref().map(|answer| answer.value);
        self.may_lead(self.name(), asked, term, granted, STANDSTILL);
        if !answer?.value {
            self.note(What::Refused);
            return Some(Err(()));
        }
        let term = Duration::from_millis(term.unsigned_abs().into());
        let until = asked + term - term / 100 - Duration::from_millis(2);
        self.note(What::Extended { until });
        Some(Ok(until))
    }

    async fn resign(&mut self, token: u64) {
        // A leader that resigns has stopped before.
        self.gave_up = true;
        self.note(What::Resigns);
        let request = ResignRequest {
            election: self.election.clone(),
            leader: self.name(),
            token,
            ..Default::default()
        };
        let (mut agent, _) = self.agents.any(&mut self.rng);
        if self.answer(agent.resign(limited(request))).await.is_some() {
            self.note(What::GivenUp);
        }
    }

    async fn hand_over(&mut self, token: u64) {
        self.gave_up = true;
        self.note(What::HandsOver);
        let (mut agent, term) = self.agent_and_term();
        // Whether that one lives or not.
        let heir = format!("c{}.0", self.number ^ 1);
        let request = HandoverRequest {
            election: self.election.clone(),
            leader: heir.clone(),
            term,
            current_leader: self.name(),
            token,
            ..Default::default()
        };
        let asked = Instant::now();
        let answer = self.answer(agent.handover(limited(request))).await;
        let granted = answer.as_ref().map(|answer| answer.value);
        self.may_lead(heir, asked, term, granted, Duration::ZERO);
        if answer.is_some() {
            self.note(What::GivenUp);
        }
    }

    /// Notes until when a candidate may be called the leader because of a request that has just ended; `late` is how
    /// much later it may be carried out if nothing is known of it.
    fn may_lead(
        &self,
        candidate: String,
        asked: Instant,
        term: i32,
        granted: Option<bool>,
        late: Duration,
    ) {
        let term = Duration::from_millis(term.unsigned_abs().into());
        let lasts = match granted {
            Some(true) => term,
            Some(false) => Duration::ZERO,
            None => late + term,
        };
        let now = Instant::now();
        let ended = match granted {
            Some(_) => now,
            // The agent may go on when its caller has gone.
            None => now.max(asked + DEADLINE),
        };
        self.record.hold(Hold {
            election: self.election.clone(),
            candidate,
            asked,
            until: ended + lasts + IN_FLIGHT,
        });
    }

    /// The answer, unless it is an error or the candidate stops waiting for it.
    async fn answer<T>(
        &mut self,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Option<T> {
        let patience = match self.rng.u32(..20) {
            0 => Duration::from_micros(self.rng.u64(..20_000)),
            _ => 2 * DEADLINE,
        };
        match timeout(patience, answer).await {
            Ok(Ok(answer)) => Some(answer.into_inner()),
            Ok(Err(status)) => {
                assert_ne!(status.code(), Code::InvalidArgument, "{status}");
                let why = format!("{:?}: {}", status.code(), status.message());
                self.note(What::NotKnown(why));
                None
            }
            Err(_) => {
                self.note(What::Hurries);
                None
            }
        }
    }

    fn note(&self, what: What) {
        self.record.note(&self.election, &self.name(), what);
    }

    /// An agent, and a term that it may grant.
    fn agent_and_term(&mut self) -> (ElectionClient<Channel>, i32) {
        let (agent, max_term) = self.agents.any(&mut self.rng);
        let term = self.rng.i32(SHORTEST..=self.longest.min(max_term));
        (agent, term)
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.rng.u64(ms))).await;
    }
}

fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}
