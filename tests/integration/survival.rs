//! Whether the promises are kept, by real agents on real servers, while candidates come and go and servers
//! and agents fail.
//!
//! A seed fixes the schedule: which faults come in which order, which servers they strike and how long they
//! last, and what candidates make up their minds to do. (Processes take the time they take, so the same
//! schedule need not end the same.) `SURVIVAL_SEED` replays one. A few faults come unless `SURVIVAL_SECONDS` says
//! for how long all of them are to come; `make test-faults` gives every topology two minutes.

pub(crate) mod candidate;
pub(crate) mod check;
pub(crate) mod record;
mod topology;

use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::{task::JoinSet, time::sleep};

use crate::harness::{Agent, campaign, eventually_within};
use candidate::{Agents, Candidate};
use record::Record;
use topology::{Clusters, Failover, Three, Topology};

/// The longest term, and so the guard.
const MAX_TERM: Duration = Duration::from_secs(2);
const AGENT_DIES: &str = "one agent killed, replaced by a new one";
const ELECTIONS: [&str; 3] = ["e0", "e1", "e2"];
const CANDIDATES: usize = 6;
const AGENTS: usize = 2;
/// How long candidates go on when nothing fails any more: so that enough happens to tell, even if nobody could
/// be elected before.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// Agents say how nodes do by what they saw at most so long ago.
const REPORTED: Duration = Duration::from_millis(1_100);

#[tokio::test(flavor = "multi_thread")]
async fn nobody_leads_beside_another_while_servers_of_three_and_agents_fail() {
    survive::<Three>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_leads_beside_another_while_a_primary_fails_over_and_agents_fail() {
    survive::<Failover>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_leads_beside_another_while_a_cluster_fails_over_and_reshards_and_agents_fail() {
    survive::<Clusters<1>>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_leads_beside_another_while_clusters_of_three_and_agents_fail() {
    survive::<Clusters<3>>().await;
}

/// Runs a schedule of faults, and checks what candidates were told meanwhile.
async fn survive<T: Topology>() {
    let seed = number("SURVIVAL_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let time = Duration::from_secs(number("SURVIVAL_SECONDS").unwrap_or(0));
    println!("{}", std::any::type_name::<T>());
    println!("seed {seed}: SURVIVAL_SEED={seed} replays the schedule");
    let mut rng = Rng::with_seed(seed);

    let mut topology = T::start().await;
    let mut settings = topology.settings();
    settings.push(("EA_MAX_TERM".to_owned(), "2s".to_owned()));
    settings.push(("EA_REDIS_OPERATION_TIMEOUT".to_owned(), "500ms".to_owned()));
    let mut agents = Vec::new();
    for _ in 0..AGENTS {
        agents.push(Agent::start(&settings).await);
    }
    // A first start without faults: the nodes are new, and every agent sees that they are marked.
    agents[0].campaign("warm-up", "a", 1_000).await;
    well(&agents).await;

    let record = Record::default();
    let connections = Agents::new(agents.iter().map(Agent::channel).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let mut candidates = JoinSet::new();
    for n in 0..CANDIDATES {
        let candidate = Candidate::new(
            n,
            ELECTIONS[n / 2],
            connections.clone(),
            rng.fork(),
            record.clone(),
        );
        candidates.spawn(candidate.contend(Arc::clone(&stop)));
    }

    let started = Instant::now();
    let mut logs = Vec::new();
    let mut is_well = true;
    loop {
        // None: an agent dies.
        let mut faults: Vec<_> = T::FAULTS.iter().copied().map(Some).collect();
        faults.push(None);
        rng.shuffle(&mut faults);
        if time.is_zero() {
            faults.truncate(T::BRIEFLY);
        }
        for fault in faults {
            topology.ready().await;
            let kind = fault.map_or_else(|| AGENT_DIES.to_owned(), |fault| fault.to_string());
            record.fault(match is_well {
                true => &kind,
                // What that costs is not the last fault's alone.
                false => "any of them soon after another",
            });
            match fault {
                Some(fault) => {
                    topology.suffer(fault, &mut rng).await;
                }
                None => {
                    let agent = rng.usize(..AGENTS);
                    agents[agent].kill();
                    logs.extend(agents[agent].log());
                    sleep(Duration::from_millis(rng.u64(0..500))).await;
                    agents[agent] = Agent::start(&settings).await;
                    connections.replace(agent, agents[agent].channel());
                }
            }
            is_well = rng.bool();
            if is_well {
                sleep(REPORTED).await;
                well(&agents).await;
            }
            // Else the next fault comes while servers still abstain because of this one.
            sleep(Duration::from_millis(rng.u64(50..500))).await;
        }
        if started.elapsed() >= time {
            break;
        }
    }
    sleep(REPORTED).await;
    well(&agents).await;
    sleep(AFTERWARDS).await;
    let ended = Instant::now();
    stop.store(true, Ordering::Relaxed);
    while let Some(candidate) = candidates.join_next().await {
        candidate.expect("no panic");
    }

    logs.extend(agents.iter().flat_map(Agent::log));
    report(&record, &logs, seed, ended);
    // Nothing fails any more: what was left behind must not keep elections from being won.
    for election in ELECTIONS {
        eventually_within(
            2 * MAX_TERM + Duration::from_secs(2),
            "a winner",
            async || {
                let request = campaign(election, "last", 1_000);
                let answer = agents[0].grpc().campaign(request).await.ok()?;
                answer.into_inner().elected.then_some(())
            },
        )
        .await;
    }
}

/// Prints what happened, and fails when a promise was broken or too little happened to tell.
fn report(record: &Record, logs: &[String], seed: u64, ended: Instant) {
    let (entries, faults) = (record.entries(), record.faults());
    let findings = check::check(&entries, &faults);
    let counts = record::counts(&entries);
    let mut lines = vec![format!("operations, {} in all:", entries.len())];
    lines.extend(table(
        counts.iter().map(|(kind, count)| (kind, count.to_string())),
    ));
    lines.push(format!("overlaps: {}", findings.overlaps.len()));
    lines.push(format!("token regressions: {}", findings.regressions.len()));
    lines.push(
        "faults, and the longest time without any answer; without a leader or a decided campaign:"
            .to_owned(),
    );
    let outages = check::outages(&entries, &faults, ended);
    lines.extend(table(outages.iter().map(|(kind, outage)| {
        let (silent, vacant) = (outage.silent.as_millis(), outage.vacant.as_millis());
        (
            kind,
            format!("{} times; {silent} ms; {vacant} ms", outage.times),
        )
    })));
    println!("{}", lines.join("\n"));

    let broken = [findings.overlaps, findings.regressions].concat();
    assert!(
        broken.is_empty(),
        "the agents' logs:\n{}\n\nSURVIVAL_SEED={seed} breaks promises:\n{}",
        logs.join("\n"),
        broken.join("\n\n")
    );
    let panics: Vec<_> = logs
        .iter()
        .filter(|line| line.contains("panicked"))
        .collect();
    assert!(panics.is_empty(), "{panics:?}");
    for kind in [
        "elected",
        "not elected",
        "extended",
        "resigned or handed over",
    ] {
        let count = counts.get(kind).copied().unwrap_or_default();
        assert!(count >= 3, "too little happened to tell: {count} {kind}");
    }
}

fn table<K: Display>(rows: impl Iterator<Item = (K, String)>) -> Vec<String> {
    rows.map(|(name, value)| format!("  {:<50} {value}", name.to_string()))
        .collect()
}

/// Waits until every agent says that every node answers and abstains from nothing.
async fn well(agents: &[Agent]) {
    eventually_within(Duration::from_secs(60), "all nodes are well", async || {
        for agent in agents {
            let ready = agent.get("/readyz").await;
            let nodes = ready.body["nodes"].as_array()?;
            let well = |node: &serde_json::Value| node["up"] == true && node["guard"] == 0;
            if nodes.is_empty() || !nodes.iter().all(well) {
                return None;
            }
        }
        Some(())
    })
    .await;
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is \"{text}\": give a number")),
    )
}
