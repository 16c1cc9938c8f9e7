//! What a client must do and must not, as an agent sees it.

use std::time::Duration;

use election_agent_client::{Code, Deadline, Error, Lost, Standing};
use election_proto::{BoolValue, CampaignResult};
use tonic::Status;

use crate::{
    fake::{Script, TERM, campaigns, elected, extensions, held, no, resignations, yes},
    support::{Log, SECOND, client, eventually, soon},
};

const NOW: Duration = Duration::ZERO;

fn millis(millis: i32) -> Duration {
    Duration::from_millis(millis.unsigned_abs().into())
}

#[tokio::test]
async fn retries_of_an_attempt_have_its_id_and_each_attempt_has_its_own() {
    let script = Script::default().campaign(|number| {
        let answer = match number {
            0 | 1 => Err(Status::unavailable("no quorum")),
            2 | 3 => held(),
            4 => Err(Status::already_exists("that grant is over")),
            _ => elected(),
        };
        (NOW, answer)
    });
    let fake = script.start().await;
    let lead = client(&fake.address)
        .lead("nightly")
        .candidate("me")
        .term(TERM);
    soon("elected", lead.run(async |_| ())).await.expect("led");
    let ids: Vec<_> = fake
        .calls(6, campaigns)
        .await
        .into_iter()
        .map(|(_, it)| it.request_id)
        .collect();
    assert_eq!(ids.len(), 6);
    assert!(
        ids[0] == ids[1] && ids[1] == ids[2],
        "one attempt until it is answered: {ids:?}"
    );
    let mut attempts = ids[2..].to_vec();
    attempts.sort();
    attempts.dedup();
    assert_eq!(attempts.len(), 4, "{ids:?}");
    assert!(ids.iter().all(|id| id.len() == 32));
}

#[tokio::test]
async fn a_term_counts_from_before_the_request_was_sent() {
    let slow = Duration::from_millis(200);
    let script = Script::default()
        .campaign(move |_| (slow, elected()))
        .extend(move |_| (slow, yes()));
    let fake = script.start().await;
    let leadership = client(&fake.address)
        .lead("nightly")
        .candidate("me")
        .term(TERM)
        .start()
        .await
        .expect("elected");
    let mut term = leadership.term().clone();
    let received = fake.calls(1, campaigns).await[0].0;
    assert!(
        term.valid_until() < received.plus(millis(1_450)),
        "not from the answer's receipt"
    );
    let until = soon("an extension", term.renewed()).await.expect("leads");
    let received = fake.calls(1, extensions).await[0].0;
    assert!(
        until < received.plus(millis(1_450)),
        "not from the answer's receipt"
    );
}

#[tokio::test]
async fn nothing_is_extended_after_a_resignation_and_nothing_is_given_up_under_running_work() {
    let script = Script::default().resign(|number| match number {
        // Its outcome is not known: it may have been carried out. It takes longer than until the next extension.
        0 => (TERM / 2, Err(Status::unavailable("no quorum"))),
        _ => (NOW, no("NO_TERM")),
    });
    let fake = script.start().await;
    let agent = client(&fake.address);
    let lead = agent.lead("nightly").candidate("me").term(TERM);
    let mut ended = Deadline::now();
    let result = lead
        .run(async |mut term| {
            for _ in 0..2 {
                soon("an extension", term.renewed()).await.expect("leads");
            }
            ended = Deadline::now();
            term
        })
        .await;
    let term = result.expect("the second attempt finds the first carried out");
    assert_eq!(
        term.check(),
        Err(Lost::NoTerm),
        "who still looks at the term must not act"
    );
    let resigned = fake.calls(2, resignations).await;
    assert!(
        resigned
            .iter()
            .all(|(at, it)| *at >= ended && it.token == 7 && it.leader == "me")
    );
    // Longer than a third of the term.
    tokio::time::sleep(TERM / 2).await;
    let extended = fake.calls(2, extensions).await;
    assert!(
        extended.iter().all(|(at, _)| *at <= resigned[0].0),
        "{extended:?} {resigned:?}"
    );
}

#[tokio::test]
async fn work_that_ignores_the_loss_is_never_given_up_and_extended_for_the_grace_only() {
    let script = Script::default().extend(|_| (NOW, Err(Status::unavailable("no quorum"))));
    let fake = script.start().await;
    let grace = Duration::from_millis(700);
    let mut told = None;
    let lead = client(&fake.address)
        .lead("nightly")
        .candidate("me")
        .term(TERM)
        .grace(grace);
    let result = lead
        .run(async |term| {
            soon("the loss", term.lost()).await;
            told = Some((Deadline::now(), term.valid_until()));
            std::future::pending::<()>().await;
        })
        .await;
    assert_eq!(result, Err(Error::Lost(Lost::TermOver)));
    let (told, valid_until) = told.expect("told");
    assert!(told < valid_until);
    let dropped = Deadline::now();
    assert!(dropped >= told.plus(grace.mul_f64(0.95)));
    tokio::time::sleep(TERM / 2).await;
    assert_eq!(fake.calls(0, resignations).await.len(), 0);
    let extended = fake.calls(1, extensions).await;
    let within = extended
        .iter()
        .filter(|(at, _)| *at > told && *at < told.plus(grace))
        .count();
    assert!(within > 0, "tries go on for the grace");
    let late = extended
        .iter()
        .filter(|(at, _)| *at > dropped.plus(Duration::from_millis(100)));
    assert_eq!(late.count(), 0, "and end with it");
}

#[tokio::test]
async fn a_definite_denial_is_a_loss_at_once() {
    for (reason, why) in [
        ("HELD_BY_OTHER", Lost::HeldByOther),
        ("STALE_TOKEN", Lost::StaleToken),
        ("NO_TERM", Lost::NoTerm),
    ] {
        let fake = Script::default()
            .extend(move |_| (NOW, no(reason)))
            .start()
            .await;
        let lead = client(&fake.address)
            .lead("nightly")
            .candidate("me")
            .term(TERM);
        let result = lead
            .run(async |term| {
                assert_eq!(soon("the loss", term.lost()).await, why);
                assert!(
                    term.valid_until().remaining() > TERM / 3,
                    "long before its time"
                );
            })
            .await;
        assert_eq!(result, Err(Error::Lost(why)));
        assert_eq!(
            fake.calls(1, extensions).await.len(),
            1,
            "and the end of extensions"
        );
        assert_eq!(
            fake.calls(0, resignations).await.len(),
            0,
            "there is nothing to give up"
        );
    }
}

#[tokio::test]
async fn a_refusal_while_leading_is_reported_and_is_no_loss_by_itself() {
    for (status, code) in [
        (Status::invalid_argument("no"), Code::InvalidArgument),
        (Status::permission_denied("no"), Code::PermissionDenied),
        (Status::unimplemented("no"), Code::Unimplemented),
        (Status::unauthenticated("no"), Code::Unauthenticated),
    ] {
        let fake = Script::default()
            .extend(move |_| (NOW, Err(status.clone())))
            .start()
            .await;
        let standings = Log::new();
        let log = standings.clone();
        let lead = client(&fake.address)
            .lead("nightly")
            .candidate("me")
            .term(TERM);
        let lead = lead.on_state(move |standing| log.push(standing.clone()));
        let leadership = lead.start().await.expect("elected");
        let term = leadership.term();
        fake.calls(1, extensions).await;
        assert_eq!(term.check(), Ok(()));
        assert_eq!(
            soon("the end", term.lost()).await,
            Lost::TermOver,
            "by the clock"
        );
        assert!(term.valid_until().remaining() <= TERM / 10);
        let refused =
            |it: &&Standing| matches!(it, Standing::Refused { code: told, .. } if *told == code);
        eventually("on_state", async || {
            standings.all().iter().find(refused).map(|_| ())
        })
        .await;
        assert_eq!(
            standings.all().iter().filter(refused).count(),
            1,
            "once: {standings:?}"
        );
        assert!(
            fake.calls(2, extensions).await.len() >= 2,
            "it may pass: another try"
        );
    }
}

#[tokio::test]
async fn a_refusal_while_campaigning_ends_it_and_limits_do_not() {
    let script = Script::default().campaign(|number| match number {
        0 => (NOW, Err(Status::resource_exhausted("too many requests"))),
        _ => (NOW, Err(Status::permission_denied("not yours"))),
    });
    let fake = script.start().await;
    let error = soon("an answer", client(&fake.address).lead("nightly").start())
        .await
        .expect_err("refused");
    let Error::Refused { code, message, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(
        (code, message.as_str()),
        (Code::PermissionDenied, "not yours")
    );
    assert_eq!(fake.calls(2, campaigns).await.len(), 2);
}

#[tokio::test]
async fn agents_that_do_not_wait_are_polled() {
    let fake = Script::default().campaign(|_| (NOW, held())).start().await;
    let waits = client(&fake.address)
        .lead("nightly")
        .wait(3 * SECOND)
        .start();
    let error = soon("the end of the wait", waits).await.expect_err("held");
    assert!(matches!(error, Error::NotElected { .. }), "{error:?}");
    let number = fake.calls(3, campaigns).await.len();
    assert!(number <= 9, "{number} campaigns in 3 s");
}

#[tokio::test]
async fn a_shorter_longest_wait_of_an_agent_is_no_refusal() {
    let fake = Script::default();
    let fake = fake.campaign(|number| match number {
        0 => (NOW, Err(Status::invalid_argument("`wait` is too long"))),
        _ => (NOW, elected()),
    });
    let fake = fake.start().await;
    let led = client(&fake.address)
        .lead("nightly")
        .candidate("me")
        .term(TERM)
        .run(async |_| ());
    soon("elected", led).await.expect("led");
    let waits: Vec<_> = fake
        .calls(2, campaigns)
        .await
        .into_iter()
        .map(|(_, it)| it.wait)
        .collect();
    assert!(waits[0] > 0 && waits[1] == 0, "{waits:?}");
}

#[tokio::test]
async fn another_agent_is_asked_beside_one_that_keeps_silent() {
    let elected = || {
        elected().map(|result| CampaignResult {
            valid_for: 5_900,
            ..result
        })
    };
    let extended = || {
        yes().map(|value| BoolValue {
            valid_for: 5_900,
            ..value
        })
    };
    let script = || {
        Script::default()
            .campaign(move |_| (NOW, elected()))
            .extend(move |_| (NOW, extended()))
    };
    let silent = script()
        .extend(move |_| (60 * SECOND, extended()))
        .start()
        .await;
    let other = script().start().await;
    let agent = client(&format!("{},{}", silent.address, other.address));
    let leadership = agent
        .lead("nightly")
        .candidate("me")
        .term(6 * SECOND)
        .start()
        .await
        .expect("elected");
    let mut term = leadership.term().clone();
    let first = silent.calls(1, extensions).await[0].0;
    let second = other.calls(1, extensions).await[0].0;
    assert!(
        second < first.plus(Duration::from_millis(900)),
        "within a second"
    );
    soon("an extension", term.renewed()).await.expect("leads");
    assert!(!term.in_jeopardy());
    // The one that has answered is asked first from now on.
    other.calls(2, extensions).await;
    assert_eq!(silent.calls(1, extensions).await.len(), 1);
}

#[tokio::test]
async fn a_provisional_grant_is_accepted_before_work_begins() {
    let script = Script::default()
        .campaign(|_| {
            let mut result = elected().expect("elected");
            result.provisional = true;
            (NOW, Ok(result))
        })
        // The first grant is gone before it was accepted.
        .extend(|number| (NOW, if number == 0 { no("NO_TERM") } else { yes() }));
    let fake = script.start().await;
    let leadership = client(&fake.address)
        .lead("nightly")
        .candidate("me")
        .term(TERM)
        .start()
        .await
        .expect("elected");
    let began = Deadline::now();
    let extended = fake.calls(2, extensions).await;
    assert!(extended[1].0 < began);
    let ids: Vec<_> = fake
        .calls(2, campaigns)
        .await
        .into_iter()
        .map(|(_, it)| it.request_id)
        .collect();
    assert!(ids.len() == 2 && ids[0] != ids[1]);
    drop(leadership);
}

#[tokio::test]
async fn extensions_come_every_third_and_calls_have_whole_milliseconds() {
    let fake = Script::default().start().await;
    let leadership = client(&fake.address)
        .lead("nightly")
        .candidate("me")
        .term(TERM)
        .start()
        .await
        .expect("elected");
    let extended = fake.calls(4, extensions).await;
    for pair in extended.windows(2) {
        let apart =
            Duration::from_nanos(pair[1].0.as_nanos_since_boot() - pair[0].0.as_nanos_since_boot());
        assert!(apart > TERM / 4 && apart < TERM / 2, "{apart:?}");
    }
    drop(leadership);
    let port = fake.address.rsplit(':').next().expect("a port");
    for asked in fake.asked.all() {
        let timeout = asked
            .metadata
            .get("grpc-timeout")
            .expect("a deadline")
            .to_str()
            .expect("text");
        let digits = timeout.strip_suffix('m').expect("milliseconds");
        assert!(
            digits.parse::<u32>().expect("a number") > 0,
            "{port} {timeout}"
        );
    }
}

#[cfg(feature = "opentelemetry")]
#[tokio::test]
async fn calls_carry_the_current_trace_context() {
    use opentelemetry::{
        Context, SpanId, TraceFlags, TraceId,
        trace::{SpanContext, TraceContextExt as _, TraceState},
    };
    opentelemetry::global::set_text_map_propagator(
        opentelemetry_sdk::propagation::TraceContextPropagator::new(),
    );
    let fake = Script::default().start().await;
    let agent = client(&fake.address);
    let span = SpanContext::new(
        TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").expect("an id"),
        SpanId::from_hex("b7ad6b7169203331").expect("an id"),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    let resigning = agent.resign("nightly", "default", "me", 7);
    let context = Context::new().with_remote_span_context(span);
    opentelemetry::context::FutureExt::with_context(resigning, context)
        .await
        .expect("resigned");
    let asked = fake.asked.all();
    let header = asked[0]
        .metadata
        .get("traceparent")
        .expect("a header")
        .to_str()
        .expect("text");
    assert_eq!(
        header,
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    );
}
