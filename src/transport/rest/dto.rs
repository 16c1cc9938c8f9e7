//! The JSON documents of the REST contract, and how they become the domain's types.

mod pods;

use std::{sync::Arc, time::Duration};

pub(super) use pods::{DeploymentPath, PodLookup, PodPath, Pods};

use axum::http::HeaderMap;
use election_core::{
    board::{Cause, Seen},
    election::{
        self, Campaign, Handover, Outcome, Retry,
        state::{Position, Standing},
    },
    lease::{self, Lease},
    types::{Candidate, ElectionId, Invalid, RequestId, Token, Value, millis},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{null, whole};
use crate::{
    endpoint::PREFER,
    status::Problem,
    telemetry::log::LogFilter,
    transport::{agent, problem, term::term},
};

/// Names an election in a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ElectionPath {
    /// The election's kind: 1 to 256 bytes without control characters and "/".
    #[param(example = "batch", min_length = 1, max_length = 256, required, value_type = String,
        pattern = r"^[^\x00-\x1f\x7f-\x9f/]+$")]
    kind: Option<String>,
    /// The election's name: 1 to 256 bytes without control characters and "/".
    #[param(
        example = "nightly-report",
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\x00-\x1f\x7f-\x9f/]+$"
    )]
    name: String,
}

impl ElectionPath {
    pub(super) fn election(&self) -> Result<ElectionId, Invalid> {
        match self.kind.as_deref() {
            None => ElectionId::new("", &self.name),
            Some("") => Err(Invalid(
                "`kind` is empty: give 1 to 256 bytes, or leave the segment out".to_owned(),
            )),
            Some(kind) => ElectionId::new(kind, &self.name),
        }
    }
}

/// Asks to become the leader.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "candidate": "worker-1", "term": 10000, "value": "10.0.0.7:9000", "request_id": "5f1c"
}))]
pub(super) struct CampaignRequest {
    /// The name the caller campaigns under: 1 to 256 bytes without control characters.
    #[schema(
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]+$"
    )]
    pub(super) candidate: String,
    /// How long the leadership lasts unless extended, in ms: at most EA_MAX_TERM.
    #[serde(deserialize_with = "whole::signed")]
    #[schema(minimum = 1000, maximum = 86_400_000)]
    term: i64,
    /// Public data of the leader, such as its address: at most 1024 bytes.
    #[serde(default, deserialize_with = "null::or_default")]
    #[schema(nullable, max_length = 1024)]
    value: String,
    /// Makes a retry safe: a retry with the same id gets the same result and token, and does nothing (409) when the
    /// granted term has ended.
    #[serde(default, deserialize_with = "null::or_default")]
    #[schema(nullable, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    request_id: String,
    /// For how many ms to wait if another candidate leads: at most EA_MAX_WAIT. The reply comes when the caller is
    /// elected, or at the end of the wait.
    #[serde(default, deserialize_with = "null::or_signed")]
    #[schema(nullable, minimum = 0, maximum = 3_600_000)]
    pub(super) wait: i64,
}

impl CampaignRequest {
    pub(super) fn campaign(
        &self,
        election: ElectionId,
        max_term: Duration,
    ) -> Result<Campaign, Invalid> {
        Ok(Campaign {
            election,
            candidate: Candidate::new("candidate", &self.candidate)?,
            term: term(self.term, max_term)?,
            value: Value::new(&self.value)?,
            request_id: RequestId::new(&self.request_id)?,
            wait: None,
        })
    }
}

/// The outcome of a campaign.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "elected": true, "leader": "worker-1", "kind": "batch", "token": 1_795_449_600_000_000_u64,
    "valid_for": 9893, "value": "10.0.0.7:9000"
}))]
pub(super) struct CampaignResult {
    /// Whether the caller is the leader.
    elected: bool,
    /// The leader: the caller when elected.
    leader: String,
    /// The election's kind.
    kind: String,
    /// The caller's fencing token when elected, else the leader's. Below 2^53.
    #[schema(minimum = 1)]
    token: u64,
    /// For how many ms, counted from before the caller sent the request, the caller may act as leader; 0 when not
    /// elected. Never count from when the reply arrived.
    valid_for: u64,
    /// The leader's value.
    value: String,
    /// Given when the caller was elected after a wait: until the first extension, the lease is stored for a short time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    provisional: bool,
}

impl CampaignResult {
    pub(super) fn new(asked: &Campaign, outcome: Outcome) -> Result<Self, Problem> {
        let kind = asked.election.kind().to_owned();
        Ok(match outcome {
            Outcome::Used => return Err(Problem::request_id_used()),
            Outcome::Elected {
                token,
                valid_for,
                provisional,
                ..
            } => Self {
                elected: true,
                leader: asked.candidate.as_str().to_owned(),
                kind,
                token: token.get(),
                valid_for: millis(valid_for),
                value: asked.value.as_str().to_owned(),
                provisional,
            },
            Outcome::NotElected(lease) => Self {
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
}

/// Extends the leader's term.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"leader": "worker-1", "term": 10000, "token": 1_795_449_600_000_000_u64}))]
pub(super) struct ExtendRequest {
    /// The leader's name.
    #[schema(
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]+$"
    )]
    leader: String,
    /// The new term, in ms from now: at most EA_MAX_TERM. Never shortens the term.
    #[serde(deserialize_with = "whole::signed")]
    #[schema(minimum = 1000, maximum = 86_400_000)]
    term: i64,
    /// How often the agent tries again if the lease nodes do not reply.
    #[serde(default, deserialize_with = "null::or_signed")]
    #[schema(nullable, minimum = 0, maximum = 10)]
    retries: i64,
    /// How long the agent waits before each retry, in ms.
    #[serde(default, deserialize_with = "null::or_signed")]
    #[schema(nullable, minimum = 0, maximum = 1000)]
    retry_interval: i64,
    /// The leader's fencing token; when not 0 it must be the current one.
    #[serde(default, deserialize_with = "null::or_unsigned")]
    #[schema(nullable, maximum = 9_007_199_254_740_991_u64)]
    token: u64,
}

impl ExtendRequest {
    pub(super) fn extend(
        &self,
        election: ElectionId,
        max_term: Duration,
    ) -> Result<(lease::Extend, Retry), Invalid> {
        let extend = lease::Extend {
            election,
            leader: Candidate::new("leader", &self.leader)?,
            token: Token::optional(self.token)?,
            term: term(self.term, max_term)?,
        };
        Ok((extend, Retry::new(self.retries, self.retry_interval)?))
    }
}

/// Hands the leadership over.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"leader": "worker-2", "term": 10000, "current_leader": "worker-1"}))]
pub(super) struct HandoverRequest {
    /// The candidate to become the leader.
    #[schema(
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]+$"
    )]
    leader: String,
    /// The new leader's term, in ms: at most EA_MAX_TERM.
    #[serde(deserialize_with = "whole::signed")]
    #[schema(minimum = 1000, maximum = 86_400_000)]
    term: i64,
    /// The leader that hands over; needed unless the election is vacant.
    #[serde(default, deserialize_with = "null::or_default")]
    #[schema(nullable, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    current_leader: String,
    /// The fencing token of current_leader; when not 0 it must be the current one.
    #[serde(default, deserialize_with = "null::or_unsigned")]
    #[schema(nullable, maximum = 9_007_199_254_740_991_u64)]
    token: u64,
}

impl HandoverRequest {
    pub(super) fn handover(
        &self,
        election: ElectionId,
        max_term: Duration,
    ) -> Result<Handover, Invalid> {
        Ok(Handover {
            election,
            leader: Candidate::new("leader", &self.leader)?,
            term: term(self.term, max_term)?,
            current_leader: Candidate::optional("current_leader", &self.current_leader)?,
            token: Token::optional(self.token)?,
        })
    }
}

/// Gives up the leadership.
#[derive(Debug, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
#[schema(example = json!({"leader": "worker-1"}))]
pub(super) struct ResignRequest {
    /// The leader's name.
    #[param(
        required = false,
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]+$"
    )]
    #[schema(
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]+$"
    )]
    leader: String,
    /// The leader's fencing token; when not 0 it must be the current one. Without it, the request applies to the term
    /// that the leader's name holds when the agent reads the election.
    #[serde(default, deserialize_with = "null::or_unsigned")]
    #[param(maximum = 9_007_199_254_740_991_u64)]
    #[schema(nullable, maximum = 9_007_199_254_740_991_u64)]
    token: u64,
}

impl ResignRequest {
    pub(super) fn resign(&self, election: ElectionId) -> Result<lease::Resign, Invalid> {
        Ok(lease::Resign {
            election,
            leader: Candidate::new("leader", &self.leader)?,
            token: Token::optional(self.token)?,
        })
    }
}

/// The request was carried out.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"value": true, "valid_for": 9893}))]
pub(super) struct Done {
    /// Always true: a refusal has an error status.
    value: bool,
    /// For how many ms, counted from before the caller sent the request, the leader may act: the extended one, or the
    /// one that the leadership was handed to. 0 after a resignation.
    valid_for: u64,
}

impl Done {
    pub(super) fn new(valid_for: Duration) -> Self {
        Self {
            value: true,
            valid_for: millis(valid_for),
        }
    }
}

/// A held election and its leader.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "leader": "worker-1", "kind": "batch", "election": "nightly-report",
    "token": 1_795_449_600_000_000_u64, "remaining": 8211, "value": "10.0.0.7:9000",
    "elected_at": 1_795_449_600_000_u64
}))]
pub(super) struct Leader {
    /// The leader's name.
    leader: String,
    /// The election's kind.
    kind: String,
    /// The election's name.
    election: String,
    /// The leader's fencing token. Below 2^53.
    #[schema(minimum = 1)]
    token: u64,
    /// How long the term lasts unless extended, in ms.
    remaining: u64,
    /// The leader's value.
    value: String,
    /// When the token was granted, in ms since the Unix epoch by the granting agent's clock.
    elected_at: u64,
}

impl Leader {
    pub(super) fn new(election: &ElectionId, lease: &Lease) -> Self {
        Self {
            leader: lease.leader.as_str().to_owned(),
            kind: election.kind().to_owned(),
            election: election.name().to_owned(),
            token: lease.token.get(),
            remaining: millis(lease.remaining),
            value: lease.value.as_str().to_owned(),
            elected_at: lease.elected_at,
        }
    }
}

/// The state of an election at an instant between the request and the reply.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "kind": "batch", "election": "nightly-report", "phase": "VACANT", "token": 1_795_449_600_000_000_u64,
    "cause": "PRESENT", "position": "v1795449600000000", "missed": false
}))]
pub(super) struct State {
    /// The election's kind.
    kind: String,
    /// The election's name.
    election: String,
    /// HELD or VACANT.
    phase: &'static str,
    /// The leader, when HELD.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    leader: Option<Leader>,
    /// HELD: the leader's fencing token. VACANT: the highest token that the lease nodes remember: no grant that counted
    /// had a larger one. 0 when they remember none.
    token: u64,
    /// Why the state is reported. PRESENT: the state at the time of the request. Of changes: CAMPAIGN, RESIGN,
    /// HANDOVER, EXPIRY (the leader's term ended), ROLLED_BACK (an agent rolled back a grant that a majority of the
    /// lease nodes had carried out too late: the state is an earlier one again).
    cause: &'static str,
    /// Identifies the leadership or the vacancy: opaque, and only to be compared with other positions of this election.
    /// It stays the same while the leader extends its term.
    position: String,
    /// Whether others may have led between the previously reported state and this one.
    missed: bool,
}

impl State {
    /// Creates the requested state.
    pub(super) fn new(election: &ElectionId, state: &lease::State) -> Self {
        Self::with_cause(election, state, Cause::Present, false)
    }

    pub(super) fn with_cause(
        election: &ElectionId,
        state: &lease::State,
        cause: Cause,
        missed: bool,
    ) -> Self {
        let (phase, token) = match state {
            lease::State::Held(lease) => ("HELD", Some(lease.token)),
            lease::State::Vacant(mark) => ("VACANT", *mark),
        };
        Self {
            kind: election.kind().to_owned(),
            election: election.name().to_owned(),
            phase,
            leader: state.lease().map(|lease| Leader::new(election, lease)),
            token: token.map_or(0, Token::get),
            cause: cause.name(),
            position: Position::of(state).to_string(),
            missed,
        }
    }
}

/// Chooses the elections to observe.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// The kind; "default" if it is left out.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f/]*$")]
    pub(super) kind: String,
    /// Only elections of the kind whose names begin with this.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f/]*$")]
    pub(super) prefix: String,
    /// All elections of all kinds that the caller may list; without kind and prefix.
    #[serde(default)]
    pub(super) all_kinds: bool,
}

/// The data of the event `certainty`: whether the states sent last are known to be the present ones.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"certain": false, "unconfirmed_for": 812, "reason": "no quorum of lease nodes"}))]
pub(super) struct Certainty {
    /// Whether they are.
    pub(super) certain: bool,
    /// For how many ms the lease nodes have not confirmed them; 0 when certain.
    pub(super) unconfirmed_for: u64,
    /// Why, for people; empty when certain.
    pub(super) reason: String,
}

/// The data of the event `goodbye`: the stream ends soon.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"reason": "AGE", "reconnect_after": 217}))]
pub(super) struct Goodbye {
    /// AGE: the connection is to end. SHUTDOWN: the agent ends. SLOW: the caller has not read for 30 s.
    /// UNAUTHENTICATED: the caller's credential or rights are no longer good.
    pub(super) reason: &'static str,
    /// After how many ms to open another stream.
    pub(super) reconnect_after: u32,
}

/// For how long a read waits for a change.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// How long to wait for another position than the known ones, such as 30s or 500ms: at most EA_MAX_WAIT.
    #[param(example = "30s", pattern = "^(0|[0-9]{1,7}(ms|s|m))$")]
    wait: Option<String>,
    /// The position that the caller knows, as an ETag without quotes.
    pub(super) after: Option<String>,
}

impl WaitQuery {
    /// Returns the wait in ms. Shortens a preferred wait to the longest one; a longer `wait` parameter is refused
    /// later.
    pub(super) fn wait(&self, headers: &HeaderMap, longest: Duration) -> Result<i64, Invalid> {
        let wait = match &self.wait {
            Some(wait) => humantime::parse_duration(wait).map_err(|_| {
                Invalid(format!(
                    "`wait` is {wait:?}: give a time such as 30s or 500ms"
                ))
            })?,
            None => preferred(headers).unwrap_or_default().min(longest),
        };
        Ok(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
    }
}

/// Returns the wait in a `Prefer` header. Ignores preferences that it does not understand.
fn preferred(headers: &HeaderMap) -> Option<Duration> {
    let given = headers.get_all(PREFER).iter();
    let preferences = given.filter_map(|value| value.to_str().ok());
    let mut preferences = preferences.flat_map(|value| value.split([',', ';']));
    preferences.find_map(|preference| {
        let (name, seconds) = preference.split_once('=')?;
        let is_wait = name.trim().eq_ignore_ascii_case("wait");
        let seconds = seconds.trim().trim_matches('"').parse().ok();
        seconds.filter(|_| is_wait).map(Duration::from_secs)
    })
}

/// Names a token of an election in a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TokenPath {
    /// The election's kind: 1 to 256 bytes without control characters and "/".
    #[param(
        example = "batch",
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\x00-\x1f\x7f-\x9f/]+$"
    )]
    kind: String,
    /// The election's name: 1 to 256 bytes without control characters and "/".
    #[param(
        example = "nightly-report",
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\x00-\x1f\x7f-\x9f/]+$"
    )]
    name: String,
    /// The token in question.
    #[param(minimum = 1, maximum = 9_007_199_254_740_991_u64)]
    token: u64,
}

impl TokenPath {
    pub(super) fn token(self) -> Result<(ElectionId, Token), Invalid> {
        let election = ElectionPath {
            kind: Some(self.kind),
            name: self.name,
        };
        Ok((election.election()?, Token::required(self.token)?))
    }
}

/// Whether a token is that of the leader.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "current": false, "reason": "NO_TERM", "state": {
        "kind": "batch", "election": "nightly-report", "phase": "VACANT", "token": 1_795_449_600_000_000_u64,
        "cause": "PRESENT", "position": "v1795449600000000", "missed": false
    }, "valid_for": 0
}))]
pub(super) struct Verified {
    /// Whether the election is held with this token.
    current: bool,
    /// Why current is false: NO_TERM (the election is vacant, and the token is at most the highest that the lease nodes
    /// remember), STALE_TOKEN (the election is held with a larger token), NOT_GRANTED (the token is larger than every
    /// one that the lease nodes know: it was not granted, or they have forgotten it after EA_TOKEN_RETENTION). Empty
    /// when current is true.
    reason: &'static str,
    /// The state that the result is based on.
    state: State,
    /// For how many ms, counted from before the caller sent the request, no other candidate is elected unless the
    /// leader resigns or hands over; 0 when current is false.
    valid_for: u64,
}

impl Verified {
    pub(super) fn new(election: &ElectionId, standing: Standing, state: &lease::State) -> Self {
        let (valid_for, reason) = problem::verified(standing);
        Self {
            current: reason.is_empty(),
            reason,
            state: State::new(election, state),
            valid_for: millis(valid_for),
        }
    }
}

/// Asks for a page of leaders.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// The kind whose elections are listed; "default" when left out. Must be left out with all_kinds.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f/]*$")]
    kind: String,
    /// How many leaders a page holds; 0 or left out means 100.
    #[serde(default)]
    #[param(minimum = 0, maximum = 1000)]
    page_size: i64,
    /// next_page_token of the page before; left out for the first page. Belongs to the listing that gave it: of this
    /// kind, or of all kinds.
    #[serde(default)]
    page_token: String,
    /// Lists the elections of all kinds. With policies, those of kinds whose leaders the caller may list.
    #[serde(default)]
    all_kinds: bool,
}

impl ListQuery {
    pub(super) fn list(&self) -> Result<election::List, Invalid> {
        election::List::new(&self.kind, self.all_kinds, self.page_size, &self.page_token)
    }
}

/// Asks for a page of kinds.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct KindsQuery {
    /// How many kinds a page holds; 0 or left out means 100.
    #[serde(default)]
    #[param(minimum = 0, maximum = 1000)]
    page_size: i64,
    /// next_page_token of the page before; left out for the first page.
    #[serde(default)]
    page_token: String,
}

impl KindsQuery {
    pub(super) fn list(&self) -> Result<election::ListKinds, Invalid> {
        election::ListKinds::new(self.page_size, &self.page_token)
    }
}

/// A page of kinds that have elections.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"kinds": ["batch", "default"], "next_page_token": "", "incomplete": false}))]
pub(super) struct Kinds {
    /// At most page_size kinds; a page may be shorter than asked even if more follow.
    kinds: Vec<String>,
    /// Where the next page starts; empty on the last page.
    next_page_token: String,
    /// Some partitions did not reply: kinds may be missing. The same request lists them when those partitions reply
    /// again.
    incomplete: bool,
}

impl From<election::Kinds> for Kinds {
    fn from(page: election::Kinds) -> Self {
        let kinds = page.kinds.iter();
        Self {
            kinds: kinds.map(|kind| kind.as_str().to_owned()).collect(),
            next_page_token: page.next_page_token,
            incomplete: page.incomplete,
        }
    }
}

/// A page of held elections.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Leaders {
    /// At most page_size leaders; a page may be shorter than asked even if more follow.
    leaders: Vec<Leader>,
    /// Where the next page starts; empty on the last page.
    next_page_token: String,
    /// Some partitions did not reply: elections in them may be missing. The same request lists them when those
    /// partitions reply again.
    incomplete: bool,
}

impl From<election::Leaders> for Leaders {
    fn from(page: election::Leaders) -> Self {
        Self {
            leaders: page
                .leaders
                .iter()
                .map(|(election, lease)| Leader::new(election, lease))
                .collect(),
            next_page_token: page.next_page_token,
            incomplete: page.incomplete,
        }
    }
}

/// The log level.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"level": "election_agent=debug,h2=warn"}))]
pub(super) struct LogLevel {
    /// As EA_LOG_LEVEL: a level, or directives for modules.
    #[schema(
        min_length = 1,
        max_length = 1024,
        pattern = r"^(debug|info|warning|error|panic|fatal|[a-z0-9_]+(::[a-z0-9_]+)*=(off|error|warn|info|debug|trace)(,[a-z0-9_]+(::[a-z0-9_]+)*=(off|error|warn|info|debug|trace))*)$"
    )]
    level: String,
}

impl LogLevel {
    pub(super) fn filter(&self) -> Result<LogFilter, Invalid> {
        let wrong = |what: String| Invalid(format!("`level` is not valid: {what}"));
        match self.level.len() {
            0..=1024 => self.level.parse().map_err(wrong),
            _ => Err(wrong("give at most 1024 bytes".to_owned())),
        }
    }
}

/// Whether the agent is ready.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "ready": true, "needed": 1, "nodes": [{"name": "127.0.0.1:6379", "up": true, "guard": 0}],
    "pods": {"namespaces": [{"namespace": "", "mode": "watch", "age": 4211, "pods": 812}]}
}))]
pub(super) struct Readiness {
    /// Whether a quorum of lease nodes replies and the agent is not shutting down.
    pub(super) ready: bool,
    /// How many lease nodes must reply.
    pub(super) needed: usize,
    /// The lease nodes.
    pub(super) nodes: Vec<Node>,
    /// The lookup of pods; readiness does not depend on it.
    pub(super) pods: PodLookup,
}

/// The problem document of an agent that is not ready.
#[derive(ToSchema)]
#[schema(example = json!({
    "type": "about:blank", "title": "Service Unavailable", "status": 503,
    "detail": "0 of 1 lease nodes answer, 1 are needed: 127.0.0.1:6379: Connection refused",
    "message": "0 of 1 lease nodes answer, 1 are needed: 127.0.0.1:6379: Connection refused",
    "code": "Unavailable", "needed": 1,
    "nodes": [{"name": "127.0.0.1:6379", "up": false, "error": "127.0.0.1:6379: Connection refused"}],
    "pods": {"off": "this agent does not look up pods: EA_KUBE_ENABLE=false", "namespaces": []}
}))]
#[expect(
    dead_code,
    reason = "only its schema is used; the readyz handler adds its members to a Problem"
)]
pub(super) struct NotReady {
    #[schema(inline)]
    #[serde(flatten)]
    problem: ProblemDocument,
    /// How many lease nodes must reply.
    needed: usize,
    /// The lease nodes.
    nodes: Vec<Node>,
    /// The lookup of pods.
    pods: PodLookup,
}

/// An [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem document.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(
    dead_code,
    reason = "only its schema is used; crate::status::Problem writes it"
)]
pub(super) struct ProblemDocument {
    /// Always about:blank: the title says what the status means.
    r#type: String,
    /// The HTTP status in words.
    title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong and what to change.
    detail: String,
    /// The same as detail.
    message: String,
    /// The row of the error table.
    code: String,
    /// Why a leader's request was refused: NO_TERM, HELD_BY_OTHER or STALE_TOKEN.
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// A lease node as the agent sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Node {
    /// The node's address.
    name: String,
    /// Whether it answers.
    up: bool,
    /// Why it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What does not work, or soon will not, although the node is usable: the part of a cluster that does not answer, a
    /// memory of which more than 90 % is used or that was full in the last minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<String>,
    /// For how many ms it is still in quarantine, without new grants; left out before the first grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    guard: Option<u64>,
}

impl From<&lease::quorum::NodeStatus> for Node {
    fn from(status: &lease::quorum::NodeStatus) -> Self {
        let probe = status.probe.as_ref().ok();
        Self {
            name: status.name.clone(),
            up: status.probe.is_ok(),
            error: status.probe.as_ref().err().map(ToString::to_string),
            degraded: status.degraded(),
            guard: probe.and_then(|probe| probe.guard).map(millis),
        }
    }
}

/// The changes of an election that the agent remembers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Changes {
    /// The newest first, at most 64.
    changes: Vec<Change>,
}

/// A change of an election.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Change {
    /// The new state of the election. `remaining` is 0: a change says who led, not for how long.
    state: State,
    /// When the agent learnt of the change, in ms since the Unix epoch by the agent's clock.
    at: u64,
}

impl From<Vec<Arc<Seen>>> for Changes {
    fn from(changes: Vec<Arc<Seen>>) -> Self {
        let changes = changes.iter().map(|change| Change {
            state: State::with_cause(
                &change.election,
                &agent::without_time(change),
                change.cause,
                change.missed,
            ),
            at: agent::learnt(change),
        });
        Self {
            changes: changes.collect(),
        }
    }
}

/// Asks for a page of the campaigns that wait.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitersQuery {
    /// The kind of the elections; "default" when left out. Must be left out with all_kinds.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f/]*$")]
    kind: String,
    /// Only waiters for this election of the kind.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f/]*$")]
    election: String,
    /// Waiters for elections of all kinds. With policies, of kinds whose leaders the caller may list.
    #[serde(default)]
    all_kinds: bool,
    /// How many waiters a page holds; 0 or left out means 100.
    #[serde(default)]
    #[param(minimum = 0, maximum = 1000)]
    page_size: i64,
    /// next_page_token of the page before; left out for the first page.
    #[serde(default)]
    page_token: String,
}

impl WaitersQuery {
    pub(super) fn waiters(&self) -> Result<agent::Waiters, Invalid> {
        agent::Waiters::new(
            &self.kind,
            &self.election,
            self.all_kinds,
            self.page_size,
            &self.page_token,
        )
    }
}

/// A page of the campaigns that wait through this agent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "waiters": [{"kind": "batch", "election": "nightly-report", "candidate": "worker-2", "waiting_for": 8211}],
    "next_page_token": ""
}))]
pub(super) struct Waiters {
    /// By election, and in the order in which they are served.
    waiters: Vec<Waiter>,
    /// Where the next page starts; empty on the last page.
    next_page_token: String,
}

/// A campaign that waits.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Waiter {
    /// The election's kind.
    kind: String,
    /// The election's name.
    election: String,
    /// The candidate's name.
    candidate: String,
    /// For how many ms it has waited.
    waiting_for: u64,
}

impl From<agent::WaitersPage> for Waiters {
    fn from(page: agent::WaitersPage) -> Self {
        let waiters = page.waiters.iter().map(|waiting| Waiter {
            kind: waiting.election.kind().to_owned(),
            election: waiting.election.name().to_owned(),
            candidate: waiting.candidate.as_str().to_owned(),
            waiting_for: millis(waiting.since.elapsed()),
        });
        Self {
            waiters: waiters.collect(),
            next_page_token: page.next_page_token,
        }
    }
}

/// Asks for the caller's permissions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PermissionsQuery {
    /// The election's name; left out: lists the permissions on the agent itself.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f/]*$")]
    election: String,
    /// The election's kind; "default" when left out.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f/]*$")]
    kind: String,
    /// The candidate on whose behalf the caller would act, such as the leader that is to resign; left out: the caller's
    /// own name.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    candidate: String,
}

impl PermissionsQuery {
    pub(super) fn acting(&self) -> Result<agent::Acting, Invalid> {
        agent::Acting::new(&self.kind, &self.election, &self.candidate)
    }
}
