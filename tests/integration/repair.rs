//! A server that lacks a leader's lease is repaired, whatever followers do meanwhile.

use std::time::Duration;

use tokio::task::AbortHandle;

use crate::harness::{Agent, Leader, Nodes, campaign, eventually};

const TERM: i32 = 3_000;

/// Followers that campaign until they are dropped.
struct Followers(Vec<AbortHandle>);

impl Followers {
    /// Two for each agent, which pause for so long between two campaigns.
    fn start(agents: [&Agent; 2], pause: Duration) -> Self {
        let followers = (0..4).map(|number| {
            let mut client = agents[number % 2].grpc();
            let request = campaign("e", &format!("follower{number}"), TERM);
            let campaigning = async move {
                loop {
                    // Whatever comes of it.
                    let _ = client.campaign(request.clone()).await;
                    tokio::time::sleep(pause).await;
                }
            };
            tokio::spawn(campaigning).abort_handle()
        });
        Self(followers.collect())
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        for follower in &self.0 {
            follower.abort();
        }
    }
}

/// Waits until the agent reports that the third server is up, or that it is not.
async fn third_is(agent: &Agent, up: bool) {
    eventually(&format!("the third server is up: {up}"), async || {
        let ready = agent.get("/readyz").await;
        (ready.body["nodes"][2]["up"] == up).then_some(())
    })
    .await;
}

/// One of three servers stands still for longer than a term, so that the lease lapses there, and goes on; then
/// another one dies. The leader's extensions must have repaired the lease by then.
async fn is_repaired_while_followers_campaign(pause: Option<Duration>) {
    let mut nodes = Nodes::start(3).await;
    let settings = [("EA_MAX_TERM", "5s"), ("EA_REDIS_OPERATION_TIMEOUT", "1s")];
    let first = nodes.agent("first-agent", &settings).await;
    let second = nodes.agent("second-agent", &settings).await;
    first.serves().await;
    second.serves().await;
    let leader = Leader::elect(&first, "sitting", TERM).await;
    let _followers = pause.map(|pause| Followers::start([&first, &second], pause));

    nodes.servers[2].signal("STOP");
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    third_is(&first, false).await;
    nodes.servers[2].signal("CONT");
    third_is(&first, true).await;
    third_is(&second, true).await;
    leader.extends(2).await;

    nodes.servers[0].kill();
    // The first of them may have been decided before.
    leader.extends(2).await;
}

/// The leader's extensions repair a server on which the lease has lapsed.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stood_still_is_repaired_where_nobody_else_campaigns() {
    is_repaired_while_followers_campaign(None).await;
}

/// A vote that lost must not prevent the repair of the leader's lease: only grants that may have counted forbid older
/// tokens.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stood_still_is_repaired_while_followers_campaign_now_and_then() {
    is_repaired_while_followers_campaign(Some(Duration::from_secs(1))).await;
}

/// As with followers that campaign once a second: however many there are, the leader stays as safe from the
/// loss of a server as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stood_still_is_repaired_while_followers_campaign_all_the_time() {
    is_repaired_while_followers_campaign(Some(Duration::from_millis(1))).await;
}
