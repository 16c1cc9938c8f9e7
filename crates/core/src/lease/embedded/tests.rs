//! The durable node over restarts, with a clock that the test sets.

mod full_disk;

use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::{clock, store, *};
use crate::{
    lease::{Registered, Replaces},
    types::{Candidate, RequestId, Term, Token, Value},
};

const NAMES: Names = Names {
    path: "PATH",
    restart_guard: "GUARD",
    max_term: "MAX_TERM",
};
const MINUTE: Duration = Duration::from_secs(60);
const BOUNDS: Bounds = Bounds {
    guard: Some(MINUTE),
    vote: Duration::from_secs(1),
};
const NONE: Registered = Registered {
    bound: Duration::ZERO,
    age: Duration::ZERO,
};
const PROBE: ProbeRequest = ProbeRequest {
    own: BOUNDS,
    guard: NONE,
    vote: NONE,
    write: true,
    closed: false,
};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A database in a directory of its own, on a host whose clocks the test sets. Its time since the start of the system
/// follows tokio's paused clock.
struct Host {
    directory: TempDir,
    began: Instant,
    /// The id of the system's start, and how far the wall clock was set.
    system: Arc<Mutex<(&'static str, i64)>>,
}

impl Host {
    fn new() -> Self {
        Self {
            directory: TempDir::new().expect("a directory"),
            began: Instant::now(),
            system: Arc::new(Mutex::new(("a", 0))),
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("leases.redb")
    }

    fn generation(&self) -> std::path::PathBuf {
        generation::path_for(&self.path())
    }

    /// Restarts the system, or sets its wall clock by this many seconds, or both.
    fn set(&self, boot: &'static str, wall: i64) {
        *self.system.lock().expect("whole") = (boot, wall);
    }

    fn open(&self, guard: Option<Duration>) -> Embedded {
        self.open_on(guard, |file| Box::new(file))
    }

    fn open_on(
        &self,
        guard: Option<Duration>,
        backend: impl FnOnce(FileBackend) -> store::Backend,
    ) -> Embedded {
        let (began, system) = (self.began, Arc::clone(&self.system));
        let clock = Clock::new(move || {
            let (boot, wall) = *system.lock().expect("whole");
            let passed = i64::try_from(began.elapsed().as_millis()).expect("in range");
            clock::Reading {
                boot: boot.to_owned(),
                since_boot_ms: 1_000_000 + passed,
                unix_ms: 1_700_000_000_000 + wall * 1_000 + passed,
            }
        });
        let settings = Settings {
            retention: secs(3_600),
            guard,
            vote: secs(1),
        };
        Embedded::open_at(&self.path(), settings, NAMES, clock, backend).expect("opened")
    }

    /// A node that has an incarnation record, and is ready if it is new.
    async fn ready(&self) -> Embedded {
        let node = self.open(Some(MINUTE));
        make_ready(&node).await;
        node
    }
}

async fn make_ready(node: &Embedded) {
    let unrecorded = node.probe(PROBE).await.expect("a reply").unrecorded;
    let marked = node.mark(&unrecorded, Duration::ZERO, BOUNDS).await;
    marked.expect("a reply");
}

fn election() -> ElectionId {
    ElectionId::new("", "e").expect("valid")
}

fn term(term: i64) -> Term {
    Term::from_millis(term * 1_000, MINUTE).expect("valid")
}

fn grant(candidate: &str, token: u64, lasts: i64) -> Grant {
    Grant {
        election: election(),
        candidate: Candidate::new("candidate", candidate).expect("valid"),
        token: Token::new(token).expect("valid"),
        grant_id: token,
        term: term(lasts),
        value: Value::new("").expect("valid"),
        request_id: None,
        repeat: false,
        elected_at: 1,
        replaces: Replaces::Own,
        bounds: BOUNDS,
        not_after: Instant::now() + secs(1),
    }
}

async fn granted(node: &Embedded, candidate: &str, token: u64, lasts: i64) {
    let mut grant = grant(candidate, token, lasts);
    grant.bounds.guard = node.settings.guard;
    let reply = node.grant(&grant).await;
    assert!(matches!(reply, Ok(GrantReply::Granted(_))), "{reply:?}");
}

async fn extended(node: &Embedded, leader: &str, lasts: i64) {
    let extend = Extend {
        election: election(),
        leader: Candidate::new("leader", leader).expect("valid"),
        token: None,
        term: term(lasts),
    };
    let reply = node.extend(&extend).await;
    assert!(matches!(reply, Ok(ExtendReply::Renewed(_))), "{reply:?}");
}

/// How many seconds the lease lasts.
async fn left(node: &Embedded) -> u64 {
    match node.read(&election()).await.expect("a reply") {
        Reading::Held(lease) => rounded(lease.remaining),
        _ => 0,
    }
}

/// How many seconds the node is in quarantine.
async fn guard(node: &Embedded) -> u64 {
    let mut request = PROBE;
    request.own.guard = node.settings.guard;
    let guard = node.probe(request).await.expect("a reply").guard;
    rounded(guard.unwrap_or_default())
}

/// Stored times are in whole ms.
fn rounded(duration: Duration) -> u64 {
    (duration + Duration::from_millis(500)).as_secs()
}

async fn pass(seconds: u64) {
    tokio::time::advance(secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_restored_lease_lasts_a_term_from_the_first_opening_after_its_leader_was_heard() {
    let host = Host::new();
    let node = host.ready().await;
    granted(&node, "a", 1, 10).await;
    pass(4).await;
    drop(node);
    let node = host.open(Some(MINUTE));
    assert_eq!(left(&node).await, 10, "it may have been extended just now");
    drop(node);
    for expected in [7, 4, 1, 0, 0] {
        pass(3).await;
        assert_eq!(left(&host.open(Some(MINUTE))).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_extended_after_a_restart_has_its_full_term_after_the_next() {
    let host = Host::new();
    let node = host.ready().await;
    granted(&node, "a", 1, 10).await;
    drop(node);
    for _ in 0..3 {
        let node = host.open(Some(MINUTE));
        pass(6).await;
        extended(&node, "a", 10).await;
        extended(&node, "a", 10).await;
        pass(3).await;
        drop(node);
        assert_eq!(left(&host.open(Some(MINUTE))).await, 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_grant_after_a_restart_counts_in_full_after_the_next() {
    let host = Host::new();
    let node = host.ready().await;
    let mut first = grant("a", 1, 10);
    first.request_id = RequestId::new("once").expect("valid");
    node.grant(&first).await.expect("a reply");
    drop(node);
    let node = host.open(Some(MINUTE));
    pass(6).await;
    let again = Grant {
        token: Token::new(2).expect("valid"),
        repeat: true,
        not_after: Instant::now() + secs(1),
        ..first
    };
    let reply = node.grant(&again).await.expect("a reply");
    assert_eq!(reply, GrantReply::Granted(Token::new(1).expect("valid")));
    pass(3).await;
    drop(node);
    assert_eq!(left(&host.open(Some(MINUTE))).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_is_withdrawn_does_not_renew_what_it_replaced() {
    let host = Host::new();
    let node = host.ready().await;
    granted(&node, "a", 1, 10).await;
    drop(node);
    let node = host.open(Some(MINUTE));
    pass(3).await;
    granted(&node, "a", 2, 10).await;
    node.roll_back(&grant("a", 2, 10)).await.expect("a reply");
    assert_eq!(left(&node).await, 7);
    drop(node);
    assert_eq!(left(&host.open(Some(MINUTE))).await, 7);
}

#[tokio::test(start_paused = true)]
async fn what_clocks_show_after_another_start_of_the_system_makes_no_lease_longer_than_its_term() {
    let host = Host::new();
    let node = host.ready().await;
    granted(&node, "a", 1, 10).await;
    drop(node);
    drop(host.open(Some(MINUTE)));
    host.set("b", 0);
    pass(4).await;
    assert_eq!(left(&host.open(Some(MINUTE))).await, 6, "by the wall clock");
    host.set("c", -5_000);
    pass(1).await;
    assert_eq!(left(&host.open(Some(MINUTE))).await, 10, "it is not known");
    // The wall clock is still wrong, but the system was not restarted.
    pass(4).await;
    assert_eq!(left(&host.open(Some(MINUTE))).await, 6);
    pass(7).await;
    assert_eq!(left(&host.open(Some(MINUTE))).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_wait_is_waited_for_after_restarts() {
    let host = Host::new();
    granted(&host.ready().await, "a", 1, 10).await;
    std::fs::remove_file(host.generation()).expect("removed");
    assert_eq!(guard(&host.open(Some(MINUTE))).await, 60);
    for expected in [40, 20] {
        pass(20).await;
        assert_eq!(guard(&host.open(Some(MINUTE))).await, expected);
    }
    host.set("b", -5_000);
    assert_eq!(
        guard(&host.open(Some(MINUTE))).await,
        60,
        "not known, but not longer"
    );
    pass(50).await;
    let node = host.open(Some(MINUTE));
    assert_eq!(guard(&node).await, 10);
    let reply = node.grant(&grant("b", 2, 10)).await;
    assert!(matches!(reply, Ok(GrantReply::Guarded(_))), "{reply:?}");
    pass(11).await;
    granted(&node, "b", 3, 10).await;
    drop(node);
    assert_eq!(guard(&host.open(Some(MINUTE))).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_was_asked_for_ends_although_the_agent_restarts() {
    let host = Host::new();
    let node = host.open(Some(MINUTE));
    let unrecorded = node.probe(PROBE).await.expect("a reply").unrecorded;
    let marked = node.mark(&unrecorded, MINUTE, BOUNDS).await;
    marked.expect("a reply");
    drop(node);
    for expected in [20, 0] {
        pass(40).await;
        assert_eq!(guard(&host.open(Some(MINUTE))).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn longer_guards_of_the_past_count_until_they_are_over() {
    let host = Host::new();
    granted(&host.ready().await, "a", 1, 60).await;
    let lost = || std::fs::remove_file(host.generation()).expect("removed");
    drop(host.open(Some(secs(5))));
    pass(30).await;
    lost();
    assert_eq!(guard(&host.open(Some(secs(2)))).await, 60);
    pass(61).await;
    lost();
    assert_eq!(guard(&host.open(Some(secs(2)))).await, 2);
    // Now the time runs from the start with the shorter guard, and is over.
    drop(host.open(Some(secs(30))));
    drop(host.open(Some(secs(2))));
    pass(31).await;
    lost();
    assert_eq!(guard(&host.open(Some(secs(2)))).await, 2);
}

#[tokio::test(start_paused = true)]
async fn terms_that_were_granted_without_a_guard_count_when_there_is_one() {
    let host = Host::new();
    granted(&host.open(None), "a", 1, 50).await;
    std::fs::remove_file(host.generation()).expect("removed");
    let node = host.open(None);
    granted(&node, "a", 2, 50).await;
    assert_eq!(guard(&node).await, 0);
    drop(node);
    pass(10).await;
    assert_eq!(guard(&host.open(Some(secs(5)))).await, 40);
}

#[tokio::test(start_paused = true)]
async fn a_database_of_format_1_is_taken_over_after_one_wait() {
    let host = Host::new();
    let lease =
        r#"{"leader":"a","token":7,"value":"","request_id":"","elected_at":1,"term_ms":90000}"#;
    let record = format!(r#"{{"floor":7,"lease":{lease}}}"#);
    store::tests::format_1(&host.path(), Some(0), &[("default/e", &record)]);
    let node = host.open(Some(MINUTE));
    assert_eq!(
        (guard(&node).await, left(&node).await),
        (90, 90),
        "the stored term is longer"
    );
    drop(node);
    pass(20).await;
    let node = host.open(Some(MINUTE));
    assert_eq!((guard(&node).await, left(&node).await), (70, 70));
    pass(71).await;
    granted(&node, "b", 8, 10).await;
    drop(node);
    assert_eq!(guard(&host.open(Some(MINUTE))).await, 0);

    let unused = Host::new();
    store::tests::format_1(&unused.path(), None, &[]);
    granted(&unused.ready().await, "a", 1, 10).await;
}

#[tokio::test(start_paused = true)]
async fn an_older_lineage_is_noticed_however_many_commits_it_has() {
    let (here, there) = (Host::new(), Host::new());
    granted(&here.ready().await, "a", 1, 10).await;
    std::fs::copy(here.path(), there.path()).expect("copied");
    // Elsewhere the copy continues, and makes more commits than the original.
    let node = there.open(Some(MINUTE));
    pass(61).await;
    for token in 2..20 {
        granted(&node, "a", token, 10).await;
    }
    drop(node);
    granted(&here.ready().await, "a", 30, 10).await;
    std::fs::copy(there.path(), here.path()).expect("copied");
    assert_eq!(guard(&here.open(Some(MINUTE))).await, 60);
    assert_eq!(guard(&here.open(Some(MINUTE))).await, 60, "once");
}

#[tokio::test(start_paused = true)]
async fn a_side_file_that_is_behind_is_no_reason_to_wait() {
    let host = Host::new();
    let node = host.ready().await;
    let earlier = std::fs::read(host.generation()).expect("readable");
    granted(&node, "a", 1, 10).await;
    drop(node);
    let behind = generation::tests::parse(&earlier);
    drop(generation::Side::create(&host.generation(), &behind).expect("written"));
    assert_eq!(guard(&host.open(Some(MINUTE))).await, 0);
}
