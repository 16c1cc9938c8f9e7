//! Following who leads, as an observer sees it.

use std::{
    pin::Pin,
    task::Context,
    time::{Duration, Instant},
};

use election_agent_client::{Agent, Cause, Code, Error, Event, Observer, Scope, State};
use election_proto as proto;
use test_agent::Agent as Server;
use tonic::Status;

use crate::{
    fake::{self, Script},
    support::{Mode, Proxy, SECOND, client, soon},
};

async fn next(observer: &mut Observer) -> Event {
    let event = soon("an event", observer.next()).await;
    event.expect("goes on").expect("no error")
}

async fn next_state(observer: &mut Observer) -> State {
    loop {
        if let Event::State(state) = next(observer).await {
            return state;
        }
    }
}

/// The leader's name, the token, the cause.
fn seen(state: &State) -> (Option<&str>, u64, Cause) {
    (
        state.leader.as_ref().map(|leader| leader.name.as_str()),
        state.token,
        state.cause,
    )
}

/// Nothing is told in this time.
async fn quiet(observer: &mut Observer, time: Duration) {
    let event = tokio::time::timeout(time, observer.next()).await;
    assert!(event.is_err(), "{event:?}");
}

async fn lead_once(agent: &Agent, election: &str, candidate: &str) -> u64 {
    let lead = agent.lead(election).candidate(candidate);
    lead.run(async |term| term.token()).await.expect("led")
}

#[tokio::test]
async fn an_observer_is_told_the_present_state_and_each_change() {
    let server = Server::start();
    let agent = client(server.address());
    let mut observer = agent.observe("nightly");
    let Event::State(vacant) = next(&mut observer).await else {
        panic!("the present state first");
    };
    assert_eq!(seen(&vacant), (None, 0, Cause::Present));
    assert_eq!(next(&mut observer).await, Event::Synced);

    let leadership = agent
        .lead("nightly")
        .candidate("a")
        .value("here")
        .start()
        .await
        .expect("elected");
    let held = next_state(&mut observer).await;
    let token = leadership.term().token();
    assert_eq!(seen(&held), (Some("a"), token, Cause::Campaign));
    assert_eq!(held.leader.expect("held").value, "here");
    leadership.resign().await.expect("resigned");
    let vacant = next_state(&mut observer).await;
    assert_eq!(seen(&vacant), (None, token, Cause::Resign));
    drop(
        agent
            .lead("nightly")
            .candidate("b")
            .term(SECOND)
            .start()
            .await
            .expect("elected"),
    );
    assert_eq!(
        next_state(&mut observer).await.leader.expect("held").name,
        "b"
    );
    assert_eq!(next_state(&mut observer).await.cause, Cause::Expiry);
}

#[tokio::test]
async fn scopes_are_kinds_prefixes_and_everything() {
    let server = Server::start();
    let agent = client(server.address());
    let mut held = Vec::new();
    for (kind, election) in [
        ("batch", "nightly-a"),
        ("batch", "nightly-b"),
        ("batch", "weekly"),
        ("web", "nightly-c"),
    ] {
        held.push(
            agent
                .lead(election)
                .kind(kind)
                .start()
                .await
                .expect("elected"),
        );
    }
    for (scope, expected) in [
        (
            Scope::kind("batch"),
            vec!["nightly-a", "nightly-b", "weekly"],
        ),
        (
            Scope::prefix("batch", "nightly"),
            vec!["nightly-a", "nightly-b"],
        ),
        (
            Scope::All,
            vec!["nightly-a", "nightly-b", "nightly-c", "weekly"],
        ),
        (Scope::election("web", "nightly-c"), vec!["nightly-c"]),
    ] {
        let mut observer = agent.observe(scope.clone());
        assert_eq!(*observer.scope(), scope);
        let mut names = Vec::new();
        loop {
            match next(&mut observer).await {
                Event::State(state) => names.push(state.election),
                Event::Synced => break,
                other => panic!("{other:?}"),
            }
        }
        names.sort();
        assert_eq!(names, expected, "{scope:?}");
    }
}

#[tokio::test]
async fn an_observer_that_connects_again_is_told_what_has_changed_and_nothing_twice() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let direct = client(server.address());
    let kept = direct
        .lead("kept")
        .candidate("a")
        .start()
        .await
        .expect("elected");
    let given_up = direct
        .lead("given-up")
        .candidate("a")
        .start()
        .await
        .expect("elected");

    let agent = client(proxy.address());
    let mut observer = agent.observe(Scope::kind("default"));
    while next(&mut observer).await != Event::Synced {}
    proxy.set(Mode::Cut);
    let Event::Certainty { certain: false, .. } = next(&mut observer).await else {
        panic!("nothing is certain without a stream");
    };
    given_up.resign().await.expect("resigned");
    let token = lead_once(&direct, "new", "b").await;
    proxy.set(Mode::Forward);
    let mut states = Vec::new();
    loop {
        match next(&mut observer).await {
            Event::State(state) => states.push(state),
            Event::Certainty {
                certain: true,
                unconfirmed_for,
                ..
            } => {
                assert_eq!(unconfirmed_for, Duration::ZERO);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // The election that was held and lapsed meanwhile is not listed; `new` is vacant again, and was never told.
    let states: Vec<_> = states
        .iter()
        .map(|state| (state.election.as_str(), state.is_held(), state.missed))
        .collect();
    assert_eq!(states, [("given-up", false, true)]);
    let _ = token;
    kept.resign().await.expect("resigned");
    assert_eq!(next_state(&mut observer).await.election, "kept");
}

#[tokio::test]
async fn a_stream_that_says_goodbye_is_followed_by_another_without_a_word() {
    let server = Server::with(&[
        ("EA_GRPC_MAX_CONNECTION_AGE", "1s"),
        ("EA_GRPC_MAX_CONNECTION_AGE_GRACE", "1s"),
    ]);
    let proxy = Proxy::to(server.address()).await;
    let direct = client(server.address());
    let leadership = direct
        .lead("nightly")
        .candidate("a")
        .start()
        .await
        .expect("elected");
    let agent = client(proxy.address());
    let mut observer = agent.observe("nightly");
    assert_eq!(
        next_state(&mut observer).await.leader.expect("held").name,
        "a"
    );
    assert_eq!(next(&mut observer).await, Event::Synced);
    quiet(&mut observer, 4 * SECOND).await;
    assert!(
        proxy.connections() >= 2,
        "connections end after a second: {}",
        proxy.connections()
    );
    leadership.resign().await.expect("resigned");
    assert_eq!(next_state(&mut observer).await.cause, Cause::Resign);
}

#[tokio::test]
async fn an_observer_goes_to_another_agent_when_its_own_dies() {
    let server = Server::start();
    let (a, b) = (
        Proxy::to(server.address()).await,
        Proxy::to(server.address()).await,
    );
    let agent = client(&format!("{},{}", a.address(), b.address()));
    let mut observer = agent.observe("nightly");
    while next(&mut observer).await != Event::Synced {}
    let first = if a.connections() > 0 { &a } else { &b };
    first.set(Mode::Cut);
    let direct = client(server.address());
    let leadership = direct
        .lead("nightly")
        .candidate("a")
        .start()
        .await
        .expect("elected");
    // Not even a doubt: the other answers at once.
    let Event::State(state) = next(&mut observer).await else {
        panic!("a state");
    };
    assert_eq!(state.token, leadership.term().token());
}

#[tokio::test]
async fn an_observer_is_a_stream_and_a_refusal_is_its_end() {
    let server = Server::start();
    let mut observer = client(server.address()).observe("a/b");
    let mut next = async || {
        let poll = |context: &mut Context<'_>| {
            futures_core::Stream::poll_next(Pin::new(&mut observer), context)
        };
        std::future::poll_fn(poll).await
    };
    let error = soon("an answer", next()).await.expect("an error");
    assert!(matches!(error, Err(Error::Refused { .. })), "{error:?}");
    assert_eq!(soon("the end", next()).await, None);
}

/// What an agent says of `nightly`.
fn said(token: u64, held: bool, cause: proto::state::Cause) -> proto::State {
    let phase = if held {
        proto::state::Phase::Held
    } else {
        proto::state::Phase::Vacant
    };
    proto::State {
        kind: "default".into(),
        election: "nightly".into(),
        phase: phase.into(),
        leader: held.then(|| proto::Leader {
            name: "a".into(),
            token,
            ..proto::Leader::default()
        }),
        token,
        cause: cause.into(),
        ..proto::State::default()
    }
}

fn tell(observer: &fake::Observer, what: proto::observation::What) {
    let _ = observer.send(Ok(proto::Observation { what: Some(what) }));
}

fn state(observer: &fake::Observer, token: u64, held: bool, cause: proto::state::Cause) {
    tell(
        observer,
        proto::observation::What::State(said(token, held, cause)),
    );
}

fn synced(observer: &fake::Observer) {
    tell(observer, proto::observation::What::Synced(proto::Synced {}));
}

#[tokio::test]
async fn a_listing_that_lacks_an_election_is_no_vacancy_and_an_older_state_is_no_news() {
    use proto::state::Cause::{Campaign, Present, RolledBack};
    let script = Script::default().state(|number| {
        let answer = match number {
            // Asked for what a listing lacked, and for what seemed to be older.
            0 => Err(Status::unavailable("no quorum")),
            1 | 2 => Ok(said(5, true, Present)),
            _ => Ok(said(5, false, Present)),
        };
        (Duration::ZERO, answer)
    });
    let mut fake = script.start().await;
    let mut observer = client(&fake.address).observe(Scope::kind("default"));
    let reading = tokio::spawn(async move {
        let first = next(&mut observer).await;
        (observer, first)
    });
    let agent = fake.observer().await;
    state(&agent, 5, true, Campaign);
    synced(&agent);
    let (mut observer, first) = reading.await.expect("no panic");
    assert!(matches!(first, Event::State(state) if state.token == 5));
    assert_eq!(next(&mut observer).await, Event::Synced);

    // The next stream says nothing of it, and the one after that what was before: a quorum says that it is held.
    drop(agent);
    let agent = fake.observer().await;
    synced(&agent);
    fake.calls(2, fake::questions).await;
    drop(agent);
    let agent = fake.observer().await;
    state(&agent, 4, false, Present);
    synced(&agent);
    fake.calls(3, fake::questions).await;
    // The stream itself says when it goes back.
    state(&agent, 3, true, RolledBack);
    let back = next_state(&mut observer).await;
    assert_eq!(seen(&back), (Some("a"), 3, Cause::RolledBack));

    // And a quorum that it is vacant.
    drop(agent);
    let agent = fake.observer().await;
    synced(&agent);
    let vacant = next_state(&mut observer).await;
    assert_eq!(
        (vacant.is_held(), vacant.token, vacant.missed),
        (false, 5, true)
    );
    assert_eq!(fake.calls(4, fake::questions).await.len(), 4);
}

#[tokio::test]
async fn doubts_of_an_agent_are_told() {
    let mut fake = Script::default().start().await;
    let mut observer = client(&fake.address).observe("nightly");
    let reading = tokio::spawn(async move {
        while next(&mut observer).await != Event::Synced {}
        observer
    });
    let agent = fake.observer().await;
    state(&agent, 5, true, proto::state::Cause::Present);
    synced(&agent);
    let mut observer = reading.await.expect("no panic");
    for certain in [false, true] {
        tell(
            &agent,
            proto::observation::What::Certainty(proto::Certainty {
                certain,
                unconfirmed_for: if certain { 0 } else { 1_500 },
                reason: String::new(),
            }),
        );
        let Event::Certainty {
            certain: told,
            unconfirmed_for,
            ..
        } = next(&mut observer).await
        else {
            panic!("no certainty");
        };
        assert_eq!((told, unconfirmed_for.is_zero()), (certain, certain));
    }
}

#[tokio::test]
async fn what_an_older_agent_does_not_offer_is_asked_of_a_newer_one() {
    use proto::state::Cause::Present;
    let older = Script::default().older().start().await;
    let script = Script::default().state(|_| (Duration::ZERO, Ok(said(5, true, Present))));
    let mut newer = script.start().await;
    let agent = client(&format!("{},{}", older.address, newer.address));
    let told = agent.state("nightly", "default").await.expect("told");
    assert_eq!(told.token, 5);
    older.calls(1, fake::questions).await;

    let mut observer = agent.observe(Scope::kind("default"));
    let reading = tokio::spawn(async move { next_state(&mut observer).await });
    let stream = newer.observer().await;
    state(&stream, 6, true, Present);
    synced(&stream);
    assert_eq!(reading.await.expect("no panic").token, 6);

    // Of an older one alone it is a refusal, at once.
    let alone = client(&older.address);
    let refused = |error| {
        matches!(
            error,
            Error::Refused {
                code: Code::Unimplemented,
                ..
            }
        )
    };
    let asked = older.calls(1, fake::questions).await.len();
    assert!(refused(
        alone.state("nightly", "default").await.expect_err("older")
    ));
    assert_eq!(
        older.calls(1, fake::questions).await.len(),
        asked + 1,
        "asked once"
    );
    let mut observer = alone.observe(Scope::kind("default"));
    let end = soon("the end", observer.next()).await.expect("an error");
    assert!(refused(end.expect_err("older")));
}

#[tokio::test]
async fn an_agent_that_ends_each_stream_at_once_is_asked_for_more_after_pauses_that_grow() {
    let mut fake = Script::default().start().await;
    let mut observer = client(&fake.address).observe(Scope::kind("default"));
    let reading = tokio::spawn(async move { while observer.next().await.is_some() {} });
    let first = fake.observer().await;
    let began = Instant::now();
    synced(&first);
    drop(first);
    for _ in 0..4 {
        synced(&fake.observer().await);
    }
    // At least half of 50, 100, 200 and 400 ms.
    assert!(began.elapsed() >= Duration::from_millis(375));
    reading.abort();
}
