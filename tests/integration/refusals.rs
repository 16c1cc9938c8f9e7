//! The refusals of every layer are reported in every protocol, by the row of the error table.

use std::{collections::BTreeSet, convert::Infallible, fs, net::SocketAddr, path::Path};

use axum::{body::Body, response::Response};
use election_agent::{
    app::Tree,
    auth::tokens,
    config::{Config, Values},
    listener::admission::Admission,
    stack,
    status::{Code, Problem},
    workers::Workers,
};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::DropGuard;
use tower::{Service, service_fn};

use crate::harness::{
    Ask, CAMPAIGN, GRPC_WEB, HttpServer, Protocol, eventually, repository, serve,
};

const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// A JSON Web Token that holds nothing but its issuer, without a signature.
const TOKEN: &str = "Bearer eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIn0.AA";

/// Services behind a listener in this process.
struct Agent {
    address: SocketAddr,
    _serving: DropGuard,
    directory: TempDir,
}

impl Agent {
    async fn serve<S>(service: S, directory: TempDir) -> Self
    where
        S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self {
            address: listener.local_addr().expect("an address"),
            _serving: serve(listener, None, service),
            directory,
        }
    }

    /// With these settings. `worker` has a token, if tokens are required.
    async fn start(settings: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("a directory");
        let at = |name: &str| directory.path().join(name).display().to_string();
        let new = tokens::New::make("worker", &[]).expect("a token");
        fs::write(at("tokens"), new.line).expect("written");
        fs::write(at("token"), new.token).expect("written");
        let nobody = "permit (principal, action, resource) when { principal.name == \"nobody\" };";
        fs::write(at("nobody.cedar"), nobody).expect("written");
        let memory = [("EA_STORE", "memory")];
        let settings = memory.iter().chain(settings).map(|(name, value)| {
            let value = value.replace("$DIRECTORY", &directory.path().display().to_string());
            ((*name).into(), value.into())
        });
        let config = Values::collect(Vec::new(), None, settings).and_then(Config::new);
        let config = config.expect("valid");
        let tree = Tree::build(&config, None, &Workers::here(), &Admission::unlimited()).await;
        let tree = tree.expect("a tree");
        Self::serve(tree.service(), directory).await
    }

    /// Whose services panic.
    async fn that_panics() -> Self {
        let panics = service_fn(|_: Request<Body>| async {
            if true {
                panic!("s3cret");
            }
            Err::<Response, _>(Problem::new(Code::Internal, "never told"))
        });
        let service = stack::stack(panics, &stack::Settings::default(), None);
        Self::serve(service, TempDir::new().expect("a directory")).await
    }

    fn bearer(&self) -> String {
        let token = fs::read_to_string(self.directory.path().join("token"));
        format!("Bearer {}", token.expect("a token"))
    }
}

/// Asserts that an answer is the row of the error table, and that nothing comes after it.
async fn is_told(
    what: &str,
    code: Code,
    protocol: Protocol,
    answer: http::Response<reqwest::Body>,
) {
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.expect("a body");
    let (trailers, body) = (body.trailers().cloned(), body.to_bytes());
    let header = |name: &str| {
        let value = parts
            .headers
            .get(name)
            .map(|value| value.to_str().expect("text"));
        value.unwrap_or_default().to_owned()
    };
    let what = format!("{what} over {protocol:?}: {parts:?} {body:?}");
    assert_eq!(header("x-request-id").len(), 32, "{what}");
    assert_eq!(trailers, None, "{what}");
    if protocol == Protocol::Rest {
        let problem: Value = serde_json::from_slice(&body).expect(&what);
        assert_eq!(parts.status, code.http(), "{what}");
        assert_eq!(header("content-type"), "application/problem+json", "{what}");
        assert_eq!(problem["code"], code.name(), "{what}");
        assert_eq!(problem["status"], code.http().as_u16(), "{what}");
        assert_eq!(problem["message"], problem["detail"], "{what}");
        assert!(
            !problem["detail"].as_str().expect(&what).is_empty(),
            "{what}"
        );
        assert_eq!(
            !header("retry-after").is_empty(),
            parts.status == 429,
            "{what}"
        );
        assert_eq!(
            !header("www-authenticate").is_empty(),
            parts.status == 401,
            "{what}"
        );
    } else {
        let content_type = match protocol {
            Protocol::Grpc => "application/grpc",
            _ => GRPC_WEB,
        };
        // Trailers only: the status is in the headers, and nothing follows.
        assert_eq!(parts.status, 200, "{what}");
        assert_eq!(header("content-type"), content_type, "{what}");
        assert_eq!(
            header("grpc-status"),
            (code.grpc() as i32).to_string(),
            "{what}"
        );
        assert!(!header("grpc-message").is_empty(), "{what}");
        assert!(body.is_empty(), "{what}");
    }
    assert!(!what.contains("s3cret"), "{what}");
}

/// The layers that have been seen to refuse.
#[derive(Default)]
struct Seen(BTreeSet<&'static str>);

impl Seen {
    /// Sends over every protocol what this layer refuses, to this agent.
    async fn refuses(
        &mut self,
        layer: &'static str,
        agent: &Agent,
        code: Code,
        ask: impl Fn(Ask) -> Ask,
    ) {
        for protocol in Protocol::ALL {
            let answer = ask(Ask::new(protocol)).send(agent.address).await;
            is_told(layer, code, protocol, answer).await;
        }
        self.0.insert(layer);
    }
}

/// The layers whose documentation says that they refuse.
fn that_refuse() -> BTreeSet<String> {
    let layers = repository("src/layers");
    let layers = fs::read_dir(layers).expect("the layers");
    let layers = layers.map(|entry| entry.expect("an entry").path());
    let refuses = |path: &Path| {
        let text = fs::read_to_string(path).expect("text");
        text.lines().any(|line| line.starts_with("//! Refusal"))
    };
    let names = layers.filter(|path| refuses(path)).map(|path| {
        let name = path.file_stem().expect("a name");
        name.to_string_lossy().into_owned()
    });
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_layer_refuses_is_told_in_every_protocol() {
    election_agent::tls::install_provider();
    let mut seen = Seen::default();
    let open = Agent::start(&[]).await;
    seen.refuses("deadline", &open, Code::InvalidArgument, |ask| {
        ask.with("grpc-timeout", "soon")
    })
    .await;
    seen.refuses("deadline", &open, Code::DeadlineExceeded, |ask| {
        ask.with("grpc-timeout", "0m")
    })
    .await;
    seen.refuses("body_limit", &open, Code::PayloadTooLarge, |ask| {
        let frame = [&[0][..], &200_000_u32.to_be_bytes(), &[b' '; 200_000]].concat();
        ask.sending(frame)
    })
    .await;
    seen.refuses("transport", &open, Code::MethodNotAllowed, |ask| {
        ask.by(Method::PUT).at(CAMPAIGN, "/livez")
    })
    .await;
    seen.refuses("transport", &open, Code::UnsupportedMediaType, |ask| {
        let content_type = match ask.protocol {
            Protocol::Grpc => "application/grpc+json",
            Protocol::GrpcWeb => "application/grpc-web+json",
            Protocol::Rest => "text/plain",
        };
        ask.with("content-type", content_type)
    })
    .await;
    seen.refuses("transport", &open, Code::Disabled, |ask| {
        let method = match ask.protocol {
            Protocol::Rest => Method::GET,
            Protocol::Grpc | Protocol::GrpcWeb => Method::POST,
        };
        ask.by(method)
            .sending(vec![0; 5])
            .at("/grpc.election_agent.v1.Election/GetPods", "/kube/n/d/pods")
    })
    .await;

    let token = [
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", "$DIRECTORY/tokens"),
    ];
    let known = Agent::start(&token).await;
    seen.refuses("authenticate", &known, Code::Unauthenticated, |ask| ask)
        .await;
    seen.refuses("authenticate", &known, Code::Unauthenticated, |ask| {
        ask.with("authorization", "Bearer s3cret")
    })
    .await;
    let of_nobody = [&token[..], &[("EA_AUTH_POLICY_DIR", "$DIRECTORY")]].concat();
    let of_nobody = [&of_nobody[..], &[("EA_AUTH_PUBLIC", "nothing")]].concat();
    let of_nobody = Agent::start(&of_nobody).await;
    seen.refuses("gate", &of_nobody, Code::PermissionDenied, |ask| {
        ask.with("authorization", &of_nobody.bearer())
    })
    .await;
    seen.refuses("authorize", &of_nobody, Code::PermissionDenied, |ask| {
        ask.with("authorization", &of_nobody.bearer())
            .at(REFLECTION, "/openapi.json")
    })
    .await;

    // The issuer's keys are not served.
    let gone = HttpServer::start(|_| http::Response::default())
        .await
        .url("/keys");
    let unsure = Agent::start(&[
        ("EA_AUTH_MODES", "jwt"),
        ("EA_AUTH_JWT_ISSUER", "https://issuer.example"),
        ("EA_AUTH_JWT_AUDIENCE", "election-agent"),
        ("EA_AUTH_JWT_JWKS_URL", &gone),
    ])
    .await;
    seen.refuses("authenticate", &unsure, Code::Unavailable, |ask| {
        ask.with("authorization", TOKEN)
    })
    .await;

    // The server of the keys accepts the connection, and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent_url = format!("http://{}/keys", silent.local_addr().expect("an address"));
    let waiting = Agent::start(&[
        ("EA_AUTH_MODES", "jwt"),
        ("EA_AUTH_JWT_ISSUER", "https://issuer.example"),
        ("EA_AUTH_JWT_AUDIENCE", "election-agent"),
        ("EA_AUTH_JWT_JWKS_URL", &silent_url),
    ])
    .await;
    seen.refuses("deadline", &waiting, Code::DeadlineExceeded, |ask| {
        ask.with("authorization", TOKEN)
            .with("grpc-timeout", "100m")
    })
    .await;

    let slow = Agent::start(&[("EA_RATE_LIMIT_PER_SECOND", "1")]).await;
    let first = Ask::new(Protocol::Rest).send(slow.address).await;
    assert_eq!(first.status(), 200);
    seen.refuses("rate_limit", &slow, Code::RateLimited, |ask| ask)
        .await;
    // Wrong credentials count, too.
    let guarded = [&token[..], &[("EA_RATE_LIMIT_PER_SECOND", "1")]].concat();
    let guarded = Agent::start(&guarded).await;
    let first = Ask::new(Protocol::Rest).send(guarded.address).await;
    assert_eq!(first.status(), 401);
    seen.refuses("authenticate", &guarded, Code::RateLimited, |ask| ask)
        .await;

    let full = Agent::start(&[("EA_MAX_IN_FLIGHT", "1")]).await;
    let mut under_way = TcpStream::connect(full.address).await.expect("connects");
    let head = "POST /election/e HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    under_way.write_all(head.as_bytes()).await.expect("sent");
    eventually("the place is taken", async || {
        let answer = Ask::new(Protocol::Rest).send(full.address).await;
        (answer.status() == 429).then_some(())
    })
    .await;
    seen.refuses("in_flight", &full, Code::Overloaded, |ask| ask)
        .await;
    drop(under_way);

    let broken = Agent::that_panics().await;
    seen.refuses("respond", &broken, Code::Internal, |ask| ask)
        .await;

    for layer in that_refuse() {
        assert!(seen.0.contains(layer.as_str()), "{layer} was not asked");
    }
}
