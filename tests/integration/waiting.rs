//! Campaigns that wait for an election to become vacant.

use std::time::{Duration, Instant};

use election_proto::{CampaignRequest, CampaignResult};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::harness::{
    Agent, Fixture, Nodes, Redis, Store, campaign, committed, elected_until, eventually,
    on_every_store,
};

on_every_store! {
    who_waits_is_elected_when_the_leader_resigns,
    who_waits_is_elected_when_the_term_ends,
    who_waits_is_told_of_a_handover_to_it,
}

const TERM: i32 = 10_000;
/// For how long a lease is stored after a wait, in ms, without the 1 % of the wait.
const PROVISIONAL: u64 = 3_000;

pub(crate) fn waiting(election: &str, candidate: &str, wait: i32) -> CampaignRequest {
    CampaignRequest {
        wait,
        ..campaign(election, candidate, TERM)
    }
}

impl Agent {
    pub(crate) fn waits(
        &self,
        election: &str,
        candidate: &str,
        wait: i32,
    ) -> JoinHandle<Result<CampaignResult, Status>> {
        let (mut client, request) = (self.grpc(), waiting(election, candidate, wait));
        tokio::spawn(async move {
            client
                .campaign(request)
                .await
                .map(tonic::Response::into_inner)
        })
    }

    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let metrics = self.get("/metrics").await;
        let text = metrics.body.as_str().expect("text");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("election_agent_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .expect("a number")
    }

    /// Waits until so many campaigns wait, and the agent receives changes.
    pub(crate) async fn has_waiters(&self, waiters: u64) {
        self.settles("waiters", waiters, true).await;
    }

    /// Waits until there are so many observers, and the agent receives changes.
    pub(crate) async fn has_observers(&self, observers: u64) {
        self.settles("observers", observers, true).await;
    }

    /// Waits until the metric has this value, and the agent receives changes, or does not.
    async fn settles(&self, metric: &str, expected: u64, hears: bool) {
        let deaf = u64::from(!hears);
        eventually(metric, async || {
            let settled = self.metric("board_deaf").await == deaf;
            (self.metric(metric).await == expected && settled).then_some(())
        })
        .await;
    }

    pub(crate) async fn is_idle(&self) {
        eventually("nothing is left", async || {
            for name in ["waiters", "observers", "board_elections"] {
                if self.metric(name).await > 0 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }
}

async fn who_waits_is_elected_when_the_leader_resigns(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let leader = agent.elect("e", "a", TERM).await.0;
    let asked = Instant::now();
    let waiting = agent.waits("e", "b", 60_000);
    agent.has_waiters(1).await;
    assert!(agent.resign("e", "a", leader.token).await.value);
    let won = waiting.await.expect("no panic").expect("an answer");
    assert!(won.elected && won.provisional, "{won:?}");
    assert_eq!(won.leader, "b");
    assert!(won.token > leader.token);
    // Counted from before the campaign was sent.
    let until = elected_until(asked, &won);
    assert!(until <= Instant::now() + Duration::from_millis(PROVISIONAL + 700));
    assert!(until > Instant::now());
    let path = "/election/e";
    let provisional = agent.get(path).await.body["remaining"]
        .as_u64()
        .expect("ms");
    assert!(provisional <= PROVISIONAL + 700, "{provisional}");
    let extended = agent.extend("e", "b", TERM, won.token).await;
    assert!(extended.value);
    let full = agent.get(path).await.body["remaining"]
        .as_u64()
        .expect("ms");
    assert!(full > PROVISIONAL + 700, "{full}");
    agent.is_idle().await;
}

async fn who_waits_is_elected_when_the_term_ends(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let leader = agent.elect("e", "a", 1_000).await.0;
    let answer = agent
        .rest(
            Method::POST,
            "/election/e",
            Some(json!({"candidate": "b", "term": TERM, "wait": 60_000})),
        )
        .await;
    assert_eq!(answer.body["elected"], true, "{:?}", answer.body);
    assert_eq!(answer.body["provisional"], true);
    assert!(answer.body["token"].as_u64().expect("a token") > leader.token);
    agent.is_idle().await;
}

/// No other waiter is elected, and the new leader need not wait for the end of the term that it was handed.
async fn who_waits_is_told_of_a_handover_to_it(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let leader = agent.elect("e", "a", 60_000).await.0;
    let other = agent.waits("e", "c", 50_000);
    agent.has_waiters(1).await;
    let waiting = agent.waits("e", "b", 50_000);
    agent.has_waiters(2).await;
    let body = json!({
        "leader": "b", "term": 60_000, "current_leader": "a", "token": leader.token
    });
    let began = Instant::now();
    let handed = agent.rest(Method::PUT, "/election/e", Some(body)).await;
    assert_eq!(handed.status, 200, "{handed:?}");
    let won = waiting.await.expect("no panic").expect("an answer");
    assert!(won.elected && won.leader == "b", "{won:?}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    // One for the handover, one for its own campaign.
    assert!(won.token > leader.token + 1, "{won:?}");
    assert!(agent.extend("e", "b", 60_000, won.token).await.value);
    agent.has_waiters(1).await;
    assert!(!other.is_finished(), "the others wait on");
    other.abort();
}

/// Hints of other agents reach the one where the campaign waits: a read after ten seconds would come too late.
#[tokio::test(flavor = "multi_thread")]
async fn a_resignation_at_another_agent_elects_who_waits_here() {
    let nodes = Nodes::start(3).await;
    let (here, there) = (
        nodes.agent("here", &[]).await,
        nodes.agent("there", &[]).await,
    );
    let mut leader = here.elect("e", "first", 60_000).await.0;
    let mut waiting = Vec::new();
    for number in 0..10 {
        waiting.push(there.waits("e", &number.to_string(), 60_000));
        there.has_waiters(number + 1).await;
    }
    for (number, waiting) in waiting.into_iter().enumerate() {
        let name = leader.leader.clone();
        assert!(here.resign("e", &name, leader.token).await.value);
        leader = waiting.await.expect("no panic").expect("an answer");
        assert!(leader.elected, "{leader:?}");
        assert_eq!(leader.leader, number.to_string(), "in the order of arrival");
    }
    let claims = there.metric("board_claims_total").await;
    assert!((10..=20).contains(&claims), "{claims}");
    there.is_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_leader_at_its_end_and_before_the_deadline() {
    let agent = Agent::start(&[("EA_WORKERS", "1")]).await;
    let leader = agent.elect("e", "a", TERM).await.0;
    let lost = agent
        .try_campaign(waiting("e", "b", 300))
        .await
        .expect("an answer");
    assert_eq!(
        (lost.elected, lost.token, lost.valid_for),
        (false, leader.token, 0)
    );
    let mut request = tonic::Request::new(waiting("e", "b", 60_000));
    request.set_timeout(Duration::from_millis(1_000));
    let lost = agent
        .grpc()
        .campaign(request)
        .await
        .expect("an answer")
        .into_inner();
    assert_eq!((lost.elected, lost.leader.as_str()), (false, "a"));
    agent.is_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_out_of_range_is_refused_with_its_bounds() {
    let agent = Agent::start(&[("EA_MAX_WAIT", "5s")]).await;
    for wait in [-1, 5_001, i32::MIN, i32::MAX] {
        let refused = agent
            .try_campaign(waiting("e", "b", wait))
            .await
            .expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument);
        let says = format!("`wait` is {wait}: give 0 to 5000 milliseconds (EA_MAX_WAIT bounds it)");
        assert_eq!(refused.message(), says);
        let body = json!({"candidate": "b", "term": TERM, "wait": wait});
        let refused = agent.rest(Method::POST, "/election/e", Some(body)).await;
        assert_eq!(
            (refused.status, refused.text("message")),
            (400, says.as_str())
        );
    }
    let vacant = agent.leader("e").await.expect_err("nothing was done");
    assert_eq!(vacant.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_takes_no_place_of_requests_and_no_more_wait_than_are_allowed() {
    let settings = [("EA_MAX_IN_FLIGHT", "2"), ("EA_MAX_STREAMS", "3")];
    let agent = Agent::start(&settings).await;
    let leader = agent.elect("e", "a", TERM).await.0;
    // One after the other: until it waits, each takes one of the two places, and the first is to be elected first.
    let mut waiting = Vec::new();
    for number in 1..=3 {
        waiting.push(agent.waits("e", &number.to_string(), 60_000));
        agent.has_waiters(number).await;
    }
    let refused = agent
        .waits("e", "one more", 60_000)
        .await
        .expect("no panic");
    let refused = refused.expect_err("too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("EA_MAX_STREAMS"), "{refused:?}");
    assert_eq!(agent.leader("e").await.expect("served"), "a");
    let mut waiting = waiting.into_iter();
    assert!(agent.resign("e", "a", leader.token).await.value);
    let first = waiting.next().expect("three").await.expect("no panic");
    assert!(first.expect("an answer").elected);
    for gone in waiting {
        gone.abort();
    }
    agent.is_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_went_away_is_passed_over_and_costs_no_term() {
    let nodes = Nodes::start(3).await;
    let agent = nodes.agent("agent", &[]).await;
    let leader = agent.elect("e", "a", 60_000).await.0;
    let gone = agent.waits("e", "gone", 60_000);
    agent.has_waiters(1).await;
    let next = agent.waits("e", "next", 60_000);
    agent.has_waiters(2).await;
    gone.abort();
    agent.has_waiters(1).await;
    assert!(agent.resign("e", "a", leader.token).await.value);
    let won = next.await.expect("no panic").expect("an answer");
    assert!(won.elected && won.leader == "next", "{won:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_shuts_down_answers_who_waits() {
    let mut agent = Agent::start(&[("EA_SHUTDOWN_GRACE", "30s")]).await;
    let leader = agent.elect("e", "a", 60_000).await.0;
    let waiting = agent.waits("e", "b", 60_000);
    agent.has_waiters(1).await;
    agent.signal("TERM");
    let lost = waiting.await.expect("no panic").expect("an answer");
    assert_eq!((lost.elected, lost.token), (false, leader.token));
    assert!(agent.exit().await.success());
}

/// The rights that docs/STORES.md lists suffice; without those for channels, elections are polled and the agent reports
/// what to add.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_the_right_to_channels_polls_and_says_what_to_add() {
    let stores = committed("docs/STORES.md");
    let rules = stores
        .split("```text\n")
        .find(|block| block.starts_with("-@all"));
    let rules = rules
        .and_then(|block| block.split("```").next())
        .expect("the rules of an ACL");
    for hears in [true, false] {
        let users = format!(
            "--user default on >agent resetchannels {rules} --user admin on >admin ~* &* +@all"
        );
        let of_channels = |word: &&str| word.contains("publish") || word.contains("subscribe");
        let granted = users.split_whitespace();
        let granted: Vec<_> = granted
            .filter(|word| hears || !(of_channels(word) || *word == "&election-agent:*"))
            .collect();
        let redis = Redis::with_login("admin:admin@", &granted).await;
        let nodes = Nodes::of(vec![redis]).await;
        let agent = nodes
            .agent("agent", &[("EA_REDIS_PREFIX", "election-agent")])
            .await;
        let leader = agent.elect("e", "a", 60_000).await.0;
        let waiting = agent.waits("e", "b", 60_000);
        agent.settles("waiters", 1, hears).await;
        // Hints are counted as long as the election has waiters or observers.
        let _still = agent.waits("e", "c", 60_000);
        agent.settles("waiters", 2, hears).await;
        if !hears {
            let advice = "+subscribe +ssubscribe +publish +spublish +pubsub &election-agent:*";
            agent.logs(advice).await;
        }
        assert!(agent.resign("e", "a", leader.token).await.value);
        let won = waiting.await.expect("no panic").expect("an answer");
        assert!(won.elected, "{won:?}");
        // A read in flight may find the change before its hint arrives.
        if hears {
            eventually("hints are heard", async || {
                (agent.metric("hints_total").await > 0).then_some(())
            })
            .await;
        } else {
            assert_eq!(agent.metric("hints_total").await, 0);
            assert!(agent.metric("observed_changes_unannounced_total").await > 0);
        }
    }
}
