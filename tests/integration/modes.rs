//! Agents on a primary with Sentinels, and on clusters: servers fail over, slots move, and what is
//! configured is not what is there.

use std::time::{Duration, Instant};

use election_proto::ListLeadersRequest;
use redis::cmd;
use tonic::Code;

use crate::harness::{
    Agent, Cluster, Deployment, Redis, Sentinels, campaign, eventually, eventually_within,
    extension,
};

/// Campaigns until the candidate is elected, and meanwhile asserts that it is not before `not_before`.
async fn elected_later(agent: &Agent, election: &str, candidate: &str, not_before: Instant) -> u64 {
    eventually_within(Duration::from_secs(30), "the next leader", async || {
        let answer = agent
            .try_campaign(campaign(election, candidate, 1_000))
            .await;
        let won = answer.ok()?;
        won.elected.then(|| {
            assert!(Instant::now() >= not_before, "the leader has time left");
            won.token
        })
    })
    .await
}

/// Waits until the replicas have what the primary has written.
pub(crate) async fn replicated(primary: &Redis) {
    let mut connection = primary.connect().await;
    // WAIT is about what this connection has written.
    let mut write = cmd("SET");
    write.arg("{ping}").arg(1);
    if write.query_async::<()>(&mut connection).await.is_err() {
        // The key's slot is another member's; replication is in order all the same.
        return;
    }
    let replicas: u32 = cmd("WAIT")
        .arg(1)
        .arg(5_000)
        .query_async(&mut connection)
        .await
        .expect("an answer");
    assert!(replicas > 0, "no replica has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_primary_serves_soon_and_abstains_from_grants() {
    let mut sentinels = Sentinels::start().await;
    let agent = Agent::on(&sentinels, &[("EA_MAX_TERM", "20s")]).await;
    let asked = Instant::now();
    let won = agent.campaign("e", "a", 20_000).await;
    assert!(won.elected);
    replicated(&sentinels.servers[0]).await;
    let killed = Instant::now();
    sentinels.servers[0].kill();
    let switched = sentinels.failed_over_from(0, killed).await;
    eventually("the leader is known", async || {
        agent.leader("e").await.ok().filter(|leader| leader == "a")
    })
    .await;
    let took = switched.elapsed();
    println!("served {took:?} after the first Sentinel's switch");
    assert!(agent.extend("e", "a", 20_000, won.token).await.value);
    assert!(!agent.campaign("e", "b", 1_000).await.elected);
    let refused = agent.try_campaign(campaign("vacant", "b", 1_000)).await;
    let refused = refused.expect_err("the new primary abstains");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("were promoted"), "{refused}");
    agent.readiness(200, &["guard"]).await;
    assert!(agent.resign("e", "a", won.token).await.value);
    // Twenty seconds and the five for which an agent may have used the old primary.
    let guard = agent.get("/readyz").await.body["nodes"][0]["guard"].as_u64();
    let until = Duration::from_millis(guard.expect("guarded")) + asked.elapsed();
    assert!(until > Duration::from_secs(24), "{until:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lagged_elects_nobody_while_the_leader_it_does_not_know_has_time() {
    let mut sentinels = Sentinels::start().await;
    let settings = [("EA_MAX_TERM", "8s")];
    let agent = Agent::on(&sentinels, &settings).await;
    let earlier = agent.campaign("e", "z", 1_000).await;
    assert!(earlier.elected && agent.resign("e", "z", earlier.token).await.value);
    replicated(&sentinels.servers[0]).await;
    for replica in &sentinels.servers[1..] {
        replica.signal("STOP");
    }
    // What is in their sockets already would still reach them.
    let mut cut_off = cmd("CLIENT");
    cut_off.arg("KILL").arg("TYPE").arg("replica");
    let killed = sentinels.servers[0].ask::<u32>(&cut_off).await;
    assert_eq!(killed, Ok(2));
    let asked = Instant::now();
    let won = agent.campaign("e", "a", 8_000).await;
    assert!(won.elected);
    let leads_until =
        asked + Duration::from_millis(u64::try_from(won.valid_for).expect("positive"));
    let killed = Instant::now();
    sentinels.servers[0].kill();
    for replica in &sentinels.servers[1..] {
        replica.signal("CONT");
    }
    sentinels.failed_over_from(0, killed).await;
    eventually("the new primary knows nothing of the leader", async || {
        let not_known = agent.leader("e").await.err()?;
        let forgotten = not_known.message().contains("forgotten");
        (not_known.code() == Code::Unavailable && forgotten).then_some(())
    })
    .await;
    assert!(
        Instant::now() < leads_until,
        "the machine is too slow for this test"
    );
    let late = Agent::on(&sentinels, &settings).await;
    let token = elected_later(&late, "e", "b", leads_until).await;
    assert!(token > won.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_wakes_up_is_not_used() {
    let sentinels = Sentinels::start().await;
    let agent = Agent::on(&sentinels, &[("EA_MAX_TERM", "1s")]).await;
    assert!(agent.campaign("before", "a", 1_000).await.elected);
    let stopped = Instant::now();
    sentinels.servers[0].signal("STOP");
    sentinels.failed_over_from(0, stopped).await;
    elected_later(&agent, "after", "b", stopped).await;
    sentinels.servers[0].signal("CONT");
    // Until the Sentinels demote it, it takes itself for the primary.
    for n in 0..20 {
        let election = format!("e{n}");
        elected_later(&agent, &election, "b", stopped).await;
        let key = format!("ela:{{0}}:floor:default/{election}");
        let floor: Option<u64> = sentinels.servers[0]
            .ask(cmd("GET").arg(key))
            .await
            .expect("an answer");
        let role = sentinels.servers[0].info("replication", "role").await;
        assert!(
            floor.is_none() || role.as_deref() == Some("slave"),
            "{election}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_of_sentinels_the_primary_is_not_used() {
    let mut sentinels = Sentinels::with(Deployment {
        servers: Some(("agent", "server-pw")),
        sentinels: Some(("watcher", "sentinel-pw")),
        ..Deployment::default()
    })
    .await;
    let urls = sentinels
        .urls()
        .replace("redis://", "redis://agent:server-pw@");
    let settings = [
        ("EA_REDIS_URLS", urls.as_str()),
        ("EA_REDIS_SENTINEL_USERNAME", "watcher"),
        ("EA_REDIS_SENTINEL_PASSWORD", "sentinel-pw"),
        ("EA_MAX_TERM", "60s"),
    ];
    let agent = Agent::on(&sentinels, &settings).await;
    let won = agent.campaign("e", "a", 60_000).await;
    assert!(won.elected);
    sentinels.sentinels[0].kill();
    // Earlier replies of Sentinels count for five seconds.
    let unconfirmed = Instant::now();
    while unconfirmed.elapsed() < Duration::from_secs(6) {
        assert!(
            agent.extend("e", "a", 60_000, won.token).await.value,
            "two of three are enough"
        );
    }
    sentinels.sentinels[1].kill();
    agent
        .readiness(
            503,
            &[
                "2 of 3 Sentinels have to name the same server",
                "Connection refused",
            ],
        )
        .await;
    let refused = agent.try_campaign(campaign("e", "b", 1_000)).await;
    assert_eq!(refused.expect_err("not known").code(), Code::Unavailable);
    sentinels.sentinels[0].run().await;
    agent.readiness(200, &[]).await;
    assert!(agent.extend("e", "a", 60_000, won.token).await.value);
    assert!(
        agent.campaign("other", "b", 1_000).await.elected,
        "nothing was forgotten"
    );

    for (variable, value, says) in [
        (
            "EA_REDIS_MASTER",
            "nobody",
            "set EA_REDIS_MASTER to a name that it knows",
        ),
        (
            "EA_REDIS_SENTINEL_PASSWORD",
            "s3cret",
            "check EA_REDIS_SENTINEL_USERNAME and EA_REDIS_SENTINEL_PASSWORD",
        ),
        (
            "EA_REDIS_URLS",
            &sentinels.urls(),
            "check the user and password in EA_REDIS_URLS",
        ),
    ] {
        let wrong: Vec<_> = settings
            .iter()
            .filter(|(name, _)| *name != variable)
            .copied()
            .chain([(variable, value)])
            .collect();
        let agent = Agent::on(&sentinels, &wrong).await;
        agent.readiness(503, &[says]).await;
        assert!(!agent.log().join("\n").contains("s3cret"), "{variable}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_that_does_not_match_the_servers_is_told_with_the_mode_that_does() {
    let single = Redis::start().await;
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &single.port().to_string()]).await;
    let (cluster, sentinels) = tokio::join!(Cluster::start(), Sentinels::start());
    let member = cluster.nodes[0].url();
    let one_sentinel = sentinels.sentinels[0].url();
    for (mode, url, says) in [
        (
            "single",
            &member,
            "belongs to a Redis Cluster: give EA_REDIS_MODE=cluster",
        ),
        (
            "single",
            &one_sentinel,
            "is a Sentinel: give EA_REDIS_MODE=failover",
        ),
        (
            "single",
            &replica.url(),
            "is a replica, which does not keep leases",
        ),
        (
            "cluster",
            &single.url(),
            "does not belong to a Redis Cluster: give EA_REDIS_MODE=single",
        ),
        (
            "cluster",
            &one_sentinel,
            "is a Sentinel: give EA_REDIS_MODE=failover",
        ),
        (
            "failover",
            &single.url(),
            "is no Sentinel: give the Sentinels in EA_REDIS_URLS",
        ),
    ] {
        let mut settings = vec![("EA_REDIS_MODE", mode), ("EA_REDIS_URLS", url.as_str())];
        if mode == "failover" {
            settings.push(("EA_REDIS_MASTER", "elections"));
        }
        let agent = Agent::start(&settings).await;
        agent.readiness(503, &[says]).await;
        let refused = agent.try_campaign(campaign("e", "a", 1_000)).await;
        assert_eq!(refused.expect_err(says).code(), Code::Unavailable);
    }
}

/// Names of elections, one in each shard of the cluster as it was started, and their slots.
async fn one_in_each_shard(agent: &Agent, cluster: &Cluster) -> Vec<(String, u16)> {
    let mut found: Vec<Option<(String, u16)>> = vec![None; 3];
    for n in 0.. {
        let name = format!("e{n}");
        let won = agent.campaign(&name, "finder", 1_000).await;
        assert!(won.elected);
        for (shard, node) in cluster.nodes[..3].iter().enumerate() {
            let mut scan = cmd("SCAN");
            scan.arg(0)
                .arg("MATCH")
                .arg(format!("*lease:default/{name}"));
            scan.arg("COUNT").arg(100_000);
            let (_, keys): (u64, Vec<String>) = node.ask(&scan).await.expect("keys");
            if let Some(key) = keys.first() {
                let slot: u16 = node
                    .ask(cmd("CLUSTER").arg("KEYSLOT").arg(key))
                    .await
                    .expect("a slot");
                found[shard].get_or_insert((name.clone(), slot));
            }
        }
        assert!(agent.resign(&name, "finder", won.token).await.value);
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    found.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_fails_over_while_the_others_go_on() {
    // The others serve although slots are missing.
    let clusters = [Cluster::with(&["--cluster-require-full-coverage", "no"]).await];
    let agent = Agent::on(&clusters[..], &[("EA_MAX_TERM", "10s")]).await;
    let elections = one_in_each_shard(&agent, &clusters[0]).await;
    let mut tokens = Vec::new();
    for (election, _) in &elections {
        let won = agent.campaign(election, "a", 10_000).await;
        assert!(won.elected);
        tokens.push(won.token);
    }
    let asked = Instant::now();
    let [mut cluster] = clusters;
    replicated(&cluster.nodes[0]).await;
    cluster.nodes[0].kill();
    agent
        .readiness(200, &["degraded", "Connection refused"])
        .await;
    for (election, token) in elections[1..].iter().zip(&tokens[1..]) {
        assert!(agent.extend(&election.0, "a", 10_000, *token).await.value);
    }
    let refused = agent.leader(&elections[0].0).await;
    assert_eq!(refused.expect_err("not known").code(), Code::Unavailable);
    cluster.failed_over_from(0, elections[0].1).await;
    let promoted = Instant::now();
    let extended = eventually("the shard serves again", async || {
        let known = agent.leader(&elections[0].0).await;
        known.ok().filter(|leader| leader == "a")?;
        Some(
            agent
                .extend(&elections[0].0, "a", 10_000, tokens[0])
                .await
                .value,
        )
    });
    assert!(extended.await, "the replica had the lease");
    println!(
        "the shard served {:?} after the promotion",
        promoted.elapsed()
    );
    agent.readiness(200, &["\"guard\""]).await;
    assert!(agent.resign(&elections[0].0, "a", tokens[0]).await.value);
    let refused = agent
        .try_campaign(campaign(&elections[0].0, "b", 1_000))
        .await;
    let refused = refused.expect_err("the promoted replica abstains");
    assert!(refused.message().contains("in quarantine"), "{refused}");
    // Not so the other shards.
    let (other, held) = (&elections[1].0, tokens[1]);
    assert!(agent.resign(other, "a", held).await.value);
    assert!(agent.campaign(other, "b", 1_000).await.elected);
    let token = elected_later(
        &agent,
        &elections[0].0,
        "b",
        asked + Duration::from_secs(10),
    )
    .await;
    assert!(token > tokens[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_while_their_leaders_extend() {
    let clusters = [Cluster::start().await];
    let settings = [("EA_MAX_TERM", "3s"), ("EA_REDIS_PARTITIONS", "8")];
    let agent = Agent::on(&clusters[..], &settings).await;
    let elections = one_in_each_shard(&agent, &clusters[0]).await;
    let (election, slot) = &elections[0];
    let mut won = agent.campaign(election, "a", 3_000).await;
    assert!(won.elected);
    let cluster = &clusters[0];
    let moving = async {
        for to in [1, 2, 0].repeat(8) {
            cluster.move_slot(*slot, to).await;
        }
    };
    tokio::pin!(moving);
    let (mut extended, mut unknown) = (0, 0);
    loop {
        let request = extension(election, "a", 3_000, won.token);
        let mut client = agent.grpc();
        tokio::select! {
            () = &mut moving => break,
            answer = client.extend_elected_term(request) => match answer {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    assert!(answer.value, "{answer:?}: the lease moves with its slot");
                    extended += 1;
                }
                Err(_) => unknown += 1,
            }
        }
    }
    println!("{extended} extensions and {unknown} unknown outcomes while a slot moved 24 times");
    assert!(extended > 100, "{extended}, and {unknown} unknown");
    assert_eq!(agent.leader(election).await.expect("known"), "a");
    let refused = agent.campaign(election, "b", 1_000).await;
    assert!(!refused.elected);
    // The slot is another server's now, so its elections wait once they are vacant.
    let asked = Instant::now();
    assert!(agent.resign(election, "a", won.token).await.value);
    let token = elected_later(&agent, election, "b", asked).await;
    assert!(token > won.token);
    won.token = token;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_clusters_one_may_be_lost() {
    let (a, b, c) = tokio::join!(Cluster::start(), Cluster::start(), Cluster::start());
    let mut clusters = [a, b, c];
    let settings = [("EA_REDIS_PARTITIONS", "16")];
    let agent = Agent::on(&clusters[..], &settings).await;
    let won = agent.campaign("e", "a", 60_000).await;
    assert!(won.elected);
    clusters[0].nodes.iter_mut().for_each(Redis::kill);
    assert!(agent.extend("e", "a", 60_000, won.token).await.value);
    assert!(agent.campaign("other", "b", 60_000).await.elected);
    agent.readiness(200, &["\"up\":false"]).await;
    clusters[1].nodes.iter_mut().for_each(Redis::kill);
    agent
        .readiness(503, &["1 of 3 lease nodes answer, 2 are needed"])
        .await;
    let refused = agent.try_campaign(campaign("e", "b", 1_000)).await;
    assert_eq!(refused.expect_err("not known").code(), Code::Unavailable);
    // Agents that spread elections otherwise would look for them elsewhere.
    let last = std::slice::from_ref(&clusters[2]);
    let other = Agent::on(last, &[("EA_REDIS_PARTITIONS", "32")]).await;
    other
        .readiness(503, &["another list of servers", "in 16 partitions"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_cluster_under_two_names_does_not_vote_twice() {
    let cluster = Cluster::start().await;
    let urls = [cluster.nodes[0].url(), cluster.nodes[1].url()].join(",");
    let settings = [("EA_REDIS_MODE", "cluster"), ("EA_REDIS_URLS", &urls)];
    let agent = Agent::start(&settings).await;
    agent.readiness(503, &["same server", "vote twice"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_of_all_partitions_are_listed_in_order_and_once() {
    let clusters = [Cluster::start().await];
    let agent = Agent::on(&clusters[..], &[]).await;
    let mut names: Vec<_> = (0..120).map(|n| format!("e{n}")).collect();
    for name in &names {
        assert!(agent.campaign(name, "a", 60_000).await.elected);
    }
    names.sort_unstable();
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListLeadersRequest {
            kind: String::new(),
            page_size: 7,
            page_token,
            ..ListLeadersRequest::default()
        };
        let page = agent
            .grpc()
            .list_leaders(request)
            .await
            .expect("a page")
            .into_inner();
        assert!(page.leaders.len() <= 7);
        listed.extend(page.leaders.into_iter().map(|leader| leader.election));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, names);
}

/// A cluster of one member, over TLS: it announces no address of its own, so it is reached as before.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_spoken_to_over_tls_with_its_password() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let ca = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(ca.path(), made.cert.pem()).expect("written");
    let arguments = "--requirepass pw --cluster-enabled yes --tls-cluster yes --tls-ca-cert-file";
    let path = ca.path().display().to_string();
    let arguments: Vec<_> = arguments.split(' ').chain([path.as_str()]).collect();
    let key = made.signing_key.serialize_pem();
    let redis = Redis::with_tls(&made.cert.pem(), &key, &arguments).await;
    let url = redis.url_as(":pw@");
    let settings = [
        ("EA_REDIS_MODE", "cluster"),
        ("EA_REDIS_URLS", &url),
        ("EA_REDIS_TLS_CA_FILE", &path),
        ("EA_REDIS_PARTITIONS", "16"),
    ];
    let agent = Agent::start(&settings).await;
    agent
        .readiness(503, &["no server is known to serve 16 of 16 partitions"])
        .await;
    let tls = redis::Client::build_with_tls(
        url.as_str(),
        redis::TlsCertificates {
            client_tls: None,
            root_cert: Some(made.cert.pem().into_bytes()),
        },
    );
    let mut connection = tls
        .expect("a URL")
        .get_multiplexed_async_connection()
        .await
        .expect("connects");
    let mut all = cmd("CLUSTER");
    all.arg("ADDSLOTSRANGE").arg(0).arg(16_383);
    all.query_async::<()>(&mut connection).await.expect("added");
    agent.readiness(200, &["\"guard\":0"]).await;
    let won = agent.campaign("e", "a", 60_000).await;
    assert!(won.elected);
    assert!(agent.extend("e", "a", 60_000, won.token).await.value);
}

/// How many scripts the primaries have run.
async fn scripts_run(cluster: &Cluster) -> u64 {
    let mut all = 0;
    for node in &cluster.nodes[..3] {
        all += node.calls("evalsha").await;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_a_cluster_costs_a_few_scripts_a_second() {
    let clusters = [Cluster::start().await];
    // With the guard, all partitions are probed once more after their incarnation records are written.
    for (guard, says) in [("on", "\"guard\":0"), ("off", "\"up\":true")] {
        let settings = [("EA_RESTART_GUARD", guard), ("EA_REDIS_PREFIX", guard)];
        let agent = Agent::on(&clusters[..], &settings).await;
        agent.readiness(200, &[says]).await;
        let before = scripts_run(&clusters[0]).await;
        // Not a condition to wait for: the time itself is what is measured.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let ran = scripts_run(&clusters[0]).await - before;
        println!("EA_RESTART_GUARD={guard}: {ran} scripts in 3 s of an idle agent");
        assert!((3..100).contains(&ran), "{guard}: {ran}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_lost_its_data_abstains_and_serves_again() {
    let clusters = [Cluster::start().await];
    let agent = Agent::on(&clusters[..], &[("EA_MAX_TERM", "2s")]).await;
    let won = agent.campaign("e", "a", 1_000).await;
    assert!(won.elected && agent.resign("e", "a", won.token).await.value);
    let mut deleted = 0;
    for node in &clusters[0].nodes[..3] {
        let mut scan = cmd("SCAN");
        scan.arg(0).arg("MATCH").arg("*floor:default/e");
        scan.arg("COUNT").arg(100_000);
        let (_, keys): (u64, Vec<String>) = node.ask(&scan).await.expect("keys");
        for key in keys {
            let marker = key.replace("floor:default/e", "marker");
            let gone = node.ask::<u64>(cmd("DEL").arg(&key).arg(&marker)).await;
            deleted += gone.expect("deleted");
        }
    }
    assert_eq!(deleted, 2);
    // What the agent has seen once, it does not take for new: the longest term and five seconds.
    let asked = Instant::now();
    let token = elected_later(&agent, "e", "b", asked + Duration::from_secs(7)).await;
    assert!(token > won.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_everything_serves_again_under_load() {
    let clusters = [Cluster::start().await];
    let settings = [("EA_MAX_TERM", "2s")];
    let (one, other) = tokio::join!(
        Agent::on(&clusters[..], &settings),
        Agent::on(&clusters[..], &settings)
    );
    let agents = [one, other];
    for agent in &agents {
        agent.readiness(200, &["\"guard\":0"]).await;
    }
    for node in &clusters[0].nodes[..3] {
        node.ask::<()>(&cmd("FLUSHALL")).await.expect("flushed");
    }
    let before = scripts_run(&clusters[0]).await;
    let lost = Instant::now();
    let all = (0..200).map(|n| {
        let agent = &agents[n % 2];
        async move {
            let election = format!("e{n}");
            elected_later(agent, &election, "c", lost + Duration::from_secs(6)).await
        }
    });
    futures_util::future::join_all(all).await;
    let ran = scripts_run(&clusters[0]).await - before;
    println!("all elected after {:?}, {ran} scripts", lost.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_spread_elections_otherwise_stay_out_while_a_shard_is_down() {
    let mut clusters = [Cluster::with(&["--cluster-require-full-coverage", "no"]).await];
    let with = |partitions| [("EA_REDIS_PARTITIONS", partitions), ("EA_MAX_TERM", "2s")];
    let first = Agent::on(&clusters[..], &with("16")).await;
    first.readiness(200, &[]).await;
    let other = Agent::on(&clusters[..], &with("32")).await;
    other.readiness(503, &["another list of servers"]).await;
    let slot: u16 = clusters[0].nodes[0]
        .ask(cmd("CLUSTER").arg("KEYSLOT").arg("{0}"))
        .await
        .expect("a slot");
    let home = clusters[0].primary_of(slot).await.expect("served");
    // With its replica, which would take over.
    clusters[0].nodes[home].kill();
    clusters[0].nodes[home + 3].kill();
    first.readiness(200, &["degraded"]).await;
    let down = Instant::now();
    while down.elapsed() < Duration::from_secs(4) {
        let mut elected = 0;
        for n in 0..8 {
            let election = format!("e{n}");
            let refused = other.try_campaign(campaign(&election, "b", 1_000)).await;
            assert_eq!(refused.expect_err("left out").code(), Code::Unavailable);
            let answer = first.try_campaign(campaign(&election, "a", 1_000)).await;
            elected += usize::from(answer.is_ok_and(|answer| answer.elected));
        }
        assert!(elected > 0, "the other shards serve");
    }
}
