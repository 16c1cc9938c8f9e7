//! Clients that take their time.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    REQUEST, Stream, agent,
    http2::{
        CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS,
        PREFACE, SETTINGS, frame, headers,
    },
};
use crate::harness::{Agent, Authority, owned};

/// A connection, over TLS if there is an authority.
async fn connect(agent: &Agent, authority: Option<&Authority>) -> Box<dyn Stream> {
    let stream = TcpStream::connect(agent.address()).await.expect("connects");
    match authority {
        None => Box::new(stream),
        Some(authority) => Box::new(authority.shake_hands(stream, None).await),
    }
}

/// The time for headers in these tests, and a time that is well past it.
const SHORT: (&str, Duration) = ("300ms", Duration::from_millis(300));
const LONG: Duration = Duration::from_millis(1_200);

/// An agent without TLS, and one with it.
async fn with_and_without_tls(settings: &[(&str, &str)]) -> [(Agent, Option<Authority>); 2] {
    let authority = Authority::new();
    authority.issue("localhost");
    let mut with_tls = owned(settings);
    with_tls.extend(authority.settings());
    let tls = Agent::start(&with_tls).await;
    [(agent(settings).await, None), (tls, Some(authority))]
}

/// All that comes until the connection is closed.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut rest));
    // Some are closed while bytes are on their way to them.
    let _ = read.await.expect("closed within ten seconds");
    String::from_utf8_lossy(&rest).into_owned()
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(REQUEST).await.expect("open");
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer).await.expect("open");
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_closed() {
    for (agent, authority) in with_and_without_tls(&[("EA_FIRST_BYTE_TIMEOUT", SHORT.0)]).await {
        let began = Instant::now();
        let mut silent = connect(&agent, authority.as_ref()).await;
        assert_eq!(rest(&mut silent).await, "");
        assert!(began.elapsed() >= SHORT.1, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn headers_that_come_slowly_are_cut_on_every_request_and_quiet_connections_are_not() {
    for (agent, authority) in with_and_without_tls(&[("EA_HEADER_TIMEOUT", SHORT.0)]).await {
        // The first request, in two halves.
        let mut slow = connect(&agent, authority.as_ref()).await;
        let began = Instant::now();
        slow.write_all(&REQUEST[..20]).await.expect("sent");
        let told = rest(&mut slow).await;
        assert!(told.starts_with("HTTP/1.1 408"), "{told}");
        assert!(began.elapsed() >= SHORT.1, "{:?}", began.elapsed());

        // A byte at a time.
        let mut trickling = connect(&agent, authority.as_ref()).await;
        let mut answer = [0; 1024];
        for byte in b"GET /livez HTTP/1.1\r\nx: ".iter().chain(&[b'x'; 1_000]) {
            let _ = trickling.write_all(&[*byte]).await;
            let wait = Duration::from_millis(20);
            if let Ok(read) = timeout(wait, trickling.read(&mut answer)).await {
                let told = String::from_utf8_lossy(&answer[..read.unwrap_or(0)]);
                assert!(
                    told.is_empty() || told.starts_with("HTTP/1.1 408"),
                    "{told}"
                );
                break;
            }
            let elapsed = began.elapsed();
            assert!(elapsed < Duration::from_secs(15), "not cut in {elapsed:?}");
        }

        // The third request of a connection that was quiet before.
        let mut kept = connect(&agent, authority.as_ref()).await;
        for _ in 0..2 {
            ask(&mut kept).await;
            let closed = timeout(LONG, kept.read_u8()).await;
            assert!(closed.is_err(), "closed, though nothing is under way");
        }
        kept.write_all(&REQUEST[..1]).await.expect("open");
        let told = rest(&mut kept).await;
        assert!(told.starts_with("HTTP/1.1 408"), "{told}");
    }
}

#[tokio::test]
async fn what_has_begun_over_http_2_has_to_end_and_what_has_not_may_wait() {
    let agent = agent(&[("EA_HEADER_TIMEOUT", SHORT.0)]).await;
    let mut half = Client::silent(&agent).await;
    half.send(&PREFACE[..12]).await;
    half.closed().await;

    let request = headers("GET", "/livez");
    let open_ended = [
        frame(HEADERS, END_STREAM, 1, &request),
        [
            frame(HEADERS, END_STREAM, 1, &request),
            frame(CONTINUATION, 0, 1, &[]),
        ]
        .concat(),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &request)[..15].to_vec(),
        frame(SETTINGS, 0, 0, &[])[..5].to_vec(),
    ];
    for begun in open_ended {
        let mut client = Client::connect(&agent).await;
        client.send(&begun).await;
        let told = client.goaway().await;
        assert_eq!(told, Some((ENHANCE_YOUR_CALM, "slow_headers".to_owned())));
        client.closed().await;
    }

    // A channel that connects, and sends requests later, and again.
    let mut quiet = Client::connect(&agent).await;
    for stream in [1, 3] {
        assert!(timeout(LONG, quiet.next_of(GOAWAY)).await.is_err());
        quiet.ask(stream, "/livez").await;
    }
    // A body is not a head.
    let post = headers("POST", "/election/e");
    quiet.send(&frame(HEADERS, END_HEADERS, 5, &post)).await;
    let body = frame(DATA, END_STREAM, 5, br#"{"candidate":"a","term":1000}"#);
    quiet.send(&body[..12]).await;
    assert!(timeout(LONG, quiet.next_of(GOAWAY)).await.is_err());
    quiet.send(&body[12..]).await;
    quiet.answered(5).await;
}
