//! Servers that answer a connection with an error and close it: the agent reports what they said.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener},
    thread,
};

use serde_json::Value;

use crate::harness::{Agent, Redis};

/// The agent's reasons why it cannot connect, each once, until now.
fn reasons(agent: &Agent) -> Vec<String> {
    let lines = agent.log().into_iter();
    let lines = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let lines = lines.filter(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("cannot connect to Redis") || message.starts_with("some threads have")
    });
    let mut reasons: Vec<_> = lines
        .map(|line| line["error"].as_str().unwrap_or_default().to_owned())
        .collect();
    reasons.sort();
    reasons.dedup();
    reasons
}

#[tokio::test]
async fn a_server_that_takes_no_more_clients_is_told_as_such_and_connected_to_when_it_does() {
    let redis = Redis::with(&["--maxclients", "1"]).await;
    let mut only = redis.connect().await;
    let agent = Agent::on(&redis, &[]).await;
    let told = "max number of clients reached";
    agent.readiness(503, &[told]).await;
    let reasons = reasons(&agent);
    assert!(!reasons.is_empty());
    assert!(
        reasons.iter().all(|reason| reason.contains(told)),
        "{reasons:?}"
    );
    let () = redis::cmd("CONFIG")
        .arg(&["SET", "maxclients", "100"])
        .query_async(&mut only)
        .await
        .expect("set");
    agent.readiness(200, &[]).await;
}

/// A server that closes every connection with these words, at once or at the first request.
fn closing(words: &'static str, asked: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                if asked {
                    let _ = stream.read(&mut [0; 4096]);
                }
                let _ = stream.write_all(words.as_bytes());
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
    });
    port
}

#[tokio::test]
async fn what_a_server_says_before_it_closes_is_told_instead_of_how_the_connection_ended() {
    for (words, asked, told) in [
        (
            "-DENIED Redis is running in protected mode\r\n",
            false,
            "protected mode",
        ),
        (
            "-LOADING Redis is loading the dataset in memory\r\n",
            true,
            "loading the dataset",
        ),
        (
            "-ERR no upstream connection\r\n",
            true,
            "no upstream connection",
        ),
        (
            "+OK\r\n-ERR unreachable behind the proxy\r\n",
            true,
            "unreachable behind the proxy",
        ),
    ] {
        for access in ["", "user:s3cret@"] {
            let port = closing(words, asked);
            let url = format!("redis://{access}127.0.0.1:{port}/1");
            let agent = Agent::start(&[("EA_REDIS_URLS", &url)]).await;
            agent.readiness(503, &[told]).await;
            let reasons = reasons(&agent);
            assert!(
                reasons
                    .iter()
                    .all(|reason| reason.contains(told) && !reason.contains("s3cret")),
                "{words:?} by {url}: {reasons:?}"
            );
        }
    }
    // There is nothing better to report of a silent one.
    let port = closing("", true);
    let url = format!("redis://127.0.0.1:{port}");
    let agent = Agent::start(&[("EA_REDIS_URLS", &url)]).await;
    agent
        .readiness(503, &[&format!("127.0.0.1:{port}: ")])
        .await;
    assert_eq!(reasons(&agent).len(), 1);
}
