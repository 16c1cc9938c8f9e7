//! A Redis server that stops, dies, forgets, or refuses.

use std::time::{Duration, Instant};

use election_core::types::Token;
use redis::AsyncCommands as _;
use tonic::Code;

use crate::harness::{Agent, Proxy, Redis, campaign, eventually, extension, handover};

/// For an agent that would have all the time for an answer.
const NO_DEADLINE: (&str, &str) = ("EA_REQUEST_TIMEOUT", "1m");
/// Far longer than an answer takes, and far shorter than that deadline.
const LONG: Duration = Duration::from_secs(30);

async fn code(agent: &Agent, candidate: &str) -> Option<Code> {
    let answer = agent.try_campaign(campaign("e", candidate, 1_000)).await;
    answer.err().map(|status| status.code())
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_unavailable_within_the_operation_timeout() {
    let redis = Redis::start().await;
    let settings = [("EA_REDIS_OPERATION_TIMEOUT", "300ms"), NO_DEADLINE];
    let agent = Agent::on(&redis, &settings).await;
    assert!(agent.campaign("e", "a", 60_000).await.elected);
    redis.signal("STOP");
    let asked = Instant::now();
    assert_eq!(code(&agent, "b").await, Some(Code::Unavailable));
    let took = asked.elapsed();
    assert!(
        took >= Duration::from_millis(290),
        "an unknown outcome needs the time: {took:?}"
    );
    assert!(took < LONG, "it waits for the deadline: {took:?}");
    let extend = agent.rest(
        reqwest::Method::PATCH,
        "/election/e",
        Some(serde_json::json!({"leader": "a", "term": 1000})),
    );
    let refused = extend.await;
    assert_eq!((refused.status, refused.text("code")), (503, "Unavailable"));
    redis.signal("CONT");
    let leader = eventually("the leader is known again", async || {
        agent.leader("e").await.ok()
    })
    .await;
    assert_eq!(leader, "a");
}

#[tokio::test]
async fn a_server_that_dies_is_named_and_used_again_when_it_is_back() {
    let mut redis = Redis::start().await;
    let settings = [
        ("EA_RESTART_GUARD", "off"),
        ("EA_METRIC_ENABLE", "true"),
        ("EA_REDIS_OPERATION_TIMEOUT", "1m"),
        NO_DEADLINE,
    ];
    let agent = Agent::on(&redis, &settings).await;
    assert!(agent.campaign("e", "a", 60_000).await.elected);
    redis.kill();
    let asked = Instant::now();
    assert_eq!(code(&agent, "b").await, Some(Code::Unavailable));
    assert!(
        asked.elapsed() < LONG,
        "a refused connection needs no timeout"
    );
    let not_ready = eventually("not ready", async || {
        Some(agent.get("/readyz").await).filter(|answer| answer.status == 503)
    })
    .await;
    let address = redis.url().replace("redis://", "");
    assert!(
        not_ready.text("message").contains(&address),
        "{not_ready:?}"
    );
    assert_eq!(not_ready.body["nodes"][0]["up"], false);
    let metrics = agent.get("/metrics").await;
    let metrics = metrics.body.as_str().expect("text");
    assert!(
        metrics.contains("election_agent_disconnected_redis_backends 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("election_agent_unavailable_total 1"),
        "{metrics}"
    );

    redis.run().await;
    let won = eventually("elected again", async || {
        agent.try_campaign(campaign("e", "b", 1_000)).await.ok()
    });
    assert!(
        won.await.elected,
        "the server has forgotten the first leader"
    );
    eventually("ready again", async || {
        (agent.get("/readyz").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_that_has_forgotten_its_leases_abstains_for_the_longest_term() {
    let mut redis = Redis::start().await;
    let agent = Agent::on(&redis, &[("EA_MAX_TERM", "3s")]).await;
    let first = agent.campaign("e", "a", 3_000).await;
    let asked = Instant::now();
    redis.kill();
    redis.run().await;
    let refused = eventually("guarded", async || {
        let answer = agent.campaign_over_rest("/election/e", "b", 1_000).await;
        assert_eq!(
            (answer.status, answer.text("code")),
            (503, "Unavailable"),
            "{answer:?}"
        );
        Some(answer).filter(|answer| answer.text("message").contains("in quarantine"))
    })
    .await;
    assert!(
        matches!(refused.header("retry-after").parse(), Ok(1..=3)),
        "{refused:?}"
    );
    let ready = agent.get("/readyz").await;
    assert_eq!(
        ready.status, 200,
        "extensions and reads are answered: {ready:?}"
    );
    let next = eventually("elected after the guard", async || {
        agent.try_campaign(campaign("e", "b", 1_000)).await.ok()
    })
    .await;
    assert!(next.elected && next.token > first.token);
    assert!(
        asked.elapsed() >= Duration::from_millis(2_900),
        "the first leader had time left"
    );
}

#[tokio::test]
async fn a_server_that_kept_its_data_abstains_after_a_restart_but_extends() {
    let mut redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let agent = Agent::on(&redis, &[("EA_MAX_TERM", "4s")]).await;
    let won = agent.campaign("e", "a", 4_000).await;
    redis.kill();
    redis.run().await;
    eventually("extended by the server that was restarted", async || {
        let request = extension("e", "a", 4_000, won.token);
        agent
            .try_extend(request)
            .await
            .ok()
            .filter(|done| done.value)
    })
    .await;
    assert_eq!(
        code(&agent, "a").await,
        Some(Code::Unavailable),
        "no new grants, even to a"
    );
    assert!(
        !agent.campaign("e", "b", 1_000).await.elected,
        "b gets the leader"
    );
}

#[tokio::test]
async fn strict_waits_on_a_first_start_too() {
    let redis = Redis::start().await;
    let settings = [("EA_RESTART_GUARD", "strict"), ("EA_MAX_TERM", "1s")];
    let agent = Agent::on(&redis, &settings).await;
    assert_eq!(code(&agent, "a").await, Some(Code::Unavailable));
    eventually("elected after the wait", async || {
        agent.try_campaign(campaign("e", "a", 1_000)).await.ok()
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_never_asked_for_a_grant_knows_that_a_server_has_forgotten() {
    let mut redis = Redis::start().await;
    let first = Agent::on(&redis, &[("EA_MAX_TERM", "60s")]).await;
    let second = Agent::on(&redis, &[("EA_MAX_TERM", "60s")]).await;
    assert!(first.campaign("e", "a", 60_000).await.elected);
    eventually("the second agent has seen the marker", async || {
        let ready = second.get("/readyz").await;
        (ready.body["nodes"][0]["guard"] == 0).then_some(())
    })
    .await;
    redis.kill();
    redis.run().await;
    eventually("guarded", async || {
        let refused = second
            .try_campaign(campaign("e", "b", 1_000))
            .await
            .expect_err("unknown");
        assert_eq!(refused.code(), Code::Unavailable, "a has time left");
        refused.message().contains("in quarantine").then_some(())
    })
    .await;
}

#[tokio::test]
async fn scripts_that_the_server_has_dropped_are_loaded_again() {
    let redis = Redis::start().await;
    let agent = Agent::on(&redis, &[]).await;
    let won = agent.campaign("e", "a", 60_000).await;
    let mut connection = redis.connect().await;
    let flushed = redis::cmd("SCRIPT")
        .arg("FLUSH")
        .query_async::<()>(&mut connection)
        .await;
    flushed.expect("flushed");
    assert!(agent.extend("e", "a", 60_000, won.token).await.value);
    assert!(!agent.campaign("e", "b", 60_000).await.elected);
    assert_eq!(agent.leader("e").await.expect("held"), "a");
}

#[tokio::test]
async fn an_agent_starts_without_its_server_and_finds_it_later() {
    let mut redis = Redis::start().await;
    redis.kill();
    let agent = Agent::on(&redis, &[]).await;
    assert_eq!(agent.get("/readyz").await.status, 503);
    assert_eq!(agent.get("/livez").await.status, 200);
    redis.run().await;
    eventually("elected", async || {
        agent.try_campaign(campaign("e", "a", 1_000)).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_database_number_a_user_with_few_rights_and_a_prefix_are_used() {
    // What docs/STORES.md says the agent's user needs, and nothing else.
    let users = "--user default off --user agent on >p@ss/word ~mine:* -@all +evalsha \
                 +script|load +ping +select +hget +hmget +hset +hdel +get +set +del \
                 +exists +pttl +pexpire +zadd +zrem +zrangebylex +zrangebyscore +time +info \
                 --user admin on >admin ~* &* +@all";
    let redis = Redis::with(&users.split_whitespace().collect::<Vec<_>>()).await;
    let url = format!("{}/3", redis.url_as("agent:p%40ss%2Fword@"));
    let settings = [("EA_REDIS_URLS", url.as_str()), ("EA_REDIS_PREFIX", "mine")];
    let agent = Agent::start(&settings).await;
    let won = agent.campaign("e", "a", 60_000).await;
    assert!(won.elected);
    assert!(agent.extend("e", "a", 60_000, won.token).await.value);
    assert_eq!(
        agent.get("/elections").await.body["leaders"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    assert!(agent.resign("e", "a", won.token).await.value);
    assert!(agent.campaign("e", "a", 60_000).await.elected);
    let client = redis::Client::open(format!("{}/3", redis.url_as("admin:admin@"))).expect("a URL");
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .expect("connects");
    let mut keys: Vec<String> = connection.keys("*").await.expect("keys");
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "mine:{0}:agents",
            "mine:{0}:expiry",
            "mine:{0}:floor:default/e",
            "mine:{0}:index",
            "mine:{0}:lease:default/e",
            "mine:{0}:lists",
            "mine:{0}:marker",
            "mine:{0}:past:default/e",
        ]
    );
    let retention: i64 = connection
        .pttl("mine:{0}:floor:default/e")
        .await
        .expect("a time");
    assert!(
        (604_800_000..=604_860_000).contains(&retention),
        "seven days after the term: {retention}"
    );
}

#[tokio::test]
async fn an_election_whose_tokens_are_used_up_is_no_matter_of_trying_again() {
    let redis = Redis::start().await;
    let agent = Agent::on(&redis, &[]).await;
    let mut last = redis::cmd("SET");
    last.arg("ela:{0}:floor:default/e").arg(Token::MAX.get());
    redis.ask::<()>(&last).await.expect("set");

    let refused = agent.try_campaign(campaign("e", "a", 60_000)).await;
    let refused = refused.expect_err("no token");
    assert_eq!(refused.code(), Code::Internal, "{refused}");
    assert!(refused.message().contains("used up"), "{refused}");
    let refused = agent.campaign_over_rest("/election/e", "a", 60_000);
    let refused = refused.await;
    assert_eq!((refused.status, refused.text("code")), (500, "Internal"));
    eventually("the log has the cause", async || {
        let mut lines = agent.log().into_iter();
        lines.find(|line| line.contains("ERROR") && line.contains("used up"))
    })
    .await;
    assert!(agent.campaign("other", "a", 60_000).await.elected);
}

#[tokio::test]
async fn a_wrong_password_is_told_without_telling_it() {
    let redis = Redis::with(&["--requirepass", "right"]).await;
    let url = redis.url_as(":wr0ng-s3cret@");
    let agent = Agent::start(&[("EA_REDIS_URLS", url)]).await;
    let not_ready = agent.get("/readyz").await;
    assert_eq!(not_ready.status, 503);
    assert!(
        not_ready
            .text("message")
            .contains("check the user and password"),
        "{not_ready:?}"
    );
    let refused = agent
        .try_campaign(campaign("e", "a", 1_000))
        .await
        .expect_err("unknown");
    assert_eq!(refused.code(), Code::Unavailable);
    let log = agent.logs("check the user and password").await.join("\n");
    for text in [log.as_str(), not_ready.text("message"), refused.message()] {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn tls_is_spoken_and_the_certificate_is_checked() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let certificate = made.cert.pem();
    let redis = Redis::with_tls(
        &certificate,
        &made.signing_key.serialize_pem(),
        &["--requirepass", "pw"],
    )
    .await;
    let ca = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(ca.path(), &certificate).expect("written");
    let url = ("EA_REDIS_URLS", redis.url_as(":pw@"));
    let trusted = ("EA_REDIS_TLS_CA_FILE", ca.path().display().to_string());
    let agent = Agent::start(&[url.clone(), trusted]).await;
    assert!(agent.campaign("e", "a", 60_000).await.elected);

    let distrusting = Agent::start(&[url]).await;
    let not_ready = distrusting.get("/readyz").await;
    assert_eq!(not_ready.status, 503);
    assert!(
        not_ready.text("message").contains("certificate"),
        "{not_ready:?}"
    );
}

#[tokio::test]
async fn the_index_forgets_elections_that_nobody_lists() {
    let redis = Redis::start().await;
    let agent = Agent::on(&redis, &[]).await;
    for n in 0..20 {
        agent.campaign(&format!("short{n}"), "a", 1_000).await;
    }
    let mut connection = redis.connect().await;
    let extended = agent.extend("short7", "a", 60_000, 0).await;
    assert!(extended.value);
    eventually("the other terms have lapsed", async || {
        agent.leader("short19").await.is_err().then_some(())
    })
    .await;
    // Entries stay for a minute after the time that was recorded for them: as if it had passed.
    let names = (0..20).map(|n| (1, format!("default/short{n}")));
    let names: Vec<_> = names.collect();
    let _: u32 = connection
        .zadd_multiple("ela:{0}:expiry", &names)
        .await
        .expect("aged");
    for n in 0..10 {
        agent.campaign(&format!("long{n}"), "a", 60_000).await;
    }
    for key in ["ela:{0}:index", "ela:{0}:expiry"] {
        let size: usize = connection.zcard(key).await.expect("a size");
        assert_eq!(
            size, 11,
            "{key}: ten long ones, and the one that was extended"
        );
    }
}

/// An agent behind a proxy that loses replies.
async fn behind_proxy() -> (Redis, Proxy, Agent) {
    let redis = Redis::start().await;
    let proxy = Proxy::to(redis.port()).await;
    let agent = Agent::on(&proxy, &[]).await;
    assert!(agent.campaign("warm-up", "a", 1_000).await.elected);
    (redis, proxy, agent)
}

/// Makes a campaign whose grant is carried out and whose reply is lost.
async fn lose(proxy: &Proxy, agent: &Agent, request: election_proto::CampaignRequest) {
    eventually("a campaign's reply is lost", async || {
        proxy.lose_next_reply();
        let status = agent.try_campaign(request.clone()).await.err()?;
        assert_eq!(
            status.code(),
            Code::Unavailable,
            "unknown, not lost: {status}"
        );
        (!proxy.is_armed()).then_some(())
    })
    .await;
}

/// For longer than the first roll-backs take, nobody else is elected.
async fn stays_the_leader(agent: &Agent, leader: &str) {
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_millis(800) {
        if let Ok(answer) = agent.try_campaign(campaign("e", "other", 60_000)).await {
            assert_eq!((answer.elected, answer.leader.as_str()), (false, leader));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_is_told_elected_is_not_withdrawn_with_the_first_try() {
    let (_redis, proxy, agent) = behind_proxy().await;
    let request = election_proto::CampaignRequest {
        request_id: "try".to_owned(),
        ..campaign("e", "a", 60_000)
    };
    lose(&proxy, &agent, request.clone()).await;
    let retried = eventually("the retry is answered", async || {
        agent.try_campaign(request.clone()).await.ok()
    })
    .await;
    assert!(retried.elected);
    stays_the_leader(&agent, "a").await;
    assert!(agent.extend("e", "a", 60_000, retried.token).await.value);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaders_own_campaign_that_fails_leaves_it_what_it_was_promised() {
    let (_redis, proxy, agent) = behind_proxy().await;
    let won = agent.campaign("e", "a", 60_000).await;
    lose(&proxy, &agent, campaign("e", "a", 60_000)).await;
    stays_the_leader(&agent, "a").await;
    // The unacknowledged grant is rolled back: the token is the old one again.
    eventually("the old token counts", async || {
        agent
            .extend("e", "a", 60_000, won.token)
            .await
            .value
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_that_fails_leaves_the_election_to_its_leader() {
    let (_redis, proxy, agent) = behind_proxy().await;
    let won = agent.campaign("e", "a", 60_000).await;
    eventually("a handover's reply is lost", async || {
        proxy.lose_next_reply();
        let request = handover("e", ("a", 0), "b", 60_000);
        let status = agent.try_handover(request).await.err()?;
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        (!proxy.is_armed()).then_some(())
    })
    .await;
    eventually("the leader leads again", async || {
        let leader = agent.leader("e").await.ok()?;
        assert!(["a", "b"].contains(&leader.as_str()), "{leader}");
        (leader == "a").then_some(())
    })
    .await;
    stays_the_leader(&agent, "a").await;
    assert!(agent.extend("e", "a", 60_000, won.token).await.value);
}

#[tokio::test]
async fn requests_that_never_reached_the_server_leave_nothing_to_clean_up() {
    let mut redis = Redis::start().await;
    let mut agent = Agent::on(&redis, &[]).await;
    assert!(agent.campaign("e", "a", 60_000).await.elected);
    redis.kill();
    eventually("not connected", async || {
        (agent.get("/readyz").await.status == 503).then_some(())
    })
    .await;
    for n in 0..50 {
        let refused = agent
            .try_campaign(campaign(&format!("never{n}"), "a", 60_000))
            .await;
        assert_eq!(refused.expect_err("no server").code(), Code::Unavailable);
    }
    redis.run().await;
    eventually("ready again", async || {
        (agent.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    let mut connection = redis.connect().await;
    let keys: Vec<String> = connection.keys("*never*").await.expect("keys");
    assert_eq!(keys, Vec::<String>::new());
    agent.signal("TERM");
    assert!(agent.exit().await.success());
}

#[tokio::test]
async fn a_read_only_server_is_told_to_the_operator_and_not_to_everybody() {
    let primary = Redis::start().await;
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &primary.port().to_string()]).await;
    let agent = Agent::on(&replica, &[NO_DEADLINE]).await;
    let asked = Instant::now();
    let refused = agent
        .try_campaign(campaign("e", "a", 1_000))
        .await
        .expect_err("read-only");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(
        asked.elapsed() < LONG,
        "it is asked until the deadline: {:?}",
        asked.elapsed()
    );
    assert!(
        !refused.message().contains(&replica.port().to_string()),
        "{refused}"
    );
    eventually("it is reported to the operator", async || {
        let log = agent.log().join("\n");
        (log.contains("a lease node failed") && log.contains("give its primary")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_extension_is_tried_again_as_often_as_it_asks_for() {
    let mut redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let agent = Agent::on(&redis, &[]).await;
    let won = agent.campaign("e", "a", 60_000).await;
    let extend = move |retries| election_proto::ExtendElectedTermRequest {
        election: "e".to_owned(),
        leader: "a".to_owned(),
        term: 60_000,
        token: won.token,
        retries,
        retry_interval: 500,
        ..Default::default()
    };
    redis.kill();
    let refused = agent.try_extend(extend(0)).await.expect_err("no server");
    assert_eq!(refused.code(), Code::Unavailable);
    let asked = Instant::now();
    let refused = agent.try_extend(extend(2)).await.expect_err("no server");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(
        asked.elapsed() >= Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );

    let mut client = agent.grpc();
    let retrying = tokio::spawn(async move { client.extend_elected_term(extend(10)).await });
    redis.run().await;
    let extended = retrying.await.expect("no panic").expect("an answer");
    assert!(extended.into_inner().value);
}

#[tokio::test]
async fn the_guard_begins_with_the_restart_and_not_with_the_first_campaign() {
    let mut redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let agent = Agent::on(&redis, &[("EA_MAX_TERM", "2s")]).await;
    assert!(agent.campaign("e", "a", 1_000).await.elected);
    for forgets in [false, true] {
        let mut logged = Vec::new();
        redis.kill();
        if forgets {
            redis.forget();
        }
        redis.run().await;
        let guard = async || {
            let ready = agent.get("/readyz").await;
            ready.body["nodes"][0]["guard"].as_u64()
        };
        eventually("the guard has begun", async || {
            guard().await.filter(|left| *left > 0)
        })
        .await;
        eventually("and is over, though nobody campaigned", async || {
            guard().await.filter(|left| *left == 0)
        })
        .await;
        assert!(agent.campaign("e", "b", 1_000).await.elected);
        eventually("the log reports both", async || {
            logged.extend(agent.log());
            let told = |text| logged.iter().any(|line: &String| line.contains(text));
            (told("a lease node is in quarantine") && told("grants again")).then_some(())
        })
        .await;
        let mut lines = logged.iter();
        let line = lines.find(|line| line.contains("a lease node is in quarantine"));
        let line: serde_json::Value = serde_json::from_str(line.expect("logged")).expect("JSON");
        assert!(line["remaining_ms"].is_u64(), "a number: {line}");
    }
}

#[tokio::test]
async fn a_server_that_has_forgotten_waits_for_the_agent_with_the_longest_terms() {
    let mut redis = Redis::start().await;
    let mut long = Agent::on(&redis, &[("EA_MAX_TERM", "6s")]).await;
    let short = Agent::on(&redis, &[("EA_MAX_TERM", "1s")]).await;
    let asked = Instant::now();
    let won = long.campaign("e", "a", 6_000).await;
    assert!(won.elected);
    long.kill();
    redis.kill();
    redis.run().await;
    let leads_until =
        asked + Duration::from_millis(u64::try_from(won.valid_for).expect("positive"));
    let next = eventually("the next leader", async || {
        let answer = short.try_campaign(campaign("e", "b", 1_000)).await;
        answer.ok()
    })
    .await;
    assert!(next.elected && next.token > won.token);
    assert!(Instant::now() >= leads_until, "the leader had time left");
}
