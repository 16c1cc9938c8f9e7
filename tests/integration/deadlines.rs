//! Deadlines while a Redis server does not answer: the replies to callers, and that nothing is left of their
//! requests.

use std::time::{Duration, Instant};

use election_proto::GetLeaderRequest;
use futures_util::future::join_all;
use tokio::time::timeout;
use tonic::Code;

use crate::harness::{Agent, Ask, Protocol, Redis, campaign, eventually, framed};

const PATIENCE: Duration = Duration::from_millis(200);

/// What ends the wait for an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// `EA_REQUEST_TIMEOUT`.
    AgentsLimit,
    /// `grpc-timeout`.
    CallersLimit,
    /// The caller disconnects silently.
    Disconnection,
}

impl End {
    const ALL: [Self; 3] = [Self::AgentsLimit, Self::CallersLimit, Self::Disconnection];
}

/// Campaigns for a minute in an election of this protocol's and this end's own.
async fn give_up(agent: &Agent, protocol: Protocol, end: End) -> String {
    let election = format!("{protocol:?}-{end:?}");
    let ask = Ask::campaign(protocol, &election, "gone", 60_000);
    let asked = Instant::now();
    match end {
        End::AgentsLimit | End::CallersLimit => {
            let ask = match end {
                End::CallersLimit => ask.with("grpc-timeout", "200m"),
                _ => ask,
            };
            let (code, _) = ask.told(agent.address()).await;
            assert_eq!(code, Code::DeadlineExceeded, "{election}");
            assert!(asked.elapsed() >= PATIENCE, "{election}");
        }
        End::Disconnection => {
            let told = timeout(PATIENCE, ask.told(agent.address())).await;
            assert!(told.is_err(), "{election}: {told:?}");
        }
    }
    election
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_that_gave_up_was_granted_is_taken_back() {
    let redis = Redis::start().await;
    let (patient, hasty) = (
        Agent::on(&redis, &[]).await,
        Agent::on(&redis, &[("EA_REQUEST_TIMEOUT", "200ms")]).await,
    );
    for agent in [&patient, &hasty] {
        eventually("the agent has reached the server", async || {
            agent
                .try_campaign(campaign("warm-up", "a", 1_000))
                .await
                .ok()
        })
        .await;
    }
    redis.signal("STOP");
    let asking = Protocol::ALL.into_iter().flat_map(|protocol| {
        let (patient, hasty) = (&patient, &hasty);
        End::ALL.map(|end| match end {
            End::AgentsLimit => give_up(hasty, protocol, end),
            End::CallersLimit | End::Disconnection => give_up(patient, protocol, end),
        })
    });
    let elections = join_all(asking).await;
    redis.signal("CONT");
    // Redis runs the grants when it goes on; for a minute nobody would lead.
    for election in elections {
        let won = eventually("another candidate is elected", async || {
            let next = campaign(&election, "next", 60_000);
            let answer = patient.try_campaign(next).await.ok()?;
            Some(answer).filter(|result| result.elected)
        });
        assert_eq!(won.await.leader, "next", "{election}");
    }
}

#[tokio::test]
async fn the_callers_deadline_is_kept() {
    let redis = Redis::start().await;
    let settings = [
        ("EA_REQUEST_TIMEOUT", "1m"),
        ("EA_REDIS_OPERATION_TIMEOUT", "1m"),
    ];
    let agent = Agent::on(&redis, &settings).await;
    redis.signal("STOP");
    let asked = Instant::now();
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .expect("a client");
    let election = prost::Message::encode_to_vec(&GetLeaderRequest {
        election: "e".to_owned(),
        kind: String::new(),
    });
    let answer = client
        .post(format!(
            "http://{}/grpc.election_agent.v1.Election/GetLeader",
            agent.address()
        ))
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "150m")
        .body(framed(&election))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.headers()["grpc-status"], "4", "{answer:?}");
    // And not any of the agent's own limits.
    let took = asked.elapsed();
    assert!(
        (Duration::from_millis(150)..Duration::from_secs(30)).contains(&took),
        "{took:?}"
    );
    redis.signal("CONT");
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_told_so_over_rest() {
    let redis = Redis::start().await;
    let agent = Agent::on(&redis, &[("EA_REQUEST_TIMEOUT", "200ms")]).await;
    redis.signal("STOP");
    let late = agent.get("/election/e").await;
    assert_eq!(
        (late.status, late.text("code")),
        (504, "DeadlineExceeded"),
        "{late:?}"
    );
    redis.signal("CONT");
}
