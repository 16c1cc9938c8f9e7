//! Three independent Redis servers, some of which die, stop, or forget.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::harness::{Agent, Redis, campaign, eventually, extension};

/// Campaigns repeatedly for this long; the other candidate must never be elected.
async fn never_elected(agent: &Agent, leader: &str, time: Duration) {
    let asked = Instant::now();
    while asked.elapsed() < time {
        match agent.try_campaign(campaign("e", "other", 60_000)).await {
            Ok(answer) => {
                assert_eq!((answer.elected, answer.leader.as_str()), (false, leader));
            }
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
}

#[tokio::test]
async fn a_lease_is_written_to_all_and_one_server_may_die() {
    let mut three = Redis::several(3, &[]).await;
    let agent = Agent::on(&three[..], &[]).await;
    let won = agent.campaign("e", "a", 60_000).await;
    assert!(won.elected);
    for server in &three {
        let mut connection = server.connect().await;
        eventually("every server has the lease", async || {
            let leader: Option<String> = redis::cmd("HGET")
                .arg("ela:{0}:lease:default/e")
                .arg("leader")
                .query_async(&mut connection)
                .await
                .ok()?;
            leader.filter(|leader| leader == "a")
        })
        .await;
    }
    three[0].kill();
    assert!(agent.extend("e", "a", 60_000, won.token).await.value);
    assert!(!agent.campaign("e", "b", 60_000).await.elected);
    assert_eq!(agent.leader("e").await.expect("held"), "a");
    assert!(agent.resign("e", "a", won.token).await.value);
    let next = agent.campaign("e", "b", 60_000).await;
    assert!(next.elected && next.token > won.token);
    let ready = agent.get("/readyz").await;
    assert_eq!(ready.status, 200, "two of three are enough: {ready:?}");
    eventually("the dead server is named", async || {
        let nodes = agent.get("/readyz").await.body["nodes"].clone();
        (nodes[0]["up"] == false && nodes[1]["up"] == true).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_costs_the_others_no_time() {
    const STOPPED: Duration = Duration::from_secs(12);
    // A request that waits for the stopped server gets no reply in time.
    let settings = [
        ("EA_REDIS_OPERATION_TIMEOUT", "6s"),
        ("EA_REQUEST_TIMEOUT", "5s"),
    ];
    let three = Redis::several(3, &[]).await;
    let agent = Agent::on(&three[..], &settings).await;
    let won = agent.campaign("e", "a", 60_000).await;
    three[1].signal("STOP");
    let mut took: Vec<Duration> = Vec::new();
    let stopped = Instant::now();
    // The agent first waits for the server, then finds it dead, then tries to connect: callers notice nothing.
    let mut pace = tokio::time::interval(Duration::from_millis(4));
    for n in 0.. {
        pace.tick().await;
        let asked = Instant::now();
        if asked - stopped > STOPPED {
            break;
        }
        match n % 4 {
            0 => assert!(agent.extend("e", "a", 60_000, won.token).await.value),
            1 => assert!(!agent.campaign("e", "b", 60_000).await.elected),
            2 => assert_eq!(agent.leader("e").await.expect("held"), "a"),
            _ => assert!(agent.campaign(&format!("e{n}"), "a", 60_000).await.elected),
        }
        took.push(asked.elapsed());
    }
    three[1].signal("CONT");
    let first = took.remove(0);
    took.sort_unstable();
    let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    let longest = took[took.len() - 1];
    println!(
        "{} requests in {STOPPED:?} with one of three servers stopped: {p50:?} (median), {p99:?} (p99), \
         {longest:?} (longest), {first:?} (first)",
        took.len() + 1
    );
    let log = agent.log();
    let complaints = log
        .iter()
        .filter(|line| line.contains("a lease node failed"));
    assert!((1..=8).contains(&complaints.count()), "{}", log.join("\n"));
}

#[tokio::test]
async fn without_two_of_three_nothing_is_known_until_they_are_back() {
    let mut three = Redis::several(3, &["--appendonly", "yes", "--appendfsync", "always"]).await;
    let agent = Agent::on(&three[..], &[("EA_MAX_TERM", "3s")]).await;
    let won = agent.campaign("e", "a", 3_000).await;
    three[0].kill();
    three[2].kill();
    for _ in 0..5 {
        let refused = agent.try_campaign(campaign("e", "b", 1_000)).await;
        assert_eq!(refused.expect_err("unknown").code(), Code::Unavailable);
    }
    assert_eq!(
        agent.leader("e").await.expect_err("unknown").code(),
        Code::Unavailable
    );
    agent.readiness(503, &[]).await;
    three[0].run().await;
    three[2].run().await;
    agent.readiness(200, &[]).await;
    let next = eventually("elected again", async || {
        let answer = agent.try_campaign(campaign("e", "b", 1_000)).await.ok()?;
        Some(answer).filter(|answer| answer.elected)
    });
    assert!(next.await.token > won.token);
}

#[tokio::test]
async fn servers_that_come_back_empty_elect_nobody_while_the_leader_has_time() {
    let mut three = Redis::several(3, &[]).await;
    let agent = Agent::on(&three[..], &[]).await;
    let won = agent.campaign("e", "a", 60_000).await;
    // Every server has the lease and the agent has seen every incarnation record.
    eventually("all are marked", async || {
        let nodes = agent.get("/readyz").await.body["nodes"].clone();
        (0..3).all(|node| nodes[node]["guard"] == 0).then_some(())
    })
    .await;
    three[0].kill();
    three[0].run().await;
    never_elected(&agent, "a", Duration::from_millis(1_500)).await;
    three[1].kill();
    three[1].run().await;
    never_elected(&agent, "a", Duration::from_millis(1_500)).await;
    // An agent that has seen none of it.
    let late = Agent::on(&three[..], &[]).await;
    never_elected(&late, "a", Duration::from_millis(1_500)).await;
    let refused = late.try_campaign(campaign("other", "b", 1_000)).await;
    let refused = refused.expect_err("two of three abstain");
    assert!(refused.message().contains("in quarantine"), "{refused}");
    // One server alone knows the leader: an extension is not known to hold, and is not denied.
    let request = extension("e", "a", 60_000, won.token);
    for agent in [&agent, &late] {
        let extended = agent.try_extend(request.clone()).await;
        assert_eq!(extended.expect_err("not known").code(), Code::Unavailable);
        let led = agent.leader("e").await;
        assert_eq!(led.expect_err("not known").code(), Code::Unavailable);
    }
}

#[tokio::test]
async fn one_empty_server_is_healed_by_the_next_extension() {
    let mut three = Redis::several(3, &[]).await;
    let agent = Agent::on(&three[..], &[]).await;
    let won = agent.campaign("e", "a", 60_000).await;
    three[0].kill();
    three[0].run().await;
    eventually("healed", async || {
        assert!(agent.extend("e", "a", 60_000, won.token).await.value);
        let mut connection = three[0].connect().await;
        let token: Option<u64> = redis::cmd("HGET")
            .arg("ela:{0}:lease:default/e")
            .arg("token")
            .query_async(&mut connection)
            .await
            .ok()?;
        token.filter(|token| *token == won.token)
    })
    .await;
    // The repaired server and one other are enough.
    three[1].kill();
    assert!(agent.extend("e", "a", 60_000, won.token).await.value);
    never_elected(&agent, "a", Duration::from_millis(500)).await;
}

#[tokio::test]
async fn servers_rolled_back_to_an_earlier_leader_elect_nobody_while_the_later_has_time() {
    let mut three = Redis::several(3, &[]).await;
    let agent = Agent::on(&three[..], &[]).await;
    let first = agent.campaign("e", "a", 60_000).await;
    for server in &three[..2] {
        let mut connection = server.connect().await;
        eventually("saved under a", async || {
            let saved = redis::cmd("SAVE").query_async::<()>(&mut connection).await;
            saved.ok()
        })
        .await;
    }
    assert!(agent.resign("e", "a", first.token).await.value);
    let second = agent.campaign("e", "b", 60_000).await;
    assert!(second.elected);
    for server in &mut three[..2] {
        server.kill();
        server.run().await;
    }
    // Two of three servers now report that a leads; all of them elected b before, which has time left.
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(2) {
        for candidate in ["a", "c"] {
            if let Ok(answer) = agent.try_campaign(campaign("e", candidate, 60_000)).await {
                assert!(
                    !answer.elected,
                    "{candidate} is elected while b has time left"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_and_of_a_hundred_candidates_one_wins_soon_though_a_server_is_down() {
    let mut three = Redis::several(3, &[]).await;
    // A request that waits for the server that is down gets no reply in time.
    let settings = [
        ("EA_REDIS_OPERATION_TIMEOUT", "1m"),
        ("EA_REQUEST_TIMEOUT", "45s"),
    ];
    let agents = [
        Agent::on(&three[..], &settings).await,
        Agent::on(&three[..], &settings).await,
    ];
    assert!(agents[0].campaign("warm-up", "a", 1_000).await.elected);
    // At first no agent knows that it does not reply; a split vote must not wait for it.
    three[2].signal("STOP");
    one_wins_soon(&agents, 100, "stopped").await;
    three[2].kill();
    for candidates in [2, 100] {
        one_wins_soon(&agents, candidates, "dead").await;
    }
}

/// Lets so many candidates contend through two agents, again and again.
async fn one_wins_soon(agents: &[Agent; 2], candidates: usize, third: &str) {
    const ROUNDS: usize = 30;
    let (mut won, mut all) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let election = format!("{round} of {candidates}, {third}");
        let asked = Instant::now();
        let campaigns = (0..candidates).map(|n| {
            let (agent, election) = (&agents[n % 2], &election);
            async move {
                let name = format!("c{n}");
                let answer = agent.try_campaign(campaign(election, &name, 60_000)).await;
                let answer = answer.expect("two of two agree in time");
                (answer, asked.elapsed())
            }
        });
        let answers = futures_util::future::join_all(campaigns).await;
        all.push(asked.elapsed());
        let elected: Vec<_> = answers
            .iter()
            .filter(|(answer, _)| answer.elected)
            .collect();
        assert_eq!(elected.len(), 1, "round {round}");
        let (winner, took) = elected[0];
        for (answer, _) in &answers {
            let told = (&answer.leader, answer.token);
            assert_eq!(told, (&winner.leader, winner.token), "round {round}");
        }
        won.push(*took);
    }
    won.sort_unstable();
    all.sort_unstable();
    println!(
        "{candidates} candidates, one of three servers {third}: one won after {:?} (median), {:?} \
         (longest); all were told after {:?}, {:?}",
        won[ROUNDS / 2],
        won[ROUNDS - 1],
        all[ROUNDS / 2],
        all[ROUNDS - 1],
    );
}

#[tokio::test]
async fn a_server_under_two_names_does_not_vote_twice() {
    let redis = Redis::start().await;
    let port = redis.port();
    let urls = format!("redis://127.0.0.1:{port},redis://localhost:{port}");
    let agent = Agent::start(&[("EA_REDIS_URLS", urls)]).await;
    let not_ready = agent.get("/readyz").await;
    assert_eq!(not_ready.status, 503);
    assert!(
        not_ready.text("message").contains("same server"),
        "{not_ready:?}"
    );
    let refused = agent.try_campaign(campaign("e", "a", 1_000)).await;
    assert_eq!(
        refused.expect_err("one place is no majority of two").code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn agents_with_different_lists_of_servers_are_told_so() {
    let three = Redis::several(3, &[]).await;
    let other = Redis::start().await;
    let settings = [("EA_MAX_TERM", "2s")];
    let mut first = Agent::on(&three[..], &settings).await;
    assert!(first.campaign("e", "a", 2_000).await.elected);
    // A majority of this list and one of the first need not have a server in common.
    let second = Agent::on(&[&three[0], &other][..], &settings).await;
    let not_ready = second.get("/readyz").await;
    assert_eq!(not_ready.status, 503);
    assert!(
        not_ready
            .text("message")
            .contains("another list of servers"),
        "{not_ready:?}"
    );
    let refused = second.try_campaign(campaign("e", "b", 1_000)).await;
    assert_eq!(refused.expect_err("refused").code(), Code::Unavailable);
    assert_eq!(first.leader("e").await.expect("not disturbed"), "a");
    // When the agents with the first list are gone for as long as a term lasts, the new one counts.
    first.kill();
    second.readiness(200, &[]).await;
}

#[tokio::test]
async fn a_server_that_evicts_keys_does_not_vote_unless_that_is_allowed() {
    let redis = Redis::with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let agent = Agent::on(&redis, &[]).await;
    let not_ready = agent.get("/readyz").await;
    assert_eq!(not_ready.status, 503);
    for told in [
        "maxmemory-policy is allkeys-lru",
        "noeviction",
        "EA_ALLOW_EVICTION",
    ] {
        assert!(
            not_ready.text("message").contains(told),
            "{told}: {not_ready:?}"
        );
    }
    let refused = agent.try_campaign(campaign("e", "a", 1_000)).await;
    assert_eq!(refused.expect_err("refused").code(), Code::Unavailable);
    let mut connection = redis.connect().await;
    redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory-policy", "noeviction"])
        .query_async::<()>(&mut connection)
        .await
        .expect("set");
    agent.readiness(200, &[]).await;
    assert!(agent.campaign("e", "a", 1_000).await.elected);

    let evicting = Redis::with(&["--maxmemory-policy", "volatile-ttl"]).await;
    let accepting = Agent::on(&evicting, &[("EA_ALLOW_EVICTION", "true")]).await;
    assert!(accepting.campaign("e", "a", 1_000).await.elected);
}

#[tokio::test]
async fn every_server_has_its_own_user_password_and_tls() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let ca = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(ca.path(), &certificate).expect("written");
    let users = "--user default off --user agent on >by-name ~* &* +@all";
    let users: Vec<_> = users.split_whitespace().collect();
    let (mut open, by_password, by_name, by_tls) = tokio::join!(
        Redis::start(),
        Redis::with(&["--requirepass", "by-password"]),
        Redis::with(&users),
        Redis::with_tls(&certificate, &key, &["--requirepass", "over-tls"]),
    );
    let mut others = [by_password, by_name, by_tls];
    let urls = [
        open.url(),
        others[0].url_as(":by-password@"),
        others[1].url_as("agent:by-name@"),
        others[2].url_as(":over-tls@"),
    ];
    // Of three, two are needed: whichever is killed, the others are the ones that answer.
    for (first, second, third) in [(0, 1, 2), (1, 2, 3)] {
        let three = [&urls[first], &urls[second], &urls[third]].map(String::as_str);
        let settings = [
            ("EA_REDIS_URLS".to_owned(), three.join(",")),
            ("EA_REDIS_PREFIX".to_owned(), format!("from{first}")),
            (
                "EA_REDIS_TLS_CA_FILE".to_owned(),
                ca.path().display().to_string(),
            ),
        ];
        let settings = match first {
            // No URL would use it.
            0 => &settings[..2],
            _ => &settings[..],
        };
        let agent = Agent::start(settings).await;
        let nodes = agent.get("/readyz").await.body["nodes"].clone();
        assert!((0..3).all(|node| nodes[node]["up"] == true), "{nodes}");
        let won = agent.campaign("e", "a", 60_000).await;
        assert!(won.elected);
        match first {
            0 => open.kill(),
            _ => others[0].kill(),
        }
        assert!(agent.extend("e", "a", 60_000, won.token).await.value);
        let log = agent.log().join("\n");
        for secret in ["by-password", "by-name", "over-tls"] {
            assert!(!log.contains(secret), "{log}");
        }
    }
}

#[tokio::test]
async fn an_agent_starts_with_fewer_servers_than_it_needs_and_keeps_trying() {
    let mut three = Redis::several(3, &[]).await;
    three[0].kill();
    three[2].kill();
    let agent = Agent::on(&three[..], &[]).await;
    let not_ready = agent.get("/readyz").await;
    assert_eq!(not_ready.status, 503);
    let told = not_ready.text("message");
    assert!(
        told.contains("1 of 3 lease nodes answer, 2 are needed"),
        "{told}"
    );
    // Not a campaign: it may take the server that answers for one that has restarted, so that all would wait.
    let unknown = agent.leader("e").await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::Unavailable);
    three[0].run().await;
    three[2].run().await;
    // Two would suffice for an answer, but whether they are new is known only when all three have answered;
    // a campaign that comes before takes them for restarted ones.
    let mut log = String::new();
    eventually("all three are known to be new", async || {
        log.push_str(&agent.log().join("\n"));
        (log.matches("a new lease node").count() == 3).then_some(())
    })
    .await;
    agent.readiness(200, &[]).await;
    assert!(
        agent.campaign("e", "a", 1_000).await.elected,
        "the servers are new"
    );
}
