//! Streams of what happens to elections, and reads that wait for it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use election_proto::{
    Certainty, Goodbye, Observation, ObserveRequest, State,
    leadership_client::LeadershipClient,
    observation::What,
    observe_request,
    state::{Cause, Phase},
};
use futures_util::{Stream, StreamExt as _};
use http::StatusCode;
use prost::Message as _;
use reqwest::Method;
use serde_json::Value;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::harness::{
    Agent, Answer, Ask, Fixture, Nodes, Protocol, Redis, Store, eventually, framed, handover,
    on_every_store, resignation,
};

on_every_store! {
    an_observer_sees_the_present_state_and_then_every_change,
    the_last_of_many_changes_is_told,
}

const TERM: i32 = 10_000;
const OBSERVE: &str = "/grpc.election_agent.v1.Leadership/Observe";

/// A request to observe one election of the kind `default`.
pub(crate) fn one(election: &str) -> ObserveRequest {
    ObserveRequest {
        what: Some(observe_request::What::Election(election.to_owned())),
        ..ObserveRequest::default()
    }
}

pub(crate) fn everything() -> ObserveRequest {
    ObserveRequest {
        what: Some(observe_request::What::AllKinds(true)),
        ..ObserveRequest::default()
    }
}

/// A state as `election leader CAUSE`, or the message's name. [`None`] for a heartbeat.
fn told(what: &What) -> Option<String> {
    Some(match what {
        What::State(state) => {
            let cause = Cause::try_from(state.cause).expect("known").as_str_name();
            let leader = match (Phase::try_from(state.phase), &state.leader) {
                (Ok(Phase::Held), Some(leader)) => {
                    assert_eq!(leader.token, state.token);
                    &leader.name
                }
                (Ok(Phase::Vacant), None) => "-",
                _ => panic!("{state:?}"),
            };
            let missed = if state.missed { " missed" } else { "" };
            format!("{} {leader} {cause}{missed}", state.election)
        }
        What::Synced(_) => "synced".to_owned(),
        What::Heartbeat(_) => return None,
        What::Certainty(Certainty { certain, .. }) => format!("certain {certain}"),
        What::Goodbye(Goodbye { reason, .. }) => reason.clone(),
    })
}

/// The last state of each election that a stream has sent. The next must come after it, unless it was rolled back.
#[derive(Debug, Default)]
pub(crate) struct Monotone(HashMap<String, (u64, bool)>);

impl Monotone {
    /// Panics if the state does not come after the one before.
    fn follow(&mut self, state: &State) {
        let rank = (state.token, state.phase() == Phase::Vacant);
        let path = format!("{}/{}", state.kind, state.election);
        let before = self.0.insert(path, rank);
        assert!(
            state.cause() == Cause::RolledBack || before.is_none_or(|before| before < rank),
            "after {before:?}, by token and vacancy: {state:?}"
        );
    }
}

/// A stream of observations that is read in a test: its states follow each other.
pub(crate) struct Watched {
    stream: Streaming<Observation>,
    states: Monotone,
}

impl Watched {
    pub(crate) async fn open(channel: Channel, request: ObserveRequest) -> Result<Self, Status> {
        let stream = LeadershipClient::new(channel).observe(request).await?;
        Ok(Self {
            stream: stream.into_inner(),
            states: Monotone::default(),
        })
    }

    /// The next message; [`None`] at the end.
    pub(crate) async fn message(&mut self) -> Result<Option<What>, Status> {
        let message = self.stream.message().await?;
        let what = message.map(|message| message.what.expect("something"));
        if let Some(What::State(state)) = &what {
            self.states.follow(state);
        }
        Ok(what)
    }

    /// The next message that is no heartbeat, as text, if there is one within 20 s. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let next = async {
            loop {
                let message = self.message().await.expect("no error");
                match message.as_ref().map(told) {
                    Some(None) => {}
                    Some(Some(told)) => return told,
                    None => return "end".to_owned(),
                }
            }
        };
        timeout(Duration::from_secs(20), next).await.ok()
    }

    /// Reads until all of this has come, in any order and whatever was missed; gives the rest.
    pub(crate) async fn until(&mut self, wanted: &[&str]) -> Vec<String> {
        let (mut wanted, mut others) = (wanted.to_vec(), Vec::new());
        while !wanted.is_empty() {
            let next = self.next().await;
            let next = next.unwrap_or_else(|| panic!("{wanted:?} within 20 s, not {others:?}"));
            let told = next.trim_end_matches(" missed");
            match wanted.iter().position(|wanted| *wanted == told) {
                Some(place) => {
                    wanted.remove(place);
                }
                None => {
                    assert_ne!(told, "end", "without {wanted:?}: {others:?}");
                    others.push(next);
                }
            }
        }
        others
    }

    pub(crate) async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next().await.as_deref(), Some(*expected), "within 20 s");
        }
    }
}

impl Agent {
    async fn try_observe(&self, request: ObserveRequest) -> Result<Watched, Status> {
        Watched::open(self.channel(), request).await
    }

    pub(crate) async fn observe(&self, request: ObserveRequest) -> Watched {
        self.try_observe(request).await.expect("a stream")
    }

    /// The server-sent events of a path, each as its fields in their order.
    async fn events(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> impl Stream<Item = Vec<(String, String)>> + Unpin + use<> {
        let mut request = self.request(Method::GET, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
        ] {
            assert_eq!(response.headers()[name], value);
        }
        let body = http::Response::from(response).into_body();
        let parts = http_body_util::BodyStream::new(body);
        let letters = parts.flat_map(|part| {
            let data = part.expect("no error").into_data().unwrap_or_default();
            let letters: Vec<_> = data.iter().map(|byte| char::from(*byte)).collect();
            futures_util::stream::iter(letters)
        });
        let events = letters.scan(String::new(), |text, letter| {
            text.push(letter);
            let whole = text.ends_with("\n\n").then(|| std::mem::take(text));
            std::future::ready(Some(whole))
        });
        let events = events.filter_map(std::future::ready).map(|event| {
            let fields = event.trim_end().lines().map(|line| {
                let (name, value) = line.split_once(':').expect("a field");
                (name.to_owned(), value.trim_start().to_owned())
            });
            fields.collect()
        });
        Box::pin(events)
    }

    async fn long_poll(&self, path: &str, headers: &[(&'static str, &str)]) -> Answer {
        let mut request = self.request(Method::GET, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request).await
    }
}

/// The next event, by its name and data.
async fn event(
    events: &mut (impl Stream<Item = Vec<(String, String)>> + Unpin),
) -> (String, String, Value) {
    let next = timeout(Duration::from_secs(20), events.next());
    let fields = next.await.expect("an event within 20 s").expect("an event");
    let field = |wanted: &str| {
        let found = fields.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let data = serde_json::from_str(&field("data")).unwrap_or_default();
    (field("event"), field("id"), data)
}

async fn an_observer_sees_the_present_state_and_then_every_change(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let first = agent.elect("e", "a", TERM).await.0;
    let mut observed = agent.observe(one("e")).await;
    let mut of_kind = agent.observe(ObserveRequest::default()).await;
    observed.expect(&["e a PRESENT", "synced"]).await;
    of_kind.expect(&["e a PRESENT", "synced"]).await;
    // As long as hints may be missed, others may have led in between.
    agent.has_observers(2).await;
    // Extensions are no changes.
    assert!(agent.extend("e", "a", TERM, first.token).await.value);
    assert!(agent.resign("e", "a", first.token).await.value);
    observed.expect(&["e - RESIGN"]).await;
    of_kind.expect(&["e - RESIGN"]).await;
    let second = agent.elect("e", "b", 1_000).await.0;
    assert!(second.token > first.token);
    observed.expect(&["e b CAMPAIGN", "e - EXPIRY"]).await;
    of_kind.expect(&["e b CAMPAIGN", "e - EXPIRY"]).await;
    let third = agent.elect("e", "c", TERM).await.0;
    observed.expect(&["e c CAMPAIGN"]).await;
    let handed = agent
        .try_handover(handover("e", ("c", third.token), "d", TERM))
        .await;
    assert!(handed.expect("an answer").value);
    observed.expect(&["e d HANDOVER"]).await;
    of_kind.expect(&["e c CAMPAIGN", "e d HANDOVER"]).await;
    drop((observed, of_kind));
    agent.is_idle().await;
}

/// An election that changes more often than it is read: states are left out, the last one is not.
async fn the_last_of_many_changes_is_told(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let mut observed = agent.observe(one("e")).await;
    observed.expect(&["e - PRESENT", "synced"]).await;
    agent.has_observers(1).await;
    let mut last = 0;
    for _ in 0..60 {
        last = agent.elect("e", "a", TERM).await.0.token;
        assert!(agent.resign("e", "a", last).await.value);
    }
    let vacant = async {
        loop {
            match observed.message().await.expect("no error") {
                Some(What::State(state)) if state.token == last && state.leader.is_none() => break,
                what => assert!(what.is_some(), "the stream has ended"),
            }
        }
    };
    let vacant = timeout(Duration::from_secs(20), vacant).await;
    vacant.expect("the last vacancy within 20 s");
}

/// Servers without incarnation records, as agents without a guard leave them, know the tokens of vacancies.
#[tokio::test(flavor = "multi_thread")]
async fn vacancies_have_their_tokens_and_causes_without_a_guard() {
    let redis = Redis::start().await;
    let agent = Agent::on(&redis, &[("EA_RESTART_GUARD", "off")]).await;
    let mut observed = agent.observe(one("e")).await;
    observed.expect(&["e - PRESENT", "synced"]).await;
    agent.has_observers(1).await;
    let first = agent.elect("e", "a", TERM).await.0;
    observed.expect(&["e a CAMPAIGN"]).await;
    assert!(agent.resign("e", "a", first.token).await.value);
    observed.expect(&["e - RESIGN"]).await;
    agent.elect("e", "b", 1_000).await;
    observed.expect(&["e b CAMPAIGN", "e - EXPIRY"]).await;
    let state = agent.send(agent.request(Method::GET, "/election/default/e/state"));
    assert!(state.await.body["token"].as_u64() > Some(first.token));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_tell_the_same_and_begin_where_the_caller_was() {
    let agent = Agent::start(&[("EA_LOG_LEVEL", "info")]).await;
    let leader = agent.elect("e", "a", TERM).await.0;
    let path = "/election/default/e/events";
    let mut events = agent.events(path, &[]).await;
    let first = events.next().await.expect("an event");
    let retry: u64 = first[0].1.parse().expect("ms");
    assert!(
        first[0].0 == "retry" && (500..1_500).contains(&retry),
        "{first:?}"
    );
    let (name, held, state) = event(&mut events).await;
    assert_eq!(name, "state");
    assert_eq!(
        (&state["phase"], &state["cause"]),
        (&"HELD".into(), &"PRESENT".into())
    );
    assert_eq!(state["position"], *held);
    assert_eq!(state["leader"]["leader"], "a");
    assert_eq!(event(&mut events).await.0, "synced");
    assert!(agent.resign("e", "a", leader.token).await.value);
    let (_, vacant, state) = event(&mut events).await;
    assert_eq!(
        (&state["phase"], &state["cause"]),
        (&"VACANT".into(), &"RESIGN".into())
    );
    assert_eq!(state["token"], leader.token);
    drop(events);

    // The state that the caller has is not sent again; of any other position, the present state is.
    let mut again = agent
        .events(path, &[("last-event-id", vacant.as_str())])
        .await;
    again.next().await;
    assert_eq!(event(&mut again).await.0, "synced");
    for position in [held.as_str(), "v1", "x", "ä", ""] {
        let mut other = agent.events(path, &[("last-event-id", position)]).await;
        other.next().await;
        let (name, position, _) = event(&mut other).await;
        assert_eq!((name.as_str(), position), ("state", vacant.clone()));
    }

    let path = "/elections/events?kind=default&prefix=e";
    let mut all = agent
        .events(path, &[("accept", "text/html, */*;q=0.1")])
        .await;
    all.next().await;
    assert_eq!(event(&mut all).await.0, "synced");
    agent.elect("f", "a", TERM).await;
    agent.elect("e2", "a", TERM).await;
    let (name, _, state) = event(&mut all).await;
    assert_eq!((name.as_str(), &state["election"]), ("state", &"e2".into()));
    drop((again, all));
    agent.is_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_another_position_than_the_known_one() {
    let agent = Agent::start(&[("EA_MAX_WAIT", "20s")]).await;
    let leader = agent.elect("e", "a", 60_000).await.0;
    let held = agent.get("/election/e").await;
    let tag = held.header("etag").to_owned();
    let position = tag.trim_matches('"');
    let wait = format!("/election/e?wait=20s&after={position}");

    // Time over.
    let over = agent
        .long_poll(&format!("/election/e?wait=100ms&after={position}"), &[])
        .await;
    assert_eq!((over.status, over.header("etag")), (304, tag.as_str()));
    let began = Instant::now();
    let preferred = [
        ("prefer", "respond-async, wait=1"),
        ("if-none-match", tag.as_str()),
    ];
    let over = agent.long_poll("/election/e", &preferred).await;
    assert_eq!(over.status, 304);
    assert!(began.elapsed() >= Duration::from_secs(1));
    // Positions that are not the present one are answered at once.
    for path in [
        "/election/e?wait=20s".to_owned(),
        "/election/e?wait=20s&after=v7".to_owned(),
        "/election/e?wait=20s&after=".to_owned(),
    ] {
        let answer = agent.long_poll(&path, &[]).await;
        assert_eq!(answer.status, 200, "{path}");
    }

    let (vacant, resigned) = tokio::join!(agent.long_poll(&wait, &[]), async {
        agent.has_observers(1).await;
        agent.resign("e", "a", leader.token).await
    });
    assert!(resigned.value);
    assert_eq!(
        (vacant.status, &vacant.body["code"]),
        (404, &"NotFound".into())
    );
    let tag = vacant.header("etag").to_owned();
    let preferred = [("prefer", "wait=600"), ("if-none-match", tag.as_str())];
    let (held, _) = tokio::join!(agent.long_poll("/election/e", &preferred), async {
        agent.has_observers(1).await;
        agent.elect("e", "b", TERM).await
    });
    assert_eq!((held.status, &held.body["leader"]), (200, &"b".into()));
    agent.is_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_observed_is_refused_with_what_to_change() {
    let agent = Agent::start(&[("EA_MAX_WAIT", "20s")]).await;
    let request = |change: &dyn Fn(&mut ObserveRequest)| {
        let mut request = one("e");
        change(&mut request);
        request
    };
    let prefix = |prefix: &str| Some(observe_request::What::Prefix(prefix.to_owned()));
    let long = "x".repeat(257);
    for (wrong, says) in [
        (
            request(&|it| it.heartbeat = 999),
            "`heartbeat` is 999: give 1000 to 60000",
        ),
        (request(&|it| it.heartbeat = -1), "`heartbeat` is -1"),
        (request(&|it| it.heartbeat = 60_001), "`heartbeat` is 60001"),
        (one(""), "`election`"),
        (request(&|it| it.kind = "a/b".to_owned()), "`kind`"),
        (request(&|it| it.what = prefix("a\u{7}")), "`prefix`"),
        (request(&|it| it.what = prefix("a/")), "`prefix`"),
        (request(&|it| it.what = prefix("")), "`prefix`"),
        (request(&|it| it.what = prefix(&long)), "`prefix`"),
        (
            request(&|it| (it.what, it.after) = (None, "h1".to_owned())),
            "`after`",
        ),
        (
            request(&|it| (it.what, it.kind) = (everything().what, "k".to_owned())),
            "all_kinds",
        ),
    ] {
        let refused = agent.try_observe(wrong).await.map(|_| ());
        let refused = refused.expect_err(says);
        assert_eq!(refused.code(), Code::InvalidArgument, "{says}");
        assert!(refused.message().contains(says), "{says}: {refused:?}");
    }
    let events = "/election/default/e/events";
    for (path, header, says) in [
        (events, ("accept", "application/json"), "text/event-stream"),
        (
            events,
            ("accept", "text/event-streams"),
            "text/event-stream",
        ),
        (
            "/elections/events?prefix=a%07",
            ("accept", "*/*"),
            "`prefix`",
        ),
        ("/elections/events?kind=a/b", ("accept", "*/*"), "`kind`"),
        (
            "/elections/events?all_kinds=true&kind=k",
            ("accept", "*/*"),
            "all_kinds",
        ),
        (
            "/elections/events?all_kinds=true&prefix=k",
            ("accept", "*/*"),
            "all_kinds",
        ),
        ("/elections/events?after=h1", ("accept", "*/*"), "after"),
        (
            "/election/default/e/events?after=h1",
            ("accept", "*/*"),
            "after",
        ),
        ("/election/e?wait=21s", ("accept", "*/*"), "EA_MAX_WAIT"),
        (
            "/election/e?wait=-1s",
            ("accept", "*/*"),
            "give a time such as 30s",
        ),
        (
            "/election/e?wait=30",
            ("accept", "*/*"),
            "give a time such as 30s",
        ),
        (
            "/election/e?wait=",
            ("accept", "*/*"),
            "give a time such as 30s",
        ),
        ("/election/e?waits=1s", ("accept", "*/*"), "waits"),
    ] {
        let refused = agent.long_poll(path, &[header]).await;
        assert_eq!(refused.status, 400, "{path}: {:?}", refused.body);
        assert!(
            refused.text("message").contains(says),
            "{path}: {:?}",
            refused.body
        );
    }
    // A preference that makes no sense is no error.
    for preference in [
        "wait=-1",
        "wait=soon",
        "wait",
        "=",
        "wait=99999999999999999999",
    ] {
        let answer = agent
            .long_poll("/election/e", &[("prefer", preference)])
            .await;
        assert_eq!(answer.status, 404, "{preference}");
    }
    agent.is_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_count_apart_from_requests_and_are_no_more_than_are_allowed() {
    let settings = [("EA_MAX_STREAMS", "2"), ("EA_MAX_IN_FLIGHT", "1")];
    let agent = Agent::start(&settings).await;
    let mut first = agent.observe(one("e")).await;
    first.expect(&["e - PRESENT", "synced"]).await;
    let second = agent.events("/elections/events", &[]).await;
    let refused = agent.try_observe(one("e")).await.map(|_| ());
    let refused = refused.expect_err("two are open");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("EA_MAX_STREAMS"), "{refused:?}");
    // A read that would wait is refused as well, and one that has no reason to wait is not.
    let refused = agent.get("/election/e?wait=1s&after=v0").await;
    assert_eq!(refused.status, 429, "{:?}", refused.body);
    assert_eq!(agent.get("/election/e").await.status, 404);
    drop((first, second));
    eventually("there is room again", async || {
        agent.try_observe(one("e")).await.ok().map(|_| ())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_too_many_elections_ends_with_what_to_do() {
    const MANY: usize = 10_001;
    let agent = Agent::start(&[("EA_LOG_LEVEL", "info")]).await;
    let wins = (0..MANY).map(async |n| agent.elect(&format!("many{n}"), "a", 60_000).await);
    let won = futures_util::stream::iter(wins).buffer_unordered(64);
    assert_eq!(won.count().await, MANY);
    agent.elect("few", "a", 60_000).await;
    let mut observed = agent.observe(ObserveRequest::default()).await;
    let refused = timeout(Duration::from_secs(20), observed.message()).await;
    let refused = refused.expect("in time").expect_err("too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let says = "there are more than 10000 elections to observe";
    assert!(refused.message().contains(says), "{refused:?}");
    let mut events = agent.events("/elections/events", &[]).await;
    events.next().await;
    let (name, _, problem) = event(&mut events).await;
    assert_eq!(
        (name.as_str(), &problem["code"]),
        ("problem", &"Overloaded".into())
    );
    assert!(events.next().await.is_none(), "it has ended");
    let few = Some(observe_request::What::Prefix("few".to_owned()));
    let few = ObserveRequest {
        what: few,
        ..ObserveRequest::default()
    };
    agent
        .observe(few)
        .await
        .expect(&["few a PRESENT", "synced"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_certain_and_nothing_is_vacant() {
    let nodes = Nodes::start(3).await;
    let settings = [("EA_REDIS_OPERATION_TIMEOUT", "300ms")];
    let agent = nodes.agent("agent", &settings).await;
    // Longer than the outage.
    let leader = agent.elect("e", "a", 60_000).await.0;
    let mut observed = agent.observe(one("e")).await;
    let mut of_kind = agent.observe(ObserveRequest::default()).await;
    let mut events = agent.events("/election/default/e/events", &[]).await;
    for _ in 0..3 {
        events.next().await;
    }
    observed.expect(&["e a PRESENT", "synced"]).await;
    of_kind.expect(&["e a PRESENT", "synced"]).await;
    let position = agent.get("/election/e").await.header("etag").to_owned();
    let waits = [("prefer", "wait=60"), ("if-none-match", position.as_str())];
    for node in 0..2 {
        nodes.gate("agent", node).cut();
    }
    // A term that ends meanwhile is not over for sure: the node that still answers may have been left behind.
    observed.expect(&["certain false"]).await;
    of_kind.expect(&["certain false"]).await;
    let (name, _, data) = event(&mut events).await;
    assert_eq!(
        (name.as_str(), &data["certain"]),
        ("certainty", &false.into())
    );
    assert!(
        !data["reason"].as_str().expect("a text").is_empty(),
        "{data}"
    );
    let refused = agent.long_poll("/election/e?wait=1s&after=h1", &[]).await;
    assert_eq!(refused.status, 503, "{:?}", refused.body);
    let refused = agent.long_poll("/election/e", &waits).await;
    assert_eq!(refused.status, 503, "{:?}", refused.body);
    for node in 0..2 {
        nodes.gate("agent", node).open();
    }
    observed.expect(&["certain true"]).await;
    of_kind.expect(&["certain true"]).await;
    assert_eq!(event(&mut events).await.2["certain"], true);
    eventually("the leader may go on", async || {
        let request = resignation("e", "a", leader.token);
        agent.grpc().resign(request).await.ok()
    })
    .await;
    observed.expect(&["e - RESIGN"]).await;
    of_kind.expect(&["e - RESIGN"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_goodbye_before_its_connection_ends() {
    let settings = [
        ("EA_GRPC_MAX_CONNECTION_AGE", "3s"),
        ("EA_GRPC_MAX_CONNECTION_AGE_GRACE", "10s"),
        ("EA_SHUTDOWN_GRACE", "10s"),
    ];
    let mut agent = Agent::start(&settings).await;
    let leader = agent.elect("e", "a", 60_000).await.0;
    let mut old = agent.observe(one("e")).await;
    old.expect(&["e a PRESENT", "synced", "AGE"]).await;
    // The next stream begins before the old one ends, and neither misses a change.
    let mut new = eventually("another connection", async || {
        agent.try_observe(one("e")).await.ok()
    })
    .await;
    new.expect(&["e a PRESENT", "synced"]).await;
    assert!(agent.resign("e", "a", leader.token).await.value);
    old.expect(&["e - RESIGN", "end"]).await;
    new.expect(&["e - RESIGN"]).await;

    let mut events = agent.events("/election/default/e/events", &[]).await;
    for _ in 0..3 {
        events.next().await;
    }
    let (name, _, data) = event(&mut events).await;
    assert_eq!((name.as_str(), &data["reason"]), ("goodbye", &"AGE".into()));
    assert!(data["reconnect_after"].as_u64().expect("ms") < 500);
    assert!(events.next().await.is_none(), "it has ended");

    let mut last = eventually("another connection", async || {
        agent.try_observe(one("e")).await.ok()
    })
    .await;
    last.expect(&["e - PRESENT", "synced"]).await;
    agent.signal("TERM");
    last.expect(&["SHUTDOWN", "end"]).await;
    assert!(agent.exit().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_observe_over_grpc_web() {
    let agent = Agent::start(&[("EA_LOG_LEVEL", "info")]).await;
    agent.elect("e", "a", TERM).await;
    let body = framed(&one("e").encode_to_vec());
    let ask = Ask::new(Protocol::GrpcWeb).at(OBSERVE, "").sending(body);
    let response = ask.send(agent.address()).await;
    let mut body = http_body_util::BodyStream::new(response.into_body());
    let mut bytes = Vec::new();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let part = timeout(Duration::from_secs(20), body.next())
            .await
            .expect("in time");
        let part = part
            .expect("more")
            .expect("no error")
            .into_data()
            .expect("data");
        bytes.extend(part);
        while let Some(length) = bytes.get(1..5).and_then(|it| it.try_into().ok()) {
            let end = 5 + u32::from_be_bytes(length) as usize;
            if bytes.len() < end {
                break;
            }
            let message: Vec<_> = bytes.drain(..end).skip(5).collect();
            let message = Observation::decode(&*message).expect("a message");
            seen.extend(told(&message.what.expect("something")));
        }
    }
    assert_eq!(seen, ["e a PRESENT", "synced"]);
    // A refusal is reported as ever.
    let ask = Ask::new(Protocol::GrpcWeb).at(OBSERVE, "");
    let body = framed(&one("").encode_to_vec());
    let (code, _) = ask.sending(body).told(agent.address()).await;
    assert_eq!(code, Code::InvalidArgument);
}

/// States of one election, by token, vacancy and cause, as they may follow each other.
const FOLLOWING: [(u64, bool, Cause); 6] = [
    (1, true, Cause::Present),
    (2, false, Cause::Campaign),
    (2, true, Cause::Expiry),
    // A majority carried the grant out too late, and it was rolled back.
    (2, false, Cause::RolledBack),
    (2, true, Cause::Resign),
    (4, false, Cause::Handover),
];

fn follow(states: &[(u64, bool, Cause)]) {
    let mut monotone = Monotone::default();
    for (token, vacant, cause) in states {
        let phase = if *vacant { Phase::Vacant } else { Phase::Held };
        let state = State {
            token: *token,
            phase: phase.into(),
            cause: (*cause).into(),
            ..State::default()
        };
        monotone.follow(&state);
    }
}

#[test]
fn states_that_do_not_follow_each_other_are_found() {
    follow(&FOLLOWING);
    for wrong in [
        (3, true, Cause::Expiry),
        (4, false, Cause::Campaign),
        (3, false, Cause::Present),
    ] {
        let states = [&FOLLOWING[..], &[wrong]].concat();
        let found = std::panic::catch_unwind(|| follow(&states));
        assert!(found.is_err(), "{wrong:?}");
    }
}
