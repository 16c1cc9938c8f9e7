//! Wall clocks that are far off: a server's, which steps back, and an agent's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::{Agent, Clock, Redis, campaign, eventually, eventually_within};

/// How far the server's clock is ahead before it steps back, in seconds.
const HOURS: i64 = 7_200;

/// Campaigns until elected, which is not much later than the longest guard; no reply asks for a longer wait.
async fn grants_again_soon(agent: &Agent, election: &str) {
    let limit = Duration::from_secs(15);
    eventually_within(limit, "the server grants again", async || {
        let path = format!("/election/{election}");
        let answer = agent.campaign_over_rest(&path, "a", 1_000).await;
        if let Ok(seconds) = answer.header("retry-after").parse::<u64>() {
            assert!(
                seconds <= 6,
                "told to wait for longer than the guard: {answer:?}"
            );
        }
        (answer.body["elected"] == true).then_some(())
    })
    .await;
}

/// A server's clock may have been ahead when it noted from when on it grants: when it is right again, it waits
/// for the longest guard at the most, and not until the time that it noted.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_clock_steps_back_grants_again_within_the_guard() {
    let clock = Clock::ahead(HOURS);
    let redis = Redis::with_clock(&clock).await;
    let agent = Agent::on(&redis, &[("EA_MAX_TERM", "5s")]).await;
    assert!(agent.campaign("before", "a", 1_000).await.elected);
    clock.set_ahead(0);
    grants_again_soon(&agent, "after").await;
}

/// As without a restart, where the clock steps back while the server abstains.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_clock_steps_back_while_it_abstains_grants_again_within_the_guard() {
    let clock = Clock::ahead(HOURS);
    let mut redis = Redis::with_clock(&clock).await;
    let agent = Agent::on(&redis, &[("EA_MAX_TERM", "5s")]).await;
    assert!(agent.campaign("before", "a", 1_000).await.elected);
    redis.kill();
    redis.run().await;
    eventually("it abstains", async || {
        let ready = agent.get("/readyz").await;
        let guard = ready.body["nodes"][0]["guard"].as_u64();
        guard.filter(|guard| *guard > 0)
    })
    .await;
    clock.set_ahead(0);
    grants_again_soon(&agent, "after").await;
}

/// An agent's clock may be a lifetime ahead: tokens that others hand out stay near the present, or after a few
/// more such clocks there would be none left.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_clock_is_far_ahead_does_not_lift_the_tokens_of_others() {
    const CENTURY: u64 = 6_000_000_000;
    const DAY: u64 = 86_400_000_000;
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since.expect("after 1970").as_secs();
    // In the year 2199.
    let ahead = 7_226_582_400 - now;
    assert!(ahead < CENTURY);
    let clock = Clock::ahead(i64::try_from(ahead).expect("in range"));
    let redis = Redis::start().await;
    let right = Agent::on(&redis, &[]).await;
    let environment = clock.environment();
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let wrong = Agent::on(&redis, &environment).await;
    let near_the_present = |token: u64| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = u64::try_from(since.expect("after 1970").as_micros()).expect("in range");
        assert!(
            token.abs_diff(now) < DAY,
            "{token} is not a time near {now}, in µs"
        );
    };

    let (first, _) = right.elect("e0", "a", 60_000).await;
    near_the_present(first.token);
    // It may be refused.
    let far = wrong.try_campaign(campaign("e1", "far", 60_000)).await;
    if far.is_ok_and(|far| far.elected) {
        // The others learn of it.
        assert!(!right.campaign("e1", "a", 60_000).await.elected);
        assert_eq!(right.leader("e1").await.expect("held"), "far");
    }
    let (next, _) = right.elect("e2", "a", 60_000).await;
    near_the_present(next.token);
    // A new agent, and tokens of an election that the wrong one has had a hand in.
    let new = Agent::on(&redis, &[]).await;
    assert!(!new.campaign("e0", "b", 60_000).await.elected);
    let _ = wrong.try_campaign(campaign("e0", "far", 60_000)).await;
    assert!(new.resign("e0", "a", 0).await.value);
    let (last, _) = new.elect("e0", "b", 60_000).await;
    assert!(last.token > first.token);
    near_the_present(last.token);
}
