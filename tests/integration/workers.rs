//! An agent with more threads than one, each with connections of its own to the lease nodes.

use redis::cmd;

use crate::harness::{Agent, Proxy, Redis, campaign, eventually, owned};

/// The ids of the connections that others than this question have.
async fn connections(redis: &Redis) -> Vec<u64> {
    let list: String = redis.ask(cmd("CLIENT").arg("LIST")).await.expect("a list");
    let others = list.lines().filter(|line| !line.contains("cmd=client"));
    let ids = others.map(|line| {
        let id = line
            .strip_prefix("id=")
            .and_then(|line| line.split(' ').next());
        id.and_then(|id| id.parse().ok()).expect("an id")
    });
    ids.collect()
}

#[tokio::test]
async fn a_connection_that_breaks_is_replaced_whichever_worker_it_was_of() {
    let redis = Redis::start().await;
    let url = redis.url();
    let settings = [("EA_REDIS_URLS", url.as_str()), ("EA_WORKERS", "3")];
    let agent = Agent::start(&owned(&settings)).await;
    let ids = connections(&redis).await;
    assert_eq!(ids.len(), 3, "each worker has one");

    // Connections go to the worker with the fewest: two for each.
    let mut clients: Vec<_> = (0..6).map(|_| agent.grpc()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let won = client
            .campaign(campaign(&format!("e{number}"), "a", 60_000))
            .await;
        assert!(won.expect("an answer").into_inner().elected);
        let lost = client.campaign(campaign("e0", "b", 60_000)).await;
        let lost = lost.expect("an answer").into_inner();
        assert_eq!((lost.elected, &*lost.leader), (false, "a"));
    }

    for id in ids {
        let mut kill = cmd("CLIENT");
        let killed: redis::RedisResult<u64> = redis.ask(kill.arg("KILL").arg("ID").arg(id)).await;
        // The others of its server are replaced with the first.
        let _ = killed;
        for (number, client) in clients.iter_mut().enumerate() {
            eventually("every worker asks again", async || {
                let asked = client
                    .campaign(campaign(&format!("e{number}"), "b", 60_000))
                    .await;
                asked.ok().filter(|answer| answer.get_ref().leader == "a")
            })
            .await;
        }
    }
    let new = connections(&redis).await;
    assert_eq!(new.len(), 3, "and none is left over");
}

#[tokio::test]
async fn a_name_that_leads_to_more_than_one_server_is_not_used() {
    let (one, two) = (Redis::start().await, Redis::start().await);
    let proxy = Proxy::to_each(vec![one.port(), two.port()]).await;
    let url = proxy.url();
    let settings = [("EA_REDIS_URLS", url.as_str()), ("EA_WORKERS", "2")];
    let agent = Agent::start(&owned(&settings)).await;
    let refused = eventually("it is told", async || {
        let ready = agent.get("/readyz").await;
        ready
            .text("message")
            .contains("more than one server")
            .then_some(ready)
    })
    .await;
    assert_eq!(refused.status, 503);
    let asked = agent.grpc().campaign(campaign("e", "a", 60_000)).await;
    let status = asked.expect_err("no answer");
    assert_eq!(status.code(), tonic::Code::Unavailable);
}
