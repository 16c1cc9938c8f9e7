//! An agent that keeps leases in its own file, on a disk that is full for a while.

use tempfile::TempDir;
use tonic::Code;

use crate::harness::{Agent, campaign, command_after, owned};

const TERM: i32 = 60_000;

/// An agent whose writes can be made to fail, without a disk of its own that could be filled.
async fn start(database: &str) -> Agent {
    let settings = owned(&[("EA_EMBEDDED_PATH", database)]);
    Agent::run(command_after("trap '' XFSZ", &settings)).await
}

/// An agent with this database, and the token of `a`, which leads `e` and has extended.
async fn with_a_leader(database: &str) -> (Agent, u64) {
    let agent = start(database).await;
    let won = agent.campaign("e", "a", TERM).await;
    assert!(agent.extend("e", "a", TERM, won.token).await.value);
    (agent, won.token)
}

async fn refused(agent: &Agent, election: &str) {
    let reply = agent.try_campaign(campaign(election, "b", TERM)).await;
    let status = reply.expect_err("nobody is elected");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

#[tokio::test]
async fn an_agent_goes_on_when_its_disk_has_room_again_and_has_lost_nothing() {
    let directory = TempDir::new().expect("a directory");
    let database = directory.path().join("leases.redb").display().to_string();
    let (mut agent, token) = with_a_leader(&database).await;

    agent.limit_file_size(Some(0));
    refused(&agent, "f").await;
    let why = ["cannot write", &database, "free space"];
    agent.readiness(503, &why).await;
    assert_eq!(agent.get("/livez").await.status, 200);
    let metrics = agent.get("/metrics").await;
    let metrics = metrics.body.as_str().expect("text");
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with("election_agent_node_up{") && line.ends_with(" 0")),
        "{metrics}"
    );
    // What is on disk counts for them after any restart.
    assert!(agent.extend("e", "a", TERM, token).await.value);
    assert_eq!(agent.leader("e").await.expect("known"), "a");
    let lost = agent.campaign("e", "b", TERM).await;
    assert_eq!((lost.elected, &*lost.leader), (false, "a"));
    refused(&agent, "g").await;

    agent.limit_file_size(None);
    agent.readiness(200, &[]).await;
    let next = agent.campaign("g", "b", TERM).await;
    assert!(next.elected && next.token > token);
    let log = agent.logs("the lease database can be written again").await;
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("the lease database cannot be written"), 1, "{log:?}");
    assert_eq!(
        count("the lease database can be written again"),
        1,
        "{log:?}"
    );

    agent.kill();
    let agent = start(&database).await;
    agent.readiness(200, &[r#""guard":0"#]).await;
    assert_eq!(agent.leader("e").await.expect("known"), "a");
    assert_eq!(agent.leader("g").await.expect("known"), "b");
}

#[tokio::test]
async fn an_agent_that_is_killed_while_its_disk_is_full_knows_whom_it_extended() {
    let directory = TempDir::new().expect("a directory");
    let database = directory.path().join("leases.redb").display().to_string();
    let (mut agent, token) = with_a_leader(&database).await;
    agent.limit_file_size(Some(0));
    refused(&agent, "f").await;
    assert!(agent.extend("e", "a", TERM, token).await.value);
    agent.kill();

    let agent = start(&database).await;
    agent.readiness(200, &[r#""guard":0"#]).await;
    let leader = agent.get("/election/e").await;
    assert_eq!(leader.text("leader"), "a");
    assert!(
        leader.body["remaining"].as_u64() > Some(50_000),
        "{leader:?}"
    );
    assert!(agent.extend("e", "a", TERM, token).await.value);
}
