//! What tests of failover and resharding take for granted: that the harness's deployments do fail over and
//! reshard, with what they keep.

use std::time::Instant;

use redis::{AsyncCommands as _, RedisResult, cmd};

use crate::harness::{Cluster, Deployment, Redis, Sentinels, eventually};

/// Writes a key, and waits until a replica has it.
async fn write(primary: &Redis, key: &str) {
    let mut connection = primary.connect().await;
    connection.set::<_, _, ()>(key, 1).await.expect("written");
    let replicas: u32 = cmd("WAIT")
        .arg(1)
        .arg(400)
        .query_async(&mut connection)
        .await
        .expect("an answer");
    assert!(replicas >= 1, "no replica has it");
}

async fn read(redis: &Redis, key: &str) -> RedisResult<Option<u32>> {
    redis.ask(cmd("GET").arg(key)).await
}

async fn role(redis: &Redis) -> Option<String> {
    redis.info("replication", "role").await
}

#[tokio::test]
async fn sentinels_promote_a_replica_of_a_primary_that_died() {
    let mut deployment = Sentinels::start().await;
    assert_eq!(deployment.primary().await, Some(0));
    assert_eq!(deployment.urls().split(',').count(), 3);
    write(&deployment.servers[0], "kept").await;
    let killed = Instant::now();
    deployment.servers[0].kill();
    let failed_over = deployment.failed_over_from(0, killed).await;
    let primary = eventually("the Sentinels agree", async || {
        deployment.primary().await.filter(|primary| *primary != 0)
    })
    .await;
    assert_eq!(
        role(&deployment.servers[primary]).await.as_deref(),
        Some("master")
    );
    let kept = read(&deployment.servers[primary], "kept").await;
    assert_eq!(kept, Ok(Some(1)));
    println!(
        "reported {:?} after the primary's death",
        failed_over - killed
    );
}

#[tokio::test]
async fn a_primary_that_comes_back_after_a_failover_is_made_to_follow_the_new_one() {
    let mut deployment = Sentinels::with(Deployment {
        servers: Some(("agent", "server-pw")),
        sentinels: Some(("watcher", "sentinel-pw")),
        ..Deployment::default()
    })
    .await;
    let nobody = redis::Client::open(deployment.servers[0].url()).expect("a URL");
    let mut nobody = nobody
        .get_multiplexed_async_connection()
        .await
        .expect("connects");
    nobody.get::<_, ()>("key").await.expect_err("no password");
    assert_eq!(deployment.sentinel_login(), "watcher:sentinel-pw@");
    deployment.sentinels[2].kill();
    let stopped = Instant::now();
    deployment.servers[0].signal("STOP");
    deployment.failed_over_from(0, stopped).await;
    deployment.sentinels[2].run().await;
    // Before it learns of the failover, the old primary takes itself for one: a zombie.
    deployment.servers[0].signal("CONT");
    let zombie = eventually("it answers", async || role(&deployment.servers[0]).await).await;
    let primary = deployment.settled().await;
    assert_ne!(primary, 0);
    assert_eq!(zombie, "master");
    assert_eq!(role(&deployment.servers[0]).await.as_deref(), Some("slave"));
}

#[tokio::test]
async fn a_cluster_promotes_the_replica_of_a_primary_that_died() {
    let mut cluster = Cluster::start().await;
    let primary = cluster.primary_of(0).await.expect("served");
    assert_eq!(primary, 0);
    // In slot 0.
    write(&cluster.nodes[0], "{06S}kept").await;
    cluster.nodes[0].kill();
    let (promoted, _) = cluster.failed_over_from(0, 0).await;
    assert_eq!(promoted, 3, "its replica");
    let kept = read(&cluster.nodes[3], "{06S}kept").await;
    assert_eq!(kept, Ok(Some(1)));
    cluster.nodes[0].run().await;
    cluster.settled().await;
    assert_eq!(role(&cluster.nodes[0]).await.as_deref(), Some("slave"));
}

#[tokio::test]
async fn a_slot_moves_with_its_keys_to_another_primary_of_its_cluster_only() {
    let (one, other) = tokio::join!(Cluster::start(), Cluster::start());
    assert_eq!(one.url().matches("addr=").count(), 5);
    write(&one.nodes[0], "{06S}kept").await;
    one.move_slot(0, 1).await;
    assert_eq!(one.primary_of(0).await, Some(1));
    assert_eq!(read(&one.nodes[1], "{06S}kept").await, Ok(Some(1)));
    let moved = read(&one.nodes[0], "{06S}kept").await;
    let moved = moved.expect_err("no longer there");
    assert_eq!(moved.code(), Some("MOVED"), "{moved}");
    assert_eq!(other.primary_of(0).await, Some(0));
    assert_eq!(read(&other.nodes[0], "{06S}kept").await, Ok(None));
}
