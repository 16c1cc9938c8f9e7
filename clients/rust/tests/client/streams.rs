//! Leading by streams, as an agent sees it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use election_agent_client::{Deadline, Error, Leadership, Lost, Standing};
use election_proto::{lead_request::What, standing::Is};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::{
    fake::{Fake, Lead, Script, TERM, campaigns, extensions, leads, resignations, standing},
    support::{Log, client, eventually, soon},
};

const VALID_FOR: Duration = Duration::from_millis(1_450);

async fn fake() -> Fake {
    Script::default().streams().start().await
}

/// Begins to lead `nightly`.
fn starts(endpoints: &str) -> JoinHandle<Result<Leadership, Error>> {
    let lead = client(endpoints).lead("nightly").candidate("me");
    tokio::spawn(lead.term(TERM).start())
}

async fn elected(starting: JoinHandle<Result<Leadership, Error>>) -> Leadership {
    let started = soon("elected", starting).await;
    started.expect("no panic").expect("elected")
}

/// Leads `nightly` by the fake's next stream.
async fn led(fake: &mut Fake) -> (Leadership, Lead) {
    let starting = starts(&fake.address);
    let mut stream = fake.stream().await;
    let join = stream.join().await;
    assert_eq!(
        (join.election.as_str(), join.kind.as_str(), join.token),
        ("nightly", "default", 0)
    );
    stream.stand(leads("nightly", 0));
    let leadership = elected(starting).await;
    (leadership, stream)
}

#[tokio::test]
async fn a_ping_extends_from_when_it_was_sent_and_not_from_when_it_was_answered() {
    let mut fake = fake().await;
    let (leadership, mut stream) = led(&mut fake).await;
    let (hello_at, hello) = stream.hello.clone().expect("hello");
    assert_eq!((hello.candidate.as_str(), hello.ping_every), ("me", 500));
    let mut term = leadership.term().clone();
    assert!(term.valid_until() < hello_at.plus(VALID_FOR), "from Hello");
    let (pinged, seq) = stream.ping().await;
    assert_eq!(seq, 1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.pong(seq, vec![]);
    let until = soon("an extension", term.renewed()).await.expect("leads");
    assert!(until < pinged.plus(VALID_FOR), "not from the answer");
    // A grant that names this ping was not extended by it.
    let (_, seq) = stream.ping().await;
    assert_eq!(seq, 2);
    assert_eq!(
        fake.calls(0, |what| campaigns(what)
            .map(drop)
            .or(extensions(what).map(drop)))
            .await
            .len(),
        0
    );
    drop(leadership);
}

#[tokio::test]
async fn a_ping_that_was_received_before_the_grant_does_not_extend_it() {
    let mut fake = fake().await;
    let starting = starts(&fake.address);
    let mut stream = fake.stream().await;
    stream.join().await;
    let (_, seq) = stream.ping().await;
    // Granted after ping 1 was received, with less time than that ping would give.
    let mut grant = leads("nightly", seq);
    grant.valid_for -= 300;
    stream.stand(grant);
    let leadership = elected(starting).await;
    let term = leadership.term();
    let before = term.valid_until();
    stream.pong(seq, vec![]);
    let (_, seq) = stream.ping().await;
    assert_eq!(term.valid_until(), before, "ping 1 came before the grant");
    stream.pong(seq, vec![]);
    let mut term = term.clone();
    assert!(soon("an extension", term.renewed()).await.expect("leads") > before);
}

#[tokio::test]
async fn what_a_pong_lists_is_not_extended_by_it() {
    let mut fake = fake().await;
    let (leadership, mut stream) = led(&mut fake).await;
    let term = leadership.term();
    let before = term.valid_until();
    let (_, seq) = stream.ping().await;
    stream.pong(seq, vec![standing("nightly", Is::Jeopardy)]);
    eventually("jeopardy", async || term.in_jeopardy().then_some(())).await;
    assert_eq!((term.check(), term.valid_until()), (Ok(()), before));
    // Not before the agent says that it leads again.
    let (_, seq) = stream.ping().await;
    stream.pong(seq, vec![]);
    let mut again = leads("nightly", seq);
    again.valid_for -= 100;
    let mut renewed = term.clone();
    stream.stand(again);
    let until = soon("an extension", renewed.renewed())
        .await
        .expect("leads");
    assert!(!term.in_jeopardy());
    let (_, seq) = stream.ping().await;
    stream.pong(seq, vec![]);
    assert!(
        soon("an extension", renewed.renewed())
            .await
            .expect("leads")
            > until
    );
    stream.pong(
        seq + 1,
        vec![election_proto::Standing {
            reason: "HELD_BY_OTHER".into(),
            ..standing("nightly", Is::Lost)
        }],
    );
    assert_eq!(soon("the loss", term.lost()).await, Lost::HeldByOther);
    assert_eq!(
        leadership.resign().await,
        Err(Error::Lost(Lost::HeldByOther))
    );
}

#[tokio::test]
async fn a_provisional_grant_is_pinged_for_at_once_and_work_begins_after_that() {
    let mut fake = fake().await;
    let starting = starts(&fake.address);
    let mut stream = fake.stream().await;
    stream.join().await;
    let granted = Deadline::now();
    let mut grant = leads("nightly", 0);
    grant.provisional = true;
    stream.stand(grant);
    let (pinged, seq) = stream.ping().await;
    assert!(pinged < granted.plus(TERM / 4), "at once");
    assert!(!starting.is_finished());
    stream.pong(seq, vec![leads("nightly", seq)]);
    let leadership = elected(starting).await;
    assert_eq!(leadership.term().check(), Ok(()));
}

#[tokio::test]
async fn after_goodbye_the_next_stream_is_joined_with_the_token_before_the_first_is_left() {
    let mut fake = fake().await;
    let (leadership, mut first) = led(&mut fake).await;
    let mut term = leadership.term().clone();
    let (_, seq) = first.ping().await;
    first.goodbye();
    let mut second = fake.stream_before_welcome().await;
    // Nobody has welcomed it: the first is what the client leads by.
    first.pong(seq, vec![]);
    soon("an extension", term.renewed()).await.expect("leads");
    second.welcome();
    let join = second.join().await;
    assert_eq!((join.token, join.request_id.as_str()), (7, ""));
    second.stand(leads("nightly", 0));
    soon("an extension", term.renewed()).await.expect("leads");
    // The first ends, and only now.
    while let Some(message) = first.next_or_end().await {
        assert!(matches!(message, What::Ping(_)), "{message:?}");
    }
    second.ping().await;
    assert!(!term.in_jeopardy());
}

#[tokio::test]
async fn a_stream_that_breaks_or_keeps_silent_is_followed_by_another_and_nothing_is_lost() {
    let mut fake = fake().await;
    let (leadership, first) = led(&mut fake).await;
    let mut term = leadership.term().clone();
    first.fail(Status::unavailable("gone"));
    let mut second = fake.stream().await;
    assert_eq!(second.join().await.token, 7);
    second.stand(leads("nightly", 0));
    soon("an extension", term.renewed()).await.expect("leads");
    // The second does not answer its ping.
    let (pinged, _) = second.ping().await;
    let mut third = fake.stream().await;
    assert!(
        Deadline::now() < pinged.plus(Duration::from_millis(900)),
        "within a second"
    );
    assert_eq!(third.join().await.token, 7);
    third.stand(leads("nightly", 0));
    soon("an extension", term.renewed()).await.expect("leads");
    assert_eq!(term.check(), Ok(()));
}

#[tokio::test]
async fn a_resignation_leaves_the_stream_and_no_ping_is_for_it_any_more() {
    let mut fake = fake().await;
    let (leadership, mut stream) = led(&mut fake).await;
    let term = leadership.term().clone();
    let resigning = tokio::spawn(leadership.resign());
    loop {
        match stream.next().await {
            What::Leave(leave) => {
                assert_eq!((leave.election.as_str(), leave.token), ("nightly", 7));
                break;
            }
            What::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(term.check(), Err(Lost::NoTerm));
    stream.stand(standing("nightly", Is::Resigned));
    assert_eq!(soon("resigned", resigning).await.expect("no panic"), Ok(()));
    // Nobody leads by it any more.
    while let Some(message) = stream.next_or_end().await {
        assert!(matches!(message, What::Ping(_)), "{message:?}");
    }
    assert_eq!(fake.calls(0, resignations).await.len(), 0);
}

#[tokio::test]
async fn a_resignation_that_a_stream_does_not_confirm_is_made_by_a_call() {
    let mut fake = fake().await;
    let (leadership, stream) = led(&mut fake).await;
    assert_eq!(soon("resigned", leadership.resign()).await, Ok(()));
    assert_eq!(fake.calls(1, resignations).await[0].1.token, 7);
    drop(stream);
}

#[tokio::test]
async fn a_term_that_is_dropped_is_given_up_when_its_time_is_over_and_the_others_go_on() {
    let mut fake = fake().await;
    let agent = client(&fake.address);
    let lead = |election: &str| agent.lead(election).candidate("me").term(TERM);
    let (first, second) = (lead("first"), lead("second"));
    let starting = tokio::spawn(async { tokio::join!(first.start(), second.start()) });
    let mut stream = fake.stream().await;
    for _ in 0..2 {
        let join = stream.join().await;
        stream.stand(leads(&join.election, 0));
    }
    let (first, second) = soon("elected", starting).await.expect("no panic");
    let (first, second) = (first.expect("elected"), second.expect("elected"));
    let (dropped, kept) = (first.term().clone(), second.term().clone());
    drop(first);
    let until = dropped.valid_until();
    let left = loop {
        match stream.next().await {
            What::Ping(ping) => stream.pong(ping.seq, vec![]),
            What::Leave(leave) => break leave,
            other => panic!("{other:?}"),
        }
    };
    assert!(until.has_passed(), "nobody may be working under it");
    assert_eq!((left.election.as_str(), left.token), ("first", 7));
    assert_eq!(
        dropped.valid_until(),
        until,
        "it was not extended for whoever looks at it"
    );
    assert_eq!(dropped.check(), Err(Lost::TermOver));
    assert_eq!(kept.check(), Ok(()));
    assert!(kept.valid_until() > until);
    drop(second);
}

#[tokio::test]
async fn what_a_stream_refuses_is_led_by_calls() {
    let mut fake = fake().await;
    let starting = starts(&fake.address);
    let mut stream = fake.stream().await;
    stream.join().await;
    stream.stand(standing("nightly", Is::Refused));
    fake.calls(1, campaigns).await;
    // Elected by a call, it goes on by a stream.
    let leadership = elected(starting).await;
    let mut stream = fake.stream().await;
    assert_eq!(stream.join().await.token, 7);
    // And by calls again when there is none that works.
    drop(stream);
    fake.calls(1, extensions).await;
    assert_eq!(leadership.term().check(), Ok(()));
}

#[tokio::test]
async fn an_agent_without_streams_is_asked_for_one_once() {
    let mut fake = Script::default().start().await;
    let agent = client(&fake.address);
    for election in ["first", "second"] {
        let leadership = agent
            .lead(election)
            .candidate("me")
            .term(TERM)
            .start()
            .await
            .expect("elected");
        fake.calls(1, extensions).await;
        leadership.resign().await.expect("resigned");
    }
    assert!(!fake.opens_stream_within(Duration::from_millis(1)).await);
}

#[tokio::test]
async fn who_stops_to_wait_leaves() {
    let mut fake = fake().await;
    let agent = client(&fake.address);
    let wait = Duration::from_millis(400);
    let waiting = tokio::spawn(
        agent
            .lead("nightly")
            .candidate("me")
            .term(TERM)
            .wait(wait)
            .start(),
    );
    let other = tokio::spawn(agent.lead("other").candidate("me").term(TERM).start());
    let mut stream = fake.stream().await;
    for _ in 0..2 {
        let join = stream.join().await;
        stream.stand(election_proto::Standing {
            leader: Some(election_proto::Leader {
                name: "somebody".into(),
                ..election_proto::Leader::default()
            }),
            ..standing(&join.election, Is::Waiting)
        });
    }
    let Err(Error::NotElected { leader, .. }) = soon("the end of the wait", waiting)
        .await
        .expect("no panic")
    else {
        panic!("elected by nobody");
    };
    assert_eq!(leader.as_deref(), Some("somebody"));
    let left = loop {
        match stream.next().await {
            What::Ping(ping) => stream.pong(ping.seq, vec![]),
            What::Leave(leave) => break leave,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((left.election.as_str(), left.token), ("nightly", 0));
    other.abort();
}

#[tokio::test]
async fn an_application_that_is_not_alive_joins_no_stream_with_its_token() {
    let mut fake = fake().await;
    let alive = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&alive);
    let lead = client(&fake.address)
        .lead("nightly")
        .candidate("me")
        .term(TERM);
    let starting = tokio::spawn(lead.alive(move || asked.load(Ordering::SeqCst)).start());
    let mut stream = fake.stream().await;
    stream.join().await;
    stream.stand(leads("nightly", 0));
    let leadership = elected(starting).await;
    alive.store(false, Ordering::SeqCst);
    stream.fail(Status::unavailable("gone"));
    assert!(!fake.opens_stream_within(TERM / 3).await);
    let mut term = leadership.term().clone();
    assert_eq!(term.check(), Ok(()));
    alive.store(true, Ordering::SeqCst);
    let mut stream = fake.stream().await;
    assert_eq!(stream.join().await.token, 7);
    stream.stand(leads("nightly", 0));
    soon("an extension", term.renewed()).await.expect("leads");
}

#[tokio::test]
async fn an_agent_that_is_slow_keeps_its_leader_by_the_stream() {
    // More than half of the time between pings: a ping is sent every 500 ms.
    const LATE: Duration = Duration::from_millis(350);
    let mut fake = fake().await;
    let standings = Log::new();
    let log = standings.clone();
    let starting = tokio::spawn(
        client(&fake.address)
            .lead("nightly")
            .candidate("me")
            .term(TERM)
            .on_state(move |standing| log.push(standing.clone()))
            .start(),
    );
    let mut stream = fake.stream_before_welcome().await;
    tokio::time::sleep(LATE).await;
    stream.welcome();
    stream.join().await;
    stream.stand(leads("nightly", 0));
    let leadership = elected(starting).await;
    // Longer than a term.
    for _ in 0..6 {
        let (_, seq) = stream.ping().await;
        tokio::time::sleep(LATE).await;
        stream.pong(seq, vec![]);
    }
    assert_eq!(leadership.term().check(), Ok(()));
    let asked = fake.calls(0, |what| {
        campaigns(what)
            .map(drop)
            .or_else(|| extensions(what).map(drop))
    });
    assert!(asked.await.is_empty(), "no calls");
    let doubts = standings.all().into_iter().filter(|standing| {
        matches!(
            standing,
            Standing::Jeopardy { .. } | Standing::NotKnown { .. }
        )
    });
    let doubts: Vec<_> = doubts.collect();
    assert!(doubts.is_empty(), "it always answers as fast: {doubts:?}");
    drop(leadership);
}

#[tokio::test]
async fn a_stream_that_is_not_welcomed_is_given_up_for_calls() {
    let mut fake = fake().await;
    let starting = starts(&fake.address);
    let _stream = fake.stream_before_welcome().await;
    let leadership = elected(starting).await;
    assert_eq!(fake.calls(1, campaigns).await.len(), 1);
    drop(leadership);
}

#[tokio::test]
async fn streams_that_end_as_soon_as_they_are_open_are_left_to_calls() {
    let mut fake = fake().await;
    let starting = starts(&fake.address);
    for _ in 0..2 {
        fake.stream().await.join().await;
    }
    let leadership = elected(starting).await;
    assert_eq!(fake.calls(1, campaigns).await.len(), 1);
    leadership.resign().await.expect("resigned");
    assert!(!fake.opens_stream_within(Duration::from_millis(1)).await);
}

#[tokio::test]
async fn a_stream_that_ends_after_each_grant_is_opened_again_after_pauses_that_grow() {
    let mut fake = fake().await;
    let (leadership, first) = led(&mut fake).await;
    let began = Instant::now();
    drop(first);
    for _ in 0..4 {
        let mut stream = fake.stream().await;
        assert_eq!(stream.join().await.token, 7);
        stream.stand(leads("nightly", 0));
    }
    // At least half of 50, 100, 200 and 400 ms.
    assert!(began.elapsed() >= Duration::from_millis(375));
    drop(leadership);
}

#[tokio::test]
async fn of_several_agents_the_one_with_streams_is_led_by() {
    let older = Script::default().older().start().await;
    let mut newer = fake().await;
    let starting = starts(&format!("{},{}", older.address, newer.address));
    let mut stream = newer.stream().await;
    stream.join().await;
    stream.stand(leads("nightly", 0));
    let leadership = elected(starting).await;
    drop(leadership);
    assert!(older.asked.all().is_empty());
}
