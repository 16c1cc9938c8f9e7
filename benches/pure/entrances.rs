//! One call through every entrance, over one node in this process and without the layers.
//!
//! `domain` calls the gate to the elections with the domain's own types. The additional time of the others is
//! conversion: `handler` converts between protobuf messages and these types. `gRPC` also decodes and encodes
//! the messages and routes the request to its method. `REST` does the same for JSON.

use std::{future::ready, sync::Arc};

use axum::body::Body;
use criterion::{BenchmarkId, Criterion};
use election_agent::{
    auth::{Identity, gate::Gate},
    kube::Lookup,
    proto::election_server::Election as _,
    readiness::Report,
    transport::{
        Mux,
        agent::{About, Agent},
        grpc::{Handler, Services},
        rest::{self, dashboard::Dashboard},
    },
};
use election_core::{
    board::{self, Board},
    election::{Campaign, Elections, Outcome, Retry},
    lease::Extend,
    types::Value,
};
use election_proto::{CampaignRequest, ExtendElectedTermRequest};
use http::Request;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic_health::server::{HealthReporter, HealthService};

use crate::{
    measure::{calls, group, runtime},
    quorum::{HOUR, candidate, election, of, term},
    requests::{Template, answered, deadline, known},
};

const ELECTION: &str = "nightly-report";
const LEADER: &str = "worker-1";
const OTHER: &str = "worker-2";
const TERM: i32 = 3_600_000;

/// What tells about the agent.
fn about(gate: &Gate) -> (Agent, watch::Receiver<Report>) {
    let (_, readiness) = watch::channel(Report {
        needed: 1,
        nodes: Vec::new(),
        checked: Instant::now(),
        draining: false,
    });
    let about = About {
        name: String::new(),
        started: Instant::now(),
        started_at: 0,
        configuration: String::new(),
        settings: Vec::new(),
        authentication: false,
        limits: Vec::new(),
    };
    let agent = Agent::new(gate.clone(), of(1), readiness.clone(), Arc::new(about));
    (agent, readiness)
}

/// The agent's mux, without metrics.
fn mux(gate: &Gate) -> Mux {
    let health = HealthService::from_health_reporter(HealthReporter::new());
    let (agent, readiness) = about(gate);
    let handler = Handler::new(gate.clone(), agent.clone());
    let grpc = Services::new(Some(handler), health, CancellationToken::new());
    let rest = rest::router(rest::Sources {
        gate: Some((gate.clone(), agent)),
        readiness,
        lookup: Lookup::off("there are no pods"),
        metrics: None,
        dashboard: Dashboard {
            off: None,
            base_path: String::new(),
        },
    });
    Mux::new(grpc.expect("descriptors"), rest)
}

pub(crate) fn benches(criterion: &mut Criterion) {
    let runtime = runtime();
    let (deadline, until) = runtime.block_on(async { (deadline().await, Instant::now() + HOUR) });
    let board = Board::new(
        Elections::new(of(1), HOUR),
        board::Settings {
            provisional_term: HOUR,
            max_wait: HOUR,
        },
        runtime.handle().clone(),
        Arc::new(board::NoopObserver),
    );
    let gate = Gate::new(board, Lookup::off("there are no pods"), None, None, false);
    let campaign = |name: &str| Campaign {
        election: election(ELECTION),
        candidate: candidate(name),
        term: term(),
        value: Value::default(),
        request_id: None,
        wait: None,
    };
    let anonymous = Identity::anonymous();
    let won = runtime.block_on(gate.campaign(&anonymous, &campaign(LEADER), None, until));
    assert!(matches!(won, Ok(Outcome::Elected { .. })), "{won:?}");
    let (handler, mux) = (Handler::new(gate.clone(), about(&gate).0), mux(&gate));

    let mut group = group(criterion, "entrances");
    let extend = Extend {
        election: election(ELECTION),
        leader: candidate(LEADER),
        token: None,
        term: term(),
    };
    let once = Retry::new(0, 0).expect("no retries");
    group.bench_function(BenchmarkId::new("extend", "domain"), |bencher| {
        let (gate, extend, anonymous) = (gate.clone(), extend.clone(), anonymous.clone());
        let prepare = move |_| ready(extend.clone());
        calls(bencher, &runtime, prepare, move |extend| {
            let (gate, anonymous) = (gate.clone(), anonymous.clone());
            async move {
                let extended = gate.extend(&anonymous, extend, once, until).await;
                extended.is_ok()
            }
        });
    });
    let message = ExtendElectedTermRequest {
        election: ELECTION.to_owned(),
        leader: LEADER.to_owned(),
        term: TERM,
        kind: "batch".to_owned(),
        ..ExtendElectedTermRequest::default()
    };
    group.bench_function(BenchmarkId::new("extend", "handler"), |bencher| {
        let (handler, message) = (handler.clone(), message.clone());
        let prepare = move |_| ready(known(message.clone(), deadline));
        calls(bencher, &runtime, prepare, move |request| {
            let handler = handler.clone();
            async move {
                let extended = handler.extend_elected_term(request).await;
                extended.is_ok_and(|answer| answer.get_ref().value)
            }
        });
    });
    let path = format!("/election/batch/{ELECTION}");
    let body = format!(r#"{{"leader": "{LEADER}", "term": {TERM}}}"#);
    let extensions = [
        (
            "gRPC",
            Template::grpc("ExtendElectedTerm", &message, deadline),
        ),
        ("REST", Template::rest("PATCH", &path, &body, deadline)),
    ];

    group.bench_function(BenchmarkId::new("lose", "domain"), |bencher| {
        let (gate, campaign, anonymous) = (gate.clone(), campaign(OTHER), anonymous.clone());
        let prepare = move |_| ready(campaign.clone());
        calls(bencher, &runtime, prepare, move |campaign| {
            let (gate, anonymous) = (gate.clone(), anonymous.clone());
            async move {
                let lost = gate.campaign(&anonymous, &campaign, None, until).await;
                matches!(lost, Ok(Outcome::NotElected(_)))
            }
        });
    });
    let message = CampaignRequest {
        election: ELECTION.to_owned(),
        candidate: OTHER.to_owned(),
        term: TERM,
        kind: "batch".to_owned(),
        ..CampaignRequest::default()
    };
    group.bench_function(BenchmarkId::new("lose", "handler"), |bencher| {
        let (handler, message) = (handler.clone(), message.clone());
        let prepare = move |_| ready(known(message.clone(), deadline));
        calls(bencher, &runtime, prepare, move |request| {
            let handler = handler.clone();
            async move {
                let lost = handler.campaign(request).await;
                lost.is_ok_and(|answer| answer.get_ref().leader == LEADER)
            }
        });
    });
    let body = format!(r#"{{"candidate": "{OTHER}", "term": {TERM}}}"#);
    let campaigns = [
        ("gRPC", Template::grpc("Campaign", &message, deadline)),
        ("REST", Template::rest("POST", &path, &body, deadline)),
    ];

    for (call, requests) in [("extend", extensions), ("lose", campaigns)] {
        for (entrance, template) in requests {
            group.bench_function(BenchmarkId::new(call, entrance), |bencher| {
                let (mux, template) = (mux.clone(), template.clone());
                let prepare = move |_| ready(template.request());
                calls(bencher, &runtime, prepare, move |request: Request<Body>| {
                    answered(mux.clone(), request)
                });
            });
        }
    }
}
