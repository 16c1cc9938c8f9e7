//! Streams that lead: one stream for many elections.
//!
//! A task owns the stream, so that campaigns go on whether or not the caller reads. Only the caller's pings extend
//! terms. When the stream ends, for whatever reason, waiting campaigns end, and terms lapse.

mod campaigns;
mod outbox;
mod terms;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use election_core::{
    election::Campaign,
    types::{Candidate, ElectionId, Invalid, MAX_NAME, RequestId, Term, Token, Value, millis},
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
    sync::{OwnedSemaphorePermit, mpsc},
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
        stay::Places,
        stream::{GOES_ON, Life, Reason, Turn},
        term::term,
    },
};
use campaigns::{Campaigned, Waits};
use outbox::Outbox;
use terms::{Extended, Resigned};

/// How many elections a stream leads or waits for, at the most.
const MOST_ELECTIONS: usize = 1000;
/// The default pause between pings, in ms.
const PING_EVERY: i64 = 5_000;
/// The pauses that callers may request, in ms.
const PINGS: std::ops::RangeInclusive<i64> = 100..=60_000;
/// How long a caller may leave events unread.
const UNREAD: Duration = Duration::from_secs(30);
/// How many events, and refusals among them, may be unread before the stream reads no more messages.
const MOST_UNREAD: usize = 2 * MOST_ELECTIONS;
const MOST_REFUSALS: usize = 64;
/// How long the arrival times of messages are kept: longer than any claim takes.
const KEPT: Duration = Duration::from_secs(600);
/// Of messages that arrive within this time, one is kept besides the last.
const APART: Duration = Duration::from_millis(100);

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
        (Allowance::of(&extensions), Places::of(&extensions)),
        Deadline::of(&extensions).limit(),
    );
    let (events, mut unsent) = mpsc::channel(1);
    tokio::spawn(Origin::current().around(|| leading.run(messages, events)));
    Ok(stream::poll_fn(move |cx| unsent.poll_recv(cx)))
}

/// A message that shows that the caller is alive.
#[derive(Debug, Clone, Copy)]
struct Received {
    /// The ping; 0 for Hello.
    seq: u64,
    /// When it arrived.
    at: Instant,
}

/// When the caller's recent messages arrived: a grant counts from the last message before its claim, never from a later
/// one. The agent's clock stops while the machine is suspended, and may measure too short a time between two messages.
#[derive(Debug)]
struct Pings {
    last: Received,
    earlier: VecDeque<Received>,
}

impl Pings {
    fn new(hello: Instant) -> Self {
        Self {
            last: Received { seq: 0, at: hello },
            earlier: VecDeque::new(),
        }
    }

    fn receive(&mut self, message: Received) {
        let last = std::mem::replace(&mut self.last, message);
        // A caller that pings constantly uses no more memory than others.
        let before = self.earlier.back();
        if before.is_none_or(|before| message.at >= before.at + APART) {
            self.earlier.push_back(last);
        }
        let is_old = |next: &Received| message.at > next.at + KEPT;
        while self.earlier.get(1).is_some_and(is_old) {
            self.earlier.pop_front();
        }
    }

    /// Returns the last message up to this instant.
    fn until(&self, instant: Instant) -> Option<Received> {
        let earlier = self.earlier.iter().rev();
        let mut all = std::iter::once(&self.last).chain(earlier);
        all.find(|message| message.at <= instant).copied()
    }
}

/// An election that the caller has joined.
#[derive(Debug)]
struct Joined {
    campaign: Arc<Campaign>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// A campaign is in progress, and has a place among the agent's streams.
    Waiting {
        number: u64,
        abort: AbortHandle,
        _place: Option<OwnedSemaphorePermit>,
    },
    /// No campaign is in progress: the caller has been silent for too long to be elected, or an earlier term is being
    /// given up.
    Silent,
    Leading {
        token: Token,
        /// Whether to report the next extension of the term: the caller does not know yet that it leads for a whole
        /// term.
        listed: bool,
    },
}

struct Leading {
    gate: Gate,
    agent: String,
    life: Life,
    /// Cancelled when the stream must end: no campaign may win afterwards.
    ending: CancellationToken,
    allowance: Option<Allowance>,
    places: Option<Places>,
    /// How long an extension or a resignation may take.
    limit: Duration,
    /// [`None`] before Hello.
    candidate: Option<Candidate>,
    ping_every: Duration,
    pings: Arc<Mutex<Pings>>,
    joined: HashMap<ElectionId, Joined>,
    /// The number of the last campaign.
    number: u64,
    campaigns: FuturesUnordered<BoxFuture<'static, Result<Campaigned, Aborted>>>,
    resignations: FuturesUnordered<BoxFuture<'static, Resigned>>,
    extension: Option<BoxFuture<'static, Extended>>,
    /// The newest ping whose extension has not begun.
    ping: Option<u64>,
    /// Elections joined with a token whose extension has not begun.
    resumed: HashSet<ElectionId>,
    /// Grants reported while an extension was in progress: its pong must not cover them.
    uncovered: Vec<(ElectionId, proto::Standing)>,
    /// Number of resignations in progress, by election. Until they end, a campaign under the same name would replace
    /// the term.
    leaving: HashMap<ElectionId, usize>,
    waits: (mpsc::UnboundedSender<Waits>, mpsc::UnboundedReceiver<Waits>),
    outbox: Outbox,
    /// When the caller last took an event, or the outbox was last empty.
    read: Instant,
}

impl Leading {
    fn new(
        gate: Gate,
        agent: &str,
        life: Life,
        ending: CancellationToken,
        (allowance, places): (Option<Allowance>, Option<Places>),
        limit: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            gate,
            agent: agent.to_owned(),
            life,
            ending,
            allowance,
            places,
            limit,
            candidate: None,
            ping_every: Duration::ZERO,
            pings: Arc::new(Mutex::new(Pings::new(now))),
            joined: HashMap::new(),
            number: 0,
            campaigns: FuturesUnordered::new(),
            resignations: FuturesUnordered::new(),
            extension: None,
            ping: None,
            resumed: HashSet::new(),
            uncovered: Vec::new(),
            leaving: HashMap::new(),
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
        // Others must not wait for campaigns that nobody polls.
        self.campaigns.clear();
        self.joined.clear();
        // Requested resignations complete, even if the caller has disconnected.
        while let Some(resigned) = self.resignations.next().await {
            self.resigned(resigned);
        }
        let rest = async {
            while let Some(event) = self.outbox.pop() {
                events.send(Ok(event)).await.ok()?;
            }
            events.send(Err(ended.err()?)).await.ok()
        };
        // A caller that does not read misses these events and sees only the end of the stream.
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
                    Turn::Checked => self.check_rights(),
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
                message = messages.next(), if self.receives() => match message {
                    Some(message) => self.receive(message?)?,
                    None => return Ok(()),
                },
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
            }
        }
    }

    fn goodbye(&mut self, why: Reason) {
        let goodbye = self.life.goodbye(why);
        self.outbox.goodbye(convert::goodbye(goodbye));
    }

    /// Whether there is room for the effects of another message.
    fn receives(&self) -> bool {
        self.outbox.len() < MOST_UNREAD
            && self.outbox.refusals() < MOST_REFUSALS
            && self.resignations.len() < MOST_ELECTIONS
    }

    /// When the caller has been silent for too long to be elected.
    fn silent_at(&self) -> Instant {
        self.pings.lock().last.at + 2 * self.ping_every
    }

    fn waits_for_any(&self) -> bool {
        let mut joined = self.joined.values();
        joined.any(|joined| matches!(joined.place, Place::Waiting { .. }))
    }

    fn receive(&mut self, message: proto::LeadRequest) -> Result<(), Problem> {
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
        *self.pings.lock() = Pings::new(Instant::now());
        self.outbox.welcome(proto::Welcome {
            agent: self.agent.clone(),
            ping_every: i32::try_from(every).unwrap_or(i32::MAX),
        });
        Ok(())
    }

    fn join(&mut self, join: &proto::Join, candidate: Candidate) -> Result<(), Problem> {
        self.count(1)?;
        if self.life.is_ending() {
            return Err(Problem::new(
                Code::Overloaded,
                "the stream ends: join on another one",
            ));
        }
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
        let is_left = self.leaving.contains_key(&election);
        let place = match token {
            None => Place::Silent,
            Some(_) if is_left => {
                return Err(Problem::new(
                    Code::Conflict,
                    "the stream is leaving the election: join it after the answer to leave",
                ));
            }
            Some(token) => Place::Leading {
                token,
                listed: true,
            },
        };
        self.joined
            .insert(election.clone(), Joined { campaign, place });
        if token.is_some() {
            self.resumed.insert(election);
            self.extend();
        } else if !is_left && let Err(problem) = self.campaign(&election) {
            self.joined.remove(&election);
            return Err(problem);
        }
        Ok(())
    }

    /// Counts messages, or the operations that they request, in the caller's rate limit.
    fn count(&self, messages: usize) -> Result<(), Problem> {
        match &self.allowance {
            Some(allowance) => allowance.take(messages),
            None => Ok(()),
        }
    }

    fn ping(&mut self, seq: u64) -> Result<(), Invalid> {
        let mut pings = self.pings.lock();
        let last = pings.last.seq;
        if seq <= last {
            return Err(Invalid(format!(
                "`seq` is {seq} after {last}: give every ping a larger one"
            )));
        }
        let at = Instant::now();
        pings.receive(Received { seq, at });
        drop(pings);
        self.ping = Some(seq);
        self.extend();
        let silent = self.joined.iter();
        let silent = silent.filter(|(_, joined)| matches!(joined.place, Place::Silent));
        let silent = silent.map(|(election, _)| election);
        let silent = silent.filter(|election| !self.leaving.contains_key(*election));
        let silent: Vec<_> = silent.cloned().collect();
        for election in silent {
            // Without a place among the agent's streams, the next ping tries again.
            let _ = self.campaign(&election);
        }
        Ok(())
    }

    fn refuse(&mut self, kind: String, election: String, token: u64, why: String) {
        self.outbox.standing(proto::Standing {
            kind: brief(kind),
            election: brief(election),
            is: Is::Refused.into(),
            token,
            reason: why,
            ..proto::Standing::default()
        });
    }
}

/// How long the leader may act after each ping that extends its term, in ms.
fn lasts(term: Term) -> i32 {
    convert::millis_i32(term.duration() - term.drift())
}

/// Returns the name, or its beginning if it is too long.
fn brief(mut name: String) -> String {
    if name.len() > MAX_NAME {
        name.truncate(name.floor_char_boundary(MAX_NAME));
        name.push('…');
    }
    name
}

/// Awaits the future; without one, never returns.
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
            Self::with(scene, candidate, allowance, None)
        }

        fn with(
            scene: &Scene,
            candidate: &str,
            allowance: Option<Allowance>,
            places: Option<Places>,
        ) -> Self {
            let life = Life::begin(&scene.extensions).expect("known");
            let ending = scene.peer.ending.clone();
            let gate = scene.gate.clone();
            let leading =
                Leading::new(gate, "agent", life, ending, (allowance, places), 2 * SECOND);
            let (messages, mut received) = mpsc::unbounded_channel();
            let (events, sent) = mpsc::channel(1);
            let received = stream::poll_fn(move |cx| received.poll_recv(cx));
            tokio::spawn(leading.run(received, events));
            let stream = Self {
                messages,
                events: sent,
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

        /// Returns the next event within two minutes, in short.
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
        // Both ping until the end of the term; then only the waiter does.
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
            // The caller still pings, and does not read.
            let ping = LeadRequest {
                what: Some(What::Ping(proto::Ping { seq })),
            };
            // An error means that the stream has ended.
            let _ = stream.messages.send(Ok(ping));
            tokio::task::yield_now().await;
        }
        let mut replies = Vec::new();
        while replies.last().is_none_or(|last| last != "end") {
            replies.push(stream.next().await);
        }
        // One event was on its way.
        assert!(replies.len() <= 3, "{replies:?}");
        assert_eq!(replies[0], "welcome");
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
        // Invalid messages count, too.
        stream.join("a/b");
        stream.expect(&["a/b REFUSED"]).await;
        assert_eq!(*taken.lock(), [1, 1, 2, 1, 3, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_campaign_that_waits_takes_a_place_and_who_may_not_campaign_any_more_waits_no_more() {
        let scene = Scene::new();
        scene.elect("", "e").await;
        let places = Places::new(1);
        let mut stream = Stream::with(&scene, "b", None, Some(places.clone()));
        stream.join("e");
        stream.expect(&["welcome", "e WAITING"]).await;
        assert!(places.take().is_err());
        stream.join("f");
        stream.expect(&["f REFUSED"]).await;
        let seen = |seq: u64| format!("pong {seq} []");
        scene.policies.send_replace(permitting(
            r#"permit (principal, action == ElectionAgent::Action::"read", resource);"#,
        ));
        for seq in 1.. {
            advance(4 * SECOND).await;
            stream.ping(seq);
            let next = stream.next().await;
            if next == "e REFUSED" {
                break;
            }
            assert_eq!(next, seen(seq));
            assert!(seq < 20);
        }
        assert!(places.take().is_ok());
    }

    #[test]
    fn a_grant_counts_from_the_last_ping_before_its_claim() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut pings = Pings::new(began);
        let seq = |pings: &Pings, ms| pings.until(at(ms)).map(|message| message.seq);
        for (seq, ms) in [(1, 1_000), (2, 2_000), (3, 2_010), (4, 2_020), (5, 3_000)] {
            pings.receive(Received { seq, at: at(ms) });
        }
        assert_eq!(seq(&pings, 999), Some(0));
        assert_eq!(seq(&pings, 1_999), Some(1));
        assert_eq!(seq(&pings, 2_000), Some(2));
        // Not a later message, even if one in between was dropped.
        assert_eq!(seq(&pings, 2_015), Some(2));
        assert_eq!(seq(&pings, 2_999), Some(4));
        assert_eq!(seq(&pings, 3_000), Some(5));
        for turn in 0..100_000 {
            let message = Received {
                seq: 6 + turn,
                at: at(3_001 + 20 * turn),
            };
            pings.receive(message);
        }
        assert!(pings.earlier.len() <= 8_000, "{}", pings.earlier.len());
        assert_eq!(seq(&pings, 3_001 + 20 * 99_999), Some(100_005));
    }
}
