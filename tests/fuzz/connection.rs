//! What a client sends on a connection: hyper's HTTP/1.1 and HTTP/2 in front of the services, in the time that the
//! connection may live.

use std::{convert::Infallible, net::Ipv4Addr, sync::Arc, time::Duration};

use arbitrary::{Arbitrary, Unstructured};
use axum::{body::Body, response::Response};
use election_agent::{
    listener::{
        Conduct, Lifetime, Server,
        admission::{Admission, Limits},
    },
    peer::{Peer, TrustedProxies},
    workers::Workers,
};
use http::Request;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt as _, service_fn};

use super::{
    grpc_frames::{Known, Sent},
    tree::{Agent, Asked, with_agent},
};

/// The settings' defaults.
const LIFETIME: Lifetime = Lifetime {
    idle: Some(Duration::from_secs(30)),
    age: Some(Duration::from_secs(300)),
    age_grace: Duration::from_secs(30),
};
const CONDUCT: Conduct = Conduct {
    first_byte: Duration::from_secs(10),
    head: Duration::from_secs(10),
    min_ping_interval: Duration::from_secs(10),
};
/// No connection is older: its age and 10 %, the grace, and some.
const OLDEST: Duration = Duration::from_secs(400);
/// How many bytes are under way in each direction.
const BUFFER: usize = 16 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Arbitrary)]
struct Client {
    sends: Sends,
    /// How many bytes it sends at once; 0: all.
    piece: u16,
    /// Whether it says when it has sent all.
    closes: bool,
    /// Whether it reads the answers.
    reads: bool,
    /// After which piece the agent is told to stop.
    stopped_after: Option<u8>,
}

#[derive(Debug, Arbitrary)]
enum Sends {
    Http1(Vec<Http1>),
    Http2(Vec<Http2>),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
struct Http1 {
    start: Start,
    headers: Vec<Header>,
    body: Http1Body,
}

#[derive(Debug, Arbitrary)]
enum Start {
    Known(u8),
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Header {
    Known(u8),
    Length(u32),
    Any(String, String),
    Line(Vec<u8>),
    Large(u16),
}

#[derive(Debug, Arbitrary)]
enum Http1Body {
    None,
    Sized(String),
    Chunked(Vec<(Option<u32>, String)>),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Http2 {
    Settings(Vec<(u8, u32)>, bool),
    /// A call of the method that takes the first message.
    Call(u8, Vec<Sent>, bool),
    Headers(u8, Vec<Field>, u8),
    Continuation(u8, Vec<Field>, u8),
    Data(u8, Vec<u8>, bool),
    Ping(bool),
    Window(u8, u32),
    Reset(u8, u8),
    GoAway(u8, u8),
    Raw(u8, u8, u32, Vec<u8>),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Field {
    Known(u8),
    Indexed(u8),
    TableSize(u8),
    Any(String, Vec<u8>),
    Bytes(Vec<u8>),
    Large(u16),
}

pub(crate) fn run(data: &[u8]) {
    let raw = |bytes: &[u8], piece, closes| Client {
        sends: Sends::Bytes(bytes.to_vec()),
        piece,
        closes,
        reads: true,
        stopped_after: None,
    };
    let client = match data.split_first() {
        Some((b'>', bytes)) => raw(bytes, 0, true),
        Some((b'<', bytes)) => raw(bytes, 1, false),
        _ => match Client::arbitrary_take_rest(Unstructured::new(data)) {
            Ok(client) => client,
            Err(_) => return,
        },
    };
    let faults = Faults::default();
    with_agent(async |agent| client.connect(faults.watch(agent)).await);
    faults.none();
}

impl Client {
    async fn connect<S>(&self, service: S)
    where
        S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let (ours, theirs) = duplex(BUFFER);
        let stop = CancellationToken::new();
        let limits = Limits {
            connections: 1,
            per_peer: None,
            bound_by: "EA_MAX_CONNECTIONS",
        };
        let server = Server {
            tls: None,
            admission: Admission::new(limits, TrustedProxies::default()),
            service,
            lifetime: LIFETIME,
            conduct: CONDUCT,
            workers: Workers::here(),
            connections: TaskTracker::new(),
            shutdown: stop.clone(),
        };
        let serving = server.serve(theirs, Peer::new(Ipv4Addr::LOCALHOST.into(), None));
        let (mut answers, mut requests) = split(ours);
        let talking = async {
            let bytes = self.sends.bytes();
            let size = match self.piece {
                0 => bytes.len().max(1),
                piece => usize::from(piece).max(bytes.len() / 64).max(1),
            };
            for (piece, nth) in bytes.chunks(size).zip(0_u8..) {
                // The agent may have closed the connection.
                if requests.write_all(piece).await.is_err() {
                    break;
                }
                if self.stopped_after == Some(nth) {
                    stop.cancel();
                }
            }
            if self.closes {
                let _ = requests.shutdown().await;
            }
        };
        let listening = async {
            let mut read = Vec::new();
            if self.reads {
                let _ = answers.read_to_end(&mut read).await;
            }
        };
        let serving = timeout(OLDEST, serving);
        let (served, ()) = tokio::join!(serving, async {
            // Both end with the connection, whatever they wait for.
            let _ = timeout(OLDEST, async { tokio::join!(talking, listening) }).await;
        });
        assert!(served.is_ok(), "the connection does not end");
    }
}

/// What was wrong with answers: hyper's tasks would keep a panic to themselves.
#[derive(Debug, Clone, Default)]
struct Faults(Arc<Mutex<Vec<String>>>);

impl Faults {
    fn note(&self, checked: Result<(), String>) {
        if let Err(fault) = checked {
            self.0.lock().push(fault);
        }
    }

    fn none(&self) {
        let faults = self.0.lock();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    fn watch(
        &self,
        agent: Agent,
    ) -> impl Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
    + use<> {
        let faults = self.clone();
        service_fn(move |request: Request<Body>| {
            let (agent, faults) = (agent.clone(), faults.clone());
            async move {
                let asked = Asked::of(&request, true);
                let answer = agent.oneshot(request).await?;
                faults.note(asked.check_head(answer.status(), answer.headers()));
                Ok(answer.map(|body| {
                    Body::new(body.map_frame(move |frame| {
                        if let Some(trailers) = frame.trailers_ref() {
                            faults.note(asked.check_status(trailers).map(|_| ()));
                        }
                        frame
                    }))
                }))
            }
        })
    }
}

impl Sends {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Http1(requests) => requests.iter().flat_map(Http1::bytes).collect(),
            Self::Http2(frames) => {
                let mut bytes = PREFACE.to_vec();
                for frame in frames {
                    frame.write(&mut bytes);
                }
                bytes
            }
        }
    }
}

impl Http1 {
    fn bytes(&self) -> Vec<u8> {
        let starts = [
            "GET /livez HTTP/1.1",
            "POST /election/a HTTP/1.1",
            "DELETE /election/a?leader=a HTTP/1.1",
            "POST /grpc.election_agent.v1.Election/GetLeader HTTP/1.1",
            "GET /election/a HTTP/1.0",
            "OPTIONS * HTTP/1.1",
            "CONNECT a:1 HTTP/1.1",
            "GET http://a/metrics HTTP/1.1",
        ];
        let known = [
            "host: a",
            "connection: close",
            "connection: keep-alive",
            "connection: upgrade\r\nupgrade: websocket",
            "expect: 100-continue",
            "content-type: application/json",
            "content-type: application/grpc-web+proto",
            "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk",
        ];
        let mut bytes = match &self.start {
            Start::Known(nth) => starts[usize::from(nth % 8)].to_owned(),
            Start::Any(text) => text.clone(),
        }
        .into_bytes();
        bytes.extend_from_slice(b"\r\n");
        for header in &self.headers {
            match header {
                Header::Known(nth) => bytes.extend(known[usize::from(nth % 8)].bytes()),
                Header::Length(length) => bytes.extend(format!("content-length: {length}").bytes()),
                Header::Any(name, value) => bytes.extend(format!("{name}: {value}").bytes()),
                Header::Line(line) => bytes.extend_from_slice(line),
                Header::Large(length) => {
                    bytes.extend_from_slice(b"x: ");
                    bytes.extend(vec![b'x'; usize::from(*length)]);
                }
            }
            bytes.extend_from_slice(b"\r\n");
        }
        match &self.body {
            Http1Body::None => bytes.extend_from_slice(b"\r\n"),
            Http1Body::Bytes(body) => bytes.extend_from_slice(body),
            Http1Body::Sized(body) => {
                bytes.extend(format!("content-length: {}\r\n\r\n{body}", body.len()).bytes());
            }
            Http1Body::Chunked(chunks) => {
                bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
                for (size, chunk) in chunks {
                    let size = size.map_or(chunk.len(), |size| size as usize);
                    bytes.extend(format!("{size:x}\r\n{chunk}\r\n").bytes());
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
        }
        bytes
    }
}

impl Http2 {
    fn write(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Bytes(raw) => bytes.extend_from_slice(raw),
            Self::Raw(kind, flags, stream, payload) => {
                frame(bytes, *kind, *flags, *stream, payload);
            }
            Self::Settings(settings, acknowledge) => {
                let mut payload = Vec::new();
                for (name, value) in settings {
                    payload.extend(u16::from(name % 10).to_be_bytes());
                    payload.extend(value.to_be_bytes());
                }
                frame(bytes, 4, u8::from(*acknowledge), 0, &payload);
            }
            Self::Call(stream, sent, ends) => {
                let path = sent.first().map_or("/livez", Sent::path);
                let mut fields = vec![0x83, 0x86];
                literal(&mut fields, b":path", path.as_bytes());
                literal(&mut fields, b"content-type", b"application/grpc");
                literal(&mut fields, b"te", b"trailers");
                frame(bytes, 1, 4, id(*stream), &fields);
                let known = Known::default();
                let body: Vec<u8> = sent.iter().flat_map(|sent| sent.bytes(&known)).collect();
                let pieces = body.chunks(16_384).count();
                for (piece, nth) in body.chunks(16_384).zip(1..) {
                    let last = nth == pieces && *ends;
                    frame(bytes, 0, u8::from(last), id(*stream), piece);
                }
            }
            Self::Headers(stream, fields, flags) => {
                frame(bytes, 1, *flags, id(*stream), &block(fields));
            }
            Self::Continuation(stream, fields, flags) => {
                frame(bytes, 9, *flags, id(*stream), &block(fields));
            }
            Self::Data(stream, body, ends) => {
                frame(bytes, 0, u8::from(*ends), id(*stream), body);
            }
            Self::Ping(acknowledge) => frame(bytes, 6, u8::from(*acknowledge), 0, &[7; 8]),
            Self::Window(stream, by) => {
                let stream = if *stream == 0 { 0 } else { id(*stream) };
                frame(bytes, 8, 0, stream, &by.to_be_bytes());
            }
            Self::Reset(stream, code) => {
                frame(bytes, 3, 0, id(*stream), &u32::from(*code).to_be_bytes());
            }
            Self::GoAway(stream, code) => {
                let payload = [id(*stream).to_be_bytes(), u32::from(*code).to_be_bytes()].concat();
                frame(bytes, 7, 0, 0, &payload);
            }
        }
    }
}

/// A client's stream.
fn id(nth: u8) -> u32 {
    u32::from(nth) * 2 + 1
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

fn block(fields: &[Field]) -> Vec<u8> {
    let known: [(&[u8], &[u8]); 8] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/election/a"),
        (b":path", b"/grpc.health.v1.Health/Watch"),
        (b":authority", b"a"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"grpc-timeout", b"5S"),
    ];
    let mut bytes = Vec::new();
    for field in fields {
        match field {
            Field::Known(nth) => {
                let (name, value) = known[usize::from(nth % 8)];
                literal(&mut bytes, name, value);
            }
            Field::Indexed(index) => bytes.push(index | 0x80),
            Field::TableSize(size) => bytes.push(0x20 | (size & 0x1f)),
            Field::Any(name, value) => literal(&mut bytes, name.as_bytes(), value),
            Field::Bytes(raw) => bytes.extend_from_slice(raw),
            Field::Large(length) => {
                literal(&mut bytes, b"x", &vec![b'x'; usize::from(*length)]);
            }
        }
    }
    bytes
}

/// A field as RFC 7541, section 6.2.2, has it, without Huffman coding.
fn literal(bytes: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    bytes.push(0);
    for text in [name, value] {
        integer(bytes, text.len());
        bytes.extend_from_slice(text);
    }
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn integer(bytes: &mut Vec<u8>, mut number: usize) {
    if number < 127 {
        bytes.push(number as u8);
        return;
    }
    bytes.push(127);
    number -= 127;
    while number >= 128 {
        bytes.push((number % 128 + 128) as u8);
        number /= 128;
    }
    bytes.push(number as u8);
}
