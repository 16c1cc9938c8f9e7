//! Leading, as a caller sees it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use election_agent_client::{Deadline, Error, Lost, Standing};
use test_agent::Agent as Server;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::support::{Log, Mode, Proxy, SECOND, both, eventually, leading, soon};

both! {
async fn work_runs_while_leading_and_the_next_leads_at_once_after_it(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let first = agent
        .lead("nightly")
        .kind("batch")
        .candidate("a")
        .value("here");
    let token = first
        .run(async |term| {
            assert_eq!(
                (term.election(), term.kind(), term.candidate()),
                ("nightly", "batch", "a")
            );
            assert_eq!(term.check(), Ok(()));
            assert!(term.remaining() > 10 * SECOND, "{term:?}");
            assert!(!term.in_jeopardy());
            let state = agent.state("nightly", "batch").await.expect("a state");
            let leader = state.leader.expect("a leader");
            assert_eq!(
                (leader.name.as_str(), leader.value.as_str(), leader.token),
                ("a", "here", term.token())
            );
            term.token()
        })
        .await
        .expect("led");
    let state = agent.state("nightly", "batch").await.expect("a state");
    assert!(!state.is_held(), "resigned: {state:?}");
    let second = agent
        .lead("nightly")
        .kind("batch")
        .candidate("b")
        .wait(Duration::ZERO)
        .start()
        .await;
    assert!(second.expect("vacant").term().token() > token);
}

async fn a_lead_can_be_spawned(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let led = tokio::spawn(agent.lead("nightly").run(async |term| term.token()));
    assert!(led.await.expect("no panic").expect("led") > 0);
}

async fn who_does_not_wait_is_told_who_leads(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let leadership = agent
        .lead("nightly")
        .candidate("a")
        .start()
        .await
        .expect("elected");
    for wait in [Duration::ZERO, Duration::from_millis(300)] {
        let error = agent
            .lead("nightly")
            .candidate("b")
            .wait(wait)
            .start()
            .await
            .expect_err("held");
        let Error::NotElected { leader, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(leader.as_deref(), Some("a"));
    }
    leadership.resign().await.expect("resigned");
}

async fn who_waits_is_elected_when_the_leader_resigns(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let first = agent
        .lead("nightly")
        .candidate("a")
        .start()
        .await
        .expect("elected");
    let standings = Log::new();
    let log = standings.clone();
    let next = agent
        .lead("nightly")
        .candidate("b")
        .on_state(move |standing| log.push(standing.clone()));
    let waits = tokio::spawn(next.start());
    // A call says nothing meanwhile. One that is made later is as good.
    let waiting = |it: &Standing| matches!(it, Standing::Waiting { leader: Some(leader), .. } if leader == "a");
    while streams && !standings.all().iter().any(waiting) {
        sleep(Duration::from_millis(1)).await;
    }
    first.resign().await.expect("resigned");
    let second = soon("the next is elected", waits)
        .await
        .expect("no panic")
        .expect("elected");
    // The term is a full one, whatever the provisional grant was.
    assert!(second.term().remaining() > 10 * SECOND, "{second:?}");
    assert_eq!(second.term().check(), Ok(()));
    second.resign().await.expect("resigned");
    eventually("on_state", async || {
        standings.all().contains(&Standing::Resigned).then_some(())
    })
    .await;
    let standings = standings.all();
    let [before @ .., Standing::Leading { .. }, Standing::Resigned] = &standings[..] else {
        panic!("{standings:?}");
    };
    assert!(before.len() == usize::from(streams) && before.iter().all(waiting), "{standings:?}");
}

async fn a_term_is_extended_while_the_work_runs(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let lead = agent.lead("nightly").term(SECOND).wait(Duration::ZERO);
    lead.run(async |mut term| {
        let (mut last, mut renewals) = (term.valid_until(), 0);
        let until = Deadline::now().plus(Duration::from_millis(2_500));
        while !until.has_passed() {
            let renewed = soon("an extension", term.renewed()).await.expect("leads");
            assert!(renewed > last);
            // Counted from before the request was sent, and less an allowance for drift.
            assert!(renewed < Deadline::now().plus(Duration::from_millis(989)));
            last = renewed;
            renewals += 1;
        }
        assert!(
            (5..=9).contains(&renewals),
            "every third of a second, in 2.5 s: {renewals}"
        );
        assert_eq!(term.check(), Ok(()));
    })
    .await
    .expect("led");
}

async fn a_term_that_is_dropped_lapses_and_is_not_given_up(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let leadership = agent
        .lead("nightly")
        .candidate("a")
        .term(SECOND)
        .start()
        .await
        .expect("elected");
    let term = leadership.term().clone();
    drop(leadership);
    assert_eq!(term.check(), Ok(()), "the lease is there for its time");
    let second = agent
        .lead("nightly")
        .candidate("b")
        .wait(Duration::ZERO)
        .start()
        .await;
    assert!(
        matches!(second, Err(Error::NotElected { .. })),
        "{second:?}"
    );
    let loss = soon("the end of the term", term.lost()).await;
    assert_eq!(loss, Lost::TermOver);
    assert!(!term.valid_until().has_passed(), "told before it is over");
    let next = soon("the next", agent.lead("nightly").candidate("b").start()).await;
    next.expect("elected").resign().await.expect("resigned");
}

async fn leaderships_of_one_name_in_one_process_take_turns(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let first = agent
        .lead("nightly")
        .term(2 * SECOND)
        .start()
        .await
        .expect("elected");
    let same = agent
        .lead("nightly")
        .wait(Duration::from_millis(300))
        .start()
        .await;
    assert!(
        matches!(same, Err(Error::NotElected { .. })),
        "it would fence the first: {same:?}"
    );
    let term = first.term().clone();
    // It is not given up: the next has to wait until nobody can work under it.
    drop(first);
    let second = soon("the next turn", agent.lead("nightly").start())
        .await
        .expect("elected");
    assert!(term.check().is_err());
    assert!(second.term().token() > term.token());
    second.resign().await.expect("resigned");
    let third = agent.lead("nightly").wait(Duration::ZERO).start().await;
    third
        .expect("it was given up")
        .resign()
        .await
        .expect("resigned");
}

async fn an_agent_that_dies_costs_no_term(streams: bool) {
    // Two ways to the same leases: they are in the memory of one process.
    let server = Server::start();
    let (a, b) = (
        Proxy::to(server.address()).await,
        Proxy::to(server.address()).await,
    );
    let agent = leading(&format!("{},{}", a.address(), b.address()), streams);
    let leadership = agent
        .lead("nightly")
        .term(3 * SECOND)
        .start()
        .await
        .expect("elected");
    let mut term = leadership.term().clone();
    let token = term.token();
    for mode in [Mode::Cut, Mode::BlackHole] {
        a.set(Mode::Forward);
        b.set(Mode::Forward);
        soon("an extension", term.renewed()).await.expect("leads");
        // Whichever way the client goes.
        let preferred = if b.connections() == 0 { &a } else { &b };
        preferred.set(mode);
        let begun = Instant::now();
        soon("an extension by the other way", term.renewed())
            .await
            .expect("leads");
        // The next extension is due after a third of the term; the failover itself takes less than a second.
        assert!(
            begun.elapsed() < 2 * SECOND,
            "{mode:?}: {:?}",
            begun.elapsed()
        );
        assert!(a.connections() > 0 && b.connections() > 0);
    }
    assert_eq!((term.check(), term.token()), (Ok(()), token));
}

async fn a_black_hole_is_a_loss_before_the_term_is_over(streams: bool) {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let agent = leading(proxy.address(), streams);
    let (jeopardy, lost) = (Log::new(), Log::new());
    let (on_jeopardy, on_lost) = (jeopardy.clone(), lost.clone());
    let lead = agent
        .lead("nightly")
        .term(2 * SECOND)
        .grace(Duration::ZERO)
        .on_jeopardy(move |term| on_jeopardy.push(term.token()))
        .on_lost(move |why| on_lost.push(why));
    let ended = lead
        .run(async |mut term| {
            soon("an extension", term.renewed()).await.expect("leads");
            proxy.set(Mode::BlackHole);
            let why = soon("the loss", term.lost()).await;
            assert!(!term.valid_until().has_passed(), "told too late");
            assert_eq!(why, Lost::TermOver);
            assert_eq!(
                (term.check(), term.remaining()),
                (Err(Lost::TermOver), Duration::ZERO)
            );
        })
        .await;
    assert_eq!(ended, Err(Error::Lost(Lost::TermOver)));
    eventually("callbacks", async || (!lost.all().is_empty()).then_some(())).await;
    assert_eq!(
        (jeopardy.all().len(), lost.all()),
        (1, vec![Lost::TermOver])
    );
}

async fn work_that_goes_on_after_the_loss_is_dropped_after_the_grace_and_the_term_lapses(streams: bool) {
    struct Ends(Option<oneshot::Sender<Deadline>>);
    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = self.0.take().expect("once").send(Deadline::now());
        }
    }
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let agent = leading(proxy.address(), streams);
    let (sender, ended) = oneshot::channel();
    let grace = Duration::from_millis(1_500);
    let mut told = None;
    let lead = agent
        .lead("nightly")
        .candidate("a")
        .term(3 * SECOND)
        .margin(SECOND)
        .grace(grace);
    let result = lead
        .run(async |term| {
            let _ends = Ends(Some(sender));
            proxy.set(Mode::BlackHole);
            soon("the loss", term.lost()).await;
            told = Some(Deadline::now());
            // The network is back within the grace, and the term is extended again: nobody else leads yet.
            proxy.set(Mode::Forward);
            std::future::pending::<()>().await;
        })
        .await;
    assert_eq!(result, Err(Error::Lost(Lost::TermOver)));
    let (told, ended) = (told.expect("told"), ended.await.expect("dropped"));
    assert!(
        ended >= told.plus(grace.mul_f64(0.99)),
        "dropped before its grace was over"
    );
    // Not given up: the work may have left something behind.
    let direct = leading(server.address(), streams);
    let state = direct.state("nightly", "default").await.expect("a state");
    assert_eq!(state.leader.expect("the lease lapses").name, "a");
}

async fn a_panic_goes_on_after_the_resignation(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let led = tokio::spawn(agent.lead("nightly").run(async |term| {
        assert_eq!(term.token(), 0, "no such luck");
    }));
    let panicked = led.await.expect_err("panics");
    assert!(panicked.is_panic());
    let state = agent.state("nightly", "default").await.expect("a state");
    assert!(!state.is_held(), "{state:?}");
}

async fn a_runtime_that_is_blocked_for_longer_than_the_term_does_not_lead_on(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let lost = Log::new();
    let on_lost = lost.clone();
    let lead = agent
        .lead("nightly")
        .term(SECOND)
        .on_lost(move |why| on_lost.push((why, Deadline::now())));
    let mut token = 0;
    let ended = lead
        .run(async |term| {
            token = term.token();
            let valid_until = term.valid_until();
            // Nothing of this runtime runs meanwhile.
            std::thread::sleep(Duration::from_millis(1_200));
            assert_eq!(term.check(), Err(Lost::TermOver));
            let told = lost.all();
            assert_eq!(told.len(), 1, "by a thread of its own");
            assert!(told[0].1 < valid_until, "before the term was over");
            assert_eq!(soon("the loss", term.lost()).await, Lost::TermOver);
        })
        .await;
    assert_eq!(ended, Err(Error::Lost(Lost::TermOver)));
    assert!(token > 0);
}

async fn another_leader_is_a_loss_at_once(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let lead = agent.lead("nightly").candidate("a").term(3 * SECOND);
    let leadership = lead.start().await.expect("elected");
    let term = leadership.term();
    agent
        .resign("nightly", "default", "a", term.token())
        .await
        .expect("resigned");
    let begun = Instant::now();
    assert_eq!(soon("the loss", term.lost()).await, Lost::NoTerm);
    assert!(begun.elapsed() < 2 * SECOND, "at the next extension");
    let resigned = leadership.resign().await;
    assert_eq!(resigned, Err(Error::Lost(Lost::NoTerm)));

    let leadership = agent
        .lead("nightly")
        .candidate("a")
        .term(3 * SECOND)
        .start()
        .await
        .expect("elected");
    // Another agent of this process knows nothing of the first: so would another process.
    let other = leading(server.address(), streams);
    let fencing = other
        .lead("nightly")
        .candidate("a")
        .wait(Duration::ZERO)
        .start()
        .await
        .expect("fences");
    assert_eq!(
        soon("the loss", leadership.term().lost()).await,
        Lost::StaleToken
    );
    fencing.resign().await.expect("resigned");
    let third = other
        .lead("nightly")
        .candidate("b")
        .wait(Duration::ZERO)
        .start()
        .await
        .expect("vacant");
    drop(leadership);
    drop(third);
}

async fn an_application_that_hangs_does_not_lead_on(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let hangs = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&hangs);
    let lead = agent.lead("nightly").term(SECOND).alive(move || {
        while asked.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    });
    let leadership = lead.start().await.expect("elected");
    let mut term = leadership.term().clone();
    for _ in 0..3 {
        soon("an extension", term.renewed()).await.expect("alive");
    }
    hangs.store(true, Ordering::SeqCst);
    assert_eq!(soon("the loss", term.lost()).await, Lost::TermOver);
    hangs.store(false, Ordering::SeqCst);

    let leadership = agent
        .lead("weekly")
        .term(SECOND)
        .alive(|| false)
        .start()
        .await
        .expect("elected");
    assert_eq!(
        soon("the loss", leadership.term().lost()).await,
        Lost::TermOver
    );
}

async fn an_election_is_led_again_and_again(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let mut terms = agent.lead("nightly").wait(SECOND).terms();
    let mut last = 0;
    for _ in 0..3 {
        let leadership = terms.next().await.expect("elected");
        assert!(leadership.term().token() > last);
        last = leadership.term().token();
        leadership.resign().await.expect("resigned");
    }
}

async fn refusals_and_mistakes_are_told_apart(streams: bool) {
    let server = Server::start();
    let agent = leading(server.address(), streams);
    let refused = agent
        .lead("a/b")
        .start()
        .await
        .expect_err("a name with a slash");
    assert!(matches!(refused, Error::Refused { .. }), "{refused:?}");
    assert!(matches!(
        agent.lead("x").term(Duration::ZERO).start().await,
        Err(Error::Config(_))
    ));
    assert!(matches!(
        agent.lead("x").margin(10 * SECOND).start().await,
        Err(Error::Config(_))
    ));
    // Nobody listens at port 1.
    let nobody = leading("127.0.0.1:1", streams);
    let error = nobody
        .lead("x")
        .wait(Duration::from_millis(200))
        .start()
        .await
        .expect_err("nobody");
    let Error::Unreachable { endpoints, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[0].0, "127.0.0.1:1");
    assert!(endpoints[0].1.contains("refused"), "{endpoints:?}");
}

async fn connections_that_end_of_age_cost_no_term(streams: bool) {
    let settings = [("EA_GRPC_MAX_CONNECTION_AGE", "1s"), ("EA_GRPC_MAX_CONNECTION_AGE_GRACE", "1s")];
    let server = Server::with(&settings);
    let proxy = Proxy::to(server.address()).await;
    let jeopardy = Log::new();
    let log = jeopardy.clone();
    let lead = leading(proxy.address(), streams).lead("nightly").term(2 * SECOND);
    let leadership = lead.on_jeopardy(move |term| log.push(term.token())).start().await.expect("elected");
    let mut term = leadership.term().clone();
    let until = Deadline::now().plus(4 * SECOND);
    while !until.has_passed() {
        soon("an extension", term.renewed()).await.expect("leads");
    }
    assert!(proxy.connections() > 2, "{}", proxy.connections());
    // A call on a connection that ends is sent again; the next stream is open before the last one ends.
    assert!(!streams || jeopardy.all().is_empty(), "{:?}", jeopardy.all());
    leadership.resign().await.expect("resigned");
}

}

#[tokio::test]
async fn who_does_not_wait_is_told_when_every_connection_is_ended() {
    let proxy = Proxy::to("127.0.0.1:1").await;
    proxy.set(Mode::Cut);
    let start = std::time::Instant::now();
    let error = leading(proxy.address(), true)
        .lead("nightly")
        .wait(Duration::ZERO)
        .start()
        .await
        .expect_err("no agent");
    assert!(error.to_string().contains(proxy.address()), "{error}");
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "it is asked again a few times only"
    );
    assert!(proxy.connections() > 2, "and not once only");
}
