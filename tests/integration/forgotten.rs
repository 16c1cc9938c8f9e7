//! Replies about elections that a majority of servers may merely have forgotten.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::harness::{Nodes, eventually, extension};

/// While a majority of the servers is in quarantine because it may have forgotten a leader, it is not known whether
/// there is one: the agent reports neither a vacancy nor the end of the leader's term.
async fn nothing_is_denied_after(forgetting: &[usize]) {
    const TERM: i32 = 60_000;
    let mut nodes = Nodes::start(3).await;
    let agent = nodes.agent("the-agent", &[]).await;
    agent.serves().await;
    let (won, _) = agent.elect("e", "a", TERM).await;
    nodes.forget(forgetting).await;
    eventually("the servers that have forgotten abstain", async || {
        let nodes = agent.get("/readyz").await.body["nodes"].clone();
        let guarded = |node: &usize| nodes[*node]["guard"].as_u64().is_some_and(|ms| ms > 0);
        let up = (0..3).all(|node| nodes[node]["up"] == true);
        (up && forgetting.iter().all(guarded)).then_some(())
    })
    .await;
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(1) {
        for election in ["e", "another"] {
            let leader = agent.leader(election).await;
            let code = leader.as_ref().map_err(tonic::Status::code);
            assert_eq!(code, Err(Code::Unavailable), "{election}: {leader:?}");
        }
        let extended = agent.try_extend(extension("e", "a", TERM, won.token)).await;
        let code = extended.as_ref().map_err(tonic::Status::code);
        assert_eq!(code, Err(Code::Unavailable), "{extended:?}");
        let leader = agent.get("/election/e").await;
        assert_eq!(leader.status, 503, "{leader:?}");
    }
}

/// Two of three servers have forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_majority_that_has_forgotten_denies_no_leader() {
    nothing_is_denied_after(&[0, 1]).await;
}

/// All servers have forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_have_all_forgotten_deny_no_leader() {
    nothing_is_denied_after(&[0, 1, 2]).await;
}
