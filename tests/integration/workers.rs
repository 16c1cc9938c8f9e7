//! An agent with more threads than one, each with connections of its own to the lease nodes.

use std::{
    num::NonZeroUsize,
    sync::{Arc, mpsc},
    time::Duration,
};

use election_agent::{config::REDIS_NAMES, workers::Workers};
use election_core::{
    lease::{LeaseNode as _, Reading, Settings},
    types::ElectionId,
};
use election_redis::{Deployment, Redis as RedisNode, Server, Use};
use redis::cmd;
use tokio::{net::TcpListener, sync::oneshot};

use crate::harness::{Agent, Proxy, Redis, campaign, eventually};

/// The ids of all connections except that of this query.
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
    let agent = Agent::on(&redis, &[("EA_WORKERS", "3")]).await;
    let ids = connections(&redis).await;
    assert_eq!(ids.len(), 4, "each worker has one, and what goes on beside");

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
    assert_eq!(new.len(), 4, "and none is left over");
}

#[tokio::test]
async fn a_worker_that_stands_still_takes_no_connection_from_the_others() {
    let redis = Redis::start().await;
    let two = NonZeroUsize::new(2).expect("not zero");
    let (workers, _stop) = Workers::start(two).expect("threads");
    let deployment = Deployment::Server(Server::from_url(&redis.url(), None).expect("a URL"));
    let usage = Use {
        prefix: "ela".to_owned(),
        nodes: deployment.identity(),
        max_term: Duration::from_secs(60),
        allow_eviction: false,
        names: REDIS_NAMES,
    };
    let settings = Settings {
        retention: Duration::from_secs(3600),
        guard: None,
        vote: Duration::from_millis(300),
    };
    let limit = Duration::from_millis(300);
    let askers = workers.askers();
    let node = RedisNode::start(deployment, usage, limit, settings, askers.clone()).await;
    let node = Arc::new(node);
    let asked_from = |asker: usize| {
        let node = Arc::clone(&node);
        let asking = async move {
            let election = ElectionId::new("default", "e").expect("valid");
            node.read(&election).await
        };
        askers.all().nth(asker).expect("an asker").spawn(asking)
    };

    let (stands, standing) = oneshot::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let first = askers.all().next().expect("a worker");
    first.spawn(async move {
        stands.send(()).expect("waited for");
        // On purpose without giving the thread back.
        let _ = wait.recv();
    });
    standing.await.expect("runs");

    // The others' connections are pinged in each round, also in those in which the first one's is silent.
    let pings = async || redis.calls("ping").await;
    let before = pings().await;
    eventually("the others were looked at several times", async || {
        for asker in [1, 2] {
            let read = asked_from(asker).await.expect("runs");
            assert_eq!(
                read.map_err(|error| error.to_string()),
                Ok(Reading::Vacant(None))
            );
        }
        (pings().await >= before + 8).then_some(())
    })
    .await;

    go_on.send(()).expect("waited for");
    eventually("the first one asks again", async || {
        asked_from(0).await.expect("runs").ok()
    })
    .await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_back_is_replaced_alone() {
    let redis = Redis::start().await;
    // Connections to it are made, but not accepted.
    let hole = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let hole = hole.local_addr().expect("an address").port();
    let proxy = Proxy::to_each(vec![redis.port(), hole, redis.port()]).await;
    // Longer than this test waits: no other request may wait for that connection.
    let settings = [("EA_WORKERS", "2"), ("EA_REDIS_OPERATION_TIMEOUT", "60s")];
    let agent = Agent::on(&proxy, &settings).await;
    eventually("each has a connection", async || {
        (connections(&redis).await.len() == 3).then_some(())
    })
    .await;
    let mut clients: Vec<_> = (0..4).map(|_| agent.grpc()).collect();
    eventually("every worker asks", async || {
        for client in &mut clients {
            client.campaign(campaign("e", "a", 60_000)).await.ok()?;
        }
        Some(())
    })
    .await;
}

#[tokio::test]
async fn a_name_that_leads_to_more_than_one_server_is_not_used() {
    let (one, two) = (Redis::start().await, Redis::start().await);
    let proxy = Proxy::to_each(vec![one.port(), two.port()]).await;
    let agent = Agent::on(&proxy, &[("EA_WORKERS", "2")]).await;
    let refused = eventually("it is reported", async || {
        let ready = agent.get("/readyz").await;
        ready
            .text("message")
            .contains("more than one server")
            .then_some(ready)
    })
    .await;
    assert_eq!(refused.status, 503);
    let asked = agent.try_campaign(campaign("e", "a", 60_000)).await;
    let status = asked.expect_err("no answer");
    assert_eq!(status.code(), tonic::Code::Unavailable);
}
