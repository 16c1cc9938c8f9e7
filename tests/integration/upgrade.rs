//! Agents of version 0.1.0 and of this one on the same servers, as in a rolling update and back: an election has one
//! leader, whatever agent replies, and tokens rise.

mod old_agent;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use election_proto::ListLeadersRequest;
use fastrand::Rng;
use redis::cmd;
use tokio::task::JoinSet;

use crate::{
    harness::{Agent, Redis, eventually, eventually_within, handover},
    survival::{
        candidate::{Agents, Candidate},
        check::check,
        record::{Record, assert_enough, counts},
    },
};
use old_agent::{Claim, Claimed, OPERATION_TIMEOUT, OldAgent};

/// The longest term of most agents, and a term that lasts throughout a test.
const MAX_TERM: Duration = Duration::from_secs(8);
const TERM: i32 = 8_000;
const OLD_TERM: u64 = 8_000;
/// The longest term of agents that know of no longer one.
const SHORT: Duration = Duration::from_secs(1);

/// Three servers that agents of both versions use.
struct Fleet {
    servers: Vec<Redis>,
}

impl Fleet {
    async fn start() -> Self {
        let servers = Redis::several(3, &[]).await;
        Self { servers }
    }

    async fn older(&self, max_term: Duration) -> OldAgent {
        OldAgent::start(&self.servers, max_term).await
    }

    /// An agent of this version that has probed every server.
    async fn newer(&self, max_term: Duration) -> Agent {
        let max_term = format!("{}ms", max_term.as_millis());
        let timeout = format!("{}ms", OPERATION_TIMEOUT.as_millis());
        let settings = [
            ("EA_MAX_TERM", &*max_term),
            ("EA_REDIS_OPERATION_TIMEOUT", &timeout),
            ("EA_WORKERS", "1"),
        ];
        let agent = Agent::on(&self.servers[..], &settings).await;
        eventually("every server is up", async || {
            let nodes = agent.get("/readyz").await.body["nodes"].clone();
            let is_up = |node: &serde_json::Value| node["up"] == true;
            nodes.as_array()?.iter().all(is_up).then_some(())
        })
        .await;
        agent
    }

    /// Restarts these servers without what they kept.
    async fn forget(&mut self, nodes: &[usize]) {
        for node in nodes {
            let server = &mut self.servers[*node];
            server.kill();
            server.forget();
            server.run().await;
        }
    }

    /// A field of the election's lease on one server.
    async fn lease(&self, node: usize, election: &str, field: &str) -> Option<String> {
        let key = format!("ela:{{0}}:lease:default/{election}");
        let mut get = cmd("HGET");
        get.arg(key).arg(field);
        let value: Option<Vec<u8>> = self.servers[node].ask(&get).await.expect("an answer");
        // One field is packed.
        value.map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    /// Asserts that no script of either version, nor a command in one, has failed on any server since that was
    /// started.
    async fn no_script_has_failed(&self) {
        for server in &self.servers {
            let mut info = cmd("INFO");
            let commands: String = server.ask(info.arg("commandstats")).await.expect("known");
            let failed = commands.lines().find(|line| {
                // Clients send their names, which servers need not understand.
                let is_client = line.starts_with("cmdstat_client|");
                // A script that the server was not given yet is no failure.
                let is_by_hash = line.starts_with("cmdstat_evalsha:");
                !is_client
                    && !is_by_hash
                    && line.contains("failed_calls=")
                    && !line.ends_with("failed_calls=0")
            });
            assert_eq!(failed, None, "a command has failed");
            let count = |lines: &str, before: &str| -> u64 {
                let found = lines.lines().find_map(|line| line.split_once(before));
                found.map_or(0, |(_, count)| count.trim().parse().expect("a number"))
            };
            let by_hash = commands
                .lines()
                .find(|line| line.starts_with("cmdstat_evalsha:"));
            let failed = count(by_hash.unwrap_or_default(), "failed_calls=");
            let mut info = cmd("INFO");
            let errors: String = server.ask(info.arg("errorstats")).await.expect("known");
            let not_given = count(&errors, "errorstat_NOSCRIPT:count=");
            assert_eq!(failed, not_given, "a script has failed: {errors}");
        }
    }
}

/// The elections, leaders and tokens that the agent lists.
async fn listed(agent: &Agent) -> Vec<(String, String, u64)> {
    let mut client = agent.grpc();
    let page = client.list_leaders(ListLeadersRequest::default()).await;
    let page = page.expect("a page").into_inner();
    assert!(!page.incomplete, "{page:?}");
    let leaders = page.leaders.into_iter();
    leaders
        .map(|leader| (leader.election, leader.name, leader.token))
        .collect()
}

fn held(election: &str, leader: &str, token: u64) -> Vec<(String, String, u64)> {
    vec![(election.to_owned(), leader.to_owned(), token)]
}

/// Waits until the old agent is not in quarantine any more, and elects.
async fn old_elects_at_last(old: &OldAgent, election: &str, candidate: &str) -> (u64, Instant) {
    eventually_within(Duration::from_secs(30), "an old leader", async || {
        let claim = Claim::new(election, candidate, 1_000);
        match old.claim(claim).await {
            Ok(Claimed::Won { token, .. }) => Some((token, Instant::now())),
            Ok(Claimed::Lost(leader)) => panic!("{leader} leads where all was forgotten"),
            Ok(Claimed::TokenMismatch) | Err(_) => None,
        }
    })
    .await
}

/// The leader's term is over when another gets the reply that it is elected.
fn has_no_time_left(until: Instant, told: Instant) {
    let left = until.saturating_duration_since(told);
    assert!(
        left.is_zero(),
        "it is elected while the leader has {left:?} left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_knows_the_leader_that_an_old_one_elected() {
    let fleet = Fleet::start().await;
    let old = fleet.older(MAX_TERM).await;
    let (token, _) = old.elect("e", "leader", OLD_TERM).await;
    let new = fleet.newer(MAX_TERM).await;
    new.serves().await;

    let lost = new.campaign("e", "other", TERM).await;
    assert_eq!((lost.elected, lost.leader.as_str()), (false, "leader"));
    assert_eq!(new.leader("e").await.expect("known"), "leader");
    assert_eq!(listed(&new).await, held("e", "leader", token));
    let stale = new.extend("e", "leader", TERM, token - 1).await;
    assert_eq!(stale.reason, "STALE_TOKEN");
    assert!(new.extend("e", "leader", TERM, token).await.value);
    assert_eq!(old.extend("e", "leader", OLD_TERM, token).await, Ok(true));
    for node in 0..3 {
        let attempt = fleet.lease(node, "e", "attempt").await;
        assert_eq!(attempt, None, "the lease is acknowledged on every server");
    }

    // A leader's own campaign, a handover and a resignation.
    let again = new.campaign("e", "leader", TERM).await;
    assert!(again.elected && again.token > token, "{again:?}");
    let stale = old.extend("e", "leader", OLD_TERM, token).await;
    assert_eq!(stale, Ok(false), "the token was replaced");
    let handover = handover("e", ("leader", again.token), "heir", TERM);
    assert!(new.try_handover(handover).await.expect("an answer").value);
    assert_eq!(old.leader("e").await, Ok(Some("heir".to_owned())));
    assert!(new.resign("e", "heir", 0).await.value);
    assert_eq!(old.leader("e").await, Ok(None));
    assert_eq!(old.list().await, []);
    let next = new.campaign("e", "next", TERM).await;
    assert!(next.elected && next.token > again.token, "{next:?}");
    fleet.no_script_has_failed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_agent_knows_the_leader_that_a_new_one_elected() {
    let fleet = Fleet::start().await;
    let new = fleet.newer(MAX_TERM).await;
    let won = new.campaign("e", "leader", TERM).await;
    assert!(won.elected, "{won:?}");
    let old = fleet.older(MAX_TERM).await;

    let lost = old.claim(Claim::new("e", "other", OLD_TERM)).await;
    assert!(
        matches!(&lost, Ok(Claimed::Lost(leader)) if leader == "leader"),
        "{lost:?}"
    );
    assert_eq!(old.leader("e").await, Ok(Some("leader".to_owned())));
    assert_eq!(old.list().await, [("e".to_owned(), "leader".to_owned())]);
    let stale = old.extend("e", "leader", OLD_TERM, won.token - 1).await;
    assert_eq!(stale, Ok(false));
    assert_eq!(
        old.extend("e", "leader", OLD_TERM, won.token).await,
        Ok(true)
    );
    assert!(new.extend("e", "leader", TERM, won.token).await.value);

    // A leader's own campaign, a handover and a resignation.
    let (again, _) = old.elect("e", "leader", OLD_TERM).await;
    assert!(again > won.token);
    let stale = new.extend("e", "leader", TERM, won.token).await;
    assert_eq!(stale.reason, "STALE_TOKEN");
    let handover = Claim {
        over: Some(("leader".to_owned(), again)),
        ..Claim::new("e", "heir", OLD_TERM)
    };
    let handed = old.claim(handover).await;
    assert!(matches!(handed, Ok(Claimed::Won { .. })), "{handed:?}");
    assert_eq!(new.leader("e").await.expect("known"), "heir");
    assert_eq!(old.resign("e", "heir", 0).await, Ok(true));
    let vacant = new.leader("e").await.expect_err("vacant");
    assert_eq!(vacant.code(), tonic::Code::NotFound);
    assert_eq!(listed(&new).await, []);
    let (next, _) = old.elect("e", "next", OLD_TERM).await;
    assert!(next > again);
    assert_eq!(new.leader("e").await.expect("known"), "next");
    fleet.no_script_has_failed().await;
}

/// A server that has lost its data is recognized where all others have incarnation records of the old agent only: it
/// waits, and the others grant.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_only_an_old_agent_marked_are_not_new_to_a_new_one() {
    let mut fleet = Fleet::start().await;
    let old = fleet.older(MAX_TERM).await;
    drop(old);
    fleet.forget(&[2]).await;
    let new = fleet.newer(MAX_TERM).await;
    let guards = eventually("every server has a marker", async || {
        let nodes = new.get("/readyz").await.body["nodes"].clone();
        let nodes = nodes.as_array()?.clone();
        let guards = nodes.iter().map(|node| node["guard"].as_i64());
        guards.collect::<Option<Vec<_>>>()
    })
    .await;
    assert_eq!(guards[..2], [0, 0], "{guards:?}");
    assert!(guards[2] > 6_000, "{guards:?}");
    fleet.no_script_has_failed().await;
}

/// Servers that have lost everything wait for the longest terms of all, also where only an agent of version 0.1.0 has
/// them: its leader has time left.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_forget_wait_for_an_old_agent_with_longer_terms() {
    let mut fleet = Fleet::start().await;
    let new = fleet.newer(SHORT).await;
    new.serves().await;
    let old = fleet.older(MAX_TERM).await;
    // Agents read each other's registrations once a second.
    eventually("the guard is known", async || {
        let mut get = cmd("HGET");
        let guard = fleet.servers[0].ask::<u64>(get.arg("ela:{0}:marker").arg("guard"));
        (guard.await.ok()? == OLD_TERM).then_some(())
    })
    .await;
    let (_, until) = old.elect("e", "leader", OLD_TERM).await;
    drop(old);
    fleet.forget(&[0, 1, 2]).await;
    while Instant::now() < until {
        let won = new.win("e", "other", 1_000).await;
        assert!(
            won.is_none_or(|(_, told)| told >= until),
            "it is elected while the old agent's leader has time left"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("the next leader", async || {
        new.win("e", "other", 1_000).await
    })
    .await;
}

/// An agent with shorter terms takes no lease of an old agent for one of a clock that was set back, and does not make
/// it shorter: also not in the second before it reads the old agent's terms.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_agents_lease_lasts_where_new_agents_grant_shorter_terms() {
    let fleet = Fleet::start().await;
    let new = fleet.newer(SHORT).await;
    new.serves().await;
    let old = fleet.older(MAX_TERM).await;
    let (_, until) = old.elect("e", "leader", OLD_TERM).await;
    while Instant::now() + Duration::from_millis(500) < until {
        let lost = new.campaign("e", "other", 1_000).await;
        let left = until.saturating_duration_since(Instant::now());
        assert!(
            !lost.elected,
            "it is elected while the leader has {left:?} left"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An old agent abstains on servers that have forgotten for as long as the new agent's terms last that it knows of.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_agent_waits_for_a_new_one_with_longer_terms() {
    let mut fleet = Fleet::start().await;
    let mut new = fleet.newer(MAX_TERM).await;
    new.serves().await;
    let old = fleet.older(SHORT).await;
    let (_, until) = new.elect("e", "leader", TERM).await;
    new.kill();
    fleet.forget(&[0, 1, 2]).await;
    let (_, told) = old_elects_at_last(&old, "e", "other").await;
    has_no_time_left(until, told);
    fleet.no_script_has_failed().await;
}

/// The old agent recognizes the incarnation record that a new agent wrote when a server had restarted.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_agent_abstains_where_a_new_one_has_marked_a_restart() {
    let mut fleet = Fleet::start().await;
    let new = fleet.newer(MAX_TERM).await;
    new.serves().await;
    let (_, until) = new.elect("e", "leader", TERM).await;
    fleet.forget(&[1, 2]).await;
    eventually("both abstain", async || {
        let nodes = new.get("/readyz").await.body["nodes"].clone();
        let guards = [&nodes[1]["guard"], &nodes[2]["guard"]];
        guards
            .iter()
            .all(|guard| guard.as_i64() > Some(0))
            .then_some(())
    })
    .await;
    // One that has just been started knows only what the servers report.
    let old = fleet.older(MAX_TERM).await;
    let (_, told) = eventually_within(2 * MAX_TERM, "an old leader", async || {
        match old.claim(Claim::new("e", "other", 1_000)).await {
            Ok(Claimed::Won { token, .. }) => Some((token, Instant::now())),
            _ => None,
        }
    })
    .await;
    has_no_time_left(until, told);
    fleet.no_script_has_failed().await;
}

/// What a new agent repairs beneath an old agent's grant comes back when that is rolled back.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_agents_withdrawal_restores_what_a_new_agent_repaired_beneath_it() {
    let fleet = Fleet::start().await;
    let new = fleet.newer(MAX_TERM).await;
    new.serves().await;
    let old = fleet.older(MAX_TERM).await;
    let won = new.campaign("e", "leader", TERM).await;
    assert!(new.extend("e", "leader", TERM, won.token).await.value);
    // On the third server the lease has lapsed, and a challenger is granted what no majority grants it.
    let lease = "ela:{0}:lease:default/e";
    let lapsed = fleet.servers[2].ask::<()>(cmd("DEL").arg(lease)).await;
    lapsed.expect("deleted");
    let (grant, reply) = old
        .grant_on(2, Claim::new("e", "challenger", OLD_TERM))
        .await;
    assert_eq!(reply, format!("granted\n{}", grant.token));

    eventually("the lease is repaired beneath", async || {
        assert!(new.extend("e", "leader", TERM, won.token).await.value);
        let before = fleet.lease(2, "e", "before").await?;
        before.contains("leader").then_some(())
    })
    .await;
    old.withdraw(&grant).await;
    assert_eq!(
        fleet.lease(2, "e", "leader").await.as_deref(),
        Some("leader")
    );
    assert_eq!(
        old.extend("e", "leader", OLD_TERM, won.token).await,
        Ok(true)
    );
    fleet.no_script_has_failed().await;
}

/// A new agent's grant that does not win leaves the lease of an old agent's leader as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_agents_withdrawal_restores_an_old_agents_lease() {
    let fleet = Fleet::start().await;
    let old = fleet.older(MAX_TERM).await;
    let new = fleet.newer(MAX_TERM).await;
    new.serves().await;
    let (token, _) = old.elect("e", "leader", OLD_TERM).await;
    for stopped in [0, 1] {
        fleet.servers[stopped].signal("STOP");
    }
    let mut client = new.grpc();
    let request = crate::harness::campaign("e", "leader", TERM);
    let campaigning = tokio::spawn(async move { client.campaign(request).await });
    eventually("the third server has granted", async || {
        let granted = fleet.lease(2, "e", "token").await?;
        (granted != token.to_string()).then_some(())
    })
    .await;
    let failed = campaigning.await.expect("no panic");
    assert!(failed.is_err(), "one of three servers elects: {failed:?}");
    eventually("the grant is withdrawn", async || {
        let restored = fleet.lease(2, "e", "token").await?;
        (restored == token.to_string()).then_some(())
    })
    .await;
    for stopped in [0, 1] {
        fleet.servers[stopped].signal("CONT");
    }
    assert_eq!(old.extend("e", "leader", OLD_TERM, token).await, Ok(true));
    fleet.no_script_has_failed().await;
}

/// Candidates that call agents of both versions in turn, for some seconds: none leads beside another, and tokens rise.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_leads_beside_another_while_agents_of_both_versions_are_asked() {
    const ELECTIONS: [&str; 3] = ["e0", "e1", "e2"];
    const CANDIDATES: usize = 9;
    /// So short that many lead in the time.
    const LONGEST: i32 = 1_200;
    const LASTS: Duration = Duration::from_secs(10);
    let seed = fastrand::u64(..1 << 32);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let fleet = Fleet::start().await;
    let olds = [fleet.older(MAX_TERM).await, fleet.older(MAX_TERM).await];
    let news = [fleet.newer(MAX_TERM).await, fleet.newer(MAX_TERM).await];
    for new in &news {
        new.serves().await;
    }
    let mut channels: Vec<_> = news.iter().map(|new| (new.channel(), TERM)).collect();
    for old in &olds {
        channels.push((old.serve().await, TERM));
    }
    let agents = Agents::new(channels);
    let record = Record::default();
    let stop = Arc::new(AtomicBool::new(false));
    let mut candidates = JoinSet::new();
    for number in 0..CANDIDATES {
        let election = ELECTIONS[number % ELECTIONS.len()];
        let candidate = Candidate::new(
            number,
            election,
            LONGEST,
            agents.clone(),
            rng.fork(),
            record.clone(),
        );
        candidates.spawn(candidate.contend(Arc::clone(&stop)));
    }
    tokio::time::sleep(LASTS).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(candidate) = candidates.join_next().await {
        candidate.expect("no panic");
    }

    let entries = record.entries();
    let counts = counts(&entries);
    println!("{counts:?}");
    let findings = check(&entries, &[]);
    let broken = [findings.overlaps, findings.regressions].concat();
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
    assert_enough(&counts, 5);
    fleet.no_script_has_failed().await;
}
