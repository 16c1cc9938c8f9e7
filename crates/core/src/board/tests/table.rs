//! The table alone, in orders of events that are rare on a board.

use super::{
    super::{queue::Place, table::Table, watch::Event},
    *,
};
use crate::lease::{
    hint::Cause as Hinted,
    policy::{Electorate, Nodes},
};

const MS: Duration = Duration::from_millis(1);

/// A table that hears three nodes, and the present.
fn table() -> (Table, Instant) {
    let now = Instant::now();
    let mut table = Table::new(Electorate::of(Nodes::first(3)));
    for node in 0..3 {
        table.hears(node, 1, now);
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
fn events(watch: &Watch) -> Vec<String> {
    std::iter::from_fn(|| watch.take())
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
        })
        .collect()
}

/// Claims that were lost before the hint was heard do not use up the reads that wait for what it announces.
#[test]
fn older_claims_do_not_answer_a_hint() {
    let (mut table, now) = table();
    let _watch = table.watch(one(), now);
    assert_eq!(table.take_due(now).len(), 1);
    table.learn(&election("e"), held(1), now, now);
    let later = now + SECOND;
    table.heard(0, &hint(Hinted::Resign, 1), later);
    for _ in 0..5 {
        table.enqueue(
            &election("e"),
            Arc::new(Place::default()),
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
    // It was forged, or undone.
    let due = table.next_read().expect("it is to be read");
    assert!(due > later + SECOND);
}

/// A leader between two reads, of which only a hint tells.
#[test]
fn leaders_that_only_hints_tell_of_are_missed_also_if_the_election_was_forgotten() {
    let (mut table, now) = table();
    let group = table.watch(kind(), now);
    assert!(table.take_listing(now).is_some());
    table.listed(&kind(), Some(Ok(Vec::new())), now, now);
    assert_eq!(events(&group), ["synced"]);
    for (hints, event) in [
        (&[1_u64] as &[u64], "held 1"),
        (&[2, 3], "held 3 missed"),
        // A listing found it.
        (&[], "held 4 missed"),
    ] {
        for number in hints {
            table.heard(0, &hint(Hinted::Campaign, *number), now);
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
        table.heard(0, &hint(Hinted::Resign, last), now);
        table.learn(&election("e"), vacant(last), now, now);
        assert_eq!(events(&group), ["vacant"]);
        assert_eq!(table.counts().elections, 0);
    }
}

/// A listing that began for a watch that has ended says nothing of what happened until the next watch began.
#[test]
fn a_listing_from_before_the_watch_does_not_complete_it() {
    let (mut table, now) = table();
    let first = table.watch(kind(), now);
    assert!(table.take_listing(now).is_some());
    table.unwatch(&first);
    let later = now + MS;
    let second = table.watch(kind(), later);
    assert!(table.take_listing(later).is_some());
    table.listed(&kind(), Some(Ok(Vec::new())), now, later + MS);
    assert_eq!(events(&second), [""; 0]);
    table.listed(&kind(), Some(Ok(Vec::new())), later, later + MS);
    assert_eq!(events(&second), ["synced"]);
}

/// Whenever a watch begins or an election is forgotten, its doubts are over when all reads succeed again.
#[test]
fn every_doubt_of_every_watch_ends() {
    fn failed<T>() -> Result<T, Error> {
        Err(Error::DeadlineExceeded)
    }
    let (mut table, now) = table();
    let mut watches = vec![table.watch(kind(), now), table.watch(one(), now)];
    table.take_listing(now);
    table.listed(&kind(), Some(failed()), now, now);
    watches.push(table.watch(kind(), now));
    table.take_due(now);
    table.learn(&election("e"), failed(), now, now);
    watches.push(table.watch(kind(), now));
    watches.push(table.watch(one(), now));
    table.learn(&election("e"), failed(), now, now);
    table.heard(0, &hint(Hinted::Campaign, 7), now);
    let other = Hint {
        election: election("other"),
        ..hint(Hinted::Campaign, 7)
    };
    table.heard(0, &other, now);
    table.learn(&election("other"), failed(), now, now);
    for watch in &watches {
        assert_eq!(events(watch), ["uncertain"]);
    }
    // Nobody watches it alone any longer, but the groups are still in doubt.
    table.unwatch(&watches.remove(4));
    table.unwatch(&watches.remove(1));
    table.listed(&kind(), Some(Ok(Vec::new())), now, now);
    table.learn(&election("e"), held(7), now, now);
    for watch in &watches {
        let events = events(watch);
        assert!(!events.contains(&"certain".to_owned()), "{events:?}");
    }
    table.learn(&election("other"), vacant(7), now, now);
    for watch in &watches {
        assert_eq!(events(watch), ["certain"]);
    }
    for watch in watches {
        table.unwatch(&watch);
    }
    assert!(table.is_idle());
    assert_eq!(table.counts().timers, 0);
}

/// However many agents are said to listen, a claim is not put off for long.
#[tokio::test]
async fn claims_of_many_agents_are_spread_over_half_a_second_at_the_most() {
    for (agents, most) in [(3, 0), (20, 11), (usize::MAX - 1, 500)] {
        let place = Place::default();
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

/// Terms that end at about the same time are read together.
#[test]
fn what_is_due_soon_is_read_in_one_batch() {
    let (mut table, now) = table();
    for number in 0..100_u64 {
        let id = election(&number.to_string());
        table.enqueue(&id, Arc::new(Place::default()), lease(1), now, now);
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
