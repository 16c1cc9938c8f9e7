//! Whether the promises are kept, by real agents on real servers, while candidates come and go and servers
//! and agents fail.
//!
//! A seed fixes the schedule: which faults come in which order, which servers they strike and how long they
//! last, and what candidates decide to do. (Processes take the time they take, so the same
//! schedule need not end the same.) `SURVIVAL_SEED` replays one. A few faults come unless `SURVIVAL_SECONDS` says
//! for how long all of them are to come; `make test-faults` gives every topology two minutes, and terms that are
//! longer.
//!
//! Agents differ in their longest terms and operation timeouts, and change them when they are replaced; candidates
//! differ in how long they want to lead.

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

use election_proto::ListLeadersRequest;
use fastrand::Rng;
use tokio::{sync::Mutex, task::JoinSet, time::sleep};
use tonic::Code;

use crate::harness::{Agent, campaign, eventually_within};
use candidate::{Agents, Candidate};
use record::Record;
use topology::{Clusters, Failover, Three, Topology};

const AGENT_DIES: &str = "one agent killed, replaced by one with other bounds";
const ELECTIONS: [&str; 3] = ["e0", "e1", "e2"];
/// An election whose leader does nothing but extend its term.
const STEADY: &str = "e3";
const CANDIDATES: usize = 6;
/// How long candidates go on when nothing fails any more: so that enough happens, even if nobody could be elected
/// before.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// The term of those that lead when nothing fails any more, in ms: one that every agent grants.
const LAST_TERM: i32 = 2_000;
/// How long a repair in the background of a reply may take.
const REPAIRED: Duration = Duration::from_secs(1);
/// The largest age of the state of nodes that agents report.
const REPORTED: Duration = Duration::from_millis(1_100);

/// The longest terms and the operation timeouts that agents have, in ms: each agent has one of each.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    max_terms: [i32; 2],
    timeouts: [u32; 2],
}

/// Servers are in quarantine for the longest term after most faults, so that terms are short where time is.
const BRIEF: Bounds = Bounds {
    max_terms: [2_000, 3_000],
    timeouts: [300, 1_000],
};
const LONG: Bounds = Bounds {
    max_terms: [5_000, 10_000],
    timeouts: [300, 1_000],
};

impl Bounds {
    fn longest_term(self) -> Duration {
        Duration::from_millis(self.max_terms[1].unsigned_abs().into())
    }

    /// The longest term, and the longest time for which a vote counts before it.
    fn whole_term(self) -> Duration {
        self.longest_term() + Duration::from_millis(self.timeouts[1].into())
    }
}

/// An agent that is started with one of the longest terms, and one of the timeouts.
async fn start(settings: &[(&str, String)], max_term: i32, timeout: u32) -> Agent {
    let mut settings = settings.to_vec();
    settings.push(("EA_MAX_TERM", format!("{max_term}ms")));
    settings.push(("EA_REDIS_OPERATION_TIMEOUT", format!("{timeout}ms")));
    Agent::start(&settings).await
}

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

/// Topologies are up to eighteen servers each. More than one at a time would keep the machine so busy that servers take
/// each other for dead.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Runs a schedule of faults, and checks the replies to candidates meanwhile.
async fn survive<T: Topology>() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let seed = number("SURVIVAL_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let time = Duration::from_secs(number("SURVIVAL_SECONDS").unwrap_or(0));
    println!("{}", std::any::type_name::<T>());
    println!("seed {seed}: SURVIVAL_SEED={seed} replays the schedule");
    let mut rng = Rng::with_seed(seed);

    let bounds = if time.is_zero() { BRIEF } else { LONG };

    let mut topology = T::start().await;
    let settings = topology.settings();
    let mut agents = Vec::new();
    for (max_term, timeout) in bounds.max_terms.into_iter().zip(bounds.timeouts) {
        agents.push(start(&settings, max_term, timeout).await);
    }
    // A first start without faults: the nodes are new, and every agent sees their incarnation records. Servers that
    // come up one after the other on a busy machine may be in quarantine once.
    let patience = 2 * bounds.longest_term() + Duration::from_secs(2);
    eventually_within(patience, "a first leader", async || {
        let first = campaign("warm-up", "a", 1_000);
        agents[0].try_campaign(first).await.ok()
    })
    .await;
    well(&agents).await;

    let record = Record::default();
    let channels = agents.iter().map(Agent::channel).zip(bounds.max_terms);
    let connections = Agents::new(channels.collect());
    let stop = Arc::new(AtomicBool::new(false));
    let mut candidates = JoinSet::new();
    for n in 0..CANDIDATES {
        let candidate = Candidate::new(
            n,
            ELECTIONS[n / 2],
            bounds.max_terms[n % 2],
            connections.clone(),
            rng.fork(),
            record.clone(),
        );
        candidates.spawn(candidate.contend(Arc::clone(&stop)));
    }
    let steady = Candidate::new(
        CANDIDATES,
        STEADY,
        bounds.max_terms[1],
        connections.clone(),
        rng.fork(),
        record.clone(),
    );
    let steady = steady.steady();
    let steady_name = steady.name();
    // It leads until the check of its servers, longer than others.
    let stop_steady = Arc::new(AtomicBool::new(false));
    let steady = tokio::spawn(steady.contend(Arc::clone(&stop_steady)));
    for election in ELECTIONS.into_iter().chain([STEADY]) {
        let watching =
            connections
                .clone()
                .watch(election, rng.fork(), record.clone(), Arc::clone(&stop));
        candidates.spawn(watching);
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
                    topology.suffer(fault, bounds.whole_term(), &mut rng).await;
                }
                None => {
                    let agent = rng.usize(..agents.len());
                    let max_term = bounds.max_terms[rng.usize(..2)];
                    let timeout = bounds.timeouts[rng.usize(..2)];
                    agents[agent].kill();
                    logs.extend(agents[agent].log());
                    sleep(Duration::from_millis(rng.u64(0..500))).await;
                    agents[agent] = start(&settings, max_term, timeout).await;
                    connections.replace(agent, agents[agent].channel(), max_term);
                }
            }
            is_well = rng.bool();
            if is_well {
                sleep(REPORTED).await;
                well(&agents).await;
            }
            // Else the next fault comes while servers are still in quarantine because of this one.
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
    stop_steady.store(true, Ordering::Relaxed);
    steady.await.expect("no panic");

    logs.extend(agents.iter().flat_map(Agent::log));
    report(&record, &logs, seed, ended);
    is_repaired(&topology, &agents, &steady_name).await;
    for agent in &agents {
        listings_agree(agent, &steady_name, bounds.longest_term()).await;
    }
    // Nothing fails any more: what was left behind must not keep elections from being won.
    for election in ELECTIONS {
        eventually_within(
            2 * bounds.longest_term() + Duration::from_secs(2),
            "a winner",
            async || {
                let request = campaign(election, "last", 1_000);
                let answer = agents[0].try_campaign(request).await.ok()?;
                answer.elected.then_some(())
            },
        )
        .await;
    }
}

/// Asserts that every server has the leader's lease when its term was extended twice.
async fn is_repaired<T: Topology>(topology: &T, agents: &[Agent], leader: &str) {
    for agent in agents {
        let extended = agent.extend(STEADY, leader, LAST_TERM, 0).await;
        assert!(extended.value, "the leader does not lead: {extended:?}");
    }
    // The repair runs in the background of the reply, but at once.
    eventually_within(REPAIRED, "every server has the lease", async || {
        let leases = topology.leases(STEADY).await;
        let is_leaders = |lease: &Option<(String, u64)>| {
            let first = leases[0].as_ref();
            lease.is_some() && lease.as_ref() == first
        };
        let held_by = leases[0].as_ref().map(|(leader, _)| leader.as_str());
        (held_by == Some(leader) && leases.iter().all(is_leaders)).then_some(())
    })
    .await;
}

/// Asserts that the agent lists the leaders that it reports, and no others.
async fn listings_agree(agent: &Agent, steady: &str, longest_term: Duration) {
    let what = "a listing that is complete and agrees";
    // An index that was lost with a server is complete again when every leader has extended.
    eventually_within(longest_term + REPAIRED, what, async || {
        let extended = agent.extend(STEADY, steady, LAST_TERM, 0).await;
        assert!(extended.value, "the leader does not lead: {extended:?}");
        let mut client = agent.grpc();
        let listing = client.list_leaders(ListLeadersRequest::default()).await;
        let listing = listing.ok()?.into_inner();
        if listing.incomplete {
            return None;
        }
        let listed = listing.leaders.into_iter();
        let listed: Vec<_> = listed
            .map(|leader| (leader.election, leader.name))
            .collect();
        let mut led = Vec::new();
        for election in ELECTIONS.into_iter().chain([STEADY]) {
            match agent.leader(election).await {
                Ok(leader) => led.push((election.to_owned(), leader)),
                Err(status) if status.code() == Code::NotFound => {}
                Err(_) => return None,
            }
        }
        (listed == led).then_some(())
    })
    .await;
}

/// Prints what happened, and fails when a promise was broken or too little happened.
fn report(record: &Record, logs: &[String], seed: u64, ended: Instant) {
    let (entries, faults) = (record.entries(), record.faults());
    let findings = check::check(&entries, &faults);
    let counts = record::counts(&entries);
    let mut lines = vec![format!("operations, {} in all:", entries.len())];
    lines.extend(table(
        counts.iter().map(|(kind, count)| (kind, count.to_string())),
    ));
    let phantoms = check::phantoms(&record.namings(), &record.holds());
    lines.push(format!("overlaps: {}", findings.overlaps.len()));
    lines.push(format!("phantoms: {}", phantoms.len()));
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

    let broken = [findings.overlaps, findings.regressions, phantoms].concat();
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
    record::assert_enough(&counts, 3);
}

fn table<K: Display>(rows: impl Iterator<Item = (K, String)>) -> Vec<String> {
    rows.map(|(name, value)| format!("  {:<50} {value}", name.to_string()))
        .collect()
}

/// Waits until every agent reports that every node replies and none is in quarantine.
async fn well(agents: &[Agent]) {
    eventually_within(Duration::from_secs(60), "all nodes are well", async || {
        for agent in agents {
            if !agent.every_node_grants().await {
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
