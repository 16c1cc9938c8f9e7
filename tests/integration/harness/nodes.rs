//! Several independent Redis servers with gates before them, the agents that use them, and leaders that
//! extend their terms.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use election_proto::{
    BoolValue, CampaignRequest, CampaignResult, ExtendElectedTermRequest, HandoverRequest,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::task::AbortHandle;
use tonic::{IntoRequest, Status};

use super::{Agent, Redis, campaign, eventually, extension, gate::Gate, gate::Gates};

/// Servers, each behind gates.
pub(crate) struct Nodes {
    pub(crate) servers: Vec<Redis>,
    gates: Vec<Gates>,
}

impl Nodes {
    pub(crate) async fn start(number: usize) -> Self {
        let servers = Redis::several(number, &[]).await;
        Self::of(servers).await
    }

    /// Gates before servers that run already.
    pub(crate) async fn of(servers: Vec<Redis>) -> Self {
        let mut gates = Vec::new();
        for server in &servers {
            gates.push(Gates::to(server.port()).await);
        }
        Self { servers, gates }
    }

    /// One agent's way to one server. These names identify agents; none is part of another.
    pub(crate) fn gate(&self, agent: &str, node: usize) -> Gate {
        self.gates[node].of(agent)
    }

    /// An agent that uses all servers.
    pub(crate) async fn agent(&self, name: &str, settings: &[(&str, &str)]) -> Agent {
        let all: Vec<_> = (0..self.servers.len()).collect();
        self.agent_on(&all, name, settings).await
    }

    /// An agent that uses these servers.
    pub(crate) async fn agent_on(
        &self,
        nodes: &[usize],
        name: &str,
        settings: &[(&str, &str)],
    ) -> Agent {
        let urls: Vec<_> = nodes
            .iter()
            .map(|node| self.gates[*node].url(name))
            .collect();
        let urls = urls.join(",");
        // One connection to each server for requests, and one for the background runtime.
        let own = [("EA_REDIS_URLS", urls.as_str()), ("EA_WORKERS", "1")];
        Agent::start(&[&own, settings].concat()).await
    }

    /// Kills these servers and starts them without what they kept.
    pub(crate) async fn forget(&mut self, nodes: &[usize]) {
        for node in nodes {
            let server = &mut self.servers[*node];
            server.kill();
            server.forget();
            server.run().await;
        }
    }
}

/// Until when a leader may act after the reply *elected*: counted from before its request.
pub(crate) fn elected_until(asked: Instant, result: &CampaignResult) -> Instant {
    let valid_for = u64::try_from(result.valid_for).expect("not negative");
    asked + Duration::from_millis(valid_for)
}

/// Until when a leader may act after a confirmed extension: for the term less the allowance for drift, counted from
/// before its request.
pub(crate) fn extended_until(asked: Instant, term: i32) -> Instant {
    let term = u64::try_from(term).expect("not negative");
    asked + Duration::from_millis(term - term / 100 - 2)
}

/// The result of a call that may fail with a reason.
impl Agent {
    pub(crate) async fn try_campaign(
        &self,
        request: impl IntoRequest<CampaignRequest>,
    ) -> Result<CampaignResult, Status> {
        let result = self.grpc().campaign(request).await;
        result.map(tonic::Response::into_inner)
    }

    /// As [`Self::try_campaign`]; gives a campaign that was won, and when its answer came.
    pub(crate) async fn win(
        &self,
        election: &str,
        candidate: &str,
        term: i32,
    ) -> Option<(CampaignResult, Instant)> {
        let result = self.try_campaign(campaign(election, candidate, term)).await;
        let told = Instant::now();
        result
            .ok()
            .filter(|result| result.elected)
            .map(|result| (result, told))
    }

    /// Campaigns until elected; gives the answer and until when the leader may act.
    pub(crate) async fn elect(
        &self,
        election: &str,
        candidate: &str,
        term: i32,
    ) -> (CampaignResult, Instant) {
        eventually(&format!("{candidate} is elected"), async || {
            let asked = Instant::now();
            let (result, _) = self.win(election, candidate, term).await?;
            let until = elected_until(asked, &result);
            Some((result, until))
        })
        .await
    }

    pub(crate) async fn try_extend(
        &self,
        request: ExtendElectedTermRequest,
    ) -> Result<BoolValue, Status> {
        let result = self.grpc().extend_elected_term(request).await;
        result.map(tonic::Response::into_inner)
    }

    pub(crate) async fn try_handover(&self, request: HandoverRequest) -> Result<BoolValue, Status> {
        let result = self.grpc().handover(request).await;
        result.map(tonic::Response::into_inner)
    }

    /// Whether the agent reports that each node can be used and grants.
    pub(crate) async fn every_node_grants(&self) -> bool {
        let ready = self.get("/readyz").await;
        let grants = |node: &serde_json::Value| node["up"] == true && node["guard"] == 0;
        let nodes = ready.body["nodes"].as_array();
        nodes.is_some_and(|nodes| !nodes.is_empty() && nodes.iter().all(grants))
    }

    /// Waits until the agent has probed every node, and reports that each can be used and grants.
    pub(crate) async fn serves(&self) {
        eventually("every node is up and grants", async || {
            self.every_node_grants().await.then_some(())
        })
        .await;
    }
}

/// A leader that extends its term again and again until it is dropped.
pub(crate) struct Leader {
    known: Arc<Mutex<Known>>,
    extending: AbortHandle,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    until: Instant,
    extensions: usize,
}

impl Leader {
    /// Wins the election `e`, and extends the term every third of it.
    pub(crate) async fn elect(agent: &Agent, name: &str, term: i32) -> Self {
        let (won, until) = agent.elect("e", name, term).await;
        let known = Arc::new(Mutex::new(Known {
            until,
            extensions: 0,
        }));
        let (mut client, noted) = (agent.grpc(), Arc::clone(&known));
        let request = extension("e", name, term, won.token);
        let third = Duration::from_millis(u64::try_from(term).expect("not negative") / 3);
        let extending = tokio::spawn(async move {
            let mut pace = tokio::time::interval(third);
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            pace.tick().await;
            loop {
                pace.tick().await;
                let asked = Instant::now();
                let answer = client.extend_elected_term(request.clone()).await;
                if answer.is_ok_and(|answer| answer.get_ref().value) {
                    let mut known = lock(&noted);
                    known.until = known.until.max(extended_until(asked, term));
                    known.extensions += 1;
                }
            }
        });
        Self {
            known,
            extending: extending.abort_handle(),
        }
    }

    /// Until when it may act, by the replies so far.
    pub(crate) fn until(&self) -> Instant {
        lock(&self.known).until
    }

    /// Waits until its term was extended so many times more.
    pub(crate) async fn extends(&self, times: usize) {
        let before = lock(&self.known).extensions;
        eventually("the leader extends its term", async || {
            (lock(&self.known).extensions >= before + times).then_some(())
        })
        .await;
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.extending.abort();
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock()
}
