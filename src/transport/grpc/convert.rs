//! Conversions between protobuf messages and the domain's types.

use election_core::{
    board::{Cause, Doubt, Seen},
    election::{
        self, Campaign, Handover, Kinds, Leaders, List, Outcome, Retry,
        state::{Position, Standing},
    },
    lease::{Extend, Lease, Resign, State},
    types::{Candidate, ElectionId, Invalid, RequestId, Token, Value, millis},
};
use election_proto as proto;

use crate::{
    auth::gate,
    kube::{Pod, Pods, Wanted},
    status::Problem,
    transport::{
        agent,
        observe::{self, Said},
        problem, reason, stream,
        term::term,
    },
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

pub(super) fn campaign(
    request: &proto::CampaignRequest,
    max_term: Duration,
) -> Result<Campaign, Invalid> {
    Ok(Campaign {
        election: ElectionId::new(&request.kind, &request.election)?,
        candidate: Candidate::new("candidate", &request.candidate)?,
        term: term(request.term.into(), max_term)?,
        value: Value::new(&request.value)?,
        request_id: RequestId::new(&request.request_id)?,
        wait: None,
    })
}

pub(super) fn campaign_result(
    asked: &Campaign,
    outcome: Outcome,
) -> Result<proto::CampaignResult, Problem> {
    let kind = asked.election.kind().to_owned();
    Ok(match outcome {
        Outcome::Used => return Err(Problem::request_id_used()),
        Outcome::Elected {
            token,
            valid_for,
            provisional,
            ..
        } => proto::CampaignResult {
            elected: true,
            leader: asked.candidate.as_str().to_owned(),
            kind,
            token: token.get(),
            valid_for: millis_i32(valid_for),
            value: asked.value.as_str().to_owned(),
            provisional,
        },
        Outcome::NotElected(lease) => proto::CampaignResult {
            elected: false,
            leader: lease.leader.as_str().to_owned(),
            kind,
            token: lease.token.get(),
            valid_for: 0,
            value: lease.value.as_str().to_owned(),
            provisional: false,
        },
    })
}

pub(super) fn extend(
    request: &proto::ExtendElectedTermRequest,
    max_term: Duration,
) -> Result<(Extend, Retry), Invalid> {
    let extend = Extend {
        election: ElectionId::new(&request.kind, &request.election)?,
        leader: Candidate::new("leader", &request.leader)?,
        token: Token::optional(request.token)?,
        term: term(request.term.into(), max_term)?,
    };
    Ok((
        extend,
        Retry::new(request.retries.into(), request.retry_interval.into())?,
    ))
}

pub(super) fn resign(request: &proto::ResignRequest) -> Result<Resign, Invalid> {
    Ok(Resign {
        election: ElectionId::new(&request.kind, &request.election)?,
        leader: Candidate::new("leader", &request.leader)?,
        token: Token::optional(request.token)?,
    })
}

pub(super) fn handover(
    request: &proto::HandoverRequest,
    max_term: Duration,
) -> Result<Handover, Invalid> {
    Ok(Handover {
        election: ElectionId::new(&request.kind, &request.election)?,
        leader: Candidate::new("leader", &request.leader)?,
        term: term(request.term.into(), max_term)?,
        current_leader: Candidate::optional("current_leader", &request.current_leader)?,
        token: Token::optional(request.token)?,
    })
}

pub(super) fn list(request: &proto::ListLeadersRequest) -> Result<List, Invalid> {
    List::new(
        &request.kind,
        request.all_kinds,
        request.page_size.into(),
        &request.page_token,
    )
}

pub(super) fn leaders(page: Leaders) -> proto::Leaders {
    proto::Leaders {
        leaders: page
            .leaders
            .into_iter()
            .map(|(election, lease)| leader(&election, &lease))
            .collect(),
        next_page_token: page.next_page_token,
        incomplete: page.incomplete,
    }
}

pub(super) fn kinds(page: Kinds) -> proto::Kinds {
    let kinds = page.kinds.iter();
    proto::Kinds {
        kinds: kinds.map(|kind| kind.as_str().to_owned()).collect(),
        next_page_token: page.next_page_token,
        incomplete: page.incomplete,
    }
}

pub(super) fn leader(election: &ElectionId, lease: &Lease) -> proto::Leader {
    proto::Leader {
        election: election.name().to_owned(),
        name: lease.leader.as_str().to_owned(),
        kind: election.kind().to_owned(),
        token: lease.token.get(),
        remaining: millis_i32(lease.remaining),
        value: lease.value.as_str().to_owned(),
        elected_at: i64::try_from(lease.elected_at).unwrap_or(i64::MAX),
    }
}

pub(super) fn state(election: &ElectionId, state: &State) -> proto::State {
    let (phase, token) = match state {
        State::Held(lease) => (proto::state::Phase::Held, Some(lease.token)),
        State::Vacant(mark) => (proto::state::Phase::Vacant, *mark),
    };
    proto::State {
        kind: election.kind().to_owned(),
        election: election.name().to_owned(),
        phase: phase.into(),
        leader: state.lease().map(|lease| leader(election, lease)),
        token: token.map_or(0, Token::get),
        cause: proto::state::Cause::Present.into(),
        position: Position::of(state).to_string(),
        missed: false,
    }
}

/// A message of a stream.
pub(super) fn observation(said: Said) -> proto::Observation {
    use proto::observation::What;
    let what = match said {
        Said::Heartbeat => What::Heartbeat(proto::Heartbeat {}),
        Said::Goodbye(it) => What::Goodbye(goodbye(it)),
        Said::Synced => What::Synced(proto::Synced {}),
        Said::Certainty(doubt) => What::Certainty(certainty(doubt.as_ref())),
        Said::State {
            seen,
            cause,
            missed,
        } => What::State(proto::State {
            cause: because(cause).into(),
            missed,
            ..state(&seen.election, &seen.state(Instant::now()))
        }),
    };
    proto::Observation { what: Some(what) }
}

fn because(cause: Cause) -> proto::state::Cause {
    match cause {
        Cause::Present => proto::state::Cause::Present,
        Cause::Campaign => proto::state::Cause::Campaign,
        Cause::Resign => proto::state::Cause::Resign,
        Cause::Handover => proto::state::Cause::Handover,
        Cause::Expiry => proto::state::Cause::Expiry,
        Cause::RolledBack => proto::state::Cause::RolledBack,
    }
}

pub(super) fn changes(changes: &[Arc<Seen>]) -> proto::Changes {
    let changes = changes.iter().map(|change| proto::Change {
        state: Some(proto::State {
            cause: because(change.cause).into(),
            missed: change.missed,
            ..state(&change.election, &agent::without_time(change))
        }),
        at: number(agent::learnt(change)),
    });
    proto::Changes {
        changes: changes.collect(),
    }
}

pub(super) fn waiters_of(request: &proto::ListWaitersRequest) -> Result<agent::Waiters, Invalid> {
    agent::Waiters::new(
        &request.kind,
        &request.election,
        request.all_kinds,
        request.page_size.into(),
        &request.page_token,
    )
}

pub(super) fn waiters(page: agent::WaitersPage) -> proto::Waiters {
    let waiters = page.waiters.iter().map(|waiting| proto::Waiter {
        kind: waiting.election.kind().to_owned(),
        election: waiting.election.name().to_owned(),
        candidate: waiting.candidate.as_str().to_owned(),
        waiting_for: number(millis(waiting.since.elapsed())),
    });
    proto::Waiters {
        waiters: waiters.collect(),
        next_page_token: page.next_page_token,
    }
}

pub(super) fn agent(state: agent::AgentState) -> proto::AgentState {
    let limits = state.limits.into_iter().map(|limit| proto::Limit {
        setting: limit.setting.to_owned(),
        counts: limit.counts.to_owned(),
        used: number(limit.used),
        limit: number(limit.limit),
    });
    proto::AgentState {
        name: state.name,
        version: state.version.to_owned(),
        commit: state.commit.to_owned(),
        started_at: number(state.started_at),
        uptime: number(state.uptime),
        configuration: state.configuration,
        ready: state.ready,
        reason: state.reason,
        pods: state.pods,
        authentication: state.authentication,
        caller: state.caller,
        max_term: number(state.max_term),
        limits: limits.collect(),
    }
}

pub(super) fn nodes(nodes: agent::Nodes) -> proto::Nodes {
    let all = nodes.nodes.into_iter().map(|node| proto::Node {
        name: node.name,
        role: node.role.to_owned(),
        up: node.up,
        voting: node.voting,
        latency: number(node.latency),
        quarantine: number(node.quarantine),
        unfit: node.unfit,
        degraded: node.degraded,
        memory_used: number(node.memory_used),
        memory_limit: number(node.memory_limit),
    });
    proto::Nodes {
        nodes: all.collect(),
        needed: number(nodes.needed),
        voting: number(nodes.voting),
        quorum: nodes.quorum,
        survivable: number(nodes.survivable),
        checked: number(nodes.checked),
    }
}

pub(super) fn configuration(configuration: agent::Configuration) -> proto::Configuration {
    let settings = configuration.settings.into_iter();
    let settings = settings.map(|setting| proto::Setting {
        variable: setting.variable.to_owned(),
        value: setting.value,
        source: setting.source,
        meaning: setting.meaning.to_owned(),
    });
    proto::Configuration {
        settings: settings.collect(),
    }
}

/// The number, or the largest one that fits.
fn number<T: TryInto<U>, U: Bounded>(number: T) -> U {
    number.try_into().unwrap_or(U::MAX)
}

/// An integer of the contract.
trait Bounded {
    const MAX: Self;
}

impl Bounded for i32 {
    const MAX: Self = Self::MAX;
}

impl Bounded for i64 {
    const MAX: Self = Self::MAX;
}

pub(super) fn goodbye(goodbye: stream::Goodbye) -> proto::Goodbye {
    proto::Goodbye {
        reason: <&str>::from(goodbye.reason).to_owned(),
        reconnect_after: i32::try_from(goodbye.reconnect_after).unwrap_or(i32::MAX),
    }
}

fn certainty(doubt: Option<&Doubt>) -> proto::Certainty {
    let (unconfirmed_for, reason) = doubt.map(observe::doubt).unwrap_or_default();
    proto::Certainty {
        certain: doubt.is_none(),
        unconfirmed_for: i64::try_from(millis(unconfirmed_for)).unwrap_or(i64::MAX),
        reason,
    }
}

pub(super) fn wanted_of(request: &proto::ObserveRequest) -> Result<observe::Wanted, Invalid> {
    use proto::observe_request::What;
    let what = match &request.what {
        None => observe::What::Kind,
        Some(What::Election(name)) => observe::What::Election(name),
        Some(What::Prefix(prefix)) => observe::What::Prefix(prefix),
        Some(What::AllKinds(true)) => observe::What::All,
        Some(What::AllKinds(false)) => observe::What::Kind,
    };
    let (heartbeat, after) = (request.heartbeat.into(), &request.after);
    observe::Wanted::new(&request.kind, what, heartbeat, after)
}

pub(super) fn verified(
    election: &ElectionId,
    standing: Standing,
    found: &State,
) -> proto::VerifyTokenResult {
    let (valid_for, reason) = problem::verified(standing);
    proto::VerifyTokenResult {
        current: reason.is_empty(),
        reason: reason.to_owned(),
        state: Some(state(election, found)),
        valid_for: millis_i32(valid_for),
    }
}

/// Converts the result of a leader's request: how long the leader may act. Over gRPC, a denial is a reply and not an
/// error.
pub(super) fn verdict(done: Result<Duration, gate::Error>) -> Result<proto::BoolValue, Problem> {
    let (valid_for, reason) = match done {
        Ok(valid_for) => (valid_for, ""),
        Err(gate::Error::Election(election::Error::Denied(denial))) => {
            (Duration::ZERO, reason(denial))
        }
        Err(error) => return Err(error.into()),
    };
    Ok(proto::BoolValue {
        value: reason.is_empty(),
        reason: reason.to_owned(),
        valid_for: millis_i32(valid_for),
    })
}

pub(super) fn wanted(request: &proto::GetPodsRequest) -> Result<Wanted, Invalid> {
    match request.pod_name.as_str() {
        "" => Wanted::deployment(&request.namespace, &request.deployment),
        pod => Wanted::siblings(&request.namespace, "pod_name", pod),
    }
}

pub(super) fn pods(pods: Pods) -> proto::Pods {
    proto::Pods {
        items: pods.pods.into_iter().map(pod).collect(),
    }
}

fn pod(pod: Pod) -> proto::Pod {
    let (name, counts) = pod.replica_set;
    proto::Pod {
        name: pod.name,
        deployment: pod.deployment,
        ip: pod.ip,
        status: Some(proto::PodStatus {
            phase: pod.status.phase.into_owned(),
            reason: pod.status.reason.into_owned(),
            terminating: pod.status.terminating,
            pod_scheduled: pod.status.scheduled,
            pod_initialized: pod.status.initialized,
            pod_ready: pod.status.ready,
            containers_ready: pod.status.containers_ready,
        }),
        replica_set: Some(proto::ReplicaSet {
            name,
            revision: counts.revision,
            available_replicas: counts.available,
            fully_labeled_replicas: counts.fully_labeled,
            ready_replicas: counts.ready,
            replicas: counts.replicas,
            desired_replicas: counts.desired,
            max_replicas: counts.max,
        }),
    }
}

pub(super) fn millis_i32(duration: Duration) -> i32 {
    i32::try_from(millis(duration)).unwrap_or(i32::MAX)
}
