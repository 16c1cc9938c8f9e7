//! A program that wants to lead, and does what the README says under "How to lead"; now and then it dies,
//! is paused, changes its mind, or stops waiting for an answer.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use election_agent::proto::{
    CampaignRequest, ExtendElectedTermRequest, HandoverRequest, ResignRequest,
    election_client::ElectionClient,
};
use fastrand::Rng;
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Response, Status, transport::Channel};

use super::record::{Record, What};

/// The shortest and the longest term, in ms.
const TERM: (i32, i32) = (1_000, 2_000);
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// Connections to the agents; an agent that was replaced has another.
#[derive(Clone)]
pub(crate) struct Agents {
    channels: Arc<Mutex<Vec<Channel>>>,
}

impl Agents {
    pub(crate) fn new(channels: Vec<Channel>) -> Self {
        Self {
            channels: Arc::new(Mutex::new(channels)),
        }
    }

    pub(crate) fn replace(&self, agent: usize, channel: Channel) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)[agent] = channel;
    }

    fn any(&self, rng: &mut Rng) -> ElectionClient<Channel> {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        ElectionClient::new(rng.choice(channels.iter()).expect("agents").clone())
    }
}

pub(crate) struct Candidate {
    number: usize,
    /// How often it has died.
    deaths: usize,
    election: String,
    agents: Agents,
    rng: Rng,
    record: Record,
    /// Whether it has asked to resign or hand over since it was last elected: what it holds by its name is
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
        agents: Agents,
        rng: Rng,
        record: Record,
    ) -> Self {
        Self {
            number,
            deaths: 0,
            election: election.to_owned(),
            agents,
            rng,
            record,
            gave_up: false,
        }
    }

    /// A name of its own: one that died comes back under another.
    fn name(&self) -> String {
        format!("c{}.{}", self.number, self.deaths)
    }

    /// Campaigns and leads until it is told to stop.
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
                    // Perhaps it was granted after all: the name alone is enough to ask.
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
            let choice = match stop.load(Ordering::Relaxed) {
                true => 70,
                false => self.rng.u32(..100),
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
                    // Paused, perhaps past its term: it looks at the time before it acts again.
                    self.pause(0..2_500).await;
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
        let request = CampaignRequest {
            election: self.election.clone(),
            candidate: self.name(),
            term: self.term(),
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let mut agent = self.agents.any(&mut self.rng);
        let asked = Instant::now();
        let answer = self.answer(agent.campaign(limited(request))).await?;
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
        let term = self.term();
        let request = ExtendElectedTermRequest {
            election: self.election.clone(),
            leader: self.name(),
            term,
            token,
            retries: self.rng.i32(0..3),
            retry_interval: 50,
            ..Default::default()
        };
        let mut agent = self.agents.any(&mut self.rng);
        let asked = Instant::now();
        let answer = agent.extend_elected_term(limited(request));
        if !self.answer(answer).await?.value {
            self.note(What::Refused);
            return Some(Err(()));
        }
        let term = Duration::from_millis(term.unsigned_abs().into());
        let until = asked + term - term / 100 - Duration::from_millis(2);
        self.note(What::Extended { until });
        Some(Ok(until))
    }

    async fn resign(&mut self, token: u64) {
        // Whoever resigns has stopped before.
        self.gave_up = true;
        self.note(What::Resigns);
        let request = ResignRequest {
            election: self.election.clone(),
            leader: self.name(),
            token,
            ..Default::default()
        };
        let mut agent = self.agents.any(&mut self.rng);
        if self.answer(agent.resign(limited(request))).await.is_some() {
            self.note(What::GivenUp);
        }
    }

    async fn hand_over(&mut self, token: u64) {
        self.gave_up = true;
        self.note(What::HandsOver);
        let request = HandoverRequest {
            election: self.election.clone(),
            // Whether that one lives or not.
            leader: format!("c{}.0", self.number ^ 1),
            term: self.term(),
            current_leader: self.name(),
            token,
            ..Default::default()
        };
        let mut agent = self.agents.any(&mut self.rng);
        if self
            .answer(agent.handover(limited(request)))
            .await
            .is_some()
        {
            self.note(What::GivenUp);
        }
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

    fn term(&mut self) -> i32 {
        self.rng.i32(TERM.0..=TERM.1)
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
