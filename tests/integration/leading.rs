//! Streams that lead.

use std::time::{Duration, Instant};

use election_proto::{
    Hello, Join, LeadEvent, LeadRequest, Leave, ListLeadersRequest, Ping, Standing,
    lead_event::What as Event, lead_request::What, leadership_client::LeadershipClient,
    standing::Is,
};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::harness::{Agent, Cluster, Fixture, Nodes, Store, campaign, eventually, on_every_store};

on_every_store! {
    a_stream_leads_while_it_pings,
    who_waits_in_a_stream_is_elected_when_the_leader_leaves,
}

const TERM: i32 = 10_000;
/// A pause between pings that no test reaches.
const SELDOM: i32 = 5_000;

/// A stream that leads, as a test sees it.
struct Leads {
    messages: mpsc::UnboundedSender<LeadRequest>,
    events: Streaming<LeadEvent>,
    /// When each ping was sent, and Hello as the first.
    sent: Vec<Instant>,
}

impl Leads {
    async fn open(channel: Channel) -> Result<Self, Status> {
        let (messages, mut queue) = mpsc::unbounded_channel();
        let queue = futures_util::stream::poll_fn(move |cx| queue.poll_recv(cx));
        let mut client = LeadershipClient::new(channel);
        let events = client.lead(queue).await?.into_inner();
        Ok(Self {
            messages,
            events,
            sent: Vec::new(),
        })
    }

    fn send(&self, what: impl Into<Option<What>>) {
        let message = LeadRequest { what: what.into() };
        // A stream that has ended reports so by its events.
        let _ = self.messages.send(message);
    }

    fn hello(&mut self, candidate: &str, ping_every: i32) {
        self.sent.push(Instant::now());
        self.send(What::Hello(Hello {
            candidate: candidate.to_owned(),
            ping_every,
        }));
    }

    fn join(&self, election: &str) {
        self.send(What::Join(join(election)));
    }

    fn resume(&self, election: &str, token: u64) {
        self.send(What::Join(Join {
            token,
            ..join(election)
        }));
    }

    fn leave(&self, election: &str, token: u64) {
        self.send(What::Leave(Leave {
            kind: String::new(),
            election: election.to_owned(),
            token,
        }));
    }

    /// Pings with the next number.
    fn ping(&mut self) -> u64 {
        let seq = self.sent.len() as u64;
        self.sent.push(Instant::now());
        self.send(What::Ping(Ping { seq }));
        seq
    }

    /// The next event within 20 s; [`None`] at the end.
    async fn event(&mut self) -> Result<Option<Event>, Status> {
        let next = timeout(Duration::from_secs(20), self.events.message());
        let event = next.await.expect("an event within 20 s")?;
        Ok(event.map(|event| event.what.expect("something")))
    }

    async fn next(&mut self) -> Event {
        self.event().await.expect("no error").expect("an event")
    }

    /// The next standing, which is this one.
    async fn stands(&mut self, election: &str, is: Is) -> Standing {
        match self.next().await {
            Event::Standing(standing) => {
                assert_eq!(
                    (&*standing.election, standing.is()),
                    (election, is),
                    "{standing:?}"
                );
                standing
            }
            other => panic!("{is:?} in {election} expected: {other:?}"),
        }
    }

    /// The standings of the pong to this ping, by elections.
    async fn pong(&mut self, seq: u64) -> Vec<Standing> {
        match self.next().await {
            Event::Pong(mut pong) => {
                assert_eq!(pong.seq, seq, "{pong:?}");
                pong.standings
                    .sort_by(|one, other| one.election.cmp(&other.election));
                pong.standings
            }
            other => panic!("pong {seq} expected: {other:?}"),
        }
    }

    /// Until when a caller may act by this standing.
    fn until(&self, standing: &Standing) -> Instant {
        let valid_for = u64::try_from(standing.valid_for).expect("not negative");
        self.sent[standing.of_ping as usize] + Duration::from_millis(valid_for)
    }

    /// The status with which the stream ends.
    async fn ends(&mut self) -> Code {
        loop {
            match self.event().await {
                Ok(Some(_)) => {}
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
    }
}

fn join(election: &str) -> Join {
    Join {
        election: election.to_owned(),
        term: TERM,
        request_id: fastrand::u64(..).to_string(),
        ..Join::default()
    }
}

impl Agent {
    /// A stream of this candidate.
    async fn lead(&self, candidate: &str, ping_every: i32) -> Leads {
        let mut stream = Leads::open(self.channel()).await.expect("a stream");
        stream.hello(candidate, ping_every);
        match stream.next().await {
            Event::Welcome(welcome) => assert_eq!(welcome.ping_every, ping_every),
            other => panic!("a welcome expected: {other:?}"),
        }
        stream
    }

    /// How long the leader's term lasts, in ms.
    async fn remaining(&self, election: &str) -> u64 {
        let answer = self.get(&format!("/election/{election}")).await;
        answer.body["remaining"].as_u64().expect("ms")
    }
}

async fn a_stream_leads_while_it_pings(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let mut stream = agent.lead("a", SELDOM).await;
    stream.join("e");
    let elected = stream.stands("e", Is::Leading).await;
    assert!(!elected.provisional && elected.token > 0, "{elected:?}");
    assert_eq!(elected.kind, "default");
    let most = TERM - TERM / 100 - 2;
    let remaining = Duration::from_millis(agent.remaining("e").await);
    assert!(
        stream.until(&elected) <= Instant::now() + remaining,
        "{elected:?}"
    );
    assert_eq!(elected.ping_valid_for, most);
    assert_eq!(agent.leader("e").await.expect("a leader"), "a");
    // A ping extends: the election lasts for a term from then on.
    eventually("time passes", async || {
        (agent.remaining("e").await < TERM as u64 - 200).then_some(())
    })
    .await;
    let seq = stream.ping();
    assert_eq!(stream.pong(seq).await, []);
    assert!(agent.remaining("e").await > TERM as u64 - 200);
    // One candidate leads at a time, whatever agent is asked.
    let other = agent.try_campaign(campaign("e", "b", TERM)).await;
    assert!(!other.expect("an answer").elected);

    stream.leave("e", 0);
    let left = stream.stands("e", Is::Resigned).await;
    assert_eq!(left.token, elected.token);
    let other = agent.try_campaign(campaign("e", "b", TERM)).await;
    assert!(other.expect("an answer").elected);
    // Nothing that was given up is extended.
    let seq = stream.ping();
    assert_eq!(stream.pong(seq).await, []);
    drop(stream);
    agent.is_idle().await;
}

async fn who_waits_in_a_stream_is_elected_when_the_leader_leaves(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let mut a = agent.lead("a", SELDOM).await;
    a.join("e");
    let elected = a.stands("e", Is::Leading).await;
    let mut b = agent.lead("b", SELDOM).await;
    b.join("e");
    let waits = b.stands("e", Is::Waiting).await;
    let leader = waits.leader.expect("a leader");
    assert_eq!((&*leader.name, leader.token), ("a", elected.token));
    agent.has_waiters(1).await;
    let seq = b.ping();
    assert_eq!(b.pong(seq).await, []);

    a.leave("e", elected.token);
    a.stands("e", Is::Resigned).await;
    let won = b.stands("e", Is::Leading).await;
    assert!(won.provisional && won.token > elected.token, "{won:?}");
    // It counts from the last ping, not from the beginning of the wait, nor from the grant.
    assert_eq!(won.of_ping, seq);
    let remaining = Duration::from_millis(agent.remaining("e").await);
    assert!(b.until(&won) <= Instant::now() + remaining, "{won:?}");
    assert!(remaining < Duration::from_secs(4), "{remaining:?}");
    // The first ping accepts.
    let seq = b.ping();
    let accepted = b.pong(seq).await;
    assert_eq!(accepted.len(), 1, "{accepted:?}");
    assert_eq!(accepted[0].is(), Is::Leading);
    assert!(!accepted[0].provisional && accepted[0].token == won.token);
    assert!(agent.remaining("e").await > 4_000);
    assert!(
        b.until(&accepted[0]) <= Instant::now() + Duration::from_millis(agent.remaining("e").await)
    );
    let seq = b.ping();
    assert_eq!(b.pong(seq).await, []);
}

/// However a stream ends, nothing is given up: a proxy may have ended it, and the leader goes on elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_gives_nothing_up_and_another_goes_on_with_its_token() {
    let nodes = Nodes::start(3).await;
    let (one, two) = tokio::join!(nodes.agent("one", &[]), nodes.agent("two", &[]));
    let mut first = one.lead("a", SELDOM).await;
    for election in ["e", "f", "g"] {
        first.join(election);
    }
    let mut tokens = Vec::new();
    for election in ["e", "f", "g"] {
        tokens.push(match first.next().await {
            Event::Standing(standing) if standing.is() == Is::Leading => standing,
            other => panic!("{election}: {other:?}"),
        });
    }
    let token = |election: &str| {
        let found = tokens.iter().find(|standing| standing.election == election);
        found.expect("elected").token
    };
    drop(first);
    one.is_idle().await;
    for election in ["e", "f"] {
        let other = two.try_campaign(campaign(election, "b", TERM)).await;
        assert!(!other.expect("an answer").elected, "{election}");
    }
    // A caller that knows the token gives it up.
    assert!(two.resign("g", "a", token("g")).await.value);

    let mut second = two.lead("a", SELDOM).await;
    second.resume("e", token("e"));
    let goes_on = second.stands("e", Is::Leading).await;
    assert_eq!((goes_on.token, goes_on.provisional), (token("e"), false));
    assert!(
        second.until(&goes_on) <= Instant::now() + Duration::from_millis(two.remaining("e").await)
    );
    second.resume("f", token("f") - 1);
    let stale = second.stands("f", Is::Lost).await;
    assert_eq!(stale.reason, "STALE_TOKEN");
    second.resume("g", token("g"));
    assert_eq!(second.stands("g", Is::Lost).await.reason, "NO_TERM");
    let seq = second.ping();
    assert_eq!(second.pong(seq).await, []);
    // A term can be given up without being joined.
    second.leave("f", token("f"));
    assert_eq!(second.stands("f", Is::Resigned).await.token, token("f"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_is_passed_over_until_it_pings() {
    let agent = Agent::start(&[("EA_LOG_LEVEL", "info")]).await;
    let mut a = agent.lead("a", SELDOM).await;
    a.join("e");
    a.stands("e", Is::Leading).await;
    // First in the queue, and silent from its first ping on.
    let mut silent = agent.lead("silent", 100).await;
    silent.join("e");
    silent.stands("e", Is::Waiting).await;
    agent.has_waiters(1).await;
    agent.has_waiters(0).await;
    let mut c = agent.lead("c", SELDOM).await;
    c.join("e");
    c.stands("e", Is::Waiting).await;
    agent.has_waiters(1).await;
    a.leave("e", 0);
    let won = c.stands("e", Is::Leading).await;
    let seq = silent.ping();
    assert_eq!(silent.pong(seq).await, []);
    silent.stands("e", Is::Waiting).await;
    c.leave("e", won.token);
    // It may have fallen silent again meanwhile.
    let later = loop {
        silent.ping();
        match silent.next().await {
            Event::Standing(standing) if standing.is() == Is::Leading => break standing,
            Event::Standing(standing) => assert_eq!(standing.is(), Is::Waiting),
            Event::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(later.token > won.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_elections_are_extended_with_a_few_scripts() {
    let nodes = Nodes::start(3).await;
    let agent = nodes.agent("one", &[]).await;
    let mut stream = agent.lead("a", SELDOM).await;
    for number in 0..1_001 {
        stream.join(&format!("e{number}"));
    }
    let mut led = 0;
    while led < 1_000 {
        match stream.next().await {
            Event::Standing(standing) if standing.is() == Is::Leading => led += 1,
            Event::Standing(standing) if standing.is() == Is::Refused => {
                assert_eq!(standing.election, "e1000");
                assert!(standing.reason.contains("1000"), "{standing:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    let scripts = async || {
        let mut scripts = 0;
        for server in &nodes.servers {
            scripts += server.calls("evalsha").await;
        }
        scripts
    };
    let before = scripts().await;
    let seq = stream.ping();
    assert_eq!(stream.pong(seq).await, []);
    let made = scripts().await - before;
    // Ten for each node, and the agent's own requests.
    assert!((30..60).contains(&made), "{made} scripts");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_a_leader_is_in_jeopardy_and_goes_on_when_it_is_back() {
    let nodes = Nodes::start(3).await;
    let agent = nodes.agent("one", &[]).await;
    let mut stream = agent.lead("a", SELDOM).await;
    stream.join("e");
    let elected = stream.stands("e", Is::Leading).await;
    for server in &nodes.servers[..2] {
        server.signal("STOP");
    }
    let seq = stream.ping();
    let standings = stream.pong(seq).await;
    assert_eq!(standings.len(), 1, "{standings:?}");
    assert_eq!(
        (standings[0].is(), standings[0].token),
        (Is::Jeopardy, elected.token)
    );
    assert!(standings[0].reason.contains("quorum"), "{standings:?}");
    assert_eq!(standings[0].valid_for, 0);
    // A Join now waits, and reports why.
    stream.join("f");
    let waits = stream.stands("f", Is::Waiting).await;
    assert!(waits.reason.contains("quorum"), "{waits:?}");
    for server in &nodes.servers[..2] {
        server.signal("CONT");
    }
    let back = eventually("it leads again", async || {
        let seq = stream.ping();
        loop {
            match stream.next().await {
                Event::Pong(pong) if pong.seq == seq => {
                    let mut standings = pong.standings.into_iter();
                    return standings.find(|it| it.election == "e" && it.is() == Is::Leading);
                }
                Event::Pong(_) | Event::Standing(_) => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    assert_eq!(back.token, elected.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_and_changes_nothing() {
    let agent = Agent::start(&[("EA_MAX_TERM", "20s")]).await;
    let mut stream = agent.lead("a", SELDOM).await;
    stream.join("e");
    let led = stream.stands("e", Is::Leading).await;
    let valid = join("f");
    let wrong = [
        (
            Join {
                election: String::new(),
                ..valid.clone()
            },
            "`election`",
        ),
        (
            Join {
                election: "a/b".to_owned(),
                ..valid.clone()
            },
            "`election`",
        ),
        (
            Join {
                kind: "a\n".to_owned(),
                ..valid.clone()
            },
            "`kind`",
        ),
        (
            Join {
                term: 0,
                ..valid.clone()
            },
            "`term`",
        ),
        (
            Join {
                term: 20_001,
                ..valid.clone()
            },
            "1000 to 20000",
        ),
        (
            Join {
                term: 2_000,
                ..valid.clone()
            },
            "`ping_every`",
        ),
        (
            Join {
                value: "v".repeat(1_025),
                ..valid.clone()
            },
            "`value`",
        ),
        (
            Join {
                request_id: "i".repeat(257),
                ..valid.clone()
            },
            "`request_id`",
        ),
        (
            Join {
                token: 1 << 53,
                ..valid.clone()
            },
            "`token`",
        ),
        (join("e"), "joined"),
    ];
    for (join, named) in wrong {
        let (kind, election) = (join.kind.clone(), join.election.clone());
        stream.send(What::Join(join));
        let refused = stream.stands(&election, Is::Refused).await;
        assert_eq!(refused.kind, kind);
        assert!(refused.reason.contains(named), "{named}: {refused:?}");
    }
    stream.leave("a/b", 0);
    assert!(
        stream
            .stands("a/b", Is::Refused)
            .await
            .reason
            .contains("`election`")
    );
    stream.leave("unknown", 0);
    stream.stands("unknown", Is::Resigned).await;
    let seq = stream.ping();
    assert_eq!(stream.pong(seq).await, []);

    // These end the stream.
    let seq_again = What::Ping(Ping { seq });
    stream.send(seq_again);
    assert_eq!(stream.ends().await, Code::InvalidArgument);
    type Says = fn(&mut Leads);
    let says: [(Says, &str); 6] = [
        (|stream| stream.join("e"), "hello"),
        (|stream| stream.send(None), "empty"),
        (|stream| stream.hello("", SELDOM), "`candidate`"),
        (|stream| stream.hello("a", 99), "`ping_every`"),
        (|stream| stream.hello("a", 60_001), "`ping_every`"),
        (
            |stream| {
                stream.hello("a", SELDOM);
                stream.hello("b", SELDOM);
            },
            "second",
        ),
    ];
    for (say, named) in says {
        let mut stream = Leads::open(agent.channel()).await.expect("a stream");
        say(&mut stream);
        let status = loop {
            match stream.event().await {
                Ok(Some(Event::Welcome(_))) => {}
                Ok(other) => panic!("{named}: {other:?}"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{named}");
        assert!(status.message().contains(named), "{named}: {status:?}");
    }
    // Nothing has become of the leader meanwhile.
    let mut again = agent.lead("a", SELDOM).await;
    again.resume("e", led.token);
    again.stands("e", Is::Leading).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_goodbye_and_extends_until_the_next_one_is_open() {
    let settings = [
        ("EA_GRPC_MAX_CONNECTION_AGE", "3s"),
        ("EA_GRPC_MAX_CONNECTION_AGE_GRACE", "10s"),
    ];
    let agent = Agent::start(&settings).await;
    let mut stream = agent.lead("a", SELDOM).await;
    stream.join("e");
    let led = stream.stands("e", Is::Leading).await;
    match stream.next().await {
        Event::Goodbye(goodbye) => {
            assert_eq!(goodbye.reason, "AGE");
            assert!((0..=500).contains(&goodbye.reconnect_after), "{goodbye:?}");
        }
        other => panic!("{other:?}"),
    }
    let mut next = eventually("another connection", async || {
        Leads::open(agent.channel()).await.ok()
    })
    .await;
    next.hello("a", SELDOM);
    assert!(matches!(next.next().await, Event::Welcome(_)));
    next.resume("e", led.token);
    next.stands("e", Is::Leading).await;
    let seq = stream.ping();
    assert_eq!(stream.pong(seq).await, []);
    assert_eq!(stream.ends().await, Code::Ok);
    let seq = next.ping();
    assert_eq!(next.pong(seq).await, []);
}

/// A program that restarts its work gives an election up and campaigns again without a pause.
#[tokio::test(flavor = "multi_thread")]
async fn an_election_may_be_joined_again_while_it_is_left() {
    let nodes = Nodes::start(3).await;
    let agent = nodes.agent("one", &[]).await;
    let mut stream = agent.lead("a", SELDOM).await;
    stream.join("e");
    let mut token = stream.stands("e", Is::Leading).await.token;
    for _ in 0..100 {
        stream.leave("e", 0);
        stream.join("e");
        assert_eq!(stream.stands("e", Is::Resigned).await.token, token);
        let next = stream.stands("e", Is::Leading).await.token;
        assert!(next > token);
        token = next;
    }
    let seq = stream.ping();
    assert_eq!(stream.pong(seq).await, []);
}

/// The usual end of a program: it leaves what it leads, and sends nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_is_given_up_though_nothing_more_is_said() {
    let nodes = Nodes::start(3).await;
    let agent = nodes.agent("one", &[]).await;
    let mut stream = agent.lead("a", SELDOM).await;
    const MANY: usize = 200;
    for number in 0..MANY {
        stream.join(&format!("e{number}"));
    }
    for _ in 0..MANY {
        let standing = stream.next().await;
        assert!(matches!(standing, Event::Standing(it) if it.is() == Is::Leading));
    }
    for number in 0..MANY {
        stream.leave(&format!("e{number}"), 0);
    }
    let Leads {
        messages,
        mut events,
        ..
    } = stream;
    drop(messages);
    let mut resigned = 0;
    while let Some(event) = events.message().await.expect("no error") {
        let what = event.what.expect("something");
        assert!(matches!(what, Event::Standing(it) if it.is() == Is::Resigned));
        resigned += 1;
    }
    assert_eq!(resigned, MANY);
    let leaders = agent
        .grpc()
        .list_leaders(ListLeadersRequest::default())
        .await;
    assert_eq!(leaders.expect("an answer").into_inner().leaders, []);
}

/// What a caller does not read must not take the agent's memory, nor keep from it what it leads.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_brief_and_few_until_they_are_read() {
    let agent = Agent::start(&[("EA_LOG_LEVEL", "info")]).await;
    let mut stream = agent.lead("a", SELDOM).await;
    stream.join("e");
    stream.stands("e", Is::Leading).await;
    let before = agent.memory();
    let long = "n".repeat(60_000);
    const MANY: usize = 1_000;
    for _ in 0..MANY {
        stream.join(&long);
    }
    let mut refused = 0;
    while refused < MANY {
        match stream.next().await {
            Event::Standing(standing) if standing.is() == Is::Refused => {
                assert!(standing.election.len() < 300, "{}", standing.election.len());
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let after = agent.memory();
    assert!(
        after < before + 32 * 1024 * 1024,
        "{before} to {after} bytes"
    );
}

/// A part of a cluster that hangs holds up its own elections and no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_hangs_puts_only_its_own_elections_in_jeopardy() {
    let clusters = [Cluster::start().await];
    let agent = Agent::on(&clusters[..], &[]).await;
    let mut stream = agent.lead("a", SELDOM).await;
    const MANY: usize = 24;
    for number in 0..MANY {
        stream.join(&format!("e{number}"));
    }
    for _ in 0..MANY {
        let standing = stream.next().await;
        assert!(matches!(standing, Event::Standing(it) if it.is() == Is::Leading));
    }
    clusters[0].nodes[0].signal("STOP");
    let seq = stream.ping();
    let standings = stream.pong(seq).await;
    clusters[0].nodes[0].signal("CONT");
    // A third of the slots, more or less.
    assert!(
        (1..MANY / 2 + 6).contains(&standings.len()),
        "{standings:?}"
    );
    assert!(
        standings.iter().all(|it| it.is() == Is::Jeopardy),
        "{standings:?}"
    );
}
