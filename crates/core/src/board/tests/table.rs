//! The table alone, in orders of events that are rare on a board.

use super::{
    super::{queue::Place, subscription::Event, table::Table},
    *,
};
use tokio::time::advance;

use crate::lease::{
    hint::Cause as Hinted,
    policy::{Electorate, Nodes},
};

const MS: Duration = Duration::from_millis(1);

/// A table that receives hints of three nodes, and the current time.
fn table() -> (Table, Instant) {
    let now = Instant::now();
    let mut table = Table::new(Electorate::of(Nodes::first(3)));
    for node in 0..3 {
        table.connected(node, 1, now);
    }
    (table, now)
}

fn token(number: u64) -> Token {
    Token::new(number).expect("in range")
}

fn lease(number: u64) -> Lease {
    Lease {
        leader: candidate("a"),
        token: token(number),
        remaining: TERM,
        value: Value::default(),
        elected_at: 0,
    }
}

fn held(number: u64) -> Result<State, Error> {
    Ok(State::Held(lease(number)))
}

fn vacant(number: u64) -> Result<State, Error> {
    Ok(State::Vacant(Some(token(number))))
}

fn hint(cause: Hinted, number: u64) -> Hint {
    Hint {
        election: election("e"),
        cause,
        token: token(number),
    }
}

fn one() -> Scope {
    Scope::One(Arc::new(election("e")))
}

/// The texts of all events.
fn events(subscription: &Subscription) -> Vec<String> {
    std::iter::from_fn(|| subscription.take())
        .map(|event| match event {
            Event::State { seen, missed, .. } => {
                let missed = if missed { " missed" } else { "" };
                match &seen.state {
                    State::Held(lease) => format!("held {}{missed}", lease.token),
                    State::Vacant(_) => format!("vacant{missed}"),
                }
            }
            Event::Synced => "synced".to_owned(),
            Event::Certainty(doubt) => match doubt {
                Some(_) => "uncertain".to_owned(),
                None => "certain".to_owned(),
            },
            Event::TooMany => "too many".to_owned(),
            Event::Slow => "slow".to_owned(),
        })
        .collect()
}

/// Claims that were lost before the hint arrived do not use up the reads that wait for the announced change.
#[test]
fn older_claims_do_not_answer_a_hint() {
    let (mut table, now) = table();
    let _subscription = table.subscribe(one(), now);
    assert_eq!(table.take_due(now).len(), 1);
    table.learn(&election("e"), held(1), now, now);
    let later = now + SECOND;
    table.hinted(0, &hint(Hinted::Resign, 1), later);
    for _ in 0..5 {
        table.enqueue(
            &election("e"),
            Arc::new(someone()),
            lease(1),
            later - MS,
            later,
        );
    }
    for pause in [5, 2, 4, 8] {
        let due = table.next_read().expect("it is to be read");
        assert!(due <= later + 20 * MS, "{:?} of {pause}", due - later);
        assert_eq!(table.take_due(due).len(), 1);
        table.learn(&election("e"), held(1), due, due);
    }
    // The hint was forged, or its change undone.
    let due = table.next_read().expect("it is to be read");
    assert!(due > later + SECOND);
}

/// A group receives all present states before it is complete, also those that others know or whose read is in flight.
#[test]
fn a_group_knows_all_present_states_when_it_is_complete() {
    for (read, known) in [(true, true), (true, false), (false, true), (false, false)] {
        let (mut table, now) = table();
        let _subscription = table.subscribe(one(), now);
        if known {
            assert_eq!(table.take_due(now).len(), 1);
            table.learn(&election("e"), held(1), now, now);
            table.hinted(0, &hint(Hinted::Resign, 1), now);
            table.hinted(1, &hint(Hinted::Resign, 1), now);
        }
        if read {
            assert_eq!(table.take_due(now).len(), 1);
        }
        let group = table.subscribe(kind(), now);
        assert_eq!(table.take_listing(now), [kind()]);
        assert_eq!(events(&group), [""; 0], "it is not complete");
        let listed = vec![(election("e"), lease(1))];
        table.listed(&kind(), Some(Ok(listed)), now, now);
        assert_eq!(events(&group), ["held 1", "synced"], "{read} {known}");
        table.learn(&election("e"), vacant(1), now + MS, now + MS);
        assert_eq!(events(&group), ["vacant"], "{read} {known}");
        let late = table.subscribe(kind(), now);
        assert_eq!(
            events(&late),
            ["synced"],
            "a group does not report vacant elections"
        );
    }
}

/// One listing serves all groups of a kind that are due.
#[test]
fn groups_of_a_kind_are_listed_together() {
    let (mut table, now) = table();
    let of = |kind: &str, prefix: &str| Scope::Kind(Kind::new(kind).expect("valid"), prefix.into());
    let scopes = [
        of("a", ""),
        of("b", ""),
        of("a", "x"),
        Scope::All,
        of("a", "y"),
    ];
    let subscriptions = scopes.map(|scope| table.subscribe(scope, now));
    assert_eq!(
        table.take_listing(now),
        [of("a", ""), of("a", "x"), of("a", "y")]
    );
    assert_eq!(table.take_listing(now), [of("b", "")]);
    assert_eq!(table.take_listing(now), [Scope::All]);
    assert_eq!(table.take_listing(now), []);
    table.listed(&of("a", "x"), Some(Ok(Vec::new())), now, now);
    let later = now + 11 * SECOND;
    assert_eq!(
        table.take_listing(later),
        [of("a", "x")],
        "the others are being listed"
    );
    drop(subscriptions);
}

/// The unread events of a reader that stands still are dropped, and it receives only that fact.
#[tokio::test(start_paused = true)]
async fn who_does_not_read_for_long_is_told_so_and_nothing_else() {
    let (mut table, _) = table();
    let change = |table: &mut Table, number| {
        let now = Instant::now();
        table.learn(&election("e"), held(number), now, now);
    };
    let (reads, stands) = (
        table.subscribe(one(), Instant::now()),
        table.subscribe(one(), Instant::now()),
    );
    let late = table.subscribe(one(), Instant::now());
    change(&mut table, 1);
    assert_eq!(events(&reads), ["held 1", "synced"]);
    assert_eq!(events(&stands), ["held 1", "synced"]);
    advance(60 * SECOND).await;
    change(&mut table, 2);
    advance(29 * SECOND).await;
    change(&mut table, 3);
    // A pause without a change does not make the reader slow, nor does one shorter than the limit.
    assert_eq!(events(&reads), ["held 3 missed"]);
    advance(2 * SECOND).await;
    change(&mut table, 4);
    assert_eq!(events(&reads), ["held 4"]);
    assert_eq!(
        stands.take().map(|event| format!("{event:?}")),
        Some("Slow".to_owned())
    );
    assert_eq!(
        late.take().map(|event| format!("{event:?}")),
        Some("Slow".to_owned())
    );
    assert_eq!(
        late.take().map(|event| format!("{event:?}")),
        Some("Slow".to_owned())
    );
}

/// Only a hint reports a leader between two reads.
#[test]
fn leaders_that_only_hints_tell_of_are_missed_also_if_the_election_was_forgotten() {
    let (mut table, mut now) = table();
    let group = table.subscribe(kind(), now);
    assert_eq!(table.take_listing(now), [kind()]);
    table.listed(&kind(), Some(Ok(Vec::new())), now, now);
    assert_eq!(events(&group), ["synced"]);
    for (hints, event) in [
        (&[1_u64] as &[u64], "held 1"),
        (&[2, 3], "held 3 missed"),
        // A listing finds it.
        (&[], "held 4 missed"),
    ] {
        for number in hints {
            table.hinted(0, &hint(Hinted::Campaign, *number), now);
        }
        let last = hints.last().copied().unwrap_or(4);
        match hints {
            [] => {
                let found = vec![(election("e"), lease(4))];
                table.listed(&kind(), Some(Ok(found)), now, now);
            }
            _ => {
                assert_eq!(table.take_due(now + 5 * MS).len(), 1);
                table.learn(&election("e"), held(last), now, now);
            }
        }
        assert_eq!(events(&group), [event]);
        table.hinted(0, &hint(Hinted::Resign, last), now);
        table.learn(&election("e"), vacant(last), now, now);
        assert_eq!(events(&group), ["vacant"]);
        now = forget(&mut table, &vacant(last));
    }
}

/// Reads the election whenever it is due until the table forgets it, and returns when.
fn forget(table: &mut Table, found: &Result<State, Error>) -> Instant {
    loop {
        let due = table.next_read().expect("it is to be read");
        read(table, found.clone(), due);
        if table.counts().elections == 0 {
            return due;
        }
    }
}

/// A listing or a claim begins before the vacancy and ends after it.
#[test]
fn a_group_is_not_told_again_of_a_leader_that_has_gone() {
    let (mut table, now) = table();
    let group = table.subscribe(kind(), now);
    let found = || Some(Ok(vec![(election("e"), lease(1))]));
    assert_eq!(table.take_listing(now), [kind()]);
    table.listed(&kind(), found(), now, now);
    assert_eq!(events(&group), ["held 1", "synced"]);
    let later = now + SECOND;
    table.hinted(0, &hint(Hinted::Resign, 1), later);
    read(&mut table, vacant(1), later + 5 * MS);
    assert_eq!(events(&group), ["vacant"]);
    let late = later + 10 * MS;
    table.listed(&kind(), found(), now, late);
    let waits = |table: &mut Table, late| {
        let place = Arc::new(someone());
        table.enqueue(&election("e"), Arc::clone(&place), lease(1), now, late);
        let due = table.next_read().expect("it is to be read");
        assert!(due <= late + 50 * MS, "{:?}", due - late);
        read(table, vacant(1), due);
        table.leave(&election("e"), &place, due);
    };
    waits(&mut table, late);
    assert_eq!(events(&group), [""; 0]);
    // When the table has forgotten the vacancy, a claim is so old that the table ignores its result.
    let late = forget(&mut table, &vacant(1));
    assert!(late >= later + 10 * SECOND);
    waits(&mut table, late);
    assert_eq!(events(&group), [""; 0]);
}

/// A listing for an earlier observation shows no changes between then and the next observation.
#[test]
fn a_listing_from_before_the_watch_does_not_complete_it() {
    let (mut table, now) = table();
    let first = table.subscribe(kind(), now);
    assert_eq!(table.take_listing(now), [kind()]);
    table.unsubscribe(&first, now);
    let later = now + MS;
    let second = table.subscribe(kind(), later);
    assert_eq!(table.take_listing(later), [kind()]);
    table.listed(&kind(), Some(Ok(Vec::new())), now, later + MS);
    assert_eq!(events(&second), [""; 0]);
    table.listed(&kind(), Some(Ok(Vec::new())), later, later + MS);
    assert_eq!(events(&second), ["synced"]);
}

/// All doubts end when all reads succeed again, whenever an observation begins or an election is forgotten.
#[test]
fn every_doubt_of_every_watch_ends() {
    fn failed<T>() -> Result<T, Error> {
        Err(Error::DeadlineExceeded)
    }
    let (mut table, now) = table();
    let mut subscriptions = vec![table.subscribe(kind(), now), table.subscribe(one(), now)];
    table.take_listing(now);
    table.listed(&kind(), Some(failed()), now, now);
    subscriptions.push(table.subscribe(kind(), now));
    table.take_due(now);
    table.learn(&election("e"), failed(), now, now);
    subscriptions.push(table.subscribe(kind(), now));
    subscriptions.push(table.subscribe(one(), now));
    table.learn(&election("e"), failed(), now, now);
    table.hinted(0, &hint(Hinted::Campaign, 7), now);
    let other = Hint {
        election: election("other"),
        ..hint(Hinted::Campaign, 7)
    };
    table.hinted(0, &other, now);
    table.learn(&election("other"), failed(), now, now);
    for subscription in &subscriptions {
        assert_eq!(events(subscription), ["uncertain"]);
    }
    // No observer of the election alone is left, but the groups are still in doubt.
    table.unsubscribe(&subscriptions.remove(4), now);
    table.unsubscribe(&subscriptions.remove(1), now);
    table.listed(&kind(), Some(Ok(Vec::new())), now, now);
    table.learn(&election("e"), held(7), now, now);
    for subscription in &subscriptions {
        let events = events(subscription);
        assert!(!events.contains(&"certain".to_owned()), "{events:?}");
    }
    table.learn(&election("other"), vacant(7), now, now);
    for subscription in &subscriptions {
        assert_eq!(events(subscription), ["certain"]);
    }
    for subscription in subscriptions {
        table.unsubscribe(&subscription, now);
    }
    assert!(table.is_idle());
    assert_eq!(table.counts().timers, 0);
}

/// The delay of a claim is bounded for any reported number of agents.
#[tokio::test]
async fn claims_of_many_agents_are_spread_over_half_a_second_at_the_most() {
    for (agents, most) in [(3, 0), (20, 11), (usize::MAX - 1, 500)] {
        let place = someone();
        place.call(agents);
        let mut longest = Duration::ZERO;
        for _ in 0..200 {
            longest = longest.max(place.turn().await);
        }
        let most = Duration::from_millis(most);
        assert!(
            longest <= most && longest >= most / 2,
            "{longest:?} of {most:?}"
        );
    }
}

/// A waiter.
fn someone() -> Place {
    Place::new(candidate("someone"), Instant::now())
}

/// Adds a waiter to the queue.
fn wait(table: &mut Table, now: Instant) -> Arc<Place> {
    let place = Arc::new(someone());
    table.enqueue(&election("e"), Arc::clone(&place), lease(1), now, now);
    place
}

/// Reads the election, which is due now, with this result.
fn read(table: &mut Table, found: Result<State, Error>, now: Instant) {
    assert_eq!(table.take_due(now).len(), 1);
    table.learn(&election("e"), found, now, now);
}

/// The board learns only from its leaving that the first of the queue does not claim.
#[test]
fn who_goes_when_its_turn_has_come_is_passed_over() {
    let (mut table, now) = table();
    let (first, second) = (wait(&mut table, now), wait(&mut table, now));
    table.learn(&election("e"), vacant(1), now, now);
    assert!(first.is_called() && !second.is_called());
    table.leave(&election("e"), &first, now);
    read(&mut table, vacant(1), now);
    assert!(second.is_called());
    table.leave(&election("e"), &second, now);
    assert!(table.is_idle());
}

/// A hint waits for the hints of a majority, but not for long. Hints of known changes cause no read.
#[test]
fn a_read_follows_a_majority_of_hints() {
    let (mut table, now) = table();
    wait(&mut table, now);
    table.learn(&election("e"), held(5), now, now);
    let quiet = table.next_read().expect("it looks now and then");
    assert!(quiet > now + SECOND);
    for (cause, number) in [
        (Hinted::Campaign, 5),
        (Hinted::Repaired, 5),
        (Hinted::Resign, 4),
        (Hinted::RolledBack, 4),
    ] {
        table.hinted(0, &hint(cause, number), now);
        assert_eq!(table.next_read(), Some(quiet), "{cause:?} {number}");
    }
    table.hinted(0, &hint(Hinted::Resign, 5), now);
    table.hinted(0, &hint(Hinted::Resign, 5), now);
    assert_eq!(table.next_read(), Some(now + 5 * MS));
    table.hinted(2, &hint(Hinted::Resign, 5), now);
    assert_eq!(table.next_read(), Some(now));
}

/// Nodes with slow clocks and nodes that do not reply are not read in a busy loop.
#[test]
fn reads_are_paced_at_the_end_of_a_term_and_while_they_fail() {
    let (mut table, now) = table();
    wait(&mut table, now);
    let over = Lease {
        remaining: Duration::ZERO,
        ..lease(1)
    };
    table.take_due(now);
    table.learn(&election("e"), Ok(State::Held(over)), now, now);
    assert_eq!(table.next_read(), Some(now + 2 * MS));
    read(&mut table, Err(Error::DeadlineExceeded), now + 2 * MS);
    let next = table.next_read().expect("it polls") - now;
    assert!(next > 400 * MS && next < 605 * MS, "{next:?}");
}

/// Reads overtake each other.
#[test]
fn reads_that_began_earlier_take_nothing_back() {
    let (mut table, now) = table();
    let subscription = table.subscribe(one(), now);
    let later = now + SECOND;
    table.learn(&election("e"), held(2), later, later);
    assert_eq!(events(&subscription), ["held 2", "synced"]);
    for older in [held(1), vacant(1)] {
        table.learn(&election("e"), older, now, later);
        assert_eq!(events(&subscription), [""; 0]);
    }
    table.learn(&election("e"), held(1), later, later);
    assert_eq!(events(&subscription), ["held 1"], "it was rolled back");
    table.learn(&election("e"), vacant(1), later, later);
    table.learn(&election("e"), held(1), now, later);
    assert_eq!(events(&subscription), ["vacant"]);
}

/// Elections that a listing lacks may be vacant. More new elections than a group may read one by one cause a listing.
#[test]
fn groups_read_what_a_listing_lacks_and_list_what_they_cannot_read() {
    let (mut table, now) = table();
    let group = table.subscribe(kind(), now);
    assert_eq!(table.take_listing(now), [kind()]);
    let held = vec![(election("e"), lease(1))];
    table.listed(&kind(), Some(Ok(held)), now, now);
    assert_eq!(events(&group), ["held 1", "synced"]);
    assert!(table.next_read() > Some(now + SECOND));
    table.listed(&kind(), Some(Ok(Vec::new())), now, now);
    assert_eq!(table.next_read(), Some(now));
    assert!(table.next_listing() > Some(now + SECOND));
    for number in 0..1_000 {
        let hint = Hint {
            election: election(&number.to_string()),
            ..hint(Hinted::Campaign, 1)
        };
        table.hinted(0, &hint, now);
    }
    assert_eq!(table.counts().elections, 1 + 200);
    assert!(table.next_listing() <= Some(now + 500 * MS));
}

/// An observation whose reader does not read keeps a bounded number of changes.
#[test]
fn a_watch_of_too_many_elections_says_so() {
    for listing in [Some(Ok(())), None] {
        let (mut table, now) = table();
        let group = table.subscribe(kind(), now);
        let all = |()| {
            let number = 0..=MOST_ELECTIONS;
            let leases = number.map(|number| (election(&number.to_string()), lease(1)));
            leases.collect()
        };
        let listing = listing.map(|found: Result<(), Error>| found.map(all));
        table.listed(&kind(), listing, now, now);
        assert!(matches!(group.take(), Some(Event::TooMany)));
    }
}

/// Terms that end at about the same time are read together.
#[test]
fn what_is_due_soon_is_read_in_one_batch() {
    let (mut table, now) = table();
    for number in 0..100_u64 {
        let id = election(&number.to_string());
        table.enqueue(&id, Arc::new(someone()), lease(1), now, now);
        table.take_due(now);
        let remaining = TERM / 4 + Duration::from_micros(100 * number);
        let lease = Lease {
            remaining,
            ..lease(1)
        };
        table.learn(&id, Ok(State::Held(lease)), now, now);
    }
    let due = table.next_read().expect("terms end");
    assert!(due >= now + TERM / 4);
    assert_eq!(table.take_due(due).len(), 100);
    assert_eq!(table.counts().timers, 0);
}

/// The board remembers the last 64 changes of an election, the newest first, also after its last observer has left.
#[test]
fn changes_are_remembered_with_their_causes() {
    let (mut table, start) = table();
    let subscription = table.subscribe(one(), start);
    let mut now = start;
    let mut read = |table: &mut Table, state| {
        now += SECOND;
        table.learn(&election("e"), state, now, now);
    };
    read(&mut table, held(1));
    assert!(
        table.changes().of(&election("e")).is_empty(),
        "nothing has changed"
    );
    for number in 1..100 {
        read(&mut table, vacant(number));
        read(&mut table, held(number + 1));
    }
    table.unsubscribe(&subscription, now);
    let changes = table.changes().of(&election("e"));
    assert_eq!(changes.len(), 64);
    let tokens = changes.iter().map(|change| match &change.state {
        State::Held(lease) => (lease.token.get(), change.cause),
        State::Vacant(mark) => (mark.map_or(0, Token::get), change.cause),
    });
    let newest: Vec<_> = tokens.take(3).collect();
    assert_eq!(
        newest,
        [
            (100, Cause::Campaign),
            (99, Cause::Resign),
            (99, Cause::Campaign)
        ]
    );
    assert!(table.changes().of(&election("other")).is_empty());
}

/// The board remembers a change of an election that is new to a group if a hint announced the change.
#[test]
fn an_election_that_is_new_to_a_group_has_changed_if_a_hint_says_so() {
    for (cause, told) in [
        (Hinted::Campaign, Cause::Campaign),
        (Hinted::Handover, Cause::Handover),
    ] {
        let (mut table, now) = table();
        let _subscription = table.subscribe(Scope::All, now);
        assert_eq!(table.take_listing(now).len(), 1);
        table.listed(&Scope::All, Some(Ok(Vec::new())), now, now);
        let later = now + SECOND;
        table.hinted(0, &hint(cause, 1), later);
        table.hinted(1, &hint(cause, 1), later);
        assert_eq!(table.take_due(later).len(), 1);
        table.learn(&election("e"), held(1), later, later);
        let changes = table.changes().of(&election("e"));
        let causes: Vec<_> = changes.iter().map(|change| change.cause).collect();
        assert_eq!(causes, [told]);
    }
}

/// A leader between two reads is not reported; the vacancy after its term is.
#[test]
fn a_vacancy_after_a_term_that_no_read_saw_is_reported() {
    for (hinted, told, missed) in [
        (Some(Hinted::Resign), Cause::Resign, true),
        (Some(Hinted::RolledBack), Cause::RolledBack, false),
        (None, Cause::Resign, true),
    ] {
        let (mut table, now) = table();
        let subscription = table.subscribe(one(), now);
        table.take_due(now);
        table.learn(&election("e"), vacant(1), now, now);
        let later = now + SECOND;
        for node in 0..3 {
            if let Some(cause) = hinted {
                table.hinted(node, &hint(Hinted::Campaign, 5), later);
                table.hinted(node, &hint(cause, 5), later);
            }
        }
        table.learn(&election("e"), vacant(5), later, later);
        let changes = table.changes().of(&election("e"));
        let [change] = changes.as_slice() else {
            panic!("one change after {hinted:?}: {changes:?}");
        };
        assert_eq!((change.cause, change.missed), (told, missed), "{hinted:?}");
        assert!(matches!(change.state, State::Vacant(Some(last)) if last == token(5)));
        // A token that the nodes forget is no change.
        table.learn(&election("e"), Ok(State::Vacant(None)), later, later);
        assert_eq!(table.changes().of(&election("e")).len(), 1);
        table.unsubscribe(&subscription, later);
    }
}

/// Nodes that have lost their records know no token. A vacancy still has its cause, and the highest token.
#[test]
fn a_vacancy_without_a_token_has_its_cause() {
    for (hinted, after, told) in [
        (Some(Hinted::Resign), SECOND, Cause::Resign),
        (None, TERM, Cause::Expiry),
        (Some(Hinted::RolledBack), TERM, Cause::RolledBack),
        (None, SECOND, Cause::RolledBack),
    ] {
        let (mut table, now) = table();
        let subscription = table.subscribe(one(), now);
        table.take_due(now);
        table.learn(&election("e"), held(7), now, now);
        let later = now + after;
        for node in 0..3 {
            if let Some(cause) = hinted {
                table.hinted(node, &hint(cause, 7), later);
            }
        }
        table.learn(&election("e"), Ok(State::Vacant(None)), later, later);
        let changes = table.changes().of(&election("e"));
        let [change] = changes.as_slice() else {
            panic!("one change after {hinted:?}: {changes:?}");
        };
        assert!(
            matches!(change.state, State::Vacant(Some(highest)) if highest == token(7)),
            "{change:?}"
        );
        assert_eq!(change.cause, told, "{hinted:?}");
        table.unsubscribe(&subscription, later);
    }
}

/// Of the waiters, the new leader claims after a handover, and none after a grant: the leader may be another process of
/// the same name.
#[test]
fn who_waits_claims_what_was_handed_to_it() {
    for (cause, claims) in [(Hinted::Handover, true), (Hinted::Campaign, false)] {
        let (mut table, now) = table();
        let first = wait(&mut table, now);
        let named = Arc::new(Place::new(candidate("a"), now));
        table.enqueue(&election("e"), Arc::clone(&named), lease(1), now, now);
        let later = now + SECOND;
        for node in 0..2 {
            table.hinted(node, &hint(cause, 2), later);
        }
        assert_eq!(table.take_due(later).len(), 1);
        table.learn(&election("e"), held(2), later, later);
        assert_eq!(
            (first.is_called(), named.is_called()),
            (false, claims),
            "{cause:?}"
        );
        if claims {
            // Its own campaign has been elected.
            table.leave(&election("e"), &named, later);
            assert!(!first.is_called());
            assert_eq!(table.counts().waiters, 1);
        }
    }
}
