//! Elections that are held are listed, whatever happens to the index of listings; and a listing that cannot be
//! complete reports so.

use std::{collections::BTreeSet, time::Duration};

use election_proto::{CampaignRequest, Leaders, ListKindsRequest, ListLeadersRequest};
use redis::{Cmd, FromRedisValue, cmd};
use tonic::Code;

use crate::harness::{Agent, Cluster, Redis, Sentinels, campaign, eventually, eventually_within};

const KEYS_OF_INDEX: [&str; 2] = ["ela:{0}:index", "ela:{0}:expiry"];
const TERM: i32 = 60_000;

/// An agent on a cluster with so many partitions.
async fn on_cluster(cluster: &Cluster, partitions: &str) -> Agent {
    let agent = Agent::on(cluster, &[("EA_REDIS_PARTITIONS", partitions)]).await;
    agent.readiness(200, &["\"guard\":0"]).await;
    agent
}

async fn on_servers(servers: &[Redis]) -> Agent {
    let agent = Agent::on(servers, &[]).await;
    agent.readiness(200, &[]).await;
    agent
}

async fn page(agent: &Agent, page_size: i32, page_token: &str) -> Result<Leaders, tonic::Status> {
    let request = ListLeadersRequest {
        kind: String::new(),
        page_size,
        page_token: page_token.to_owned(),
        ..ListLeadersRequest::default()
    };
    let page = agent.grpc().list_leaders(request).await?;
    Ok(page.into_inner())
}

/// What all pages list, and whether one of them is incomplete.
async fn listed(agent: &Agent, page_size: i32) -> Result<(Vec<String>, bool), tonic::Status> {
    let (mut names, mut incomplete, mut page_token) = (Vec::new(), false, String::new());
    for _ in 0..1_000 {
        let page = page(agent, page_size, &page_token).await?;
        names.extend(page.leaders.into_iter().map(|leader| leader.election));
        incomplete |= page.incomplete;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok((names, incomplete));
        }
    }
    panic!("a listing does not end: {names:?}");
}

async fn lists(agent: &Agent, elections: &[Held], incomplete: bool) {
    let names: Vec<_> = elections.iter().map(|held| held.name.clone()).collect();
    let answer = listed(agent, 100).await.expect("a page");
    assert_eq!(answer, (names, incomplete));
    if !incomplete && !elections.is_empty() {
        assert_eq!(kinds(agent).await, (vec!["default".to_owned()], false));
    }
}

/// What one page lists of the kinds, and whether it is incomplete.
async fn kinds(agent: &Agent) -> (Vec<String>, bool) {
    let page = agent.grpc().list_kinds(ListKindsRequest::default()).await;
    let page = page.expect("a page").into_inner();
    assert_eq!(page.next_page_token, "");
    (page.kinds, page.incomplete)
}

/// An election, who leads it, and its token.
#[derive(Debug, Clone)]
struct Held {
    name: String,
    token: u64,
}

/// Has one candidate elected in elections of these names.
async fn elected(agent: &Agent, names: impl IntoIterator<Item = String>) -> Vec<Held> {
    let mut all = Vec::new();
    for name in names {
        let won = agent.campaign(&name, "a", TERM).await;
        assert!(won.elected, "{won:?}");
        let token = won.token;
        all.push(Held { name, token });
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

fn six() -> impl Iterator<Item = String> {
    (0..6).map(|n| format!("e{n}"))
}

async fn extend_all(agent: &Agent, elections: &[Held]) {
    for held in elections {
        let extended = agent.extend(&held.name, "a", TERM, held.token).await;
        assert!(extended.value, "{held:?}: {extended:?}");
    }
}

/// Extends until all elections are listed.
async fn listed_as_they_are_extended(agent: &Agent, elections: &[Held]) {
    let names: Vec<_> = elections.iter().map(|held| held.name.clone()).collect();
    eventually("all elections are listed again", async || {
        extend_all(agent, elections).await;
        let (listed, _) = listed(agent, 100).await.ok()?;
        (listed == names).then_some(())
    })
    .await;
}

async fn ask<T: FromRedisValue>(redis: &Redis, command: &[&str]) -> T {
    let mut asked = cmd(command[0]);
    asked.arg(&command[1..]);
    redis.ask(&asked).await.expect("an answer")
}

/// A node examines a thousand entries for a page, and more elections of a kind than that are one step to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_kind_with_very_many_elections_is_found_by_a_few_of_them() {
    let servers = [Redis::start().await];
    let agent = on_servers(&servers).await;
    let request = CampaignRequest {
        kind: "b".to_owned(),
        ..campaign("e", "a", TERM)
    };
    let won = agent.grpc().campaign(request).await.expect("an answer");
    assert!(won.into_inner().elected);
    // Entries whose elections may all be over, as far as the few that are looked at go; entries that all are; and what
    // belongs to no election.
    let mut entries: Vec<_> = (0..3_000).map(|n| format!("a/{n}")).collect();
    entries.extend((0..31).map(|n| format!("over/{n}")));
    entries.extend(["", "/", "/x", "no slash", "a\nb/x"].map(str::to_owned));
    let mut add = cmd("ZADD");
    add.arg(KEYS_OF_INDEX[0]);
    for entry in &entries {
        add.arg(0).arg(entry);
    }
    let added: usize = servers[0].ask(&add).await.expect("an answer");
    assert_eq!(added, entries.len());
    assert_eq!(
        kinds(&agent).await,
        (vec!["a".to_owned(), "b".to_owned()], false)
    );
}

async fn lose_the_index(redis: &Redis) {
    let lost: u32 = redis
        .ask(cmd("DEL").arg(&KEYS_OF_INDEX))
        .await
        .expect("deleted");
    assert_eq!(lost, 2);
}

/// A cluster with one partition, and an agent on it through which six elections are held.
async fn six_on_a_cluster() -> (Cluster, Agent, Vec<Held>) {
    let cluster = Cluster::start().await;
    let agent = on_cluster(&cluster, "1").await;
    let elections = elected(&agent, six()).await;
    (cluster, agent, elections)
}

/// The only partition's slot, who serves it, and another primary.
async fn the_slot(cluster: &Cluster) -> (u16, usize, usize) {
    let slot = ask(&cluster.nodes[0], &["CLUSTER", "KEYSLOT", "{0}"]).await;
    let from = cluster.primary_of(slot).await.expect("served");
    (slot, from, (from + 1) % 3)
}

/// Listings and campaigns are redirected to the importing server, where the leases are not yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_with_its_index_first_takes_no_election_off_the_list() {
    let (cluster, agent, elections) = six_on_a_cluster().await;
    let (slot, from, to) = the_slot(&cluster).await;
    let opened = cluster.open_slot(slot, from, to).await;
    opened.migrate(&KEYS_OF_INDEX.map(str::to_owned)).await;
    extend_all(&agent, &elections).await;
    lists(&agent, &elections, false).await;
    // One key after the other, those of one election first.
    let mut left = opened.keys().await;
    left.sort_unstable_by_key(|key| (key.ends_with("/e3"), key.ends_with("marker")));
    while let Some(key) = left.pop() {
        opened.migrate(&[key]).await;
        for held in &elections {
            let mut client = agent.grpc();
            // While an election's keys are apart, it is not known who leads.
            if let Ok(answer) = client.campaign(campaign(&held.name, "b", TERM)).await {
                assert!(!answer.into_inner().elected, "{held:?}");
            }
        }
        lists(&agent, &elections, false).await;
    }
    opened.give().await;
    lists(&agent, &elections, false).await;
    for held in &elections {
        assert_eq!(agent.leader(&held.name).await.expect("held"), "a");
    }
}

/// A grant on the importing server finds entries that are long over by the recorded time, and whose leases are
/// not there yet.
#[tokio::test(flavor = "multi_thread")]
async fn an_importing_server_drops_nothing() {
    let (cluster, agent, elections) = six_on_a_cluster().await;
    let (slot, from, to) = the_slot(&cluster).await;
    age_entries(&cluster.nodes[from]).await;
    let opened = cluster.open_slot(slot, from, to).await;
    // All that a grant of e0 needs.
    let mut moves = KEYS_OF_INDEX.map(str::to_owned).to_vec();
    let of_e0 = ["marker", "lease:default/e0", "floor:default/e0"];
    moves.extend(of_e0.map(|key| format!("ela:{{0}}:{key}")));
    opened.migrate(&moves).await;
    // A server with the incarnation record of another is in quarantine; as if it had waited.
    let ready = "ela:{0}:marker";
    let mut settled = cmd("HSET");
    let info = cluster.nodes[to].info("server", "run_id").await;
    let replication = cluster.nodes[to].info("replication", "master_replid").await;
    let run = format!(
        "{}:{}",
        info.expect("a run").trim(),
        replication.expect("an id").trim()
    );
    settled.arg(ready).arg(&["run", &run, "ready_at", "1"]);
    opened.ask_importing(&settled).await;
    let won = agent.campaign("e0", "a", TERM).await;
    assert!(won.elected, "the leader's own campaign: {won:?}");
    let mut size = cmd("ZCARD");
    size.arg(KEYS_OF_INDEX[0]);
    assert_eq!(opened.ask_importing(&size).await, redis::Value::Int(6));
    let rest = opened.keys().await;
    opened.migrate(&rest).await;
    opened.give().await;
    lists(&agent, &elections, false).await;
}

/// The index stays behind where no agent reads it any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_with_a_migration_given_up_half_way_comes_back() {
    let (cluster, agent, elections) = six_on_a_cluster().await;
    let (slot, from, to) = the_slot(&cluster).await;
    let opened = cluster.open_slot(slot, from, to).await;
    opened.migrate(&KEYS_OF_INDEX.map(str::to_owned)).await;
    extend_all(&agent, &elections).await;
    opened.give_up().await;
    listed_as_they_are_extended(&agent, &elections).await;
    // Other agents list from the same index.
    let other = on_cluster(&cluster, "1").await;
    let (names, _) = listed(&other, 2).await.expect("pages");
    assert_eq!(names.len(), 6, "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_after_the_index_was_lost_puts_elections_back() {
    let servers = [Redis::start().await];
    let mut first = on_servers(&servers).await;
    let elections = elected(&first, six()).await;
    first.kill();
    lose_the_index(&servers[0]).await;
    // A grant makes the key anew, with one entry.
    let agent = on_servers(&servers).await;
    assert!(agent.campaign("later", "b", 1_000).await.elected);
    listed_as_they_are_extended_beside(&agent, &elections, "later").await;
}

/// As [`listed_as_they_are_extended`], beside an election that may lapse meanwhile.
async fn listed_as_they_are_extended_beside(agent: &Agent, elections: &[Held], beside: &str) {
    let names: BTreeSet<_> = elections.iter().map(|held| held.name.clone()).collect();
    eventually("all elections are listed again", async || {
        extend_all(agent, elections).await;
        let (mut listed, _) = listed(agent, 100).await.ok()?;
        listed.retain(|name| name != beside);
        (listed.into_iter().collect::<BTreeSet<_>>() == names).then_some(())
    })
    .await;
}

/// No server has changed and nothing was redirected: only the lookup finds it.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_deleted_while_nothing_else_happens_comes_back() {
    let servers = [Redis::start().await];
    // Until nothing is in doubt any more.
    let agent = Agent::on(&servers[..], &[("EA_MAX_TERM", "1s")]).await;
    let won = agent.campaign("e", "a", 1_000).await;
    assert!(won.elected);
    let started = tokio::time::Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        assert!(agent.extend("e", "a", 1_000, won.token).await.value);
    }
    lose_the_index(&servers[0]).await;
    eventually("it is listed again", async || {
        assert!(agent.extend("e", "a", 1_000, won.token).await.value);
        let page = page(&agent, 0, "").await.expect("a page");
        // Where entries were missing, others may be.
        (page.leaders.len() == 1).then(|| assert!(page.incomplete, "{page:?}"))
    })
    .await;
    eventually("every leader has extended since", async || {
        assert!(agent.extend("e", "a", 1_000, won.token).await.value);
        let page = page(&agent, 0, "").await.expect("a page");
        assert_eq!(page.leaders.len(), 1);
        (!page.incomplete).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_replica_that_lacks_entries_gets_them_back() {
    let mut sentinels = Sentinels::start().await;
    let agent = Agent::on(&sentinels, &[]).await;
    agent.readiness(200, &["\"guard\":0"]).await;
    let elections = elected(&agent, six()).await;
    // What a replica lacks of a stream it lacks from some time on; entries alone it lacks by hand.
    lose_the_index(&sentinels.servers[0]).await;
    let mut connection = sentinels.servers[0].connect().await;
    cmd("SET")
        .arg(&["written", "1"])
        .query_async::<()>(&mut connection)
        .await
        .expect("written");
    let mut wait = cmd("WAIT");
    let reached: u32 = wait
        .arg(2)
        .arg(5_000)
        .query_async(&mut connection)
        .await
        .expect("an answer");
    assert_eq!(reached, 2);
    let killed = std::time::Instant::now();
    sentinels.servers[0].kill();
    sentinels.failed_over_from(0, killed).await;
    eventually("the new primary is used", async || {
        agent.leader("e0").await.ok()
    })
    .await;
    listed_as_they_are_extended(&agent, &elections).await;
}

/// One election in each shard of the cluster as it was started, in the order of the shards.
async fn one_in_each_shard(agent: &Agent, cluster: &Cluster) -> Vec<Held> {
    let mut found: [Option<Held>; 3] = [None, None, None];
    for n in 0..100 {
        let name = format!("e{n}");
        let held = elected(agent, [name.clone()]).await.remove(0);
        for (found, node) in found.iter_mut().zip(&cluster.nodes) {
            let pattern = format!("*lease:default/{name}");
            let keys: Vec<String> = ask(node, &["KEYS", &pattern]).await;
            if !keys.is_empty() && found.is_none() {
                *found = Some(held.clone());
            } else if !keys.is_empty() {
                assert!(agent.resign(&name, "a", held.token).await.value);
            }
        }
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    found.into_iter().map(|held| held.expect("one")).collect()
}

fn sorted(elections: &[Held]) -> Vec<Held> {
    let mut sorted = elections.to_vec();
    sorted.sort_by(|one, other| one.name.cmp(&other.name));
    sorted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_does_not_take_the_others_elections_off_the_list() {
    let mut cluster = Cluster::with(&["--cluster-require-full-coverage", "no"]).await;
    let agent = on_cluster(&cluster, "16").await;
    let elections = one_in_each_shard(&agent, &cluster).await;
    lists(&agent, &sorted(&elections), false).await;
    let others = sorted(&elections[1..]);
    // Stopped, it is silent; its connections seem good.
    cluster.nodes[3].kill();
    cluster.nodes[0].signal("STOP");
    lists(&agent, &others, true).await;
    cluster.nodes[0].signal("CONT");
    let all: Vec<_> = sorted(&elections)
        .into_iter()
        .map(|held| held.name)
        .collect();
    let whole = (all, false);
    eventually_within(Duration::from_secs(30), "it is listed again", async || {
        listed(&agent, 1)
            .await
            .ok()
            .filter(|answer| *answer == whole)
    })
    .await;
    cluster.nodes[0].kill();
    lists(&agent, &others, true).await;
    agent.logs("of 16 partitions").await;
    for page_size in [1, 2] {
        let names: Vec<_> = others.iter().map(|held| held.name.clone()).collect();
        assert_eq!(
            listed(&agent, page_size).await.expect("pages"),
            (names, true)
        );
    }
    let answer = agent.get("/elections").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body["incomplete"], true, "{answer:?}");
    assert_eq!(answer.body["leaders"].as_array().map(Vec::len), Some(2));
    // No slot is served: a quorum of one node gives no answer.
    for node in &mut cluster.nodes {
        node.kill();
    }
    let refused = page(&agent, 0, "").await.expect_err("no node answers");
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_nobody_serves_leaves_the_others_listed() {
    let cluster = Cluster::with(&["--cluster-require-full-coverage", "no"]).await;
    let agent = on_cluster(&cluster, "16").await;
    let elections = one_in_each_shard(&agent, &cluster).await;
    let mut key = cmd("KEYS");
    key.arg(format!("*lease:default/{}", elections[0].name));
    let keys: Vec<String> = cluster.nodes[0].ask(&key).await.expect("keys");
    let slot: u16 = ask(&cluster.nodes[0], &["CLUSTER", "KEYSLOT", &keys[0]]).await;
    for node in &cluster.nodes[..3] {
        let slot = slot.to_string();
        ask::<()>(node, &["CLUSTER", "DELSLOTS", &slot]).await;
    }
    let others = sorted(&elections[1..]);
    let names: Vec<_> = others.iter().map(|held| held.name.clone()).collect();
    eventually(
        "the others are listed, and the listing says so",
        async || {
            let answer = listed(&agent, 100).await.ok()?;
            (answer == (names.clone(), true)).then_some(())
        },
    )
    .await;
}

/// Damage by hand to a lease or to the index, and whether an election may be missing then.
fn damages() -> Vec<(Vec<&'static [u8]>, bool)> {
    const LEASE: &[u8] = b"ela:{0}:lease:default/e2";
    const INDEX: &[u8] = b"ela:{0}:index";
    vec![
        (vec![b"HDEL", LEASE, b"token"], true),
        (vec![b"HSET", LEASE, b"token", b"seven"], true),
        (vec![b"HDEL", LEASE, b"elected_at", b"value"], true),
        (vec![b"HSET", LEASE, b"elected_at", b"then"], true),
        (vec![b"HSET", LEASE, b"leader", b""], true),
        (vec![b"HSET", LEASE, b"value", b"\xff"], true),
        (vec![b"PERSIST", LEASE], true),
        (vec![b"SET", LEASE, b"no hash"], true),
        (vec![b"ZADD", INDEX, b"0", b"default/"], false),
        (vec![b"ZADD", INDEX, b"0", b"default/e1/x"], false),
        (vec![b"ZADD", INDEX, b"0", b"default/e1\nx"], false),
        (vec![b"ZADD", INDEX, b"0", b"default/\xff"], false),
        (
            vec![b"ZADD", INDEX, b"0", b"default/e10", b"0", b"none"],
            false,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_damaged_by_hand_does_not_take_others_off_the_list() {
    for (command, incomplete) in damages() {
        let servers = [Redis::start().await];
        let agent = on_servers(&servers).await;
        let mut elections = elected(&agent, six()).await;
        let mut damage = Cmd::new();
        command.iter().for_each(|word| {
            damage.arg(*word);
        });
        servers[0].ask::<redis::Value>(&damage).await.expect("done");
        if incomplete {
            elections.remove(2);
        }
        let names: Vec<_> = elections.iter().map(|held| held.name.clone()).collect();
        for page_size in [1, 2, 100] {
            let answer = listed(&agent, page_size).await;
            let answer = answer.unwrap_or_else(|error| panic!("{damage:?}: {error}"));
            assert_eq!(answer, (names.clone(), incomplete), "{command:?}");
        }
        if incomplete {
            agent.logs("the lease of default/e2 cannot be read").await;
        }
    }
}

/// More entries than a page looks at, which name nothing that a page could end with.
#[tokio::test(flavor = "multi_thread")]
async fn many_entries_that_are_no_elections_do_not_hide_those_behind() {
    let servers = [Redis::start().await];
    let agent = on_servers(&servers).await;
    let elections = elected(&agent, ["a", "z"].map(str::to_owned)).await;
    for (from, count, incomplete) in [(0, 3_000, false), (3_000, 20_000, true)] {
        let mut add = cmd("ZADD");
        add.arg(KEYS_OF_INDEX[0]);
        for n in from..from + count {
            add.arg(0).arg(format!("default/m/{n:05}"));
        }
        let mut connection = servers[0].connect().await;
        add.query_async::<()>(&mut connection).await.expect("added");
        let known = if incomplete { 1 } else { 2 };
        lists(&agent, &elections[..known], incomplete).await;
    }
    // What is asked of the operator helps.
    agent.logs("delete the key ela:{0}:index").await;
    ask::<u32>(&servers[0], &["DEL", KEYS_OF_INDEX[0]]).await;
    listed_as_they_are_extended(&agent, &elections).await;
}

/// It costs listings of its partition, not elections.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_the_wrong_type_costs_its_partition_alone() {
    let cluster = Cluster::start().await;
    let agent = on_cluster(&cluster, "16").await;
    let elections = one_in_each_shard(&agent, &cluster).await;
    let keys: Vec<String> = ask(
        &cluster.nodes[0],
        &["KEYS", &format!("*lease:default/{}", elections[0].name)],
    )
    .await;
    let index = keys[0].replace(&format!("lease:default/{}", elections[0].name), "index");
    ask::<()>(&cluster.nodes[0], &["SET", &index, "no set"]).await;
    lists(&agent, &sorted(&elections[1..]), true).await;
    agent.logs("WRONGTYPE").await;
    let won = agent.campaign(&elections[0].name, "a", TERM).await;
    assert!(won.elected && won.token > elections[0].token);
    assert!(agent.resign(&elections[0].name, "a", won.token).await.value);
    elected(&agent, [elections[0].name.clone()]).await;
    ask::<u32>(&cluster.nodes[0], &["DEL", &index]).await;
    eventually("it is listed again", async || {
        let held = &elections[0].name;
        let extended = agent.extend(held, "a", TERM, 0).await;
        assert!(extended.value);
        let (names, _) = listed(&agent, 1).await.ok()?;
        (names.len() == 3).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_quorum_of_servers_lists_is_complete() {
    let mut servers = Redis::several(3, &[]).await;
    let agent = on_servers(&servers).await;
    let elections = elected(&agent, six()).await;
    let lease = "ela:{0}:lease:default/e2";
    // Grants reach the third server, too, but the agent does not wait for it.
    eventually("all servers hold all", async || {
        for server in &servers {
            let held: u32 = ask(server, &["ZCARD", KEYS_OF_INDEX[0]]).await;
            if held < 6 {
                return None;
            }
        }
        Some(())
    })
    .await;
    ask::<u32>(&servers[0], &["HDEL", lease, "token"]).await;
    lists(&agent, &elections, false).await;
    ask::<u32>(&servers[1], &["HDEL", lease, "token"]).await;
    let mut known = elections.clone();
    known.remove(2);
    lists(&agent, &known, true).await;
    // Without the server that is down and the one that cannot answer, no quorum of two is left.
    ask::<u32>(&servers[1], &["DEL", lease]).await;
    servers[2].kill();
    lists(&agent, &known, true).await;
    servers[1].kill();
    let refused = page(&agent, 0, "").await.expect_err("one of three");
    assert_eq!(refused.code(), Code::Unavailable);
}

/// Makes all entries look as if their terms had been over for long.
async fn age_entries(redis: &Redis) {
    let members: Vec<String> = ask(redis, &["ZRANGE", KEYS_OF_INDEX[1], "0", "-1"]).await;
    let mut age = cmd("ZADD");
    age.arg(KEYS_OF_INDEX[1]);
    for member in members {
        age.arg(1).arg(member);
    }
    redis.ask::<()>(&age).await.expect("aged");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_dropped_when_they_have_been_over_for_a_while_and_have_no_lease() {
    let servers = [Redis::start().await];
    let agent = on_servers(&servers).await;
    let elections = elected(&agent, six()).await;
    let entries = async || -> Vec<String> {
        ask(&servers[0], &["ZRANGE", KEYS_OF_INDEX[0], "0", "-1"]).await
    };
    for held in &elections[..3] {
        let key = format!("ela:{{0}}:lease:default/{}", held.name);
        ask::<u32>(&servers[0], &["DEL", &key]).await;
    }
    // Over, but not for long: a listing skips it, and nothing drops it.
    lists(&agent, &elections[3..], false).await;
    elected(&agent, ["later".to_owned()]).await;
    assert_eq!(entries().await.len(), 7);
    age_entries(&servers[0]).await;
    // A listing that meets such entries has them dropped, and no other.
    eventually("they are dropped", async || {
        let (names, incomplete) = listed(&agent, 100).await.ok()?;
        assert_eq!((names.len(), incomplete), (4, false));
        (entries().await.len() == 4).then_some(())
    })
    .await;
    for key in KEYS_OF_INDEX {
        let size: u32 = ask(&servers[0], &["ZCARD", key]).await;
        assert_eq!(size, 4, "{key}");
    }
}
