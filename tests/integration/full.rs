//! Redis servers whose memory is full: no new elections, and the leaders stay.

use election_proto::CampaignRequest;
use tonic::{Code, Status};

use crate::harness::{Agent, Cluster, Nodes, Redis, Sentinels, campaign, eventually, extension};

/// Sets how much memory a server may use.
async fn limit(server: &Redis, maxmemory: &str) {
    let mut set = redis::cmd("CONFIG");
    set.arg(&["SET", "maxmemory", maxmemory]);
    server.ask::<()>(&set).await.expect("set");
}

/// Less than a server uses that keeps nothing.
const FULL: &str = "100kb";
/// No limit.
const ROOM: &str = "0";

/// A campaign of which nodes keep more than a kilobyte.
fn large(election: &str) -> CampaignRequest {
    CampaignRequest {
        value: "x".repeat(1024),
        ..campaign(election, "a", 60_000)
    }
}

fn is_store_full(refused: &Status) {
    let code = refused.metadata().get("x-election-agent-code");
    let code = code.and_then(|code| code.to_str().ok());
    assert_eq!(
        (refused.code(), code),
        (Code::Unavailable, Some("StoreFull"))
    );
    assert!(refused.message().starts_with("store full: "), "{refused}");
}

/// Asserts that a new election is refused, while the leader of `kept` with this token stays the leader, and resigns.
async fn keeps_its_leaders(agent: &Agent, token: u64) {
    let refused = agent.try_campaign(campaign("new", "b", 60_000)).await;
    is_store_full(&refused.expect_err("no room"));
    // The first extension acknowledges the grant, which writes more than the next.
    for _ in 0..2 {
        let extended = agent
            .try_extend(extension("kept", "a", 60_000, token))
            .await;
        assert!(extended.expect("an answer").value);
    }
    let other = agent.try_campaign(campaign("kept", "b", 60_000)).await;
    let other = other.expect("an answer");
    assert_eq!((other.elected, other.leader.as_str()), (false, "a"));
    assert_eq!(agent.leader("kept").await.expect("known"), "a");
    // Not before the servers were probed, full as they are.
    agent
        .readiness(200, &["of its maxmemory is used", "in the last minute"])
        .await;
    assert!(agent.resign("kept", "a", token).await.value);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fills_a_server_keeps_others_from_new_elections_only_until_it_gives_up_some() {
    let redis = Redis::with(&["--maxmemory", "3mb"]).await;
    let agent = Agent::on(&redis, &[("EA_WORKERS", "1")]).await;
    let kept = agent.campaign("kept", "a", 60_000).await;
    let mut held = Vec::new();
    let refused = loop {
        let election = format!("fill{}", held.len());
        match agent.try_campaign(large(&election)).await {
            Ok(won) => held.push((election, won.token)),
            Err(refused) => break refused,
        }
        assert!(held.len() < 3_000, "it takes more than it may");
    };
    is_store_full(&refused);
    // What the server takes for its connections varies: so that it is not full by a hair's breadth only.
    limit(&redis, "3000kb").await;
    let refused = agent.campaign_over_rest("/election/new", "b", 60_000).await;
    assert_eq!((refused.status, refused.text("code")), (503, "StoreFull"));

    // It has to register before it may extend.
    let second = Agent::on(&redis, &[("EA_WORKERS", "1")]).await;
    second.readiness(200, &[]).await;
    for agent in [&agent, &second] {
        let extended = agent
            .try_extend(extension("kept", "a", 60_000, kept.token))
            .await;
        assert!(extended.expect("an answer").value);
    }
    keeps_its_leaders(&agent, kept.token).await;
    let bytes = async |which: &str| {
        let metrics = agent.get("/metrics").await;
        let series = format!("election_agent_node_memory_{which}_bytes{{");
        let mut lines = metrics.body.as_str()?.lines();
        let line = lines.find(|line| line.starts_with(&series))?;
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    eventually("its memory is reported", async || {
        let (used, max) = (bytes("used").await?, bytes("max").await?);
        (max == 3_000 * 1_024 && used > max).then_some(())
    })
    .await;

    eventually("there is room again", async || {
        let (election, token) = held.pop().expect("there is room without any of them");
        assert!(agent.resign(&election, "a", token).await.value);
        let won = agent.try_campaign(campaign("new", "b", 60_000)).await;
        won.ok().filter(|won| won.elected)
    })
    .await;
    let metrics = agent.get("/metrics").await;
    let metrics = metrics.body.as_str().expect("text");
    for series in [
        "election_agent_node_call_errors_total{node=\"127.0.0.1:",
        "election_agent_outcomes_total{",
    ] {
        let full = |line: &&str| {
            line.starts_with(series)
                && (line.contains("operation=\"grant\",error=\"full\"")
                    || line.contains("outcome=\"store_full\""))
        };
        let count = metrics.lines().find(full).expect(metrics);
        assert!(!count.ends_with(" 0"), "{count}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_servers_one_may_be_full_and_two_full_ones_are_told() {
    let nodes = Nodes::start(3).await;
    let agent = nodes.agent("a", &[]).await;
    agent.serves().await;
    limit(&nodes.servers[0], FULL).await;
    let kept = agent.campaign("kept", "a", 60_000).await;
    assert!(kept.elected, "two of three have room");
    limit(&nodes.servers[1], FULL).await;
    keeps_its_leaders(&agent, kept.token).await;
    limit(&nodes.servers[0], ROOM).await;
    assert!(agent.campaign("new", "b", 60_000).await.elected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_primary_with_sentinels_keeps_its_leaders() {
    let sentinels = Sentinels::start().await;
    let agent = Agent::on(&sentinels, &[]).await;
    agent.readiness(200, &[]).await;
    let kept = agent.campaign("kept", "a", 60_000).await;
    limit(&sentinels.servers[0], FULL).await;
    keeps_its_leaders(&agent, kept.token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_primaries_of_a_cluster_keep_their_leaders() {
    let cluster = Cluster::start().await;
    let agent = Agent::on(&cluster, &[("EA_REDIS_PARTITIONS", "64")]).await;
    agent.readiness(200, &[]).await;
    let (kept, _) = agent.elect("kept", "a", 60_000).await;
    for primary in cluster.primaries().await {
        limit(&cluster.nodes[primary], FULL).await;
    }
    keeps_its_leaders(&agent, kept.token).await;
}
