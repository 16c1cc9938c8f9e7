//! The layers around a mux that responds at once: how much each adds to every call.
//!
//! Every line has the layers of the line before, and one more. The request is an extension over gRPC, as
//! clients send it. Its message is not read.

use std::{
    collections::BTreeMap,
    future::ready,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use axum::{body::Body, response::Response};
use criterion::Criterion;
use election_agent::{
    auth::{
        authenticator::Authenticator,
        tokens::{self, Tokens},
    },
    endpoint::ELECTION_PATH,
    layers::{
        rate_limit::{Rate, RateLimiter},
        trace::TraceLayer,
    },
    peer::{Peer, TrustedProxies},
    reload::Source as _,
    stack::{Settings, stack},
    status::Problem,
    telemetry::{
        metrics::{DEFAULT_BUCKETS, Metrics},
        trace::{
            self, Batches, Destination, Pipeline, Protocol, Traces,
            sampler::{Root, Sampler},
        },
    },
};
use http::{Request, StatusCode, Version, header, request::Parts};
use tokio::{runtime::Runtime, sync::watch};
use tower::{Service, ServiceExt as _, service_fn};
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::measure::{calls, group, runtime};

/// An extension by the holder of this token.
fn head(token: &str) -> Parts {
    let local = IpAddr::from(Ipv4Addr::LOCALHOST);
    let request = Request::post(format!("http://agent:9090{ELECTION_PATH}ExtendElectedTerm"))
        .version(Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "a-client/1.0")
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header("grpc-timeout", "1S")
        .extension(Peer::new(local, None));
    let (head, ()) = request.body(()).expect("a request").into_parts();
    head
}

/// The accepted tokens, and one of them.
fn tokens() -> (Tokens, String) {
    let new = tokens::New::make("worker-1", &["workers".to_owned()]).expect("a token");
    let file = tokens::File("tokens".into());
    let tokens = file.make(&new.line.into_bytes()).expect("a file of tokens");
    (tokens, new.token)
}

/// A limit that no benchmark reaches.
fn limiter() -> RateLimiter {
    let most = NonZeroU32::new(1_000_000_000).expect("more than none");
    let rate = Rate {
        per_second: most,
        burst: most,
    };
    RateLimiter::new(rate, TrustedProxies::default())
}

/// Records every hundredth request, into a queue that is never drained: `idle` must not run.
fn traces(idle: &Runtime) -> Traces {
    let pipeline = Pipeline::new(trace::Settings {
        destination: Destination {
            protocol: Protocol::Grpc,
            endpoint: "http://127.0.0.1:4317".parse().expect("a URL"),
            headers: BTreeMap::new(),
            timeout: Duration::from_secs(1),
            gzip: false,
            authorities: None,
        },
        resource: BTreeMap::new(),
        sampler: Sampler {
            parent_based: true,
            root: Root::ratio(0.01),
        },
        batches: Batches {
            delay: Duration::from_secs(3600),
            timeout: Duration::from_secs(1),
            queue: 1 << 17,
            most: 1 << 17,
        },
        continues: true,
        keys: false,
    });
    tracing_subscriber::registry().with(pipeline.layer()).init();
    idle.block_on(async { pipeline.start() })
        .expect("tracing starts")
}

/// Clones the service for every request, as a connection does.
async fn answered<S>(service: S, request: Request<Body>) -> bool
where
    S: Service<Request<Body>, Response = Response>,
{
    let response = service.oneshot(request).await;
    response.is_ok_and(|response| {
        response.status() == StatusCode::OK && !response.headers().contains_key("grpc-status")
    })
}

pub(crate) fn benches(criterion: &mut Criterion) {
    let (runtime, idle) = (runtime(), runtime());
    let mux = service_fn(|_: Request<Body>| ready(Ok::<_, Problem>(Response::default())));
    let (tokens, token) = tokens();
    let head = head(&token);
    let (_, tokens) = watch::channel(Arc::new(tokens));
    let traces = traces(&idle);

    let bare = Settings::default();
    let limited = Settings {
        limiter: Some(limiter()),
        ..bare.clone()
    };
    let known = Settings {
        authenticator: Authenticator {
            tokens: Some(tokens),
            ..Authenticator::default()
        },
        ..limited.clone()
    };
    let traced = Settings {
        trace: Some(TraceLayer::new(
            traces.recorder(),
            TrustedProxies::default(),
            false,
        )),
        ..known.clone()
    };
    let metrics = Metrics::new(&DEFAULT_BUCKETS);
    let counted = || Some(metrics.clone());

    let mut group = group(criterion, "layers");
    let request = move |_| ready(Request::from_parts(head.clone(), Body::empty()));
    group.bench_function("0 mux alone", |bencher| {
        calls(bencher, &runtime, request.clone(), move |request| {
            answered(mux, request)
        });
    });
    for (name, settings, metrics) in [
        ("1 layers", bare, None),
        ("2 and metrics", Settings::default(), counted()),
        ("3 and rate limit", limited, counted()),
        ("4 and bearer token", known, counted()),
        ("5 and traces of 1 %", traced, counted()),
    ] {
        let stack = stack(mux, &settings, metrics);
        group.bench_function(name, |bencher| {
            let stack = stack.clone();
            calls(bencher, &runtime, request.clone(), move |request| {
                answered(stack.clone(), request)
            });
        });
    }
}
