//! Connections: how long they live, how slow and how many they may be, and what floods them.

mod crowd;
mod http2;

use std::{
    convert::Infallible,
    net::IpAddr,
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use election_agent::{
    listener::{Conduct, Lifetime, Server, admission},
    peer::Peer,
    tls::{Acceptor, ClientAuth, Files},
};
use http::Request;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    harness::{Agent, Fixture, Store, campaign, eventually},
    tls::Authority,
};
use http2::{
    CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING,
    PREFACE, RST_STREAM, SETTINGS, frame, headers,
};

async fn agent(settings: &[(&str, &str)]) -> Agent {
    Fixture::with(Store::Memory, settings).await.agent
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let agent = agent(&[("EA_GRPC_MAX_CONNECTION_IDLE", "300ms")]).await;
    let mut idle = TcpStream::connect(agent.address()).await.expect("connects");
    let mut busy = TcpStream::connect(agent.address()).await.expect("connects");
    let opened = Instant::now();
    let mut closed = Box::pin(async {
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.expect("an orderly end");
        opened.elapsed()
    });
    let idle_for = loop {
        busy.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .expect("open");
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
    let mut first = TcpStream::connect(agent.address()).await.expect("connects");
    let opened = Instant::now();
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).await.expect("an orderly end");
    assert!(
        opened.elapsed() >= Duration::from_millis(170),
        "{:?}",
        opened.elapsed()
    );

    // tonic's channel connects again when it is told to go away, but gives up on requests that it had
    // not sent.
    let mut client = agent.grpc();
    let mut answered = 0;
    for n in 0.. {
        let election = format!("e{n}");
        match client.campaign(campaign(&election, "a", 30_000)).await {
            Ok(result) => {
                assert!(result.into_inner().elected);
                answered += 1;
            }
            Err(status) => {
                let vacant = agent.get(&format!("/election/{election}")).await;
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
#[tokio::test]
async fn a_keep_alive_connection_lives_as_long_as_configured() {
    let agent = agent(&[("EA_GRPC_MAX_CONNECTION_IDLE", "0s")]).await;
    let mut stream = TcpStream::connect(agent.address()).await.expect("connects");
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("open");
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer).await.expect("open");
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
    let closed = timeout(Duration::from_secs(32), stream.read(&mut answer)).await;
    assert!(closed.is_err(), "closed, though nothing limits it");
}

/// A connection from another address of this machine, and what a request over it is answered.
async fn livez_from(agent: &Agent, address: &str) -> (TcpStream, String) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    let from = format!("{address}:0").parse().expect("an address");
    socket.bind(from).expect("bound");
    let mut stream = socket.connect(agent.address()).await.expect("connects");
    // One that is refused may be closed before it is written to.
    let _ = stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: agent\r\n\r\n")
        .await;
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
    let log = agent.log().join("\n");
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
/// The time for headers in these tests, and a time that is well past it.
const SHORT: (&str, Duration) = ("300ms", Duration::from_millis(300));
const LONG: Duration = Duration::from_millis(1_200);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection, over TLS if there is an authority.
async fn connect(agent: &Agent, authority: Option<&Authority>) -> Box<dyn Stream> {
    let stream = TcpStream::connect(agent.address()).await.expect("connects");
    match authority {
        None => Box::new(stream),
        Some(authority) => Box::new(authority.shake_hands(stream, None).await),
    }
}

/// An agent without TLS, and one with it.
async fn with_and_without_tls(settings: &[(&str, &str)]) -> [(Agent, Option<Authority>); 2] {
    let authority = Authority::new();
    authority.issue("localhost");
    let mut with_tls = crate::harness::owned(settings);
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
    let settings = [
        ("EA_HEADER_TIMEOUT", SHORT.0),
        ("EA_FIRST_BYTE_TIMEOUT", SHORT.0),
    ];
    for (agent, authority) in with_and_without_tls(&settings).await {
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
    let agent = agent(&[
        ("EA_HEADER_TIMEOUT", SHORT.0),
        ("EA_FIRST_BYTE_TIMEOUT", SHORT.0),
    ])
    .await;
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

    // A channel that connects, and asks later, and again.
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

#[tokio::test]
async fn pings_that_come_too_soon_end_the_connection() {
    let agent = agent(&[]).await;
    let ping = frame(PING, 0, 0, &[0; 8]);
    let mut at_once = Client::connect(&agent).await;
    at_once.send(&ping.repeat(4)).await;
    let told = at_once.goaway().await;
    let expected = Some((ENHANCE_YOUR_CALM, "too_many_pings".to_owned()));
    assert_eq!(told, expected);
    at_once.closed().await;

    let mut one_by_one = Client::connect(&agent).await;
    for _ in 0..3 {
        one_by_one.ping().await;
    }
    one_by_one.send(&ping).await;
    assert_eq!(one_by_one.goaway().await, expected);
    one_by_one.closed().await;
    assert_eq!(agent.get("/livez").await.status, 200);
}

#[tokio::test]
async fn pings_after_answers_slow_pings_and_all_pings_without_a_limit_are_fine() {
    let strict = agent(&[]).await;
    let mut busy = Client::connect(&strict).await;
    for stream in (1..40).step_by(2) {
        for _ in 0..3 {
            busy.ping().await;
        }
        busy.ask(stream, "/livez").await;
    }
    let lenient = agent(&[("EA_GRPC_MIN_PING_INTERVAL", "100ms")]).await;
    let mut slow = Client::connect(&lenient).await;
    for _ in 0..8 {
        slow.ping().await;
        tokio::time::sleep(Duration::from_millis(110)).await;
    }
    let without = agent(&[("EA_GRPC_MIN_PING_INTERVAL", "0s")]).await;
    let mut pinging = Client::connect(&without).await;
    for _ in 0..50 {
        pinging.ping().await;
    }
}

#[tokio::test]
async fn floods_end_their_connection_and_no_other() {
    let agent = agent(&[]).await;
    let mut other = Client::connect(&agent).await;
    other.ask(1, "/livez").await;

    // Requests that are cancelled at once.
    let mut resets = Client::connect(&agent).await;
    let request = headers("GET", "/election/e");
    let cancelled = (0..2_000).map(|n| {
        let stream = 2 * n + 1;
        [
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &request),
            frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        ]
        .concat()
    });
    let flood = cancelled.collect::<Vec<_>>().concat();
    resets.flood(&flood).await;
    if let Some((code, words)) = resets.goaway().await {
        assert_eq!(
            (code, words.as_str()),
            (ENHANCE_YOUR_CALM, "too_many_resets")
        );
    }
    resets.closed().await;

    // Headers without end, in many frames.
    let mut continued = Client::connect(&agent).await;
    let begun = frame(HEADERS, END_STREAM, 1, &request);
    let more = frame(CONTINUATION, 0, 1, &[]).repeat(1_000);
    continued.flood(&[begun, more].concat()).await;
    if let Some((code, words)) = continued.goaway().await {
        assert_eq!(
            (code, words.as_str()),
            (ENHANCE_YOUR_CALM, "too_many_continuations")
        );
    }
    continued.closed().await;

    other.ask(3, "/livez").await;
    assert_eq!(agent.get("/livez").await.status, 200);
}

#[tokio::test]
async fn headers_over_the_limit_are_refused_in_both_protocols() {
    let agent = agent(&[]).await;
    let h2c = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .expect("a client");
    let url = format!("http://{}/livez", agent.address());
    for client in [reqwest::Client::new(), h2c] {
        for (length, status) in [(15_000, 200), (17_000, 431)] {
            let request = client.get(&url).header("x-long", "x".repeat(length));
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status(), status, "{length}: {:?}", answer.version());
        }
    }
}

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
    assert!(
        lived >= Duration::from_millis(660) && lived < Duration::from_secs(10),
        "{lived:?}"
    );
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

/// A server whose answers say who asks, and its address.
async fn who_asks(tls: Option<Acceptor>) -> (std::net::SocketAddr, CancellationToken) {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let peer = request.extensions().get::<Peer>().expect("a peer");
        let certificates = peer.certificates.iter().flat_map(|chain| chain.iter());
        let lengths: Vec<_> = certificates.map(|one| one.len()).collect();
        let text = format!("{} {lengths:?}", peer.address);
        Ok::<_, Infallible>(Response::new(Body::from(text)))
    });
    let limits = admission::Limits {
        connections: 10,
        per_peer: None,
    };
    let shutdown = CancellationToken::new();
    let server = Server {
        tls,
        admission: admission::Admission::new(limits, Default::default()),
        service,
        lifetime: Lifetime {
            idle: None,
            age: None,
            age_grace: Duration::ZERO,
        },
        conduct: Conduct {
            first_byte: Duration::from_secs(10),
            head: Duration::from_secs(10),
            min_ping_interval: Duration::ZERO,
        },
        connections: TaskTracker::new(),
        shutdown: shutdown.clone(),
    };
    // As both, so that IPv4 addresses come as mapped ones.
    let listener = tokio::net::TcpListener::bind("[::]:0")
        .await
        .expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(server.accept(listener));
    ((IpAddr::from([127, 0, 0, 1]), port).into(), shutdown)
}

#[tokio::test]
async fn requests_tell_who_is_at_the_other_end() {
    let authority = Authority::new();
    authority.issue("localhost");
    authority.issue("worker");
    let files = Files {
        certificate: authority.path("localhost.crt").into(),
        key: authority.path("localhost.key").into(),
        client_ca: Some((authority.path("ca.pem").into(), ClientAuth::Optional)),
    };
    let tls = Acceptor::start(files, Duration::from_secs(10)).expect("valid");
    let worker = authority.der("worker").len();
    for (tls, identity, told) in [
        (None, None, "127.0.0.1 []".to_owned()),
        (Some(tls.clone()), None, "127.0.0.1 []".to_owned()),
        (Some(tls), Some("worker"), format!("127.0.0.1 [{worker}]")),
    ] {
        let with_tls = tls.is_some();
        let (address, shutdown) = who_asks(tls).await;
        let stream = TcpStream::connect(address).await.expect("connects");
        let mut stream: Box<dyn Stream> = match with_tls {
            true => Box::new(authority.shake_hands(stream, identity).await),
            false => Box::new(stream),
        };
        // Both requests of a connection tell the same.
        for _ in 0..2 {
            stream.write_all(REQUEST).await.expect("sent");
            let mut answer = [0; 1024];
            let length = stream.read(&mut answer).await.expect("an answer");
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.ends_with(&told), "{told}: {answer}");
        }
        shutdown.cancel();
    }
}
