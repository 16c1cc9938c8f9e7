//! Starts real servers on free ports, and stops them.

mod agent;
mod ask;
mod authority;
mod collector;
mod gate;
mod http;
mod issuer;
mod kubernetes;
mod listener;
mod nodes;
mod place;
mod proxy;

pub(crate) use agent::{
    Agent, Answer, bare_command, command, command_after, new_token, output as command_output, owned,
};
pub(crate) use ask::{Ask, CAMPAIGN, GRPC_WEB, Protocol, framed, unframed};
pub(crate) use authority::Authority;
pub(crate) use collector::{Collector, Mood, Received};
pub(crate) use gate::Gates;
pub(crate) use http::HttpServer;
pub(crate) use issuer::{
    AUDIENCE, ISSUER, Key, key_set, now as token_now, settings as jwt_settings,
};
pub(crate) use kubernetes::{
    ApiServer, CONTEXT, Fault, Gone, Reviews, Right, SERVICE_ACCOUNT, USER, WRONG_CONTEXT,
    fixtures, rollout,
};
pub(crate) use listener::serve;
pub(crate) use nodes::{Leader, Nodes, elected_until, extended_until};
pub(crate) use place::{InProcess, Place};
pub(crate) use proxy::Proxy;
pub(crate) use test_servers::{
    Clock, Cluster, Deployment, Redis, Sentinels, eventually, eventually_within, preload, signal,
};

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use election_proto::{
    BoolValue, CampaignRequest, CampaignResult, ExtendElectedTermRequest, GetLeaderRequest,
    HandoverRequest, ResignRequest,
};
use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;

/// A free port, for a process that has to be given one.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A file or directory of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of a file of the repository.
pub(crate) fn committed(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// An agent and what it keeps its leases in.
pub(crate) struct Fixture {
    pub(crate) agent: Agent,
    _redis: Option<Redis>,
    _directory: Option<TempDir>,
}

/// The kinds of stores.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Store {
    Memory,
    Durable,
    Redis,
    /// Servers that several fixtures use, each with a prefix of its own, by these settings, which live as long as the
    /// tests.
    Shared(&'static [(&'static str, String)]),
}

impl Store {
    /// A cluster for many fixtures.
    pub(crate) fn on_cluster(cluster: &Cluster) -> Self {
        let mut settings = cluster.settings();
        // A dozen agents come to it at once, each with a prefix of its own and so with all partitions anew.
        settings.push(("EA_REDIS_PARTITIONS", "64".to_owned()));
        Self::Shared(settings.leak())
    }

    /// A deployment that Sentinels watch, for many fixtures.
    pub(crate) fn on_sentinels(sentinels: &Sentinels) -> Self {
        Self::Shared(sentinels.settings().leak())
    }
}

impl Fixture {
    pub(crate) async fn on(store: Store) -> Self {
        Self::with(store, &[]).await
    }

    pub(crate) async fn with(store: Store, settings: &[(&str, &str)]) -> Self {
        let (mut redis, mut directory) = (None, None);
        let mut settings = owned(settings);
        match store {
            Store::Memory => {}
            Store::Durable => {
                let made = TempDir::new().expect("a directory");
                let path = made.path().join("leases.redb").display().to_string();
                settings.push(("EA_EMBEDDED_PATH".to_owned(), path));
                directory = Some(made);
            }
            Store::Redis => {
                let started = Redis::start().await;
                settings.push(("EA_REDIS_URLS".to_owned(), started.url()));
                redis = Some(started);
            }
            Store::Shared(shared) => {
                static FIXTURES: AtomicUsize = AtomicUsize::new(0);
                let fixture = FIXTURES.fetch_add(1, Ordering::Relaxed);
                settings.push(("EA_REDIS_PREFIX".to_owned(), format!("fixture{fixture}")));
                let shared = shared.iter();
                settings.extend(shared.map(|(name, value)| ((*name).to_owned(), value.clone())));
            }
        }
        let agent = Agent::start(&settings).await;
        if let Store::Shared(_) = store {
            // A cluster's members may take longer to answer than an agent's start does.
            agent.readiness(200, &[]).await;
        }
        Self {
            agent,
            _redis: redis,
            _directory: directory,
        }
    }
}

/// Makes one test of each function for each kind of store.
macro_rules! on_every_store {
    ($($test:ident),+ $(,)?) => {
        on_every_store!(@ memory Memory $($test)+);
        on_every_store!(@ durable Durable $($test)+);
        on_every_store!(@ redis Redis $($test)+);

        #[tokio::test(flavor = "multi_thread")]
        async fn all_on_a_cluster() {
            let cluster = crate::harness::Cluster::start().await;
            let store = crate::harness::Store::on_cluster(&cluster);
            tokio::join!($($test(store)),+);
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn all_on_a_primary_with_sentinels() {
            let sentinels = crate::harness::Sentinels::start().await;
            let store = crate::harness::Store::on_sentinels(&sentinels);
            tokio::join!($($test(store)),+);
        }
    };
    (@ $module:ident $store:ident $($test:ident)+) => {
        mod $module {
            use crate::harness::Store;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(Store::$store).await;
            })+
        }
    };
}
pub(crate) use on_every_store;

pub(crate) fn campaign(election: &str, candidate: &str, term: i32) -> CampaignRequest {
    CampaignRequest {
        election: election.to_owned(),
        candidate: candidate.to_owned(),
        term,
        ..CampaignRequest::default()
    }
}

pub(crate) fn extension(
    election: &str,
    leader: &str,
    term: i32,
    token: u64,
) -> ExtendElectedTermRequest {
    ExtendElectedTermRequest {
        election: election.to_owned(),
        leader: leader.to_owned(),
        term,
        token,
        ..ExtendElectedTermRequest::default()
    }
}

pub(crate) fn resignation(election: &str, leader: &str, token: u64) -> ResignRequest {
    ResignRequest {
        election: election.to_owned(),
        leader: leader.to_owned(),
        token,
        ..ResignRequest::default()
    }
}

/// From a leader with this token, or from any leader if there is no name.
pub(crate) fn handover(
    election: &str,
    (current_leader, token): (&str, u64),
    leader: &str,
    term: i32,
) -> HandoverRequest {
    HandoverRequest {
        election: election.to_owned(),
        leader: leader.to_owned(),
        term,
        current_leader: current_leader.to_owned(),
        token,
        ..HandoverRequest::default()
    }
}

/// The four calls that most tests make, by their answers' content.
impl Agent {
    pub(crate) async fn campaign(
        &self,
        election: &str,
        candidate: &str,
        term: i32,
    ) -> CampaignResult {
        let answer = self.try_campaign(campaign(election, candidate, term));
        answer.await.expect("an answer")
    }

    /// At this path of the REST interface, such as `/election/e`.
    pub(crate) async fn campaign_over_rest(
        &self,
        path: &str,
        candidate: &str,
        term: u32,
    ) -> Answer {
        let body = json!({"candidate": candidate, "term": term});
        self.rest(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn extend(
        &self,
        election: &str,
        leader: &str,
        term: i32,
        token: u64,
    ) -> BoolValue {
        let answer = self.try_extend(extension(election, leader, term, token));
        answer.await.expect("an answer")
    }

    pub(crate) async fn resign(&self, election: &str, leader: &str, token: u64) -> BoolValue {
        let request = resignation(election, leader, token);
        let answer = self.grpc().resign(request).await;
        answer.expect("an answer").into_inner()
    }

    /// The leader, or the status with the reason why it is not known.
    pub(crate) async fn leader(&self, election: &str) -> Result<String, tonic::Status> {
        let request = GetLeaderRequest {
            election: election.to_owned(),
            kind: String::new(),
        };
        self.grpc()
            .get_leader(request)
            .await
            .map(|answer| answer.into_inner().value)
    }
}
