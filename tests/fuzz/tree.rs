//! The whole service tree in this process, and what must hold for whatever it answers.

use std::{convert::Infallible, fs, net::Ipv4Addr, time::Duration};

use axum::{body::Body, response::Response};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use election_agent::{
    app::Tree,
    config::{Config, Values},
    endpoint::{Endpoint, Protocol},
    listener::admission::Admission,
    peer::Peer,
    workers::Workers,
};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    time::{advance, timeout},
};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

/// Longer than any answer may take. The clock is paused: it jumps when nothing can go on, so an answer that
/// never comes is known at once.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longer than leases and floors live: no input finds what the one before left.
const FORGETTING: Duration = Duration::from_secs(2 * 60 * 60);

/// The origin whose pages may ask.
pub(crate) const ORIGIN: &str = "https://pages.example";

/// Of the token `known`.
const TOKENS: &str =
    "worker sha256:7117fff2d0fd294462b3c802b7cb8753579f23f3946b99cf55f38e873f013f10 batch";
const KEYS: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// The agent's services, as a connection gets them.
pub(crate) type Agent = BoxCloneSyncService<Request<Body>, Response, Infallible>;

struct World {
    runtime: Runtime,
    agent: Agent,
    /// Its monitor is what probes answer from.
    _tree: Tree,
    /// Its files, which it looks at from time to time.
    _directory: TempDir,
}

thread_local! {
    static WORLD: World = World::new();
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        // Who shows nothing may do everything, and what is shown is read by every mode that needs nobody else.
        let directory = TempDir::new().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("written");
            path.display().to_string()
        };
        let settings = [
            ("EA_STORE", "memory".to_owned()),
            ("EA_CORS_ORIGINS", ORIGIN.to_owned()),
            ("EA_TOKEN_RETENTION", "1h".to_owned()),
            ("EA_METRIC_REQUEST_DURATION_BUCKETS", "0.1,1".to_owned()),
            ("EA_AUTH_MODES", "none,token,jwt".to_owned()),
            ("EA_AUTH_TOKEN_FILE", file("tokens", TOKENS)),
            ("EA_AUTH_JWT_ISSUER", "https://issuer.example".to_owned()),
            ("EA_AUTH_JWT_AUDIENCE", "election-agent".to_owned()),
            ("EA_AUTH_JWT_JWKS_FILE", file("keys.json", KEYS)),
            ("EA_AUTH_POLICY_DIR", directory.path().display().to_string()),
            ("EA_RATE_LIMIT_PER_SECOND", "1000000".to_owned()),
            ("EA_TRUSTED_PROXIES", "0.0.0.0/0,::/0".to_owned()),
        ];
        file("all.cedar", "permit (principal, action, resource);");
        let settings = settings.map(|(name, value)| (name.into(), value.into()));
        let config = Values::collect(Vec::new(), None, settings)
            .and_then(Config::new)
            .expect("valid settings");
        let building =
            async { Tree::build(&config, None, &Workers::here(), &Admission::unlimited()).await };
        let tree = runtime.block_on(building).expect("a tree");
        Self {
            runtime,
            agent: BoxCloneSyncService::new(tree.service()),
            _tree: tree,
            _directory: directory,
        }
    }
}

/// Gives an input an agent to itself, with nothing in it.
pub(crate) fn with_agent(input: impl AsyncFnOnce(Agent)) {
    WORLD.with(|world| {
        world.runtime.block_on(async {
            input(world.agent.clone()).await;
            advance(FORGETTING).await;
        });
    });
}

/// What of a request decides what its answer must look like.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    what: String,
    protocol: Protocol,
    method: Method,
    /// Whether the answer goes on as long as the caller listens.
    endless: bool,
}

impl Asked {
    pub(crate) fn of(request: &Request<Body>, stalls: bool) -> Self {
        Self {
            what: format!("{} {}", request.method(), request.uri()),
            protocol: Endpoint::of(request).protocol,
            method: request.method().clone(),
            endless: stalls || request.uri().path().ends_with("/Watch"),
        }
    }

    fn is_grpc(&self) -> bool {
        self.protocol != Protocol::Rest
    }

    /// What is wrong with an answer's head.
    pub(crate) fn check_head(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), String> {
        let fault = |what: &str| Err(format!("{}: {what}: {status} {headers:?}", self.what));
        if status.is_server_error() && !matches!(status.as_u16(), 501 | 503 | 504) {
            return fault("the agent takes the blame");
        }
        if self.method == Method::OPTIONS && status == StatusCode::OK {
            return Ok(());
        }
        if !headers.contains_key("x-request-id") {
            return fault("the answer has no request id");
        }
        let content_type = of(headers, header::CONTENT_TYPE.as_str());
        if self.is_grpc() {
            if status != StatusCode::OK || !content_type.starts_with("application/grpc") {
                return fault("a gRPC caller cannot read that");
            }
        } else if status.as_u16() >= 400 && content_type != "application/problem+json" {
            return fault("it is no problem document");
        }
        self.check_status(headers).map(|_| ())
    }

    /// The gRPC status in headers or trailers, which must not blame the agent.
    pub(crate) fn check_status(&self, headers: &HeaderMap) -> Result<Option<u8>, String> {
        let Some(status) = headers.get("grpc-status") else {
            return Ok(None);
        };
        let code = status.to_str().ok().and_then(|code| code.parse().ok());
        match code {
            None | Some(2 | 13 | 15 | 17..) => Err(format!("{}: {headers:?}", self.what)),
            Some(code) => Ok(Some(code)),
        }
    }

    fn check_body(&self, answer: &Answer) -> Result<(), String> {
        let fault = |what: &str| Err(format!("{}: {what}: {answer:?}", self.what));
        if !answer.ended && !self.endless {
            return fault("the answer does not end");
        }
        if self.is_grpc() && self.method != Method::OPTIONS {
            let Some(told) = answer.grpc_trailers() else {
                return fault("the frames are malformed");
            };
            let mut statuses = vec![self.check_status(&answer.headers)?];
            for trailers in told {
                statuses.push(self.check_status(&trailers)?);
            }
            let statuses = statuses.iter().flatten().count();
            if answer.ended && statuses != 1 {
                return fault("it should have one gRPC status");
            }
        } else if answer.status.as_u16() >= 400 && self.method != Method::HEAD {
            let document = answer.json();
            if document["code"].as_str().is_none_or(str::is_empty)
                || document["status"] != answer.status.as_u16()
            {
                return fault("the problem document is not one");
            }
        }
        Ok(())
    }
}

/// An answer that has been read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.pieces.concat()).unwrap_or_default()
    }

    /// The messages of a gRPC answer; those of gRPC-Web with its trailers as the last.
    pub(crate) fn messages(&self) -> Option<Vec<(u8, Vec<u8>)>> {
        // Which is by what the caller accepts, not by what it sent.
        let base64 = of(&self.headers, "content-type").starts_with("application/grpc-web-text");
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            match base64 {
                true => bytes.extend(BASE64_STANDARD.decode(piece).ok()?),
                false => bytes.extend_from_slice(piece),
            }
        }
        let mut messages = Vec::new();
        let mut rest = &bytes[..];
        while let Some((head, after)) = rest.split_first_chunk::<5>() {
            let [flag, length @ ..] = *head;
            let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
            messages.push((flag, after.get(..length)?.to_vec()));
            rest = &after[length..];
        }
        rest.is_empty().then_some(messages)
    }

    /// What comes after the messages.
    fn grpc_trailers(&self) -> Option<Vec<HeaderMap>> {
        let messages = self.messages()?;
        let mut told: Vec<_> = self.trailers.iter().cloned().collect();
        for (flag, text) in messages {
            if flag & 0x80 == 0 {
                continue;
            }
            let mut trailers = HeaderMap::new();
            for line in std::str::from_utf8(&text).ok()?.lines() {
                let (name, value) = line.split_once(':')?;
                let name = header::HeaderName::try_from(name).ok()?;
                trailers.append(name, value.trim().parse().ok()?);
            }
            told.push(trailers);
        }
        Some(told)
    }
}

/// Asks, reads the whole answer, and checks it.
pub(crate) async fn ask(agent: &Agent, mut request: Request<Body>, stalls: bool) -> Answer {
    let peer = Peer::new(Ipv4Addr::LOCALHOST.into(), None);
    request.extensions_mut().insert(peer);
    let asked = Asked::of(&request, stalls);
    let Ok(answer) = timeout(PATIENCE, agent.clone().oneshot(request))
        .await
        .unwrap_or_else(|_| panic!("{}: no answer", asked.what));
    let (head, mut body) = answer.into_parts();
    let mut answer = Answer {
        status: head.status,
        headers: head.headers,
        pieces: Vec::new(),
        trailers: None,
        ended: false,
    };
    while let Ok(frame) = timeout(PATIENCE, body.frame()).await {
        match frame {
            None => {
                answer.ended = true;
                break;
            }
            Some(Err(error)) => panic!("{}: the answer breaks off: {error}", asked.what),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => answer.pieces.push(data),
                Err(frame) => answer.trailers = frame.into_trailers().ok(),
            },
        }
    }
    asked
        .check_head(answer.status, &answer.headers)
        .and_then(|()| asked.check_body(&answer))
        .unwrap_or_else(|fault| panic!("{fault}"));
    answer
}

fn of<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}
