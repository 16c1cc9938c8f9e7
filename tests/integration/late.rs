//! Grants that take effect when no caller waits for them any more.

use std::time::{Duration, Instant};

use election_proto::CampaignRequest;
use futures_util::future::join_all;
use tonic::Code;

use crate::harness::{Agent, Nodes, campaign, eventually, eventually_within};

/// The agent's way to each node in these tests.
const AGENT: &str = "the-agent";

/// How servers are slow.
#[derive(Clone, Copy)]
enum Slow {
    /// They get no requests.
    Requests,
    /// Their replies do not arrive.
    Replies,
    /// They stand still.
    Stopped,
}

impl Slow {
    fn begin(self, nodes: &Nodes) {
        for (number, server) in nodes.servers.iter().enumerate() {
            let gate = nodes.gate(AGENT, number);
            match self {
                Self::Requests => gate.hold_requests("unheard"),
                Self::Replies => gate.hold_replies("unheard"),
                Self::Stopped => server.signal("STOP"),
            }
        }
    }

    fn end(self, nodes: &Nodes) {
        for (number, server) in nodes.servers.iter().enumerate() {
            match self {
                Self::Requests | Self::Replies => nodes.gate(AGENT, number).open(),
                Self::Stopped => server.signal("CONT"),
            }
        }
    }
}

/// How a caller gives up.
#[derive(Clone, Copy)]
enum GivesUp {
    Cancels,
    AtDeadline,
}

/// Sends a request, and gives up long before the servers reply.
async fn give_up(agent: &Agent, request: CampaignRequest, how: GivesUp, after: Duration) {
    let mut client = agent.grpc();
    let mut request = tonic::Request::new(request);
    match how {
        GivesUp::Cancels => {
            let answer = tokio::time::timeout(after, client.campaign(request)).await;
            assert!(answer.is_err(), "answered, or refused: {answer:?}");
        }
        GivesUp::AtDeadline => {
            request.set_timeout(after);
            let answer = client.campaign(request).await;
            assert!(answer.is_err(), "elected by servers that do not answer");
        }
    }
}

const TIMEOUT: [(&str, &str); 1] = [("EA_REDIS_OPERATION_TIMEOUT", "1s")];

/// A campaign for a term that is far longer than these tests.
fn unheard(request_id: &str) -> CampaignRequest {
    CampaignRequest {
        request_id: request_id.to_owned(),
        ..campaign("e", "unheard", 60_000)
    }
}

/// So many tries of one candidate meet on slow servers, and nobody waits for any of them.
async fn tries(
    number: usize,
    servers: usize,
    request_id: &str,
    slow: Slow,
    how: GivesUp,
    hang: Duration,
) {
    let nodes = Nodes::start(servers).await;
    let agent = nodes.agent(AGENT, &TIMEOUT).await;
    agent.serves().await;
    slow.begin(&nodes);
    let request = unheard(request_id);
    let after = Duration::from_millis(300);
    let tries = (0..number).map(|_| give_up(&agent, request.clone(), how, after));
    join_all(tries).await;
    nobody_waits(&agent).await;
    tokio::time::sleep(hang).await;
    slow.end(&nodes);
    nobody_leads(&agent).await;
}

/// Waits until the agent knows that the callers have gone: an answer that it sends before that counts, and stays.
async fn nobody_waits(agent: &Agent) {
    eventually("nobody waits for an answer", async || {
        let metrics = agent.get("/metrics").await;
        let none = "election_agent_requests_in_flight{action=\"campaign\"} 0";
        metrics.body.as_str()?.contains(none).then_some(())
    })
    .await;
}

/// Waits until the election is vacant, and another is elected: for the operation timeout, for the second in
/// which rolling back ends, and as long again for a machine under load.
async fn nobody_leads(agent: &Agent) {
    let limit = Duration::from_secs(4);
    eventually_within(limit, "nobody leads of whom nobody knows", async || {
        let vacant = agent.leader("e").await.err()?;
        (vacant.code() == Code::NotFound).then_some(())
    })
    .await;
    eventually_within(limit, "another is elected", async || {
        agent.win("e", "other", 1_000).await
    })
    .await;
}

/// With a request id and without one.
async fn two_tries_each(servers: usize, slow: Slow, how: GivesUp, hang: Duration) {
    tokio::join!(
        tries(2, servers, "", slow, how, hang),
        tries(2, servers, "the same", slow, how, hang),
    );
}

const AT_ONCE: Duration = Duration::ZERO;

/// One try alone is rolled back, and leaves the election vacant.
#[tokio::test(flavor = "multi_thread")]
async fn a_try_whose_caller_went_away_leaves_no_leader() {
    tokio::join!(
        tries(1, 1, "", Slow::Replies, GivesUp::Cancels, AT_ONCE),
        tries(1, 3, "", Slow::Stopped, GivesUp::AtDeadline, AT_ONCE),
    );
}

/// More than two in a chain leave nothing behind either.
#[tokio::test(flavor = "multi_thread")]
async fn five_tries_whose_callers_went_away_leave_no_leader() {
    tokio::join!(
        tries(5, 1, "", Slow::Requests, GivesUp::Cancels, AT_ONCE),
        tries(5, 3, "", Slow::Stopped, GivesUp::Cancels, AT_ONCE),
    );
}

/// A caller that gives up often calls another agent next: the roll-back of each must not restore the other's grant.
#[tokio::test(flavor = "multi_thread")]
async fn two_tries_through_two_agents_leave_no_leader() {
    tokio::join!(
        tries_through_two_agents(1, ""),
        tries_through_two_agents(3, "the same"),
    );
}

async fn tries_through_two_agents(servers: usize, request_id: &str) {
    let nodes = Nodes::start(servers).await;
    let agents = [
        nodes.agent(AGENT, &TIMEOUT).await,
        nodes.agent("other-one", &TIMEOUT).await,
    ];
    agents[0].serves().await;
    agents[1].serves().await;
    Slow::Stopped.begin(&nodes);
    let after = Duration::from_millis(300);
    for agent in &agents {
        let request = unheard(request_id);
        give_up(agent, request, GivesUp::Cancels, after).await;
        nobody_waits(agent).await;
    }
    Slow::Stopped.end(&nodes);
    nobody_leads(&agents[0]).await;
}

/// An unacknowledged grant replaced another one: rolling back must not restore that for a term that no reply
/// promised.
#[tokio::test(flavor = "multi_thread")]
async fn two_tries_whose_callers_went_away_leave_no_leader_on_one_server() {
    two_tries_each(1, Slow::Replies, GivesUp::Cancels, AT_ONCE).await;
}

/// As on one server, where requests arrive late at all three.
#[tokio::test(flavor = "multi_thread")]
async fn two_tries_whose_callers_went_away_leave_no_leader_on_three_servers() {
    two_tries_each(3, Slow::Requests, GivesUp::Cancels, AT_ONCE).await;
}

/// As when callers go away, where their deadlines pass.
#[tokio::test(flavor = "multi_thread")]
async fn two_tries_whose_deadlines_passed_leave_no_leader() {
    tokio::join!(
        two_tries_each(1, Slow::Requests, GivesUp::AtDeadline, AT_ONCE),
        two_tries_each(3, Slow::Replies, GivesUp::AtDeadline, AT_ONCE),
    );
}

/// As on slow servers, where these stand still for less than the operation timeout, and for longer.
#[tokio::test(flavor = "multi_thread")]
async fn two_tries_on_servers_that_stood_still_leave_no_leader() {
    let longer = Duration::from_secs(2);
    tokio::join!(
        two_tries_each(3, Slow::Stopped, GivesUp::Cancels, AT_ONCE),
        two_tries_each(1, Slow::Stopped, GivesUp::AtDeadline, longer),
    );
}

/// For how long leases would be held that are granted late; the servers stand still for longer, so that the caller
/// got its error long before.
const TERM: i32 = 6_000;
const HANG: Duration = Duration::from_millis(7_000);

/// An agent that campaigns for many elections while two of its three servers stand still, and another that
/// does so later.
struct Hanging {
    nodes: Nodes,
    asking: Agent,
    other: Agent,
}

impl Hanging {
    async fn start() -> Self {
        let nodes = Nodes::start(3).await;
        let settings = [
            ("EA_REDIS_OPERATION_TIMEOUT", "300ms"),
            ("EA_MAX_TERM", "6s"),
        ];
        let asking = nodes.agent(AGENT, &settings).await;
        let other = nodes.agent("other-one", &settings).await;
        asking.serves().await;
        other.serves().await;
        for server in &nodes.servers[..2] {
            server.signal("STOP");
        }
        Self {
            nodes,
            asking,
            other,
        }
    }

    /// Lets a candidate campaign for so many elections, one after the other: some grants are on their way when
    /// the agent notices that its connections are dead, and what it sends then gets nowhere.
    async fn ask(&self, elections: usize) -> Vec<tokio::task::JoinHandle<bool>> {
        let mut asked = Vec::new();
        for election in 0..elections {
            let mut client = self.asking.grpc();
            asked.push(tokio::spawn(async move {
                let request = campaign(&format!("e{election}"), "late", TERM);
                let answer = client.campaign(request).await;
                answer.is_ok_and(|answer| answer.get_ref().elected)
            }));
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        asked
    }

    /// Lets the servers go on; what they find in their sockets blocks no candidate.
    async fn go_on(self, elections: usize) {
        for server in &self.nodes.servers[..2] {
            server.signal("CONT");
        }
        let mut tries = 0;
        eventually("the servers serve again", async || {
            tries += 1;
            self.other.win(&format!("new{tries}"), "other", 1_000).await
        })
        .await;
        let until = Instant::now() + Duration::from_secs(2);
        let campaigns = (0..elections).map(|election| {
            let (name, other) = (format!("e{election}"), &self.other);
            async move {
                while Instant::now() < until {
                    if other.win(&name, "other", 1_000).await.is_some() {
                        return None;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Some((name.clone(), other.leader(&name).await))
            }
        });
        let kept_out: Vec<_> = join_all(campaigns).await.into_iter().flatten().collect();
        assert!(
            kept_out.is_empty(),
            "led by one whose reply says that it does not lead: {kept_out:?}"
        );
    }
}

/// A grant that servers carry out after more than the operation timeout and the term has no effect: the caller got an
/// error, and the agent no longer rolls it back.
#[tokio::test(flavor = "multi_thread")]
async fn grants_that_are_carried_out_after_the_term_elect_nobody() {
    const ELECTIONS: usize = 40;
    let hanging = Hanging::start().await;
    let asked = hanging.ask(ELECTIONS).await;
    for elected in join_all(asked).await {
        assert!(!elected.expect("no panic"), "elected by one of three");
    }
    tokio::time::sleep(HANG).await;
    hanging.go_on(ELECTIONS).await;
}

/// As with an agent that lives, but nobody is left who could roll the grants back.
#[tokio::test(flavor = "multi_thread")]
async fn grants_of_an_agent_that_died_are_not_carried_out_after_the_term() {
    const ELECTIONS: usize = 10;
    let mut hanging = Hanging::start().await;
    let asked = hanging.ask(ELECTIONS).await;
    hanging.asking.kill();
    for elected in join_all(asked).await {
        assert!(!elected.expect("no panic"), "elected by one of three");
    }
    tokio::time::sleep(HANG).await;
    hanging.go_on(ELECTIONS).await;
}
