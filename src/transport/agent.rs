//! What the agent reports on itself: its state and limits, its lease nodes, its settings, and what a caller may do.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use election_core::{
    board::{Scope, Seen, Waiting},
    election,
    lease::{
        Lease, State,
        quorum::{NodeStatus, Quorum},
    },
    types::{Candidate, ElectionId, Invalid, Kind, millis},
};
use serde::Serialize;
use tokio::{sync::watch, time::Instant};
use utoipa::ToSchema;

use crate::{
    auth::{
        Identity,
        gate::{self, Gate},
    },
    readiness::Report,
};

/// What the agent knows of itself from its start.
pub struct About {
    /// The name of the host or pod.
    pub name: String,
    /// When it started.
    pub started: Instant,
    /// The same in ms since the Unix epoch.
    pub started_at: u64,
    /// The fingerprint of its configuration.
    pub configuration: String,
    /// Its settings, secrets hidden.
    pub settings: Vec<Setting>,
    /// Whether callers must authenticate.
    pub authentication: bool,
    /// Its limits.
    pub limits: Vec<Limited>,
}

/// A number that the agent limits.
pub struct Limited {
    /// The setting.
    pub setting: &'static str,
    /// What is counted.
    pub counts: &'static str,
    /// How many there may be.
    pub limit: usize,
    /// How many there are.
    pub used: Box<dyn Fn() -> usize + Send + Sync>,
}

/// Reports on the agent. Cheap to clone.
#[derive(Clone)]
pub struct Agent {
    gate: Gate,
    quorum: Quorum,
    report: watch::Receiver<Report>,
    about: Arc<About>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

impl Agent {
    /// The agent behind this gate.
    #[must_use]
    pub fn new(
        gate: Gate,
        quorum: Quorum,
        report: watch::Receiver<Report>,
        about: Arc<About>,
    ) -> Self {
        Self {
            gate,
            quorum,
            report,
            about,
        }
    }

    /// The agent's name.
    pub(super) fn name(&self) -> &str {
        &self.about.name
    }

    /// The agent's state.
    ///
    /// # Errors
    /// The caller may not read it.
    pub(super) fn state(&self, caller: &Identity) -> Result<AgentState, gate::Error> {
        self.gate.authorize_agent(caller)?;
        let about = &self.about;
        let reason = self.report.borrow().why_not();
        let limits = about.limits.iter().map(|limited| Limit {
            setting: limited.setting,
            counts: limited.counts,
            used: (limited.used)(),
            limit: limited.limit,
        });
        Ok(AgentState {
            name: about.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("ELECTION_AGENT_COMMIT"),
            started_at: about.started_at,
            uptime: millis(about.started.elapsed()),
            configuration: about.configuration.clone(),
            ready: reason.is_none(),
            reason: reason.unwrap_or_default(),
            pods: self.gate.looks_up_pods().is_ok(),
            authentication: about.authentication,
            caller: caller.name().to_owned(),
            max_term: millis(self.gate.max_term()),
            limits: limits.collect(),
        })
    }

    /// The lease nodes at the last health check.
    ///
    /// # Errors
    /// The caller may not read it.
    pub(super) fn nodes(&self, caller: &Identity) -> Result<Nodes, gate::Error> {
        self.gate.authorize_agent(caller)?;
        let report = self.report.borrow();
        let spare = self.quorum.spare(&report.nodes);
        Ok(Nodes {
            nodes: report.nodes.iter().map(Node::from).collect(),
            needed: report.needed,
            voting: report.nodes.iter().filter(|it| it.is_voting()).count(),
            quorum: spare.is_some(),
            survivable: spare.unwrap_or_default(),
            checked: millis(report.checked.elapsed()),
        })
    }

    /// The settings in force.
    ///
    /// # Errors
    /// The caller may not administer the agent.
    pub(super) fn configuration(&self, caller: &Identity) -> Result<Configuration, gate::Error> {
        self.gate.authorize_admin(caller)?;
        Ok(Configuration {
            settings: self.about.settings.clone(),
        })
    }

    /// Returns the actions that policies permit the caller.
    pub(super) fn permissions(&self, caller: &Identity, acting: &Acting) -> Permissions {
        let (election, candidate) = (acting.election.as_ref(), acting.candidate.as_ref());
        Permissions {
            actions: self.gate.permitted(caller, election, candidate),
        }
    }
}

/// What a caller would act on, and on whose behalf.
pub(super) struct Acting {
    /// [`None`]: the agent.
    election: Option<ElectionId>,
    /// [`None`]: the caller's own candidate.
    candidate: Option<Candidate>,
}

impl Acting {
    /// Validates the names; an empty name counts as absent.
    ///
    /// # Errors
    /// A name out of range, or a kind or a candidate without an election.
    pub(super) fn new(kind: &str, election: &str, candidate: &str) -> Result<Self, Invalid> {
        if election.is_empty() && !(kind.is_empty() && candidate.is_empty()) {
            return Err(Invalid(
                "`election` is empty, but a kind or a candidate is given: name the election, too"
                    .to_owned(),
            ));
        }
        let named = |election| ElectionId::new(kind, election);
        let election = Some(election).filter(|election| !election.is_empty());
        Ok(Self {
            election: election.map(named).transpose()?,
            candidate: Candidate::optional("candidate", candidate)?,
        })
    }
}

/// Asks for a page of the campaigns that wait.
pub(super) struct Waiters {
    scope: Scope,
    skipped: usize,
    most: usize,
}

/// A page of the campaigns that wait.
pub(super) struct WaitersPage {
    pub(super) waiters: Vec<Waiting>,
    /// Empty on the last page.
    pub(super) next_page_token: String,
}

impl Waiters {
    /// Validates a request for up to `page_size` waiters (0 means 100) of an election, of a kind, or of all kinds.
    ///
    /// # Errors
    /// A name or page size out of range, a kind or an election beside `all_kinds`, or a page token of another listing.
    pub(super) fn new(
        kind: &str,
        election: &str,
        all_kinds: bool,
        page_size: i64,
        page_token: &str,
    ) -> Result<Self, Invalid> {
        let scope = match (all_kinds, election) {
            (true, "") if kind.is_empty() => Scope::All,
            (true, _) => {
                return Err(Invalid(
                    "`kind` or `election` is given beside `all_kinds`: leave one of them out"
                        .to_owned(),
                ));
            }
            (false, "") => Scope::Kind(Kind::new(kind)?, "".into()),
            (false, name) => Scope::One(Arc::new(ElectionId::new(kind, name)?)),
        };
        let skipped = match page_token {
            "" => Some(0),
            token => token.parse().ok(),
        };
        let skipped = skipped.ok_or_else(|| {
            Invalid(
                "`page_token` is not one that a page of waiters gave: begin without one".to_owned(),
            )
        })?;
        let most = election::page_limit(page_size)?;
        Ok(Self {
            scope,
            skipped,
            most,
        })
    }

    /// The page.
    ///
    /// # Errors
    /// The caller may not read it.
    pub(super) fn page(&self, gate: &Gate, caller: &Identity) -> Result<WaitersPage, gate::Error> {
        let (waiters, more) = gate.waiters(caller, &self.scope, self.skipped, self.most)?;
        let next = more.then(|| (self.skipped + self.most).to_string());
        Ok(WaitersPage {
            waiters,
            next_page_token: next.unwrap_or_default(),
        })
    }
}

/// When the agent learnt of a change, in ms since the Unix epoch.
pub(super) fn learnt(change: &Seen) -> u64 {
    unix_ms().saturating_sub(millis(change.at.elapsed()))
}

/// Returns a change's state without the remaining time: a change says who led, not for how long.
pub(super) fn without_time(change: &Seen) -> State {
    match &change.state {
        State::Held(lease) => State::Held(Lease {
            remaining: Duration::ZERO,
            ..lease.clone()
        }),
        vacant @ State::Vacant(_) => vacant.clone(),
    }
}

/// Now, in ms since the Unix epoch.
#[must_use]
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, millis)
}

/// An agent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "name": "election-agent-7d9c4b-x2x8k", "version": "0.1.0", "commit": "1f0c2a9b7e55",
    "started_at": 1_795_449_600_000_u64, "uptime": 86_400_000, "configuration": "bad5ad9feaf9a145",
    "ready": true, "reason": "", "pods": false, "authentication": false, "caller": "anonymous",
    "max_term": 60_000,
    "limits": [{"setting": "EA_MAX_STREAMS", "counts": "streams and requests that wait", "used": 12, "limit": 20_000}]
}))]
pub(super) struct AgentState {
    /// The name of the host or pod that the agent runs on.
    pub(super) name: String,
    /// The agent's version.
    pub(super) version: &'static str,
    /// The commit that it was built from; "unknown" if the build did not know it.
    pub(super) commit: &'static str,
    /// When it started, in ms since the Unix epoch by its own clock.
    pub(super) started_at: u64,
    /// For how many ms it has run.
    pub(super) uptime: u64,
    /// Distinguishes configurations: equal on agents with the same settings.
    pub(super) configuration: String,
    /// Whether it takes requests.
    pub(super) ready: bool,
    /// Why it does not; empty if it does.
    pub(super) reason: String,
    /// Whether it looks up Kubernetes pods.
    pub(super) pods: bool,
    /// Whether callers must authenticate.
    pub(super) authentication: bool,
    /// The caller's name; "anonymous" without a credential.
    pub(super) caller: String,
    /// The longest term that it grants, in ms.
    pub(super) max_term: u64,
    /// Its limits, and how near it is to them.
    pub(super) limits: Vec<Limit>,
}

/// A limit of the agent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Limit {
    /// The setting, such as EA_MAX_STREAMS.
    pub(super) setting: &'static str,
    /// What it counts, for people.
    pub(super) counts: &'static str,
    /// How many there are now.
    pub(super) used: usize,
    /// How many there may be.
    pub(super) limit: usize,
}

/// The lease nodes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LeaseNodes, example = json!({
    "nodes": [{"name": "10.0.0.7:6379", "role": "redis", "up": true, "voting": true, "latency": 412, "quarantine": 0,
        "unfit": "", "degraded": "", "memory_used": 1_048_576, "memory_limit": 0}],
    "needed": 1, "voting": 1, "quorum": true, "survivable": 0, "checked": 311
}))]
pub(super) struct Nodes {
    /// All lease nodes, in the order of the settings.
    pub(super) nodes: Vec<Node>,
    /// How many nodes must reply; while agents move to another list, how many of the old one.
    pub(super) needed: usize,
    /// How many nodes could vote at the last health check.
    pub(super) voting: usize,
    /// Whether they suffice to decide elections.
    pub(super) quorum: bool,
    /// How many more nodes may fail now before elections are no longer decided.
    pub(super) survivable: usize,
    /// How many ms ago the last health check ended.
    pub(super) checked: u64,
}

/// A lease node.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LeaseNode)]
pub(super) struct Node {
    /// The node's name, as in metrics and logs.
    pub(super) name: String,
    /// What it is: "redis", "sentinel", "cluster" or "embedded".
    pub(super) role: &'static str,
    /// Whether it answered.
    pub(super) up: bool,
    /// Whether it may vote: it answered, is fit, and no quarantine keeps it from granting.
    pub(super) voting: bool,
    /// How long it took to answer, in microseconds; 0 if it did not.
    pub(super) latency: u64,
    /// For how many ms it still grants nothing because it may have forgotten leaders; 0 if it grants.
    pub(super) quarantine: u64,
    /// Why it does not answer or must not vote; empty if it may.
    pub(super) unfit: String,
    /// What does not work, or soon will not, although it votes; empty if all does.
    pub(super) degraded: String,
    /// The memory that its servers use, in bytes, of the fullest one; 0 if not known.
    pub(super) memory_used: u64,
    /// The memory that they may use, in bytes; 0 if they have no limit or it is not known.
    pub(super) memory_limit: u64,
}

impl From<&NodeStatus> for Node {
    fn from(status: &NodeStatus) -> Self {
        let probe = status.probe.as_ref();
        let latency = u64::try_from(status.latency.as_micros()).unwrap_or(u64::MAX);
        let memory = probe.ok().and_then(|probe| probe.memory.as_ref());
        Self {
            name: status.name.clone(),
            role: status.role,
            up: probe.is_ok(),
            voting: status.is_voting(),
            latency: if probe.is_ok() { latency } else { 0 },
            quarantine: probe.map_or(0, |probe| probe.guard.map_or(0, millis)),
            unfit: probe.err().map(ToString::to_string).unwrap_or_default(),
            degraded: status.degraded().unwrap_or_default(),
            memory_used: memory.map_or(0, |memory| memory.used),
            memory_limit: memory.map_or(0, |memory| memory.max),
        }
    }
}

/// The settings in force.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"settings": [
    {"variable": "EA_MAX_TERM", "value": "60s", "source": "default", "meaning": "the longest term that may be asked for"}
]}))]
pub(super) struct Configuration {
    /// All settings.
    pub(super) settings: Vec<Setting>,
}

/// A setting.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Setting {
    /// The variable, such as EA_MAX_TERM.
    pub variable: &'static str,
    /// The value in force; of a secret, "***".
    pub value: String,
    /// Where it is from: "default", "file", "environment" or "flag".
    pub source: String,
    /// What it means.
    pub meaning: &'static str,
}

/// What policies permit.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"actions": ["campaign", "extend", "resign", "read", "observe"]}))]
pub(super) struct Permissions {
    /// On an election: campaign, extend, resign, handover, read, verify, observe. On the agent: observe, read,
    /// listKinds, admin.
    pub(super) actions: Vec<&'static str>,
}
