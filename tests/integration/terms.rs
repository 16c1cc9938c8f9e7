//! Terms lapse on time: not before, and not much later.

use std::time::{Duration, Instant};

use crate::harness::{Fixture, Store, on_every_store};

on_every_store! {
    a_term_lapses_on_time_and_not_before,
    an_extended_term_lapses_after_the_extension,
}

/// How much later than the term the election may still be held.
const LATE: Duration = Duration::from_millis(50);

/// Campaigns as another candidate until elected, and checks when that was against the term that began
/// between `sent` and `answered`.
///
/// A request sent late only makes the check weaker, never wrong, so a slow machine does not fail it.
async fn check_lapse(fixture: &Fixture, term: Duration, sent: Instant, answered: Instant) {
    loop {
        let asked = Instant::now();
        let result = fixture.agent.campaign("e", "b", 1_000).await;
        let told = Instant::now();
        if result.elected {
            assert!(told >= sent + term, "{:?} early", sent + term - told);
            return;
        }
        assert!(
            asked <= answered + term + LATE,
            "still held to a request sent {:?} after the term",
            asked - (answered + term)
        );
        assert_eq!(result.leader, "a");
    }
}

async fn a_term_lapses_on_time_and_not_before(store: Store) {
    let fixture = Fixture::on(store).await;
    let sent = Instant::now();
    assert!(fixture.agent.campaign("e", "a", 1_000).await.elected);
    check_lapse(&fixture, Duration::from_secs(1), sent, Instant::now()).await;
}

async fn an_extended_term_lapses_after_the_extension(store: Store) {
    let fixture = Fixture::on(store).await;
    assert!(fixture.agent.campaign("e", "a", 1_000).await.elected);
    let sent = Instant::now();
    assert!(fixture.agent.extend("e", "a", 1_500, 0).await.value);
    check_lapse(&fixture, Duration::from_millis(1_500), sent, Instant::now()).await;
    assert_eq!(
        fixture.agent.extend("e", "a", 1_000, 0).await.reason,
        "HELD_BY_OTHER"
    );
}
