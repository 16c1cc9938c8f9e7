//! Agents of one prefix that are configured differently: none of them makes a second leader.

use std::time::{Duration, Instant};

use futures_util::future::select_all;
use redis::cmd;
use tonic::Code;

use crate::harness::{Agent, Leader, Nodes, Redis, campaign, elected_until, eventually_within};

/// The agent with the longest terms, the one with the shortest, and how long a server may be guarded.
const LONG: (&str, &str) = ("EA_MAX_TERM", "8s");
const SHORT: (&str, &str) = ("EA_MAX_TERM", "1s");
const PATIENCE: Duration = Duration::from_secs(30);

/// Campaigns until the instant; nobody is elected before.
async fn nobody_is_elected_before(agent: &Agent, until: Instant) {
    while Instant::now() < until {
        if let Some((won, told)) = agent.win("e", "other", 1_000).await {
            let early = until.saturating_duration_since(told);
            assert!(
                early.is_zero(),
                "{} is elected while the leader has {early:?} left",
                won.leader
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As [`nobody_is_elected_before`], but then a candidate is.
async fn elected_not_before(agent: &Agent, until: Instant) {
    nobody_is_elected_before(agent, until).await;
    eventually_within(PATIENCE, "the next leader", async || {
        agent.win("e", "other", 1_000).await
    })
    .await;
}

/// Lets four callers campaign all the time.
async fn nobody_is_elected_for(agent: &Agent, time: Duration) {
    let end = Instant::now() + time;
    let callers = (0..4).map(|caller| {
        Box::pin(async move {
            while Instant::now() < end {
                let name = format!("caller{caller}");
                if let Some((won, _)) = agent.win("e", &name, 1_000).await {
                    return Some(won);
                }
                tokio::task::yield_now().await;
            }
            None
        })
    });
    let (elected, _, _) = select_all(callers).await;
    assert_eq!(elected, None, "it is elected by servers of another list");
}

/// Servers that were rolled back to data from before a grant of a long term, by an agent that has died.
struct RolledBack {
    nodes: Nodes,
    /// Until when the leader has time left.
    until: Instant,
    /// The agent with short terms that ran meanwhile, if there was one.
    beside: Option<Agent>,
}

/// How the servers come to be rolled back.
struct Past {
    servers: usize,
    longest_term: Duration,
    /// How much older the data are than the grant.
    age: Duration,
    /// Whether the agent with the short terms runs beside.
    beside: bool,
}

const PAST: Past = Past {
    servers: 1,
    longest_term: Duration::from_secs(8),
    age: Duration::ZERO,
    beside: false,
};

impl Past {
    async fn roll_back(self) -> RolledBack {
        let mut nodes = Nodes::start(self.servers).await;
        let term = i32::try_from(self.longest_term.as_millis()).expect("short");
        let longest = format!("{term}ms");
        let mut long = nodes
            .agent("long-terms", &[("EA_MAX_TERM", &longest)])
            .await;
        long.serves().await;
        let beside = match self.beside {
            true => Some(nodes.agent("short-terms", &[SHORT]).await),
            false => None,
        };
        if let Some(short) = &beside {
            short.serves().await;
        }
        let mut snapshots = Vec::new();
        for server in &nodes.servers {
            snapshots.push(server.snapshot().await);
        }
        tokio::time::sleep(self.age).await;
        let (_, until) = long.elect("e", "leader", term).await;
        long.kill();
        for (server, snapshot) in nodes.servers.iter_mut().zip(&snapshots) {
            server.kill();
            server.run_from(snapshot).await;
        }
        RolledBack {
            nodes,
            until,
            beside,
        }
    }
}

/// A server that comes back with older data knows that another agent grants longer terms, and waits for these: that
/// agent's leader, which it does not know, has time left.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_rolled_back_waits_for_the_longest_term_and_not_for_the_next_agents() {
    let past = PAST.roll_back().await;
    let short = past.nodes.agent("short-terms", &[SHORT]).await;
    elected_not_before(&short, past.until).await;
}

/// Three servers that come back with older data wait as one does.
#[tokio::test(flavor = "multi_thread")]
async fn three_servers_that_were_rolled_back_wait_for_the_longest_term() {
    let past = Past { servers: 3, ..PAST }.roll_back().await;
    let short = past.nodes.agent("short-terms", &[SHORT]).await;
    elected_not_before(&short, past.until).await;
}

/// An agent with short terms that has run beside the one with long terms waits for these, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_short_terms_remembers_the_long_ones_of_another() {
    let past = Past {
        beside: true,
        ..PAST
    };
    let past = past.roll_back().await;
    let short = past.beside.expect("it ran beside");
    elected_not_before(&short, past.until).await;
}

/// What the server remembers of long terms does not lapse before its record of the incarnation that granted
/// them: that alone is enough to wait for as long.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_which_only_lasting_data_came_back_waits_for_the_longest_term() {
    let past = PAST.roll_back().await;
    forget_what_lapses(&past.nodes.servers[0]).await;
    let short = past.nodes.agent("short-terms", &[SHORT]).await;
    elected_not_before(&short, past.until).await;
}

/// As if the server had come back when everything that lapses had lapsed.
async fn forget_what_lapses(server: &Redis) {
    let keys: Vec<String> = server.ask(cmd("KEYS").arg("*")).await.expect("keys");
    assert!(!keys.is_empty(), "the server has come back with data");
    for key in keys {
        let lapses: i64 = server.ask(cmd("PTTL").arg(&key)).await.expect("a time");
        if lapses >= 0 {
            server.ask::<()>(cmd("DEL").arg(&key)).await.expect("gone");
        }
    }
}

/// Data may be older than the longest term, and the agent that granted it may have run on: the length of its
/// terms counts all the same.
#[tokio::test(flavor = "multi_thread")]
async fn data_that_are_older_than_the_longest_term_still_say_how_long_it_is() {
    let past = Past {
        longest_term: Duration::from_secs(5),
        age: Duration::from_secs(6),
        ..PAST
    };
    let past = past.roll_back().await;
    let short = past.nodes.agent("short-terms", &[SHORT]).await;
    elected_not_before(&short, past.until).await;
}

/// An agent whose servers need not abstain after a restart elects nobody while one whose servers have to runs
/// on the same: the latter has promised its leader a term which the server has forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_guard_elects_nobody_beside_one_that_has_it() {
    let mut nodes = Nodes::start(1).await;
    let on = nodes.agent("guarding", &[LONG]).await;
    let settings = [LONG, ("EA_RESTART_GUARD", "off")];
    let off = nodes.agent("careless", &settings).await;
    on.serves().await;
    let (_, until) = on.elect("e", "leader", 8_000).await;
    nodes.forget(&[0]).await;
    nobody_is_elected_before(&off, until).await;
}

/// A server that has voted, restarted empty and been repaired must not count twice, however long the agent
/// that counts its vote waits for the others: agents differ in how long a vote counts, and repair has to wait
/// for the longest.
#[tokio::test(flavor = "multi_thread")]
async fn a_vote_that_a_patient_agent_counts_keeps_a_hasty_one_from_repairing() {
    const TERM: i32 = 2_000;
    let mut nodes = Nodes::start(3).await;
    let common = [("EA_MAX_TERM", "30s"), ("EA_REQUEST_TIMEOUT", "30s")];
    let timeout = |timeout| [&common[..], &[("EA_REDIS_OPERATION_TIMEOUT", timeout)]].concat();
    let patient = nodes.agent("patient", &timeout("15s")).await;
    let hasty = nodes.agent("hasty", &timeout("300ms")).await;
    patient.serves().await;
    hasty.serves().await;

    // The leader is known to the first and the second server only.
    nodes.gate("hasty", 2).cut();
    let leader = Leader::elect(&hasty, "sitting", TERM).await;

    // The third one votes for the contender; the requests to the others are on their way.
    let on_its_way = [0, 1].map(|node| nodes.gate("patient", node));
    for gate in &on_its_way {
        gate.hold_requests("contender");
    }
    let mut client = patient.grpc();
    let asked = Instant::now();
    let campaigning = tokio::spawn(async move {
        let answer = client.campaign(campaign("e", "contender", 30_000)).await;
        (answer.map(tonic::Response::into_inner), Instant::now())
    });
    for gate in &on_its_way {
        gate.holds(1).await;
    }
    eventually_within(PATIENCE, "the third server has voted", async || {
        let voted = nodes.servers[2].keys_with("contender").await?;
        (!voted.is_empty()).then_some(())
    })
    .await;

    // It restarts empty, and is repaired with the leader's lease, if it may be.
    nodes.forget(&[2]).await;
    nodes.gate("hasty", 2).open();
    let opened = Instant::now();
    while opened.elapsed() < Duration::from_secs(4) {
        let repaired = nodes.servers[2].keys_with("sitting").await;
        if repaired.is_some_and(|keys| !keys.is_empty()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // The lease lapses on the second one, which then grants what was on its way.
    nodes.gate("hasty", 1).cut();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    on_its_way[1].open();
    let (answer, told) = campaigning.await.expect("no panic");
    if let Ok(won) = answer
        && won.elected
        && told < elected_until(asked, &won)
    {
        let left = leader.until().saturating_duration_since(told);
        assert!(
            left.is_zero(),
            "{} is elected while the leader has {left:?} left",
            won.leader
        );
    }
}

/// Majorities of a list and of a longer one need not meet: the agent that comes with the longer one, and is
/// the first on a server that has restarted empty, makes no second leader, and reports what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_longer_list_that_is_first_on_an_empty_server_makes_no_second_leader() {
    const TERM: i32 = 2_000;
    let settings = [("EA_MAX_TERM", "2s")];
    let mut nodes = Nodes::start(5).await;
    let old = nodes.agent_on(&[0, 1, 2], "old-list", &settings).await;
    old.serves().await;
    let leader = Leader::elect(&old, "sitting", TERM).await;
    nodes.gate("old-list", 2).cut();
    nodes.forget(&[2]).await;
    let all = [0, 1, 2, 3, 4];
    let new = nodes.agent_on(&all, "new-list", &settings).await;
    eventually_within(
        PATIENCE,
        "the new agent has asked all servers",
        async || {
            let ready = new.get("/readyz").await;
            (ready.status == 503 || ready.body["nodes"][4]["up"] == true).then_some(())
        },
    )
    .await;
    nodes.gate("old-list", 2).open();

    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        if let Some((won, told)) = new.win("e", "contender", TERM).await {
            let left = leader.until().saturating_duration_since(told);
            assert!(
                left.is_zero(),
                "{} is elected while the leader has {left:?} left",
                won.leader
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    new.readiness(503, &["another list"]).await;
}

/// One server that is used with another list is enough for an agent to elect nobody: by the other servers it
/// may have a majority, but so may the agents with the other list.
#[tokio::test(flavor = "multi_thread")]
async fn another_list_on_one_server_stops_an_agent_on_all() {
    let nodes = Nodes::start(5).await;
    let first = nodes.agent_on(&[2, 3, 4], "first-list", &[SHORT]).await;
    first.serves().await;
    let second = nodes.agent_on(&[0, 1, 2], "second-list", &[SHORT]).await;
    nobody_is_elected_for(&second, Duration::from_secs(4)).await;
    second.readiness(503, &["another list"]).await;
    let refused = second.try_campaign(campaign("e", "a", 1_000)).await;
    assert_eq!(refused.expect_err("refused").code(), Code::Unavailable);
    assert!(first.win("e", "a", 1_000).await.is_some(), "not disturbed");
}

/// A server that could not be reached when the agent started does not vote before it has reported the list that it is
/// used with.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_reached_late_does_not_vote_before_it_was_asked_for_its_list() {
    let mut nodes = Nodes::start(5).await;
    let mut earlier = nodes.agent_on(&[0, 1, 2], "earlier", &[SHORT]).await;
    earlier.serves().await;
    earlier.kill();
    nodes.forget(&[2]).await;
    let first = nodes.agent_on(&[2, 3, 4], "first-list", &[SHORT]).await;
    first.serves().await;
    for unreachable in [1, 2] {
        nodes.gate("second-list", unreachable).cut();
    }
    let second = nodes.agent_on(&[0, 1, 2], "second-list", &[SHORT]).await;
    // The first server would vote; with the third one that would be two of three.
    nobody_is_elected_for(&second, Duration::from_millis(500)).await;
    nodes.gate("second-list", 2).open();
    nobody_is_elected_for(&second, Duration::from_secs(4)).await;
    second.readiness(503, &["another list"]).await;
}
