//! Builds the service tree from the configuration.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use election_core::{
    board::{self, Board},
    election::{
        Elections,
        quota::{self, Quotas},
    },
    lease::{
        LeaseNode, Settings,
        embedded::Embedded,
        policy::{Electorate, Nodes},
        quorum::{Options, Quorum},
    },
};
use election_redis::{Deployment, Redis, Use};
use futures_util::future::join_all;
use http::Request;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower::Service;

use super::{StartError, unusable};
use crate::{
    auth::{
        Identity,
        authenticator::Authenticator,
        gate::Gate,
        jwt::{Verifier, keys},
        policy::{self, Policies},
        reviews::Reviewer,
    },
    config::{Auth, Config, EMBEDDED_NAMES, REDIS_NAMES, Store, list},
    endpoint::REFLECTION,
    kube::Lookup,
    layers::{in_flight::InFlightLayer, rate_limit::RateLimiter, trace::TraceLayer},
    listener::admission::Admission,
    outcomes,
    proto::{
        agent_server::AgentServer, election_server::ElectionServer,
        leadership_server::LeadershipServer,
    },
    readiness::Monitor,
    reload,
    stack::{self, stack},
    telemetry::{
        metrics::Metrics,
        trace::{self, Pipeline, Traces},
    },
    transport::{
        Mux,
        agent::{About, Agent, Limited, unix_ms},
        grpc::{self, Handler},
        rest,
    },
    workers::Workers,
};

/// The services that answer requests, independent of the ports.
pub struct Tree {
    mux: Mux,
    pub(super) metrics: Metrics,
    /// Whether metrics of requests are recorded.
    counts: bool,
    pub(super) monitor: Monitor,
    pub(super) quorum: Quorum,
    pub(super) traces: Option<Traces>,
    /// Cancelled to end streams that last as long as their clients keep them open.
    pub(super) closing: CancellationToken,
    layers: stack::Settings,
}

impl Tree {
    /// Opens the lease nodes, with connections for each worker, and builds the services and the HTTP routes on them.
    /// `admission` counts the connections.
    ///
    /// # Errors
    /// A file cannot be opened or is unusable, or the configuration requires Kubernetes and it is unusable.
    pub async fn build(
        config: &Config,
        traces: Option<Pipeline>,
        workers: &Workers,
        admission: &Admission,
    ) -> Result<Self, StartError> {
        let authenticator = authenticator(config).await?;
        let policies = policies(&config.auth)?;
        let lookup = Lookup::start(&config.kube).await.map_err(|what| {
            StartError::Kubernetes(format!("EA_KUBE_ENABLE is true, but {what}"))
        })?;
        let max_term = config.limits.max_term;
        let traces = traces.map(Pipeline::start).transpose()?;
        let recorder = traces.as_ref().map(Traces::recorder);
        let telemetry = &config.telemetry;
        let metrics = Metrics::with_elections(&telemetry.buckets, &telemetry.per_election);
        let (nodes, electorate) = nodes(&config.store, max_term, workers).await?;
        let names: Vec<_> = nodes.iter().map(|node| node.name()).collect();
        let mut options = Options::new(
            config.store.operation_timeout,
            config.store.restart_guard,
            guard(&config.store, max_term),
        );
        options.list = REDIS_NAMES.urls;
        options.names_in_spans = recorder.as_ref().is_some_and(|recorder| recorder.keys);
        if telemetry.metrics {
            options.observer = metrics.observer(&names);
        }
        let quorum = Quorum::of(nodes, electorate, options);
        let elections =
            Elections::new(quorum.clone(), max_term).entered_into(outcomes::ledger(&metrics));
        let board = Board::new(
            elections,
            board::Settings {
                provisional_term: config.limits.provisional_term,
                max_wait: config.limits.max_wait,
            },
            workers.background().clone(),
            Arc::new(metrics.clone()),
        );
        let counted = board.clone();
        metrics.on_scrape(move |scrape| scrape.board(&counted.counts()));
        let gate = Gate::new(
            board,
            lookup.clone(),
            policies.clone(),
            quotas(config),
            config.limits.allow_forced_handover,
        );
        let pods = lookup.clone();
        metrics.on_scrape(move |scrape| {
            scrape.pods(&pods.report().looked());
            scrape.spans(&trace::counts());
        });

        let health = HealthReporter::new();
        let closing = CancellationToken::new();
        let mut services = vec![HealthServer::<HealthService>::NAME];
        if config.listen.grpc {
            services.push(ElectionServer::<Handler>::NAME);
            services.push(LeadershipServer::<Handler>::NAME);
            services.push(AgentServer::<Handler>::NAME);
        }
        services.extend(REFLECTION);
        let reported = health.clone();
        let (monitor, readiness) =
            Monitor::start(quorum.clone(), reported, services, metrics.clone()).await;
        let in_flight = InFlightLayer::new(config.limits.max_in_flight, config.limits.max_streams);
        let about = Arc::new(about(config, &in_flight, admission));
        let agent = Agent::new(gate.clone(), quorum.clone(), readiness.clone(), about);
        let handler = || Handler::new(gate.clone(), agent.clone());
        let election = config.listen.grpc.then(handler);
        let grpc = grpc::Services::new(
            election,
            HealthService::from_health_reporter(health),
            closing.clone(),
        )?;
        let rest = rest::router(rest::Sources {
            gate: config.listen.http.then_some((gate, agent)),
            readiness,
            lookup,
            metrics: config.telemetry.metrics.then(|| metrics.clone()),
            dashboard: config.listen.dashboard.clone(),
        });
        let proxies = &config.limits.trusted_proxies;
        let limiter = |rate| RateLimiter::new(rate, proxies.clone());
        Ok(Self {
            mux: Mux::new(grpc, rest),
            metrics,
            counts: telemetry.metrics,
            monitor,
            quorum,
            traces,
            closing,
            layers: stack::Settings {
                cors: config.listen.cors.clone(),
                trace: recorder.map(|recorder| {
                    TraceLayer::new(recorder, proxies.clone(), config.tls.is_some())
                }),
                in_flight,
                authenticator,
                public: config.auth.public.clone(),
                policies,
                limiter: config.limits.rate.map(limiter),
                proxies: proxies.clone(),
                request_timeout: config.limits.request_timeout,
            },
        })
    }

    /// Returns the service for a connection.
    pub fn service(
        &self,
    ) -> impl Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
    + use<>
    + Clone
    + Send
    + 'static {
        let counted = self.counts.then(|| self.metrics.clone());
        stack(self.mux.clone(), &self.layers, counted)
    }
}

/// Returns what the agent reports on itself.
fn about(config: &Config, in_flight: &InFlightLayer, admission: &Admission) -> About {
    let host = hostname::get().unwrap_or_default();
    let limits = &config.limits;
    let (requests, streams) = (in_flight.clone(), in_flight.clone());
    let admission = admission.clone();
    About {
        name: host.to_string_lossy().into_owned(),
        started: Instant::now(),
        started_at: unix_ms(),
        configuration: config.fingerprint(),
        settings: config.shown(),
        authentication: config.auth.is_on(),
        limits: vec![
            Limited {
                setting: "EA_MAX_CONNECTIONS",
                counts: "connections",
                limit: admission.most(),
                used: Box::new(move || admission.open()),
            },
            Limited {
                setting: "EA_MAX_IN_FLIGHT",
                counts: "requests in progress",
                limit: limits.max_in_flight,
                used: Box::new(move || requests.requests()),
            },
            Limited {
                setting: "EA_MAX_STREAMS",
                counts: "streams and requests that wait",
                limit: limits.max_streams,
                used: Box::new(move || streams.streams()),
            },
        ],
    }
}

/// The length of the quarantine of a node that may have lost memory: until every grant that any agent received before
/// has expired.
fn guard(store: &Store, max_term: Duration) -> Duration {
    let deployments = store.deployments.iter().chain(&store.next);
    let overlap = deployments.map(Deployment::overlap).max();
    max_term + overlap.unwrap_or_default()
}

/// Starts the lease nodes. The kinds of nodes are distinguished only here.
async fn nodes(
    store: &Store,
    max_term: Duration,
    workers: &Workers,
) -> Result<(Vec<Arc<dyn LeaseNode>>, Electorate), StartError> {
    let settings = Settings {
        retention: store.token_retention,
        guard: store.restart_guard.duration(guard(store, max_term)),
        vote: store.operation_timeout,
    };
    if !store.deployments.is_empty() {
        let names: Vec<_> = store.deployments.iter().map(Deployment::name).collect();
        tracing::info!(nodes = names.join(", "), "leases are kept on Redis");
        for list in [&store.deployments, &store.next] {
            if !list.is_empty() && list.len().is_multiple_of(2) {
                tracing::warn!(
                    nodes = list.len(),
                    "an even number of nodes survives no more failures than one fewer: use 1, 3 or 5"
                );
            }
        }
        let mut lists = list(&store.deployments);
        // A node in both lists is started once.
        let mut deployments = store.deployments.clone();
        let mut next = Nodes::NONE;
        for deployment in &store.next {
            let identity = deployment.identity();
            let known = deployments.iter().position(|it| it.identity() == identity);
            next.add(known.unwrap_or(deployments.len()));
            if known.is_none() {
                deployments.push(deployment.clone());
            }
        }
        let mut electorate = Electorate::of(Nodes::first(store.deployments.len()));
        if !next.is_empty() {
            tracing::info!(
                from = lists,
                to = list(&store.next),
                "agents move to another list of nodes: majorities of both decide"
            );
            lists = format!("{lists} > {}", list(&store.next));
            electorate = Electorate::joint(electorate.nodes(), next);
        }
        let usage = Use {
            prefix: store.prefix.clone(),
            nodes: lists,
            max_term,
            allow_eviction: store.allow_eviction,
            names: REDIS_NAMES,
        };
        let starting = deployments.into_iter().map(|deployment| {
            let limit = store.operation_timeout;
            Redis::start(deployment, usage.clone(), limit, settings, workers.askers())
        });
        let started = join_all(starting).await.into_iter();
        let nodes = started.map(|node| Arc::new(node) as Arc<dyn LeaseNode>);
        return Ok((nodes.collect(), electorate));
    }
    let node = match &store.embedded_path {
        Some(path) => {
            tracing::info!(
                path = %path.display(),
                "leases are kept in this process and its file: run one agent only"
            );
            Embedded::open(path, settings, EMBEDDED_NAMES)?
        }
        None => {
            tracing::warn!(
                "leases are kept in this process's memory and are forgotten with it: run one agent \
                 only, and set EA_REDIS_URLS or EA_EMBEDDED_PATH for more than trying it out"
            );
            Embedded::in_memory(settings)
        }
    };
    Ok((vec![Arc::new(node)], Electorate::of(Nodes::one(0))))
}

/// Builds the authenticator.
async fn authenticator(config: &Config) -> Result<Authenticator, StartError> {
    let auth = &config.auth;
    let beyond_this_host = !config.listen.address.is_loopback();
    let asks_nobody = !auth.is_on() && auth.policies.is_none();
    if asks_nobody && beyond_this_host {
        tracing::warn!(
            address = %config.listen.address,
            "every caller that reaches the agent may campaign, resign and hand over for any candidate: set \
             EA_AUTH_MODES, or let only your clients' network reach it"
        );
    }
    if config.limits.trusted_proxies.are_everybody() {
        tracing::warn!(
            "EA_TRUSTED_PROXIES has a network of all addresses, so that callers choose their own address: \
             list only your proxies"
        );
    }
    let files = |mistakes: Vec<reload::Mistake>| unusable(&mistakes);
    let tokens = auth.tokens.clone().map(reload::start);
    let jwt = auth.jwt.clone().map(|(expected, origin)| {
        let keys = keys::Following::start(origin)?;
        Ok(Verifier::new(expected, keys))
    });
    let kubernetes = match &auth.kubernetes {
        Some(reviews) => {
            let client = config.kube.access.connect().await;
            let client = client.map_err(|what| {
                StartError::Kubernetes(format!("EA_AUTH_MODES has kubernetes, but {what}"))
            })?;
            let audiences = reviews.audiences.clone();
            Some(Reviewer::new(client, audiences, reviews.remember))
        }
        None => None,
    };
    Ok(Authenticator {
        anonymous: auth.anonymous.then(Identity::anonymous),
        tokens: tokens.transpose().map_err(files)?,
        jwt: jwt.transpose().map_err(files)?,
        kubernetes,
        mtls: auth.mtls,
    })
}

/// Builds the count of held elections per identity and kind, if limits or policies use it.
fn quotas(config: &Config) -> Option<Quotas> {
    let limits = config.limits.held;
    let asked = limits != quota::Limits::default() || config.auth.policies.is_some();
    asked.then(|| Quotas::new(limits))
}

/// Builds the policies; `None` permits everything.
fn policies(auth: &Auth) -> Result<Option<reload::Current<Policies>>, StartError> {
    // Without authentication and without policies of the operator, all callers are alike.
    let on = auth.is_on() || auth.policies.is_some();
    let policies = on.then(|| policy::start(auth.policies.clone()));
    policies.transpose().map_err(|mistakes| unusable(&mistakes))
}
