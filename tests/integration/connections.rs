//! Connections: how long they live, how slow and how many they may be, and what floods them.

mod crowd;
mod descriptors;
mod floods;
mod http2;
mod peer;
mod slow;

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{Agent, Fixture, Store, campaign, eventually};
use http2::{Client, DATA, END_HEADERS, END_STREAM, HEADERS, OK, WINDOW_UPDATE, frame, headers};

async fn agent(settings: &[(&str, &str)]) -> Agent {
    Fixture::with(Store::Memory, settings).await.agent
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let agent = agent(&[("EA_GRPC_MAX_CONNECTION_IDLE", "300ms")]).await;
    let opened = Instant::now();
    let mut idle = TcpStream::connect(agent.address()).await.expect("connects");
    let mut busy = TcpStream::connect(agent.address()).await.expect("connects");
    let mut closed = Box::pin(async {
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.expect("an orderly end");
        opened.elapsed()
    });
    let idle_for = loop {
        busy.write_all(REQUEST).await.expect("open");
        let mut answer = [0; 1024];
        let length = busy.read(&mut answer).await.expect("open");
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
        let pause = timeout(Duration::from_millis(50), &mut closed);
        if let Ok(idle_for) = pause.await {
            break idle_for;
        }
    };
    assert!(idle_for >= Duration::from_millis(290), "{idle_for:?}");
}

#[tokio::test]
async fn an_old_connection_is_closed_and_every_request_is_answered_or_not_carried_out() {
    let agent = agent(&[("EA_GRPC_MAX_CONNECTION_AGE", "200ms")]).await;
    let opened = Instant::now();
    let mut first = TcpStream::connect(agent.address()).await.expect("connects");
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).await.expect("an orderly end");
    assert!(
        opened.elapsed() >= Duration::from_millis(170),
        "{:?}",
        opened.elapsed()
    );

    // tonic's channel connects again after GOAWAY, but gives up on requests that it had
    // not sent.
    let mut client = agent.grpc();
    // What was not answered is checked over new connections: one that is kept may end during the request.
    let fresh = reqwest::Client::builder().pool_max_idle_per_host(0).build();
    let fresh = fresh.expect("a client");
    let mut answered = 0;
    for n in 0.. {
        let election = format!("e{n}");
        match client.campaign(campaign(&election, "a", 30_000)).await {
            Ok(result) => {
                assert!(result.into_inner().elected);
                answered += 1;
            }
            Err(status) => {
                let url = format!("http://{}/election/{election}", agent.address());
                let vacant = agent.send(fresh.get(url)).await;
                assert_eq!(
                    vacant.status, 404,
                    "carried out, but not answered: {status}"
                );
            }
        }
        if opened.elapsed() > Duration::from_millis(1_500) {
            break;
        }
    }
    assert!(answered > 20, "{answered}");
}

/// Hyper's own timer for headers, which would close it, takes half a minute.
/// An HTTP/1.1 client that obeys the replies never sends a request on a connection that has ended.
#[tokio::test]
async fn an_old_http_1_connection_ends_after_an_answer_that_says_so() {
    let agent = agent(&[("EA_GRPC_MAX_CONNECTION_AGE", "100ms")]).await;
    let mut stream = TcpStream::connect(agent.address()).await.expect("connects");
    let (mut answers, mut ends) = (0, 0);
    while ends < 10 {
        stream.write_all(REQUEST).await.expect("open");
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            let length = stream.read_buf(&mut answer).await.expect("open");
            assert!(length > 0, "closed without a word after {answers} answers");
        }
        answers += 1;
        if String::from_utf8_lossy(&answer).contains("connection: close") {
            ends += 1;
            let closed = stream.read_buf(&mut answer).await;
            assert_eq!(closed.expect("an orderly end"), 0);
            stream = TcpStream::connect(agent.address()).await.expect("connects");
        }
    }
    assert!(answers > ends, "{answers}");
}

#[tokio::test]
async fn a_keep_alive_connection_lives_as_long_as_configured() {
    let agent = agent(&[("EA_GRPC_MAX_CONNECTION_IDLE", "0s")]).await;
    let mut stream = TcpStream::connect(agent.address()).await.expect("connects");
    stream.write_all(REQUEST).await.expect("open");
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer).await.expect("open");
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
    let closed = timeout(Duration::from_secs(32), stream.read(&mut answer)).await;
    assert!(closed.is_err(), "closed, though nothing limits it");
}

/// A connection from another address of this machine, and the reply to a request over it.
async fn livez_from(agent: &Agent, address: &str) -> (TcpStream, String) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    let from = format!("{address}:0").parse().expect("an address");
    socket.bind(from).expect("bound");
    let mut stream = socket.connect(agent.address()).await.expect("connects");
    // One that is refused may be closed before it is written to.
    let _ = stream.write_all(REQUEST).await;
    let mut answer = vec![0; 1024];
    let length = stream.read(&mut answer).await.unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    (stream, answer)
}

#[tokio::test]
async fn a_peer_that_takes_all_its_connections_does_not_take_those_of_others() {
    let agent = agent(&[("EA_MAX_CONNECTIONS_PER_PEER", "3")]).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let (stream, answer) = livez_from(&agent, "127.0.0.2").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        open.push(stream);
    }
    for _ in 0..200 {
        let (_, refused) = livez_from(&agent, "127.0.0.2").await;
        assert_eq!(refused, "", "the fourth is closed");
    }
    let (_stream, answer) = livez_from(&agent, "127.0.0.3").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let log = agent.logs("EA_MAX_CONNECTIONS_PER_PEER").await.join("\n");
    assert_eq!(
        log.matches("EA_MAX_CONNECTIONS_PER_PEER").count(),
        1,
        "{log}"
    );
    open.pop();
    eventually("a place is free again", async || {
        let (_, answer) = livez_from(&agent, "127.0.0.2").await;
        answer.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

const REQUEST: &[u8] = b"GET /livez HTTP/1.1\r\nhost: agent\r\n\r\n";
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

#[tokio::test]
async fn an_old_http_2_connection_is_told_to_go_and_its_requests_are_answered() {
    let agent = agent(&[("EA_GRPC_MAX_CONNECTION_AGE", "400ms")]).await;
    let opened = Instant::now();
    let mut client = Client::connect(&agent).await;
    let post = headers("POST", "/election/e");
    client.send(&frame(HEADERS, END_HEADERS, 1, &post)).await;
    let told = client.goaway().await;
    assert_eq!(told, Some((0, String::new())), "NO_ERROR");
    assert!(
        opened.elapsed() >= Duration::from_millis(350),
        "{:?}",
        opened.elapsed()
    );
    let body = br#"{"candidate":"a","term":10000}"#;
    client.send(&frame(DATA, END_STREAM, 1, body)).await;
    client.answered(1).await;
    client.closed().await;
    assert_eq!(agent.leader("e").await.expect("elected"), "a");
}

#[tokio::test]
async fn an_old_connection_does_not_outlive_its_grace() {
    let agent = agent(&[
        ("EA_GRPC_MAX_CONNECTION_AGE", "300ms"),
        ("EA_GRPC_MAX_CONNECTION_AGE_GRACE", "400ms"),
    ])
    .await;
    let opened = Instant::now();
    let mut client = Client::connect(&agent).await;
    // Its body never comes.
    let post = headers("POST", "/election/e");
    client.send(&frame(HEADERS, END_HEADERS, 1, &post)).await;
    assert_eq!(client.goaway().await, Some((0, String::new())));
    client.closed().await;
    let lived = opened.elapsed();
    assert!(lived >= Duration::from_millis(660), "{lived:?}");
}

#[tokio::test]
async fn a_trusted_proxy_may_have_more_connections_than_a_peer() {
    let agent = agent(&[
        ("EA_MAX_CONNECTIONS_PER_PEER", "1"),
        ("EA_TRUSTED_PROXIES", "127.0.0.4/31, ::1"),
    ])
    .await;
    let mut open = Vec::new();
    for (from, taken) in [
        ("127.0.0.2", true),
        ("127.0.0.2", false),
        ("127.0.0.5", true),
        ("127.0.0.5", true),
        ("127.0.0.4", true),
    ] {
        let (stream, answer) = livez_from(&agent, from).await;
        assert_eq!(
            answer.starts_with("HTTP/1.1 200"),
            taken,
            "{from}: {answer}"
        );
        open.push(stream);
    }
}

/// As a gRPC channel sends them: all that its program asks over one connection, in small frames.
#[tokio::test]
async fn a_thousand_requests_at_once_over_one_connection_are_all_answered() {
    const REQUESTS: u32 = 1_000;
    let agent = agent(&[]).await;
    let mut client = Client::connect(&agent).await;
    let streams = (0..REQUESTS).map(|n| 2 * n + 1);
    // Room for all answers.
    let mut requests = frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes());
    for stream in streams.clone() {
        let post = headers("POST", &format!("/election/e{stream}"));
        requests.extend(frame(HEADERS, END_HEADERS, stream, &post));
    }
    // Two frames of a body each, neither of them the last.
    for part in [r#"{"candidate":"a","#, r#""term":10000}"#] {
        for stream in streams.clone() {
            requests.extend(frame(DATA, 0, stream, part.as_bytes()));
        }
    }
    for stream in streams {
        requests.extend(frame(DATA, END_STREAM, stream, &[]));
    }
    client.flood(&requests).await;
    for answered in 0..REQUESTS {
        let headers = client.next_of(HEADERS).await;
        let headers = headers.unwrap_or_else(|| panic!("closed after {answered} answers"));
        assert_eq!(headers.payload[0], OK, "{headers:?}");
    }
}
