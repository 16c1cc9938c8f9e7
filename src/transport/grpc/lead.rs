//! Streams that lead: one stream for many elections.
//!
//! A task owns the stream, so that campaigns go on whether or not the caller reads. Only the caller's pings extend terms.
//! When the stream ends, however it ends, waiting campaigns end, and terms lapse.

mod campaigns;
mod outbox;
mod terms;

use std::{
    collections::HashMap,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use election_core::election::{
    Campaign,
    types::{Candidate, ElectionId, Invalid, RequestId, Token, Value, millis},
};
use election_proto as proto;
use futures_util::{
    Stream, StreamExt as _,
    future::{AbortHandle, Aborted, BoxFuture},
    stream::{self, FuturesUnordered},
};
use parking_lot::Mutex;
use proto::{lead_request::What, standing::Is};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::convert;
use crate::{
    auth::{audit::Origin, gate::Gate},
    endpoint::Protocol,
    status::{Code, Problem},
    transport::{
        request::{Allowance, Deadline, endpoint, peer},
        stream::{GOES_ON, Life, Reason, Turn},
        term::term,
    },
};
use campaigns::{Campaigned, Waits};
use outbox::Outbox;
use terms::{Extended, Resigned};

/// How many elections a stream leads or waits for, at the most.
const MOST_ELECTIONS: usize = 1000;
/// The pause between pings that callers get if they do not say, in ms.
const PING_EVERY: i64 = 5_000;
/// The pauses that they may ask for, in ms.
const PINGS: std::ops::RangeInclusive<i64> = 100..=60_000;
/// How long a caller may leave events unread.
const UNREAD: Duration = Duration::from_secs(30);
/// How many events may be unread before the stream hears no more messages.
const MOST_UNREAD: usize = 2 * MOST_ELECTIONS;

/// Begins a stream.
///
/// # Errors
/// The caller's protocol has no streams in both directions.
pub(super) fn begin(
    gate: &Gate,
    agent: &str,
    request: tonic::Request<Streaming<proto::LeadRequest>>,
) -> Result<impl Stream<Item = Result<proto::LeadEvent, Status>> + Send + use<>, Problem> {
    let (_, extensions, messages) = request.into_parts();
    if endpoint(&extensions)?.protocol != Protocol::Grpc {
        return Err(Problem::new(
            Code::MethodNotAllowed,
            "gRPC-Web has no streams in both directions: use Campaign with `wait` and ExtendElectedTerm",
        ));
    }
    let leading = Leading::new(
        gate.clone(),
        agent,
        Life::begin(&extensions)?,
        peer(&extensions)?.ending.clone(),
        Allowance::of(&extensions),
        Deadline::of(&extensions).limit(),
    );
    let (events, mut unsent) = mpsc::channel(1);
    tokio::spawn(Origin::current().around(|| leading.run(messages, events)));
    Ok(stream::poll_fn(move |cx| unsent.poll_recv(cx)))
}

/// The caller's last message that says that it is there.
#[derive(Debug, Clone, Copy)]
struct Heard {
    /// The ping; 0 for Hello.
    seq: u64,
    /// When it arrived.
    at: Instant,
}

/// An election that the caller has joined.
#[derive(Debug)]
struct Joined {
    campaign: Arc<Campaign>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// A campaign is in progress.
    Waiting { number: u64, abort: AbortHandle },
    /// The caller has been silent for too long to be elected.
    Silent,
    Leading {
        token: Token,
        /// A grant that the caller has not been told of yet.
        untold: Option<Granted>,
        /// Whether the caller is to be told when the term is extended: it does not know that it leads for a whole term.
        listed: bool,
    },
}

#[derive(Debug, Clone, Copy)]
struct Granted {
    valid_for: Duration,
    since: Instant,
    provisional: bool,
}

struct Leading {
    gate: Gate,
    agent: String,
    life: Life,
    /// Cancelled when the stream is to end: no campaign is to win then.
    ending: CancellationToken,
    allowance: Option<Allowance>,
    /// How long an extension or a resignation may take.
    limit: Duration,
    /// [`None`] before Hello.
    candidate: Option<Candidate>,
    ping_every: Duration,
    heard: Arc<Mutex<Heard>>,
    joined: HashMap<ElectionId, Joined>,
    /// The number of the last campaign.
    number: u64,
    campaigns: FuturesUnordered<BoxFuture<'static, Result<Campaigned, Aborted>>>,
    resignations: FuturesUnordered<BoxFuture<'static, Resigned>>,
    extension: Option<BoxFuture<'static, Extended>>,
    /// The newest ping that has not been answered, nor is being.
    ping: Option<u64>,
    /// Elections that the caller has joined with a token.
    resumed: Vec<ElectionId>,
    /// Elections whose grant the caller has not been told of.
    untold: Vec<ElectionId>,
    waits: (mpsc::UnboundedSender<Waits>, mpsc::UnboundedReceiver<Waits>),
    outbox: Outbox,
    /// When the caller has last taken an event, or there was none.
    read: Instant,
}

impl Leading {
    fn new(
        gate: Gate,
        agent: &str,
        life: Life,
        ending: CancellationToken,
        allowance: Option<Allowance>,
        limit: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            gate,
            agent: agent.to_owned(),
            life,
            ending,
            allowance,
            limit,
            candidate: None,
            ping_every: Duration::ZERO,
            heard: Arc::new(Mutex::new(Heard { seq: 0, at: now })),
            joined: HashMap::new(),
            number: 0,
            campaigns: FuturesUnordered::new(),
            resignations: FuturesUnordered::new(),
            extension: None,
            ping: None,
            resumed: Vec::new(),
            untold: Vec::new(),
            waits: mpsc::unbounded_channel(),
            outbox: Outbox::default(),
            read: now,
        }
    }

    async fn run(
        mut self,
        messages: impl Stream<Item = Result<proto::LeadRequest, Status>>,
        events: mpsc::Sender<Result<proto::LeadEvent, Status>>,
    ) {
        let ended = self.serve(pin!(messages), &events).await;
        let rest = async {
            while let Some(event) = self.outbox.pop() {
                events.send(Ok(event)).await.ok()?;
            }
            events.send(Err(ended.err()?)).await.ok()
        };
        // Who does not read misses it, and sees that the stream ends.
        let _ = timeout(GOES_ON, rest).await;
    }

    async fn serve(
        &mut self,
        mut messages: Pin<&mut impl Stream<Item = Result<proto::LeadRequest, Status>>>,
        events: &mpsc::Sender<Result<proto::LeadEvent, Status>>,
    ) -> Result<(), Status> {
        loop {
            if self.outbox.is_empty() {
                self.read = Instant::now();
            }
            let (unread, silent) = (self.read + UNREAD, self.silent_at());
            tokio::select! {
                biased;
                turn = self.life.next() => match turn {
                    Turn::Over => return Ok(()),
                    Turn::Ends(why) => self.goodbye(why),
                    Turn::Checked => {}
                },
                () = events.closed() => return Ok(()),
                place = events.reserve(), if !self.outbox.is_empty() => {
                    let (Ok(place), Some(event)) = (place, self.outbox.pop()) else {
                        return Ok(());
                    };
                    place.send(Ok(event));
                    self.read = Instant::now();
                }
                () = sleep_until(unread), if !self.outbox.is_empty() && !self.life.is_ending() => {
                    self.outbox.clear();
                    self.goodbye(Reason::Slow);
                }
                extended = or_never(&mut self.extension) => {
                    self.extension = None;
                    self.extended(extended);
                }
                Some(ended) = self.campaigns.next(), if !self.campaigns.is_empty() => {
                    if let Ok(campaigned) = ended {
                        self.campaigned(campaigned);
                    }
                }
                Some(resigned) = self.resignations.next(), if !self.resignations.is_empty() => {
                    self.resigned(resigned);
                }
                Some(waits) = self.waits.1.recv() => self.waits(waits),
                () = sleep_until(silent), if self.waits_for_any() => self.fall_silent(),
                message = messages.next(), if self.outbox.len() < MOST_UNREAD => match message {
                    Some(message) => self.hear(message?)?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn goodbye(&mut self, why: Reason) {
        let goodbye = self.life.goodbye(why);
        self.outbox.goodbye(convert::goodbye(goodbye));
    }

    /// When the caller has been silent for too long to be elected.
    fn silent_at(&self) -> Instant {
        self.heard.lock().at + 2 * self.ping_every
    }

    fn waits_for_any(&self) -> bool {
        let mut joined = self.joined.values();
        joined.any(|joined| matches!(joined.place, Place::Waiting { .. }))
    }

    fn hear(&mut self, message: proto::LeadRequest) -> Result<(), Problem> {
        let Some(what) = message.what else {
            return Err(
                Invalid("a message is empty: give hello, join, ping or leave".to_owned()).into(),
            );
        };
        let Some(candidate) = self.candidate.clone() else {
            return match what {
                What::Hello(hello) => Ok(self.hello(&hello)?),
                _ => {
                    Err(Invalid("the first message is not hello: begin with it".to_owned()).into())
                }
            };
        };
        match what {
            What::Hello(_) => {
                return Err(Invalid(
                    "hello comes a second time: open another stream for another candidate"
                        .to_owned(),
                )
                .into());
            }
            What::Join(join) => {
                let (kind, election) = (join.kind.clone(), join.election.clone());
                if let Err(problem) = self.join(&join, candidate) {
                    self.refuse(kind, election, 0, problem.message);
                }
            }
            What::Leave(leave) => {
                let (kind, election) = (leave.kind.clone(), leave.election.clone());
                if let Err(problem) = self.leave(&leave, candidate) {
                    self.refuse(kind, election, leave.token, problem.message);
                }
            }
            What::Ping(ping) => self.ping(ping.seq)?,
        }
        Ok(())
    }

    fn hello(&mut self, hello: &proto::Hello) -> Result<(), Invalid> {
        let candidate = Candidate::new("candidate", &hello.candidate)?;
        let every = match i64::from(hello.ping_every) {
            0 => PING_EVERY,
            ms if PINGS.contains(&ms) => ms,
            ms => {
                return Err(Invalid(format!(
                    "`ping_every` is {ms}: give 100 to 60000 milliseconds, or 0 for 5000"
                )));
            }
        };
        self.candidate = Some(candidate);
        self.ping_every = Duration::from_millis(every.unsigned_abs());
        self.heard.lock().at = Instant::now();
        self.outbox.welcome(proto::Welcome {
            agent: self.agent.clone(),
            ping_every: i32::try_from(every).unwrap_or(i32::MAX),
        });
        Ok(())
    }

    fn join(&mut self, join: &proto::Join, candidate: Candidate) -> Result<(), Problem> {
        let term = term(join.term.into(), self.gate.max_term())?;
        if term.duration() < 2 * self.ping_every {
            return Err(Invalid(format!(
                "`term` is {} with pings every {}: give a term of three pings, or open a stream with a shorter \
                 `ping_every`",
                join.term,
                millis(self.ping_every)
            ))
            .into());
        }
        let campaign = Arc::new(Campaign {
            election: ElectionId::new(&join.kind, &join.election)?,
            candidate,
            term,
            value: Value::new(&join.value)?,
            request_id: RequestId::new(&join.request_id)?,
            wait: None,
        });
        let token = Token::optional(join.token)?;
        let election = campaign.election.clone();
        if self.joined.len() >= MOST_ELECTIONS {
            return Err(Problem::new(
                Code::Overloaded,
                format!("the stream has joined {MOST_ELECTIONS} elections: open another one"),
            ));
        }
        if self.joined.contains_key(&election) {
            return Err(Problem::new(
                Code::Conflict,
                "the stream has joined the election already: leave it first",
            ));
        }
        self.count(1)?;
        let place = match token {
            None => Place::Silent,
            Some(token) => Place::Leading {
                token,
                untold: None,
                listed: true,
            },
        };
        self.joined
            .insert(election.clone(), Joined { campaign, place });
        match token {
            None => self.campaign(&election),
            Some(_) => {
                self.resumed.push(election);
                self.extend();
            }
        }
        Ok(())
    }

    /// Counts messages, or what they ask for, in the caller's rate limit.
    fn count(&self, messages: usize) -> Result<(), Problem> {
        match &self.allowance {
            Some(allowance) => allowance.take(messages),
            None => Ok(()),
        }
    }

    fn ping(&mut self, seq: u64) -> Result<(), Invalid> {
        let mut heard = self.heard.lock();
        if seq <= heard.seq {
            let last = heard.seq;
            return Err(Invalid(format!(
                "`seq` is {seq} after {last}: give every ping a larger one"
            )));
        }
        let at = Instant::now();
        *heard = Heard { seq, at };
        drop(heard);
        self.ping = Some(seq);
        self.extend();
        let silent = self.joined.iter();
        let silent = silent.filter(|(_, joined)| matches!(joined.place, Place::Silent));
        let silent: Vec<_> = silent.map(|(election, _)| election.clone()).collect();
        for election in silent {
            self.campaign(&election);
        }
        Ok(())
    }

    fn refuse(&mut self, kind: String, election: String, token: u64, why: String) {
        self.outbox.standing(proto::Standing {
            kind,
            election,
            is: Is::Refused.into(),
            token,
            reason: why,
            ..proto::Standing::default()
        });
    }
}

/// The result of a future, if there is one.
async fn or_never<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn standing(election: &ElectionId, is: Is) -> proto::Standing {
    proto::Standing {
        kind: election.kind().to_owned(),
        election: election.name().to_owned(),
        is: is.into(),
        ..proto::Standing::default()
    }
}

#[cfg(test)]
mod tests {
    use proto::{LeadRequest, lead_event::What as Event};
    use tokio::time::advance;

    use super::*;
    use crate::transport::scene::{EVERYTHING, Scene, listed, permitting};

    const SECOND: Duration = Duration::from_secs(1);
    const TERM: Duration = Duration::from_secs(15);

    /// A stream, and its caller.
    struct Stream {
        messages: mpsc::UnboundedSender<Result<LeadRequest, Status>>,
        events: mpsc::Receiver<Result<proto::LeadEvent, Status>>,
    }

    impl Stream {
        fn of(scene: &Scene, candidate: &str, allowance: Option<Allowance>) -> Self {
            let life = Life::begin(&scene.extensions).expect("known");
            let ending = scene.peer.ending.clone();
            let gate = scene.gate.clone();
            let leading = Leading::new(gate, "agent", life, ending, allowance, 2 * SECOND);
            let (messages, mut heard) = mpsc::unbounded_channel();
            let (events, told) = mpsc::channel(1);
            let heard = stream::poll_fn(move |cx| heard.poll_recv(cx));
            tokio::spawn(leading.run(heard, events));
            let stream = Self {
                messages,
                events: told,
            };
            stream.say(What::Hello(proto::Hello {
                candidate: candidate.to_owned(),
                ping_every: 5_000,
            }));
            stream
        }

        fn say(&self, what: What) {
            let message = LeadRequest { what: Some(what) };
            self.messages.send(Ok(message)).expect("open");
        }

        fn join(&self, election: &str) {
            self.say(What::Join(proto::Join {
                election: election.to_owned(),
                term: 15_000,
                ..proto::Join::default()
            }));
        }

        fn ping(&self, seq: u64) {
            self.say(What::Ping(proto::Ping { seq }));
        }

        /// What is told next within two minutes, in short.
        async fn next(&mut self) -> String {
            let brief = |standing: &proto::Standing| {
                format!("{} {}", standing.election, standing.is().as_str_name())
            };
            let next = timeout(120 * SECOND, self.events.recv()).await;
            match next {
                Err(_) => "nothing".to_owned(),
                Ok(None) => "end".to_owned(),
                Ok(Some(Err(status))) => status.message().to_owned(),
                Ok(Some(Ok(event))) => match event.what.expect("something") {
                    Event::Welcome(_) => "welcome".to_owned(),
                    Event::Goodbye(goodbye) => goodbye.reason,
                    Event::Standing(standing) => brief(&standing),
                    Event::Pong(pong) => {
                        let standings: Vec<_> = pong.standings.iter().map(brief).collect();
                        format!("pong {} [{}]", pong.seq, standings.join(", "))
                    }
                },
            }
        }

        async fn expect(&mut self, expected: &[&str]) {
            for expected in expected {
                assert_eq!(self.next().await, *expected);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_stream_alone_extends_nothing() {
        let scene = Scene::new();
        let mut stream = Stream::of(&scene, "a", None);
        stream.join("e");
        stream.expect(&["welcome", "e LEADING"]).await;
        let mut other = Stream::of(&scene, "b", None);
        other.join("e");
        other.expect(&["welcome", "e WAITING"]).await;
        // Both ping until the end of the term; then only the one that waits does.
        for seq in 1..4 {
            advance(4 * SECOND).await;
            stream.ping(seq);
            stream.expect(&[&format!("pong {seq} []")]).await;
            other.ping(seq);
            other.expect(&[&format!("pong {seq} []")]).await;
        }
        let began = Instant::now();
        for seq in 4..7 {
            advance(4 * SECOND).await;
            other.ping(seq);
            other.expect(&[&format!("pong {seq} []")]).await;
        }
        other.expect(&["e LEADING"]).await;
        assert!(began.elapsed() >= TERM && began.elapsed() < TERM + SECOND);
        stream.ping(4);
        stream.expect(&["pong 4 [e LOST]"]).await;
        stream.ping(5);
        stream.expect(&["pong 5 []"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_policies_no_longer_permit_is_refused_and_is_no_loss() {
        let scene = Scene::new();
        let mut stream = Stream::of(&scene, "a", None);
        stream.join("e");
        stream.expect(&["welcome", "e LEADING"]).await;
        scene.policies.send_replace(permitting(
            r#"permit (principal, action == ElectionAgent::Action::"read", resource);"#,
        ));
        stream.ping(1);
        stream.join("f");
        stream.expect(&["pong 1 [e REFUSED]", "f REFUSED"]).await;
        scene.policies.send_replace(permitting(EVERYTHING));
        stream.ping(2);
        stream.expect(&["pong 2 [e LEADING]"]).await;
        stream.ping(3);
        stream.expect(&["pong 3 []"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_its_credential_is_gone() {
        let scene = Scene::new();
        let mut stream = Stream::of(&scene, "a", None);
        stream.join("e");
        stream.expect(&["welcome", "e LEADING"]).await;
        scene.tokens.send_replace(listed(&[]));
        stream.expect(&["UNAUTHENTICATED", "end"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_let_go_and_its_terms_lapse() {
        let scene = Scene::new();
        let mut stream = Stream::of(&scene, "a", None);
        for election in ["e", "f"] {
            stream.join(election);
        }
        for seq in 1..12 {
            advance(4 * SECOND).await;
            // Who still pings, and does not read what becomes of it.
            let ping = LeadRequest {
                what: Some(What::Ping(proto::Ping { seq })),
            };
            // The stream has ended at last.
            let _ = stream.messages.send(Ok(ping));
            tokio::task::yield_now().await;
        }
        let mut told = Vec::new();
        while told.last().is_none_or(|last| last != "end") {
            told.push(stream.next().await);
        }
        // One event was on its way.
        assert!(told.len() <= 3, "{told:?}");
        assert_eq!(told[0], "welcome");
    }

    #[tokio::test(start_paused = true)]
    async fn pings_count_as_what_they_extend() {
        let scene = Scene::new();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (counts, most) = (Arc::clone(&taken), 3);
        let allowance = Allowance::new(move |messages| {
            counts.lock().push(messages.get());
            match messages.get() < most {
                true => Ok(()),
                false => Err(Problem::new(Code::RateLimited, "too often")),
            }
        });
        let mut stream = Stream::of(&scene, "a", Some(allowance));
        stream.join("e");
        stream.join("f");
        stream.expect(&["welcome", "e LEADING", "f LEADING"]).await;
        stream.ping(1);
        stream.expect(&["pong 1 []"]).await;
        stream.join("g");
        stream.expect(&["g LEADING"]).await;
        stream.ping(2);
        let refused = stream.next().await;
        assert_eq!(refused.matches("JEOPARDY").count(), 3, "{refused}");
        assert_eq!(*taken.lock(), [1, 1, 2, 1, 3]);
    }
}
