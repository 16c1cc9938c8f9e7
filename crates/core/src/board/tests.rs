mod faults;
mod link;
mod table;

use super::*;
use crate::{
    election::Retry,
    lease::{self, Extend, Resign, embedded::Embedded, guard::RestartGuard, quorum},
    types::{Candidate, Kind, Term, Token, Value},
};
use link::Link;

const TERM: Duration = Duration::from_secs(15);
const SECOND: Duration = Duration::from_secs(1);
const PROVISIONAL: Duration = Duration::from_secs(3);

/// Three nodes, and agents on them.
struct Scene {
    nodes: Vec<Arc<Embedded>>,
}

impl Scene {
    fn new() -> Self {
        let settings = lease::Settings {
            retention: 10 * TERM,
            guard: None,
            vote: SECOND,
        };
        let node = || Arc::new(Embedded::in_memory(settings));
        Self {
            nodes: (0..3).map(|_| node()).collect(),
        }
    }

    async fn agent(&self) -> Board {
        self.linked().await.0
    }

    /// An agent, and its links to the nodes.
    async fn linked(&self) -> (Board, Vec<Arc<Link>>) {
        let nodes = self.nodes.iter().cloned();
        let links: Vec<_> = nodes.map(|node| Arc::new(Link::to(node))).collect();
        let nodes = links.iter().cloned();
        let nodes = nodes.map(|link| link as Arc<dyn LeaseNode>).collect();
        let options = quorum::Options::new(SECOND, RestartGuard::Off, TERM);
        let quorum = quorum::Quorum::new(nodes, options);
        quorum.status().await;
        let board = Board::new(
            Elections::new(quorum, TERM),
            Settings {
                provisional_term: PROVISIONAL,
                max_wait: 60 * SECOND,
            },
            Handle::current(),
            Arc::new(NoopObserver),
        );
        (board, links)
    }
}

fn election(name: &str) -> ElectionId {
    ElectionId::new("", name).expect("valid")
}

fn candidate(name: &str) -> Candidate {
    Candidate::new("candidate", name).expect("valid")
}

fn campaign(election_name: &str, name: &str) -> Campaign {
    Campaign {
        election: election(election_name),
        candidate: candidate(name),
        term: Term::from_millis(15_000, TERM).expect("valid"),
        value: Value::default(),
        request_id: None,
        wait: None,
    }
}

impl Board {
    async fn wins(&self, name: &str, by: &str) -> Token {
        let deadline = Instant::now() + SECOND;
        match self
            .0
            .elections
            .campaign(&campaign(name, by), deadline)
            .await
        {
            Ok(Outcome::Elected { token, .. }) => token,
            other => panic!("{other:?}"),
        }
    }

    /// The remaining time of the election's lease.
    async fn remaining(&self, name: &str) -> Duration {
        let deadline = Instant::now() + SECOND;
        let state = self.0.elections.state(&election(name), deadline).await;
        let lease = state.expect("known").into_lease();
        lease.expect("held").remaining
    }

    async fn resigns(&self, name: &str, by: &str, token: Token) {
        let resign = Resign {
            election: election(name),
            leader: candidate(by),
            token: Some(token),
        };
        let deadline = Instant::now() + SECOND;
        assert_eq!(self.0.elections.resign(resign, deadline).await, Ok(()));
    }

    async fn extends(&self, name: &str, by: &str, token: Token) {
        let extend = Extend {
            election: election(name),
            leader: candidate(by),
            token: Some(token),
            term: Term::from_millis(15_000, TERM).expect("valid"),
        };
        let retry = Retry::new(0, 0).expect("valid");
        let deadline = Instant::now() + SECOND;
        let extended = self.0.elections.extend(extend, retry, deadline).await;
        assert!(extended.is_ok(), "{extended:?}");
    }

    async fn waits(&self, name: &str, by: &str, wait: Duration) -> Result<Outcome, Error> {
        self.waits_on(name, by, wait, CancellationToken::new())
            .await
    }

    /// Waits on a connection that ends when the token is cancelled.
    async fn waits_on(
        &self,
        name: &str,
        by: &str,
        wait: Duration,
        ending: CancellationToken,
    ) -> Result<Outcome, Error> {
        let now = Instant::now();
        let patience = Patience {
            since: now,
            waiter: None,
            until: now + wait,
            deadline: now + wait + SECOND,
            ending,
        };
        self.campaign(&campaign(name, by), &patience).await
    }

    fn waiting(
        &self,
        name: &str,
        by: &str,
        wait: Duration,
    ) -> tokio::task::JoinHandle<Result<Outcome, Error>> {
        let (board, name, by) = (self.clone(), name.to_owned(), by.to_owned());
        tokio::spawn(async move { board.waits(&name, &by, wait).await })
    }

    /// Waits until the counts satisfy the condition.
    async fn until(&self, what: &str, holds: impl Fn(&Counts) -> bool) {
        let began = Instant::now();
        while !holds(&self.counts()) {
            assert!(began.elapsed() < 60 * SECOND, "{what}: {:?}", self.counts());
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn until_nothing_is_left(&self) {
        self.until("nothing is left", |counts| {
            let nothing = Counts {
                deaf: true,
                hints: counts.hints,
                unannounced: counts.unannounced,
                changes: counts.changes,
                reads: counts.reads,
                claims: counts.claims,
                ..Counts::default()
            };
            *counts == nothing
        })
        .await;
    }
}

fn elected(outcome: &Result<Outcome, Error>) -> Option<(Token, Duration, bool)> {
    match outcome {
        Ok(Outcome::Elected {
            token,
            valid_for,
            provisional,
            ..
        }) => Some((*token, *valid_for, *provisional)),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_elected_when_the_leader_resigns_or_its_term_ends() {
    for resigns in [true, false] {
        let scene = Scene::new();
        let (here, there) = (scene.agent().await, scene.agent().await);
        let token = here.wins("e", "a").await;
        let leading = Instant::now();
        let waiting = there.waiting("e", "b", 60 * SECOND);
        there
            .until("it listens", |counts| counts.waiters == 1 && !counts.deaf)
            .await;
        if resigns {
            sleep(2 * SECOND).await;
            here.resigns("e", "a", token).await;
        } else {
            sleep(TERM - leading.elapsed()).await;
        }
        let vacant = Instant::now();
        let outcome = waiting.await.expect("no panic");
        let (later, valid_for, provisional) = elected(&outcome).expect("elected");
        assert!(later > token);
        assert!(provisional);
        assert!(
            vacant.elapsed() < Duration::from_millis(10),
            "{:?}",
            vacant.elapsed()
        );
        // The time counts from before the request, by a clock that may be 1 % fast.
        let waited = vacant - leading;
        let most = waited + PROVISIONAL + waited / 100;
        assert!(valid_for < most, "{valid_for:?} of {most:?}");
        assert!(
            valid_for > waited + PROVISIONAL - Duration::from_millis(200),
            "{valid_for:?}"
        );
        there.until_nothing_is_left().await;
        let remaining = there.remaining("e").await;
        assert!(
            remaining <= PROVISIONAL + Duration::from_millis(200),
            "{remaining:?}"
        );
        let least = PROVISIONAL + waited / 100 - Duration::from_millis(10);
        assert!(remaining > least, "{remaining:?}");
        there.extends("e", "b", later).await;
        let remaining = there.remaining("e").await;
        assert_eq!(remaining, TERM);
    }
}

#[tokio::test(start_paused = true)]
async fn one_claim_a_change_is_made_for_many_who_wait_and_in_their_order() {
    let scene = Scene::new();
    let board = scene.agent().await;
    let mut token = board.wins("e", "leader").await;
    let mut leader = "leader".to_owned();
    let mut waiting = Vec::new();
    for number in 0..20 {
        waiting.push((
            number.to_string(),
            board.waiting("e", &number.to_string(), 60 * SECOND),
        ));
        board
            .until("it waits", |counts| counts.waiters == number + 1)
            .await;
    }
    board.until("it listens", |counts| !counts.deaf).await;
    for (name, waiting) in waiting {
        board.resigns("e", &leader, token).await;
        let outcome = waiting.await.expect("no panic");
        (token, ..) = elected(&outcome).expect("elected");
        leader = name;
    }
    assert_eq!(board.counts().claims, 20);
    board.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn who_has_gone_is_passed_over() {
    let scene = Scene::new();
    let board = scene.agent().await;
    let token = board.wins("e", "a").await;
    let gone = board.waiting("e", "gone", 60 * SECOND);
    board.until("it waits", |counts| counts.waiters == 1).await;
    let next = board.waiting("e", "next", 60 * SECOND);
    board
        .until("it waits", |counts| counts.waiters == 2 && !counts.deaf)
        .await;
    gone.abort();
    board
        .until("it has gone", |counts| counts.waiters == 1)
        .await;
    board.resigns("e", "a", token).await;
    assert!(elected(&next.await.expect("no panic")).is_some());
    board.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn the_wait_ends_with_the_leader_and_nothing_is_left() {
    let scene = Scene::new();
    let board = scene.agent().await;
    let token = board.wins("e", "a").await;
    let waiting = board.waiting("e", "b", 20 * SECOND);
    sleep(10 * SECOND).await;
    board.extends("e", "a", token).await;
    match waiting.await.expect("no panic") {
        Ok(Outcome::NotElected(lease)) => {
            assert_eq!((lease.leader.as_str(), lease.token), ("a", token));
            let left = Duration::from_secs(4)..=Duration::from_secs(5);
            assert!(left.contains(&lease.remaining), "{:?}", lease.remaining);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(board.counts().claims, 0, "the election was never vacant");
    board.until_nothing_is_left().await;
}

fn kind() -> Scope {
    Scope::Kind(Kind::new("").expect("valid"), "".into())
}

/// The next event as text.
async fn next(observation: &mut Observation) -> String {
    match observation.next().await {
        Event::State {
            seen,
            cause,
            missed,
        } => {
            let missed = if missed { " missed" } else { "" };
            let leader = match &seen.state {
                State::Held(lease) => lease.leader.as_str(),
                State::Vacant(_) => "-",
            };
            format!("{} {leader} {cause:?}{missed}", seen.election.name())
        }
        Event::Synced => "synced".to_owned(),
        Event::Certainty(None) => "certain".to_owned(),
        Event::Certainty(Some(_)) => "uncertain".to_owned(),
        Event::TooMany => "too many".to_owned(),
        Event::Slow => "slow".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_sees_present_states_first_and_then_every_change() {
    let scene = Scene::new();
    let (here, there) = (scene.agent().await, scene.agent().await);
    let one = Scope::One(Arc::new(election("e")));
    for scope in [one, kind()] {
        let token = here.wins("e", "a").await;
        let mut observation = there.observe(scope.clone());
        assert_eq!(next(&mut observation).await, "e a Present");
        assert_eq!(next(&mut observation).await, "synced");
        there.until("it listens", |counts| !counts.deaf).await;
        here.resigns("e", "a", token).await;
        assert_eq!(next(&mut observation).await, "e - Resign");
        let token = here.wins("e", "b").await;
        assert_eq!(next(&mut observation).await, "e b Campaign");
        here.extends("e", "b", token).await;
        sleep(TERM + Duration::from_millis(10)).await;
        assert_eq!(next(&mut observation).await, "e - Expiry");
        here.wins("e", "c").await;
        here.wins("e", "c").await;
        sleep(SECOND).await;
        assert_eq!(
            next(&mut observation).await,
            "e c Campaign missed",
            "one of two"
        );
        let counts = there.counts();
        assert_eq!(counts.subscriptions, 1);
        assert!(counts.elections <= 1, "{counts:?}");
        drop(observation);
        there.until_nothing_is_left().await;
        sleep(2 * TERM).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_a_kind_reports_elections_that_it_did_not_know() {
    let scene = Scene::new();
    let (here, there) = (scene.agent().await, scene.agent().await);
    here.wins("old", "a").await;
    let mut first = there.observe(kind());
    assert_eq!(next(&mut first).await, "old a Present");
    assert_eq!(next(&mut first).await, "synced");
    there.until("it listens", |counts| !counts.deaf).await;
    let token = here.wins("new", "b").await;
    assert_eq!(next(&mut first).await, "new b Campaign");
    let mut second = there.observe(kind());
    let mut present = [next(&mut second).await, next(&mut second).await];
    present.sort();
    assert_eq!(present, ["new b Present", "old a Present"]);
    assert_eq!(next(&mut second).await, "synced");
    here.resigns("new", "b", token).await;
    for observation in [&mut first, &mut second] {
        assert_eq!(next(observation).await, "new - Resign");
    }
    there
        .until("the vacant one is forgotten", |counts| {
            counts.elections == 1
        })
        .await;
    drop(first);
    drop(second);
    there.until_nothing_is_left().await;
}

/// Each observer gets its own elections from one listing, and an observer of too many takes none from the others.
#[tokio::test(start_paused = true)]
async fn watches_of_a_kind_share_a_listing() {
    let scene = Scene::new();
    let board = scene.agent().await;
    for number in 0..=MOST_ELECTIONS {
        board.wins(&format!("many{number}"), "a").await;
    }
    board.wins("few1", "b").await;
    board.wins("other", "c").await;
    let of = |prefix: &str| Scope::Kind(Kind::new("").expect("valid"), prefix.into());
    let mut subscriptions =
        ["few", "many", "none", "other"].map(|prefix| board.observe(of(prefix)));
    let expected: [&[&str]; 4] = [
        &["few1 b Present", "synced"],
        &["too many"],
        &["synced"],
        &["other c Present", "synced"],
    ];
    for (subscription, expected) in subscriptions.iter_mut().zip(expected) {
        for expected in expected {
            assert_eq!(next(subscription).await, *expected);
        }
    }
}

/// Any client that may publish on a node can forge hints: they change no reply, and cost a bounded number of reads.
#[tokio::test(start_paused = true)]
async fn forged_hints_change_nothing_and_cost_little() {
    let scene = Scene::new();
    let board = scene.agent().await;
    let token = board.wins("e", "a").await;
    let mut observation = board.observe(kind());
    assert_eq!(next(&mut observation).await, "e a Present");
    assert_eq!(next(&mut observation).await, "synced");
    board.until("it listens", |counts| !counts.deaf).await;
    let before = board.counts();
    let began = Instant::now();
    let causes = [
        lease::hint::Cause::Campaign,
        lease::hint::Cause::Resign,
        lease::hint::Cause::RolledBack,
        lease::hint::Cause::Handover,
        lease::hint::Cause::Repaired,
    ];
    for number in 0..20_000_u64 {
        let hint = Hint {
            election: election(&format!("forged-{}", number % 5_000)),
            cause: causes[number as usize % causes.len()],
            token: Token::new(1 + number * 1_000_000).expect("in range"),
        };
        let same = Hint {
            election: election("e"),
            ..hint.clone()
        };
        for hint in [hint, same] {
            board.with(|table, now| table.hinted(number as usize % 3, &hint, now));
        }
        if number % 100 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    let took = began.elapsed().as_secs_f64();
    let reads = board.counts().reads - before.reads;
    // 20 a second of the election, 200 a second of others, three repetitions at most, and the bursts.
    let most = (220.0 * took + 220.0) * 4.0;
    assert!((reads as f64) < most, "{reads} reads in {took} s");
    assert_eq!(board.counts().changes, before.changes);
    let event = tokio::time::timeout(Duration::from_secs(1), next(&mut observation)).await;
    assert!(event.is_err(), "{event:?}");
    board.resigns("e", "a", token).await;
    assert!(next(&mut observation).await.starts_with("e - "));
    drop(observation);
    board.until_nothing_is_left().await;
}
