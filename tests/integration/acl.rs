//! An agent whose user lacks a right on a server.

use std::time::{Duration, Instant};

use redis::cmd;

use crate::harness::{Agent, Nodes, Redis, campaign, eventually};

const AGENT: &str = "the-agent";

/// A server with a user for the agent, and one for the tests.
async fn start(settings: &[(&str, &str)]) -> (Nodes, Agent) {
    let users =
        format!("--user default on >{AGENT} ~* &* +@all --user admin on >admin ~* &* +@all");
    let users: Vec<_> = users.split_whitespace().collect();
    let redis = Redis::with_login("admin:admin@", &users).await;
    let nodes = Nodes::of(vec![redis]).await;
    let agent = nodes.agent(AGENT, settings).await;
    (nodes, agent)
}

/// Takes the right from the agent's user to let keys lapse.
async fn take_expiry(server: &Redis) {
    let mut user = cmd("ACL");
    user.arg(&["SETUSER", "default", "-pexpire"]);
    server.ask::<()>(&user).await.expect("set");
}

/// For a second, whatever is stored of the candidate lapses some time.
async fn everything_lapses(server: &Redis, candidate: &str) {
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(1) {
        for (key, lapses) in server.keys_with(candidate).await.unwrap_or_default() {
            // One that is gone meanwhile says -2.
            assert_ne!(lapses, -1, "{key} never lapses");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A lease is stored with its expiry or not at all: the agent may be killed before it can roll back what the
/// server has stored of a script that failed halfway.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_may_not_let_keys_lapse_leaves_no_lease_that_never_does() {
    for guard in ["on", "off"] {
        let (nodes, mut agent) = start(&[("EA_RESTART_GUARD", guard)]).await;
        eventually("it serves", async || agent.win("before", "a", 1_000).await).await;
        take_expiry(&nodes.servers[0]).await;
        let gate = nodes.gate(AGENT, 0);
        gate.hold_replies("immortal");
        let mut client = agent.grpc();
        let asked =
            tokio::spawn(async move { client.campaign(campaign("e", "immortal", 5_000)).await });
        gate.holds(1).await;
        agent.kill();
        gate.open();
        assert!(asked.await.expect("no panic").is_err());
        everything_lapses(&nodes.servers[0], "immortal").await;
    }
}

/// An agent that lives leaves no lease either that never lapses, and does not elect by one.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_elected_by_a_user_that_may_not_let_keys_lapse() {
    let (nodes, agent) = start(&[]).await;
    agent.serves().await;
    take_expiry(&nodes.servers[0]).await;
    for _ in 0..5 {
        let asked = agent.try_campaign(campaign("e", "immortal", 5_000)).await;
        if asked.is_ok_and(|answer| answer.elected) {
            // Then its term passes, as any.
            break;
        }
    }
    everything_lapses(&nodes.servers[0], "immortal").await;
}

/// Readiness says which right is missing, so that an operator knows what to grant.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_which_right_is_missing() {
    let (nodes, agent) = start(&[]).await;
    agent.serves().await;
    take_expiry(&nodes.servers[0]).await;
    eventually("not ready for want of PEXPIRE", async || {
        let ready = agent.get("/readyz").await;
        let told = ready.body.to_string().to_lowercase();
        (ready.status == 503 && told.contains("pexpire")).then_some(())
    })
    .await;
}
