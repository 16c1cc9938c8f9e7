//! Boards whose nodes are late, silent or gone.

use super::{link::Fault, *};

const MS: Duration = Duration::from_millis(1);

fn all(links: &[Arc<Link>], fault: Fault) {
    links.iter().for_each(|link| link.fails(fault));
}

fn work(links: &[Arc<Link>]) {
    links.iter().for_each(|link| link.works());
}

/// Waits until the condition holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < 60 * SECOND, "{what}");
        sleep(MS).await;
    }
}

fn one(name: &str) -> Scope {
    Scope::One(Arc::new(election(name)))
}

/// How long the future takes.
async fn timed<T>(what: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (what.await, began.elapsed())
}

/// Lost hints cost time: none while one node of a majority sends hints, up to one regular read if none does, and up to
/// one poll while the agent knows that it receives none.
#[tokio::test(start_paused = true)]
async fn lost_hints_cost_bounded_time() {
    let cases: [(&[usize], Fault, Duration); 5] = [
        (&[], Fault::Mute, 5 * MS),
        (&[0], Fault::Mute, 5 * MS),
        (&[0, 1], Fault::Mute, 10 * MS),
        (&[0, 1, 2], Fault::Mute, 11 * SECOND + 5 * MS),
        (&[0, 1, 2], Fault::Deaf, 605 * MS),
    ];
    for (nodes, fault, most) in cases {
        for waits in [true, false] {
            let scene = Scene::new();
            let (here, (there, links)) = (scene.agent().await, scene.linked().await);
            let token = here.wins("e", "a").await;
            let mut observation = there.observe(one("e"));
            assert_eq!(next(&mut observation).await, "e a Present");
            assert_eq!(next(&mut observation).await, "synced");
            there.until("it listens", |counts| !counts.deaf).await;
            for node in nodes {
                links[*node].fails(fault);
            }
            let deaf = fault == Fault::Deaf;
            let waiting = waits.then(|| there.waiting("e", "b", 60 * SECOND));
            there
                .until("it waits", |counts| {
                    counts.waiters == usize::from(waits) && counts.deaf == deaf
                })
                .await;
            // Extensions cause no hint, and keep the term from ending meanwhile.
            sleep(20 * SECOND / 3).await;
            here.extends("e", "a", token).await;
            here.resigns("e", "a", token).await;
            let took = match waiting {
                Some(waiting) => {
                    let (outcome, took) = timed(waiting).await;
                    assert!(elected(&outcome.expect("no panic")).is_some());
                    took
                }
                None => {
                    let (event, took) = timed(next(&mut observation)).await;
                    assert_eq!(event, "e - Resign");
                    took
                }
            };
            assert!(took <= most, "{took:?} with {fault:?} on {nodes:?}");
            drop(observation);
            there.until_nothing_is_left().await;
        }
    }
}

/// While no quorum replies, the state is uncertain and not vacant, although the term ends meanwhile. The board reports
/// changes before certainty.
#[tokio::test(start_paused = true)]
async fn without_a_quorum_nothing_is_certain_and_nothing_vacant() {
    for scope in [one("e"), kind()] {
        let scene = Scene::new();
        let (here, (there, links)) = (scene.agent().await, scene.linked().await);
        here.wins("e", "a").await;
        let mut observation = there.observe(scope.clone());
        assert_eq!(next(&mut observation).await, "e a Present");
        assert_eq!(next(&mut observation).await, "synced");
        for back in ["e - Expiry", "e b Campaign missed"] {
            all(&links[1..], Fault::Down);
            assert_eq!(next(&mut observation).await, "uncertain");
            let mut late = there.observe(scope.clone());
            // A late observer receives the known state, and the doubt.
            let event = next(&mut late).await;
            assert_eq!(event, "uncertain");
            sleep(2 * TERM).await;
            assert!(observation.take().is_none());
            if back.contains("Campaign") {
                here.wins("e", "b").await;
            }
            let failed = there.waits("e", "c", SECOND).await;
            assert!(failed.is_err(), "{failed:?}");
            work(&links);
            assert_eq!(next(&mut observation).await, back);
            assert_eq!(next(&mut observation).await, "certain");
            let mut events = Vec::new();
            while events.last().is_none_or(|event| event != "certain") {
                events.push(next(&mut late).await);
            }
            sleep(SECOND).await;
            assert!(observation.take().is_none());
            assert!(late.take().is_none(), "after {events:?}");
        }
        drop(observation);
        there.until_nothing_is_left().await;
    }
}

/// The claim was lost, but the leader has resigned before the campaign is in the queue. The board ignores hints of an
/// election without waiters and observers.
#[tokio::test(start_paused = true)]
async fn a_vacancy_between_the_lost_claim_and_the_queue_is_seen() {
    for watched in ["other", "e"] {
        let scene = Scene::new();
        let (here, (there, links)) = (scene.agent().await, scene.linked().await);
        let token = here.wins("e", "a").await;
        let observation = there.observe(one(watched));
        there.until("it listens", |counts| !counts.deaf).await;
        all(&links, Fault::LateGrants);
        let waiting = there.waiting("e", "b", 60 * SECOND);
        until("the claim is lost", || {
            links.iter().all(|link| link.grants() == 1)
        })
        .await;
        here.resigns("e", "a", token).await;
        sleep(100 * MS).await;
        work(&links);
        let (outcome, took) = timed(waiting).await;
        assert!(elected(&outcome.expect("no panic")).is_some());
        assert!(took < 20 * MS, "{took:?} with {watched} watched");
        drop(observation);
        there.until_nothing_is_left().await;
    }
}

/// The board receives no hints of changes between the beginning of a read or a listing and its reply.
#[tokio::test(start_paused = true)]
async fn what_nobody_heard_during_a_read_is_read_when_hearing_returns() {
    let scopes = [
        (one("e"), Fault::LateReads),
        (kind(), Fault::LateLists),
        (Scope::All, Fault::LateLists),
    ];
    for (scope, fault) in scopes {
        let scene = Scene::new();
        let (here, (there, links)) = (scene.agent().await, scene.linked().await);
        let token = here.wins("e", "a").await;
        let mut observation = there.observe(scope.clone());
        assert_eq!(next(&mut observation).await, "e a Present");
        assert_eq!(next(&mut observation).await, "synced");
        there.until("it listens", |counts| !counts.deaf).await;
        all(&links, Fault::Deaf);
        there.until("it is deaf", |counts| counts.deaf).await;
        all(&links, fault);
        // A poll is in flight now.
        sleep(700 * MS).await;
        let expected = match scope {
            Scope::One(_) => {
                here.resigns("e", "a", token).await;
                let token = here.wins("e", "b").await;
                here.resigns("e", "b", token).await;
                here.wins("e", "c").await;
                "e c Campaign missed"
            }
            Scope::Kind(..) | Scope::All => {
                let token = here.wins("new", "b").await;
                here.resigns("new", "b", token).await;
                here.wins("new", "c").await;
                "new c Campaign missed"
            }
        };
        for link in &links {
            link.works();
            link.fails(fault);
        }
        there.until("it listens", |counts| !counts.deaf).await;
        work(&links);
        let (event, took) = timed(next(&mut observation)).await;
        assert_eq!(event, expected);
        assert!(took < 20 * MS, "{took:?}");
        drop(observation);
        there.until_nothing_is_left().await;
    }
}

/// Slow listings of many groups leave room for reads.
#[tokio::test(start_paused = true)]
async fn slow_listings_do_not_delay_those_who_wait() {
    let scene = Scene::new();
    let (here, (there, links)) = (scene.agent().await, scene.linked().await);
    let token = here.wins("e", "a").await;
    all(&links, Fault::LateLists);
    let kind = Kind::new("").expect("valid");
    let observations: Vec<_> = (0..3 * READS)
        .map(|number| there.observe(Scope::Kind(kind.clone(), format!("{number}/").into())))
        .collect();
    let waiting = there.waiting("e", "b", 60 * SECOND);
    there
        .until("it waits", |counts| counts.waiters == 1 && !counts.deaf)
        .await;
    here.resigns("e", "a", token).await;
    let (outcome, took) = timed(waiting).await;
    assert!(elected(&outcome.expect("no panic")).is_some());
    assert!(took < 20 * MS, "{took:?}");
    drop(observations);
    there.until_nothing_is_left().await;
}

/// A waiter leaves during its claim: the grant is rolled back, and the next waiter claims at once.
#[tokio::test(start_paused = true)]
async fn a_grant_to_who_has_gone_is_rolled_back() {
    let scene = Scene::new();
    let (here, (there, links)) = (scene.agent().await, scene.linked().await);
    let token = here.wins("e", "a").await;
    let gone = there.waiting("e", "gone", 60 * SECOND);
    there.until("it waits", |counts| counts.waiters == 1).await;
    let next = there.waiting("e", "next", 60 * SECOND);
    there
        .until("it waits", |counts| counts.waiters == 2 && !counts.deaf)
        .await;
    all(&links, Fault::LateGrants);
    let before = links[0].grants();
    here.resigns("e", "a", token).await;
    until("it is granted", || {
        links.iter().all(|link| link.grants() > before)
    })
    .await;
    let deadline = Instant::now() + SECOND;
    let state = here.0.elections.state(&election("e"), deadline).await;
    let leader = state.expect("known").into_lease().expect("held");
    assert_eq!(leader.leader.as_str(), "gone");
    gone.abort();
    there
        .until("it has gone", |counts| counts.waiters == 1)
        .await;
    work(&links);
    let (outcome, took) = timed(next).await;
    let (later, ..) = elected(&outcome.expect("no panic")).expect("elected");
    assert!(later > token);
    assert!(took < 20 * MS, "{took:?}");
    there.until_nothing_is_left().await;
}

/// A claim that no quorum decides is repeated: it keeps its turn, and takes no other's.
#[tokio::test(start_paused = true)]
async fn a_claim_without_a_quorum_is_repeated() {
    let scene = Scene::new();
    let (here, (there, links)) = (scene.agent().await, scene.linked().await);
    let token = here.wins("e", "a").await;
    let waiting = there.waiting("e", "b", 60 * SECOND);
    there
        .until("it waits", |counts| counts.waiters == 1 && !counts.deaf)
        .await;
    all(&links[1..], Fault::NoGrants);
    here.resigns("e", "a", token).await;
    there.until("it claims", |counts| counts.claims > 2).await;
    let claims = there.counts().claims;
    sleep(3 * SECOND).await;
    let more = there.counts().claims - claims;
    assert!((4..10).contains(&more), "{more} claims in 3 s");
    work(&links);
    let (outcome, took) = timed(waiting).await;
    assert!(elected(&outcome.expect("no panic")).is_some());
    assert!(took < 700 * MS, "{took:?}");
    there.until_nothing_is_left().await;
}

/// A wait that ends while the state is unknown does not return an earlier state.
#[tokio::test(start_paused = true)]
async fn a_wait_that_ends_without_a_quorum_ends_with_an_error() {
    let scene = Scene::new();
    let (here, (there, links)) = (scene.agent().await, scene.linked().await);
    here.wins("e", "a").await;
    let waiting = there.waiting("e", "b", 5 * SECOND);
    there
        .until("it waits", |counts| counts.waiters == 1 && !counts.deaf)
        .await;
    all(&links[1..], Fault::Down);
    let outcome = waiting.await.expect("no panic");
    assert!(outcome.is_err(), "{outcome:?}");
    there.until_nothing_is_left().await;
}

/// Every campaign that waits on a connection that is to end gets a reply.
#[tokio::test(start_paused = true)]
async fn nobody_waits_on_a_connection_that_is_to_end() {
    let scene = Scene::new();
    let board = scene.agent().await;
    let token = board.wins("e", "a").await;
    let ending = CancellationToken::new();
    let waiting: Vec<_> = (0..3)
        .map(|number| {
            let (board, ending) = (board.clone(), ending.clone());
            tokio::spawn(async move {
                let name = number.to_string();
                board.waits_on("e", &name, 60 * SECOND, ending).await
            })
        })
        .collect();
    board.until("they wait", |counts| counts.waiters == 3).await;
    let closed = Instant::now();
    ending.cancel();
    for waiting in waiting {
        match waiting.await.expect("no panic") {
            Ok(Outcome::NotElected(lease)) => assert_eq!(lease.token, token),
            other => panic!("{other:?}"),
        }
    }
    let late = board.waits_on("e", "late", 60 * SECOND, ending).await;
    assert!(matches!(late, Ok(Outcome::NotElected(_))), "{late:?}");
    assert_eq!(closed.elapsed(), Duration::ZERO);
    board.until_nothing_is_left().await;
}

/// A thousand campaigns wait on ten agents. Each change costs an agent at most two claims, however many wait.
#[tokio::test(start_paused = true)]
async fn a_change_costs_each_agent_two_claims_whatever_the_number_of_those_who_wait() {
    const AGENTS: usize = 10;
    let scene = Scene::new();
    let mut boards = Vec::new();
    for _ in 0..AGENTS {
        boards.push(scene.agent().await);
    }
    let mut token = boards[0].wins("e", "leader").await;
    let mut leader = "leader".to_owned();
    let mut waiting = JoinSet::new();
    for number in 0..1_000 {
        let (board, name) = (boards[number % AGENTS].clone(), number.to_string());
        waiting.spawn(async move { (board.waits("e", &name, 60 * SECOND).await, name) });
    }
    for board in &boards {
        board
            .until("they wait", |counts| {
                counts.waiters == 1_000 / AGENTS && !counts.deaf
            })
            .await;
    }
    let claims = || -> u64 { boards.iter().map(|board| board.counts().claims).sum() };
    for change in 0..20 {
        let before = claims();
        if change % 4 == 3 {
            // The next candidate is elected when the provisional term is over.
        } else {
            boards[0].resigns("e", &leader, token).await;
        }
        let next = waiting.join_next().await.expect("they wait");
        let (outcome, name) = next.expect("no panic");
        let (later, ..) = elected(&outcome).expect("elected");
        assert!(later > token);
        (token, leader) = (later, name);
        // Waits until all agents know.
        sleep(100 * MS).await;
        let made = claims() - before;
        assert!(made <= 2 * AGENTS as u64, "{made} claims");
    }
    waiting.shutdown().await;
    for board in &boards {
        board.until_nothing_is_left().await;
    }
}

/// Forged hints use up the reads that hints may cause, until a second after the last one, and delay nothing else.
#[tokio::test(start_paused = true)]
async fn true_hints_are_heard_again_after_forged_ones() {
    for reading in [true, false] {
        let scene = Scene::new();
        let (here, (there, links)) = (scene.agent().await, scene.linked().await);
        let token = here.wins("e", "a").await;
        let leading = Instant::now();
        let waiting = there.waiting("e", "b", 60 * SECOND);
        there
            .until("it waits", |counts| counts.waiters == 1 && !counts.deaf)
            .await;
        if reading {
            all(&links, Fault::LateReads);
        }
        for number in 0..10_000_u64 {
            let hint = Hint {
                election: election("e"),
                cause: match number % 2 {
                    0 => lease::hint::Cause::Resign,
                    _ => lease::hint::Cause::RolledBack,
                },
                token: Token::new(token.get() + number).expect("in range"),
            };
            there.with(|table, now| table.hinted(number as usize % 3, &hint, now));
            if number % 100 == 0 {
                sleep(10 * MS).await;
            }
        }
        let reads = there.counts().reads;
        assert!(reads <= 42, "{reads} reads in a second");
        work(&links);
        let took = if reading {
            let (outcome, _) = timed(waiting).await;
            assert!(elected(&outcome.expect("no panic")).is_some());
            leading.elapsed() - TERM
        } else {
            sleep(2 * SECOND).await;
            here.resigns("e", "a", token).await;
            let (outcome, took) = timed(waiting).await;
            assert!(elected(&outcome.expect("no panic")).is_some());
            took
        };
        assert!(took < 20 * MS, "{took:?}");
        there.until_nothing_is_left().await;
    }
}

/// A listening task stops at its next pause. It may report once more, and a later task would rely on that.
#[tokio::test(start_paused = true)]
async fn who_listened_before_is_not_listened_to() {
    let scene = Scene::new();
    let board = scene.agent().await;
    let observation = board.observe(one("e"));
    let listener = HintListener::new(&board, 0);
    drop(observation);
    board.until_nothing_is_left().await;
    listener.connected(1);
    assert_eq!(board.counts().connected_nodes, 0);
    let observation = board.observe(one("e"));
    listener.connected(1);
    assert_eq!(board.counts().connected_nodes, 0);
    drop(observation);
    board.until_nothing_is_left().await;
}
