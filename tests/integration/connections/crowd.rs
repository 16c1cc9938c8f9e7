//! A peer that opens ten thousand connections, and another that goes on with its work.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{REQUEST, agent, livez_from};
use crate::harness::Agent;

const CONNECTIONS: usize = 10_000;

/// Lets this process, and those that it starts, have as many files open as the system permits.
fn raise_file_limit() {
    let script = "prlimit --pid $1 --nofile=$(ulimit -H -n):";
    let pid = std::process::id().to_string();
    let raised = Command::new("sh").args(["-c", script, "sh", &pid]).status();
    assert!(raised.is_ok_and(|status| status.success()), "{script}");
}

/// An address of this machine that no test before has left without free ports.
fn address(number: usize) -> String {
    let pid = std::process::id();
    format!("127.{}.{}.{number}", 1 + pid % 250, pid / 250 % 250)
}

async fn open(agent: SocketAddr, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let from = format!("{from}:0").parse().expect("an address");
    socket.bind(from).expect("bound");
    socket.connect(agent).await.expect("connects")
}

/// Whether the agent has kept the connection.
async fn is_served(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 1024];
    stream.write_all(REQUEST).await.is_ok()
        && stream.read(&mut answer).await.is_ok_and(|read| read > 0)
        && answer.starts_with(b"HTTP/1.1 200")
}

/// How long each request of the other peer takes, one after another, every other one over a new connection.
/// All are answered.
async fn latencies(
    agent: &Agent,
    from: &str,
    least: usize,
    until: impl Fn() -> bool,
) -> Vec<Duration> {
    let (mut kept, _) = livez_from(agent, from).await;
    let mut took = Vec::new();
    while took.len() < least || !until() {
        let began = Instant::now();
        if took.len() % 2 == 0 {
            let (_, answer) = livez_from(agent, from).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        } else {
            assert!(is_served(&mut kept).await, "request {}", took.len());
        }
        took.push(began.elapsed());
    }
    took.sort_unstable();
    took
}

fn told(when: &str, took: &[Duration]) {
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    let (p50, p99, max) = (at(50), at(99), at(100));
    println!(
        "{when}: {} requests, p50 {p50:?}, p99 {p99:?}, max {max:?}",
        took.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_of_one_peer_do_not_disturb_another() {
    raise_file_limit();
    for (n, limit) in [100, 5_000].into_iter().enumerate() {
        let (greedy, other) = (address(2 * n + 2), address(2 * n + 3));
        let agent = agent(&[
            ("EA_MAX_CONNECTIONS_PER_PEER", &limit.to_string()),
            ("EA_GRPC_MAX_CONNECTION_IDLE", "0s"),
            ("EA_FIRST_BYTE_TIMEOUT", "1m"),
        ])
        .await;
        let before = latencies(&agent, &other, 500, || true).await;

        let address = agent.address();
        let coming = tokio::spawn(async move {
            let connecting = (0..CONNECTIONS).map(|_| open(address, &greedy));
            let connecting = stream::iter(connecting).buffer_unordered(200);
            connecting.collect::<Vec<_>>().await
        });
        let during = latencies(&agent, &other, 500, || coming.is_finished()).await;
        let mut streams = coming.await.expect("no panic");

        let mut served = 0;
        for stream in &mut streams {
            let asked = timeout(Duration::from_secs(10), is_served(stream));
            served += usize::from(asked.await.expect("answered or closed"));
        }
        assert_eq!((served, streams.len()), (limit, CONNECTIONS));
        let after = latencies(&agent, &other, 500, || true).await;
        println!("{CONNECTIONS} connections of one peer, {limit} of them taken");
        told("  before", &before);
        told("  while they come", &during);
        told("  while they are there", &after);
    }
}
