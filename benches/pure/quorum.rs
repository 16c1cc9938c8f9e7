//! A decision by nodes that reply at once: the cost of the quorum itself, and how it grows with the number of
//! nodes.
//!
//! `win` campaigns for a vacant election, and `lose` for one that another candidate leads. `extend` and
//! `read` use a held election.

use std::{future::ready, sync::Arc, time::Duration};

use criterion::{BenchmarkId, Criterion};
use election_core::{
    election::Error,
    lease::{
        Extend, Replaces, Resign, Settings, State,
        embedded::Embedded,
        guard::RestartGuard,
        quorum::{Claim, Claimed, Options, Quorum},
    },
    types::{Candidate, ElectionId, Term, Value},
};
use tokio::time::Instant;

use crate::measure::{calls, group, runtime};

/// Longer than all benchmarks together.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Creates a quorum of nodes in this process.
pub(crate) fn of(nodes: usize) -> Quorum {
    let settings = Settings {
        retention: HOUR,
        guard: RestartGuard::On.duration(HOUR),
        vote: Duration::from_secs(3),
    };
    let nodes = (0..nodes).map(|_| Arc::new(Embedded::in_memory(settings)) as _);
    let options = Options::new(Duration::from_secs(3), RestartGuard::On, HOUR);
    Quorum::new(nodes.collect(), options)
}

pub(crate) fn election(name: &str) -> ElectionId {
    ElectionId::new("batch", name).expect("a name")
}

pub(crate) fn candidate(name: &str) -> Candidate {
    Candidate::new("candidate", name).expect("a name")
}

/// The longest term: an hour.
pub(crate) fn term() -> Term {
    let ms = i64::try_from(HOUR.as_millis()).expect("few");
    Term::from_millis(ms, HOUR).expect("a term")
}

fn claim(election: ElectionId, name: &str) -> Claim {
    Claim {
        election,
        candidate: candidate(name),
        term: term(),
        value: Value::new("10.0.0.7:9000").expect("a value"),
        waited_since: None,
        request_id: None,
        replaces: Replaces::Own,
    }
}

pub(crate) fn benches(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = group(criterion, "quorum");
    for nodes in [1, 3, 5] {
        let quorum = of(nodes);
        let deadline = runtime.block_on(async { Instant::now() + HOUR });
        let held = election("nightly-report");
        let leads = runtime.block_on(quorum.claim(claim(held.clone(), "worker-1"), deadline));
        assert!(matches!(leads, Ok(Claimed::Won { .. })), "{leads:?}");
        let of_nodes = match nodes {
            1 => "1 node".to_owned(),
            _ => format!("{nodes} nodes"),
        };
        let named = |name: &str| BenchmarkId::new(name, &of_nodes);

        let extend = Extend {
            election: held.clone(),
            leader: candidate("worker-1"),
            token: None,
            term: term(),
        };
        let asked = quorum.clone();
        group.bench_function(named("extend"), |bencher| {
            let (asked, extend) = (asked.clone(), extend.clone());
            let prepare = move |_| ready(extend.clone());
            calls(bencher, &runtime, prepare, move |extend| {
                let asked = asked.clone();
                async move { asked.extend(extend, deadline).await.is_ok() }
            });
        });

        let asked = quorum.clone();
        group.bench_function(named("win"), |bencher| {
            let (resigned, asked) = (asked.clone(), asked.clone());
            // Vacates the election, which the batch before may have won.
            let prepare = move |number: u64| {
                let (resigned, vacant) = (resigned.clone(), election(&format!("e{number}")));
                async move {
                    let resign = Resign {
                        election: vacant.clone(),
                        leader: candidate("worker-1"),
                        token: None,
                    };
                    let done = resigned.resign(resign, deadline).await;
                    assert!(matches!(done, Ok(()) | Err(Error::Denied(_))), "{done:?}");
                    claim(vacant, "worker-1")
                }
            };
            calls(bencher, &runtime, prepare, move |claim| {
                let asked = asked.clone();
                async move {
                    let claimed = asked.claim(claim, deadline).await;
                    matches!(claimed, Ok(Claimed::Won { .. }))
                }
            });
        });

        let (asked, wanted) = (quorum.clone(), held.clone());
        group.bench_function(named("lose"), |bencher| {
            let (asked, wanted) = (asked.clone(), wanted.clone());
            let prepare = move |_| ready(claim(wanted.clone(), "worker-2"));
            calls(bencher, &runtime, prepare, move |claim| {
                let asked = asked.clone();
                async move {
                    let claimed = asked.claim(claim, deadline).await;
                    matches!(claimed, Ok(Claimed::Lost(_)))
                }
            });
        });

        group.bench_function(named("read"), |bencher| {
            let (asked, held) = (quorum.clone(), held.clone());
            let prepare = move |_| ready(held.clone());
            calls(bencher, &runtime, prepare, move |held| {
                let asked = asked.clone();
                async move { matches!(asked.read(&held, deadline).await, Ok(State::Held(_))) }
            });
        });
    }
}
