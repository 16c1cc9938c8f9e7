//! A real Redis reports the lists of nodes with which agents use it as the simulated server does.

use std::time::Duration;

use election_core::lease::{Bounds, LeaseNode as _, ProbeRequest};
use election_redis::Redis as RedisNode;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use test_servers::Redis;
use tokio::time::Instant;

use super::{BOUNDS, PROBE, node, on_server};
use model::{Coming, Lists, Recorded, Told};

#[path = "../../../core/tests/simulation/lists.rs"]
mod model;

/// Two lists, and the ways between them; a third, and the way to it.
const LISTS: [&str; 6] = ["a", "b", "c", "a > b", "b > a", "b > c"];

/// Moves all times: those of entries and of the record, and the time at which a key lapses.
const LATER: &str = "
local by = tonumber(ARGV[1])
local packed = redis.call('GET', KEYS[1])
if packed then
  local entries = cmsgpack.unpack(packed)
  for field, at in pairs(entries) do entries[field] = at + by end
  redis.call('SET', KEYS[1], cmsgpack.pack(entries), 'KEEPTTL')
end
for _, key in ipairs({KEYS[1], KEYS[2]}) do
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('PEXPIRE', key, left + by) end
end
for _, field in ipairs({'since', 'ready_at', 'guard_at', 'vote_at'}) do
  local at = redis.call('HGET', KEYS[3], field)
  if at and at ~= '0' then redis.call('HSET', KEYS[3], field, string.format('%.0f', at + by)) end
end
";

/// The longest guard that is registered, and how long the server is still in quarantine, in ms.
const RECORD: &str = "
local time, record = redis.call('TIME'), redis.call('HMGET', KEYS[1], 'guard', 'ready_at')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return {tonumber(record[1] or 0), tonumber(record[2] or now + 1) - now}
";

#[derive(Debug, Clone)]
enum Step {
    /// An agent comes with one of the lists.
    Comes(usize, ProbeRequest),
    /// So much time passes.
    Passes(u64),
    /// The clock is set back by so much.
    SetBack(u64),
    /// The server restarts with its data.
    Restarts,
}

/// The probe of an agent with this guard in seconds.
fn request(guard: u64, write: bool) -> ProbeRequest {
    ProbeRequest {
        own: Bounds {
            guard: Some(Duration::from_secs(guard)),
            ..BOUNDS
        },
        write,
        ..PROBE
    }
}

fn step() -> impl Strategy<Value = Step> {
    let request = (
        prop::sample::select(vec![60, 60, 90]),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(guard, write, closed)| ProbeRequest {
            closed,
            ..request(guard, write)
        });
    prop_oneof![
        12 => (0..LISTS.len(), request).prop_map(|(list, request)| Step::Comes(list, request)),
        // No sum of these is as long as a guard, or as registrations are kept.
        4 => Just(Step::Passes(35)),
        1 => Just(Step::SetBack(600)),
        1 => Just(Step::Restarts),
    ]
}

async fn agents(redis: &Redis, prefix: &str) -> Vec<RedisNode> {
    let mut agents = Vec::new();
    for list in LISTS {
        agents.push(node(on_server(redis), prefix, list).await);
    }
    agents
}

async fn same(redis: &Redis, prefix: &str, steps: &[Step]) -> Result<(), TestCaseError> {
    let agents = agents(redis, prefix).await;
    let (mut lists, mut now) = (Lists::default(), Instant::now());
    let keys = ["lists", "agents", "marker"].map(|key| format!("{prefix}:{{0}}:{key}"));
    for (n, step) in steps.iter().enumerate() {
        let later = match step {
            Step::Comes(agent, request) => {
                let probe = agents[*agent].probe(*request).await.expect("answers");
                let coming = Coming {
                    list: LISTS[*agent],
                    guard: request.own.guard.unwrap_or_default(),
                    write: request.write,
                    closed: request.closed,
                };
                // The agent counts waits by its own clock, which passes no faster.
                let mut record = redis::cmd("EVAL");
                record.arg(RECORD).arg(1).arg(&keys[2]);
                let (guard, left): (u64, i64) = redis.ask(&record).await.expect("read");
                let recorded = Recorded {
                    guard: Duration::from_millis(guard),
                    is_ready: left <= 0,
                };
                if !probe.unrecorded.is_empty() {
                    let marked =
                        agents[*agent].mark(&probe.unrecorded, Duration::ZERO, request.own);
                    marked.await.expect("answers");
                }
                let told = match lists.register(coming, recorded, now) {
                    Told::Same { closing } => (false, closing),
                    Told::Other(_) => (true, false),
                };
                // Of several others, either may be named.
                let replied = (probe.other_list.is_some(), probe.closing);
                prop_assert_eq!(replied, told, "step {}: {:?} of {:?}", n, step, steps);
                continue;
            }
            Step::Restarts => {
                let mut other = redis::cmd("EVAL");
                other.arg(
                    "if redis.call('EXISTS', KEYS[1]) == 1 then
                       redis.call('HSET', KEYS[1], 'run', 'other', 'of', 'other')
                     end",
                );
                other.arg(1).arg(&keys[2]);
                redis.ask::<()>(&other).await.expect("written");
                continue;
            }
            Step::Passes(seconds) => {
                now += Duration::from_secs(*seconds);
                // What has expired does not come back with a clock that is set back.
                lists.expire(now);
                -i64::try_from(*seconds).expect("in range")
            }
            Step::SetBack(seconds) => {
                now -= Duration::from_secs(*seconds);
                i64::try_from(*seconds).expect("in range")
            }
        };
        let mut moved = redis::cmd("EVAL");
        moved.arg(LATER).arg(3).arg(&keys).arg(later * 1_000);
        redis.ask::<()>(&moved).await.expect("moved");
    }
    Ok(())
}

#[tokio::test]
async fn registrations_that_have_expired_do_not_come_back_with_the_clock() {
    let redis = Redis::start().await;
    let mut steps = vec![Step::Comes(0, request(60, true))];
    steps.extend([
        Step::Passes(35),
        Step::Passes(35),
        Step::Passes(35),
        Step::Passes(35),
    ]);
    steps.extend([Step::SetBack(600), Step::Comes(1, request(60, true))]);
    let told = same(&redis, "expired", &steps).await;
    told.expect("the same replies");
}

/// A shorter guard than that of the agent before, which came after the clock was set back and registered nothing.
#[tokio::test]
async fn a_list_that_version_0_1_0_reads_counts_until_it_expires() {
    let redis = Redis::start().await;
    let steps = [
        Step::Comes(0, request(60, true)),
        Step::SetBack(600),
        Step::Comes(0, request(90, false)),
        Step::Passes(35),
        Step::Passes(35),
        Step::Comes(1, request(60, false)),
        Step::Passes(35),
        Step::Comes(1, request(60, false)),
    ];
    let compared = same(&redis, "legacy", &steps).await;
    compared.expect("the same replies");
}

#[test]
fn redis_tells_lists_as_the_simulated_server_does() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let redis = runtime.block_on(Redis::start());
    let case = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&prop::collection::vec(step(), 1..40), |steps| {
            case.set(case.get() + 1);
            let prefix = format!("l{}", case.get());
            runtime.block_on(same(&redis, &prefix, &steps))
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
