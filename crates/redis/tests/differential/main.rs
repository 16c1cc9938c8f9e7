//! The same random operations on the in-process node and on a real Redis give the same replies.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

mod lists;
mod twins;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use election_core::{
    lease::{
        Bounds, Extend, ExtendReply, Grant, GrantReply, Kinds, Lease, LeaseNode, NodeError, Onto,
        Page, ProbeRequest, Reading, Registered, Repair, Replaces, Resign, ResignReply, Settings,
        Unrecorded, embedded::Embedded,
    },
    types::{Candidate, ElectionId, Kind, RequestId, Term, Token, Value},
};
use election_redis::{Askers, Deployment, Names, Redis as RedisNode, Server, Use};
use futures_util::future::join_all;
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use test_servers::{Cluster, Redis};
use tokio::time::Instant;

const SETTINGS: Settings = Settings {
    retention: Duration::from_secs(3600),
    guard: Some(Duration::from_secs(60)),
    vote: VOTE,
};
const VOTE: Duration = Duration::from_secs(10);
const BOUNDS: Bounds = Bounds {
    guard: SETTINGS.guard,
    vote: VOTE,
};

const NONE: Registered = Registered {
    bound: Duration::ZERO,
    age: Duration::ZERO,
};

/// A probe that may write.
const PROBE: ProbeRequest = ProbeRequest {
    own: BOUNDS,
    guard: NONE,
    vote: NONE,
    write: true,
    closed: false,
};

/// The names that errors use for settings.
const NAMES: Names = Names {
    urls: "urls",
    mode: "mode",
    master: "master",
    sentinel_username: "username",
    sentinel_password: "password",
    prefix: "prefix",
    allow_eviction: "eviction",
};

/// Stands for the node's own incarnation.
const OWN_INCARNATION: &str = "own";

/// An operation of a node.
#[derive(Debug, Clone)]
enum Op {
    Grant(Grant),
    Extend(Extend),
    ExtendMany(Vec<Arc<Extend>>),
    Repair(Repair),
    Resign(Resign),
    RollBack(Grant),
    Read(ElectionId),
    /// Of a kind, or of all kinds.
    List(Option<Kind>, Option<ElectionId>, usize),
    Kinds(Option<Kind>, usize),
    /// How long to wait, and whether it names the node's own incarnation.
    Mark(Duration, bool),
    Probe(ProbeRequest),
}

/// What a node replied, without what depends on the moment: times left.
#[derive(Debug, PartialEq)]
enum Reply {
    Granted(GrantReply),
    Extended(ExtendReply),
    ExtendedMany(Vec<ExtendReply>),
    Repaired(bool),
    Resigned(ResignReply),
    Nothing,
    Marked(usize),
    Read(Reading),
    Page(Page),
    Kinds(Kinds),
    /// How long the node is in quarantine, how many partitions have no incarnation record, and the longest bounds.
    Probed(Option<Duration>, usize, [Registered; 2]),
}

/// Rounds a time left up to thirty seconds, by which terms differ: the time since the two nodes began to count must not
/// matter, nor the time between their replies.
fn rounded(left: Duration) -> Duration {
    Duration::from_secs((left.as_secs() + 28) / 30 * 30)
}

/// Rounds an age down to thirty seconds, for the same reasons.
fn rounded_age(age: Duration) -> Duration {
    Duration::from_secs((age.as_secs() + 1) / 30 * 30)
}

fn timeless(lease: Lease) -> Lease {
    Lease {
        remaining: rounded(lease.remaining),
        ..lease
    }
}

/// The incarnation that serves the election, with or without a record.
async fn own_incarnation(
    node: &dyn LeaseNode,
    election: &ElectionId,
) -> Result<Option<String>, NodeError> {
    let unrecorded = node.probe(PROBE).await?.unrecorded;
    Ok(match unrecorded.into_iter().next() {
        Some(part) => Some(part.incarnation),
        None => node.incarnation(election).map(|incarnation| incarnation.id),
    })
}

async fn apply(node: &dyn LeaseNode, op: &Op) -> Result<Reply, NodeError> {
    Ok(match op {
        Op::Grant(grant) => Reply::Granted(match node.grant(&timely(grant)).await? {
            GrantReply::Held(lease) => GrantReply::Held(timeless(lease)),
            GrantReply::Guarded(wait) => GrantReply::Guarded(rounded(wait)),
            reply => reply,
        }),
        Op::Extend(extend) => Reply::Extended(node.extend(extend).await?),
        Op::ExtendMany(extends) => {
            let replies = node.extend_many(extends).await.into_iter();
            Reply::ExtendedMany(replies.collect::<Result<_, _>>()?)
        }
        Op::Repair(repair) => {
            // A repair names an incarnation, which has another name on each node: its own, or another.
            let own = own_incarnation(node, &repair.election).await?;
            let own = own.filter(|_| repair.incarnation == OWN_INCARNATION);
            let repair = Repair {
                incarnation: own.unwrap_or_default(),
                not_after: in_time(repair.not_after),
                ..repair.clone()
            };
            Reply::Repaired(node.repair(&repair).await?)
        }
        Op::Resign(resign) => Reply::Resigned(node.resign(resign).await?),
        Op::RollBack(grant) => {
            node.roll_back(&timely(grant)).await?;
            Reply::Nothing
        }
        Op::Read(election) => Reply::Read(match node.read(election).await? {
            Reading::Held(lease) => Reading::Held(timeless(lease)),
            reading => reading,
        }),
        Op::List(kind, after, limit) => {
            let page = node.list(kind.as_ref(), after.as_ref(), *limit).await?;
            Reply::Page(Page {
                leases: page
                    .leases
                    .into_iter()
                    .map(|(election, lease)| (election, timeless(lease)))
                    .collect(),
                next: page.next,
                incomplete: page.incomplete,
            })
        }
        Op::Kinds(after, limit) => Reply::Kinds(node.kinds(after.as_ref(), *limit).await?),
        Op::Mark(wait, of_this_run) => {
            let any = ElectionId::new("k", "a").expect("valid");
            let own = own_incarnation(node, &any).await?.filter(|_| *of_this_run);
            let unrecorded = Unrecorded {
                partition: 0,
                incarnation: own.unwrap_or_default(),
            };
            Reply::Marked(node.mark(&[unrecorded], *wait, BOUNDS).await?)
        }
        Op::Probe(request) => {
            let probe = node.probe(*request).await?;
            // A probe that only reads does not report how long the node is in quarantine.
            let guard = probe.guard.filter(|_| request.write);
            let longest = [probe.longest_guard, probe.longest_vote].map(|told| Registered {
                age: rounded_age(told.age),
                ..told
            });
            Reply::Probed(guard.map(rounded), probe.unrecorded.len(), longest)
        }
    })
}

/// Stands for an instant that has passed when the node is called; any other has not.
fn past() -> Instant {
    // An agent knows a node's clock only to within the time of a message.
    static PAST: LazyLock<Instant> = LazyLock::new(|| Instant::now() - Duration::from_secs(10));
    *PAST
}

fn in_time(not_after: Instant) -> Instant {
    match not_after == past() {
        true => not_after,
        false => Instant::now() + Duration::from_secs(60),
    }
}

fn timely(grant: &Grant) -> Grant {
    Grant {
        not_after: in_time(grant.not_after),
        ..grant.clone()
    }
}

/// Rarely an instant that has passed.
fn not_after() -> impl Strategy<Value = Instant> {
    prop::bool::weighted(0.1).prop_map(|late| match late {
        true => past(),
        false => past() + Duration::from_secs(1),
    })
}

/// Rarely bounds that are longer than the registered ones.
fn bounds() -> impl Strategy<Value = Bounds> {
    prop::sample::select(vec![
        (60, 10),
        (60, 10),
        (60, 10),
        (60, 10),
        (60, 20),
        (90, 10),
        (0, 10),
    ])
    .prop_map(|(guard, vote)| Bounds {
        guard: Some(Duration::from_secs(guard)).filter(|guard| !guard.is_zero()),
        vote: Duration::from_secs(vote),
    })
}

/// A bound that another node has reported, and its age.
fn registered() -> impl Strategy<Value = Registered> {
    prop::sample::select(vec![(0, 0), (0, 0), (30, 0), (120, 30)]).prop_map(|(bound, age)| {
        Registered {
            bound: Duration::from_secs(bound),
            age: Duration::from_secs(age),
        }
    })
}

fn election() -> impl Strategy<Value = ElectionId> {
    prop::sample::select(vec![
        ("k", "a"),
        ("k", "b"),
        ("k", "é{0}"),
        ("k0", "a"),
        ("j", "a"),
    ])
    .prop_map(|(kind, name)| ElectionId::new(kind, name).expect("valid"))
}

fn candidate() -> impl Strategy<Value = Candidate> {
    prop::sample::select(vec!["x", "y", "z/1"])
        .prop_map(|name| Candidate::new("candidate", name).expect("valid"))
}

/// Around 2^52, where numbers that went through a float's text form would lose digits.
fn token() -> impl Strategy<Value = Token> {
    (0..12_u64).prop_map(|n| Token::new((1 << 52) + n).expect("in range"))
}

fn term(ms: &'static [i64]) -> impl Strategy<Value = Term> {
    prop::sample::select(ms)
        .prop_map(|ms| Term::from_millis(ms, Duration::from_secs(60)).expect("in range"))
}

fn over() -> impl Strategy<Value = Replaces> {
    prop_oneof![
        4 => Just(Replaces::Own),
        1 => Just(Replaces::Nothing),
        1 => Just(Replaces::Anything),
        1 => Just(Replaces::AnyLeader),
        1 => Just(Replaces::NothingHeld),
        2 => (candidate(), prop::option::of(token())).prop_map(|(who, token)| Replaces::Of(who, token)),
    ]
}

fn op(terms: &'static [i64]) -> impl Strategy<Value = Op> {
    let value = || prop::sample::select(vec!["", "v", "10.0.0.1:80\n\u{0}é"]);
    let grant = || {
        (
            (election(), candidate(), token(), term(terms)),
            (
                value(),
                prop::sample::select(vec!["", "r1", "r2"]),
                over(),
                0..4_u64,
                prop::bool::weighted(0.8),
            ),
            (bounds(), not_after()),
        )
            .prop_map(
                |(
                    (election, candidate, token, term),
                    (value, id, over, attempt, repeat),
                    (bounds, not_after),
                )| Grant {
                    election,
                    candidate,
                    token,
                    grant_id: attempt,
                    term,
                    value: Value::new(value).expect("valid"),
                    request_id: RequestId::new(id).expect("valid"),
                    elected_at: 1_795_000_000_000,
                    repeat,
                    replaces: over,
                    bounds,
                    not_after,
                },
            )
    };
    let extend = || {
        (
            election(),
            candidate(),
            prop::option::of(token()),
            term(terms),
        )
            .prop_map(|(election, leader, token, term)| Extend {
                election,
                leader,
                token,
                term,
            })
    };
    let extend_many = prop::collection::vec(extend().prop_map(Arc::new), 0..4);
    let incarnation = prop_oneof![9 => Just(OWN_INCARNATION), 1 => Just("another")];
    let repair = (
        election(),
        candidate(),
        token(),
        term(terms),
        value(),
        incarnation,
        prop::sample::select(vec![Onto::Own, Onto::Vacant, Onto::Unacknowledged]),
        (bounds(), not_after()),
    )
        .prop_map(
            |(election, leader, token, term, value, incarnation, onto, (bounds, not_after))| {
                Op::Repair(Repair {
                    election,
                    lease: Lease {
                        leader,
                        token,
                        value: Value::new(value).expect("valid"),
                        elected_at: 1_795_000_000_001,
                        remaining: term.duration(),
                    },
                    term,
                    incarnation: incarnation.to_owned(),
                    onto,
                    bounds,
                    not_after,
                })
            },
        );
    let resign = (election(), candidate(), prop::option::of(token())).prop_map(
        |(election, leader, token)| {
            Op::Resign(Resign {
                election,
                leader,
                token,
            })
        },
    );
    let kind = || {
        let kinds = prop::sample::select(vec!["k", "k0", "none"]);
        kinds.prop_map(|kind| Kind::new(kind).expect("valid"))
    };
    let list = (
        prop::option::weighted(0.7, kind()),
        prop::option::of(election()),
        1..4_usize,
    )
        .prop_map(|(kind, after, limit)| {
            let of_kind = |after: &ElectionId| {
                let kind = kind.as_ref();
                kind.is_none_or(|kind| after.kind() == kind.as_str())
            };
            let after = after.filter(of_kind);
            Op::List(kind, after, limit)
        });
    let kinds = (prop::option::of(kind()), 1..4_usize);
    let kinds = kinds.prop_map(|(after, limit)| Op::Kinds(after, limit));
    prop_oneof![
        8 => grant().prop_map(Op::Grant),
        4 => extend().prop_map(Op::Extend),
        2 => extend_many.prop_map(Op::ExtendMany),
        2 => repair,
        2 => resign,
        3 => grant().prop_map(Op::RollBack),
        2 => election().prop_map(Op::Read),
        2 => list,
        1 => kinds,
        1 => (prop::sample::select(vec![0, 60]), prop::bool::weighted(0.8))
            .prop_map(|(s, of_this_run)| Op::Mark(Duration::from_secs(s), of_this_run)),
        1 => (bounds(), registered(), registered(), prop::bool::weighted(0.8))
            .prop_map(|(own, guard, vote, write)| Op::Probe(ProbeRequest { own, guard, vote, write, ..PROBE })),
    ]
}

fn on_server(redis: &Redis) -> Deployment {
    Deployment::Server(Server::from_url(&redis.url(), None).expect("a URL"))
}

/// A node on the server or servers, which uses this prefix and names this list of nodes.
async fn node(deployment: Deployment, prefix: &str, nodes: &str) -> RedisNode {
    let usage = Use {
        prefix: prefix.to_owned(),
        nodes: nodes.to_owned(),
        max_term: Duration::from_secs(60),
        allow_eviction: false,
        names: NAMES,
    };
    RedisNode::start(deployment, usage, VOTE, SETTINGS, Askers::here()).await
}

/// Both nodes, new; with incarnation records if `marked`.
async fn pair(deployment: Deployment, prefix: usize, marked: bool) -> (Embedded, RedisNode) {
    pair_with(Embedded::in_memory(SETTINGS), deployment, prefix, marked).await
}

async fn pair_with(
    model: Embedded,
    deployment: Deployment,
    prefix: usize,
    marked: bool,
) -> (Embedded, RedisNode) {
    let nodes = deployment.identity();
    let real = node(deployment, &format!("p{prefix}"), &nodes).await;
    // The node learns its incarnation from a probe.
    real.probe(PROBE).await.expect("answers");
    if marked {
        for node in [&model as &dyn LeaseNode, &real] {
            let unrecorded = node.probe(PROBE).await.expect("answers").unrecorded;
            let marked = node.mark(&unrecorded, Duration::ZERO, BOUNDS).await;
            assert_eq!(marked, Ok(unrecorded.len()));
            node.probe(PROBE).await.expect("answers");
        }
    }
    (model, real)
}

async fn same_replies(
    (model, real): &(Embedded, RedisNode),
    ops: &[Op],
) -> Result<(), TestCaseError> {
    for (n, op) in ops.iter().enumerate() {
        let expected = apply(model, op).await.expect("in memory nothing fails");
        let replied = apply(real, op).await.expect("Redis answers");
        prop_assert_eq!(
            &replied,
            &expected,
            "operation {}: {:?} of {:?}",
            n,
            op,
            ops
        );
    }
    Ok(())
}

fn compare(
    runtime: &tokio::runtime::Runtime,
    deployment: &Deployment,
    cases: u32,
    sequences: impl Strategy<Value = (Vec<Op>, bool)>,
) {
    let case = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&sequences, |(ops, marked)| {
            case.set(case.get() + 1);
            runtime.block_on(async {
                let nodes = pair(deployment.clone(), case.get(), marked).await;
                same_replies(&nodes, &ops).await
            })
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn redis_replies_as_the_in_process_node_does() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let redis = runtime.block_on(Redis::start());
    let sequences = (
        prop::collection::vec(op(&[30_000, 60_000]), 1..60),
        prop::bool::weighted(0.75),
    );
    compare(&runtime, &on_server(&redis), 400, sequences);
}

/// With several partitions, so that listings are combined.
#[test]
fn a_cluster_replies_as_the_in_process_node_does() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cluster = runtime.block_on(Cluster::start());
    let members = Server::members_from_url(&cluster.url(), None).expect("a URL");
    let deployment = Deployment::Cluster {
        members,
        partitions: 5,
    };
    // Each partition has a record of its own, the in-process node has one.
    let unrecorded = op(&[30_000, 60_000]).prop_filter("marks", |op| match op {
        Op::Mark(..) => false,
        Op::Probe(request) => (request.own, request.guard, request.vote) == (BOUNDS, NONE, NONE),
        _ => true,
    });
    let sequences = (prop::collection::vec(unrecorded, 1..60), Just(true));
    compare(&runtime, &deployment, 60, sequences);
}

/// Terms lapse in real time, so all sequences wait for it together. The short terms are longer than a sequence takes on
/// a busy machine, so that none lapses between the replies of the two nodes.
#[tokio::test(flavor = "multi_thread")]
async fn redis_replies_as_the_in_process_node_does_after_terms_lapsed() {
    let redis = Redis::start().await;
    let mut runner = TestRunner::new(Config::default());
    let mut sequence = |terms| {
        prop::collection::vec(op(terms), 1..30)
            .new_tree(&mut runner)
            .expect("a sequence")
            .current()
    };
    let cases: Vec<_> = (0..100)
        .map(|case| {
            (
                case,
                sequence(&[3_000, 60_000]),
                sequence(&[30_000, 60_000]),
            )
        })
        .collect();
    let mut pairs = Vec::new();
    for (case, before, _) in &cases {
        let nodes = pair(on_server(&redis), *case, true).await;
        same_replies(&nodes, before)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        pairs.push(nodes);
    }
    // Not a condition to wait for: the time itself is what is tested.
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    let after = cases
        .iter()
        .zip(&pairs)
        .map(|((_, _, after), nodes)| same_replies(nodes, after));
    for result in join_all(after).await {
        result.unwrap_or_else(|error| panic!("{error}"));
    }
}
