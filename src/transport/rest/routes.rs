//! The handlers of the HTTP paths.

use std::time::Duration;

use axum::{
    Json as JsonReply,
    extract::{FromRequest as _, FromRequestParts as _, Request, State},
    http::{Extensions, HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use election_core::{election::state::Position, lease, types::Invalid};
use tokio::sync::watch;
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    dto::{
        self, CampaignRequest, CampaignResult, Changes, DeploymentPath, Done, ElectionPath,
        ExtendRequest, HandoverRequest, Kinds, KindsQuery, Leader, Leaders, ListQuery, LogLevel,
        NotReady, PermissionsQuery, PodPath, Pods, Readiness, ResignRequest, TokenPath, Verified,
        WaitQuery, Waiters, WaitersQuery,
    },
    events::{__path_all_events, __path_events, all_events, events},
    extract::{Json, Named, Queried, Search, Target},
};
use crate::{
    auth::{Identity, gate::Gate},
    endpoint::{
        AGENT, CHANGES, CONFIGURATION, ELECTION, ELECTION_OF_DEFAULT_KIND, ELECTIONS, KINDS, LIVEZ,
        LOG, METRICS, NODES, PERMISSIONS, PODS, READYZ, SIBLINGS, STATE, TOKEN, WAITERS,
    },
    kube::{Lookup, Wanted},
    readiness::Report,
    status::{Code, Problem},
    telemetry::{
        self,
        metrics::{Format, Metrics},
    },
    transport::{
        CACHE_AGE,
        agent::{Agent, AgentState, Configuration, Nodes, Permissions},
        cache_age, observe,
        problem::vacant,
        request::Deadline,
        stay,
    },
};

/// The body of a successful liveness probe.
pub(crate) const ALIVE: &str = "ok\n";

/// The paths of the API, with their description in the OpenAPI document.
pub(super) fn api() -> OpenApiRouter<Gate> {
    let (schemas, paths, election) = routes!(leader, campaign, extend, handover, resign);
    OpenApiRouter::new()
        .route(ELECTION_OF_DEFAULT_KIND, election.clone())
        .routes((schemas, paths, election))
        .routes(routes!(state))
        .routes(routes!(verify))
        .routes(routes!(events))
        .routes(routes!(all_events))
        .routes(routes!(leaders))
        .routes(routes!(kinds))
        .routes(routes!(changes))
        .routes(routes!(waiters))
        .routes(routes!(log))
        .routes(routes!(pods))
        .routes(routes!(siblings))
}

/// The paths that report on the agent.
pub(super) fn about() -> OpenApiRouter<Agent> {
    OpenApiRouter::new()
        .routes(routes!(agent))
        .routes(routes!(nodes))
        .routes(routes!(configuration))
        .routes(routes!(permissions))
}

pub(super) fn probes() -> OpenApiRouter<(watch::Receiver<Report>, Lookup)> {
    OpenApiRouter::new()
        .routes(routes!(livez))
        .routes(routes!(readyz))
}

pub(super) fn measures() -> OpenApiRouter<Metrics> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// The OpenAPI description of all handlers.
pub(super) fn described() -> OpenApi {
    let described = api().into_openapi();
    let described = described.merge_from(about().into_openapi());
    let described = described.merge_from(probes().into_openapi());
    described.merge_from(measures().into_openapi())
}

/// Returns the leader of the election. Both replies, held and vacant (404), have the state's position as their ETag.
///
/// With `wait` and `after`, or `Prefer: wait=…` and `If-None-Match`, the reply comes when the state is at another
/// position, or at the end of the wait (304).
#[utoipa::path(
    get, path = ELECTION, tag = "elections", params(ElectionPath, WaitQuery,
        ("if-none-match" = Option<String>, Header, description = "Positions that the caller knows, as ETags"),
        ("prefer" = Option<String>, Header, description = "wait=S: for how many seconds to wait for a position that the caller does not know; at most EA_MAX_WAIT")),
    responses((status = 200, description = "The election is held", body = Leader, headers(("etag" = String, description = "The state's position, in quotes"))),
        (status = 304, description = "Its state is at the position that the caller knows", headers(("etag" = String, description = "The state's position, in quotes"))),
        (status = 404))
)]
pub(super) async fn leader(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Queried(election): Queried,
    Search(query): Search<WaitQuery>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<Response, Problem> {
    let known = KnownPositions::new(&headers, query.after.as_deref());
    let wait = query.wait(&headers, gate.max_wait())?;
    let patience = stay::begin(wait, gate.max_wait(), &extensions)?;
    let mut state = gate.state(&caller, &election, deadline.instant()).await?;
    if let Some(patience) = patience
        && known.has(Position::of(&state))
    {
        state = observe::change(&gate, &caller, &election, state, patience).await?;
    }
    Ok(at(&known, &state, || match state.lease() {
        Some(lease) => JsonReply(Leader::new(&election, lease)).into_response(),
        None => vacant().into_response(),
    }))
}

/// Returns the state of the election, held or vacant: GetElection's twin.
#[utoipa::path(
    get, path = STATE, tag = "elections", params(ElectionPath, ("if-none-match" = Option<String>, Header, description = "Positions that the caller knows, as ETags")),
    responses((status = 200, description = "The state", body = dto::State, headers(("etag" = String, description = "The state's position, in quotes"))),
        (status = 304, description = "It is at the position that If-None-Match names", headers(("etag" = String, description = "The state's position, in quotes"))))
)]
pub(super) async fn state(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Target(election): Target,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let state = gate.state(&caller, &election, deadline.instant()).await?;
    Ok(at(&KnownPositions::new(&headers, None), &state, || {
        JsonReply(dto::State::new(&election, &state)).into_response()
    }))
}

/// Adds the state's position to the reply as its entity tag. Responds with 304 to a caller that knows this position,
/// also for a vacant election: the standard ignores `If-None-Match` for a missing resource, but here the vacancy is the
/// content.
fn at(
    known: &KnownPositions<'_>,
    state: &lease::State,
    answer: impl FnOnce() -> Response,
) -> Response {
    let position = Position::of(state);
    let answer = match known.has(position) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => answer(),
    };
    ([(header::ETAG, format!("\"{position}\""))], answer).into_response()
}

/// The positions that a caller knows.
struct KnownPositions<'a> {
    headers: &'a HeaderMap,
    after: Option<&'a str>,
}

impl<'a> KnownPositions<'a> {
    /// Creates the positions of `If-None-Match`, and this one.
    fn new(headers: &'a HeaderMap, after: Option<&'a str>) -> Self {
        Self { headers, after }
    }

    fn has(&self, position: Position) -> bool {
        let position = position.to_string();
        let given = self.headers.get_all(header::IF_NONE_MATCH).iter();
        let tags = given.filter_map(|tags| tags.to_str().ok());
        let mut tags = tags.flat_map(|tags| tags.split(',')).map(str::trim);
        self.after == Some(&position)
            || tags.any(|tag| {
                // Proxies that compress make tags weak.
                let tag = tag.strip_prefix("W/").unwrap_or(tag);
                let tag = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
                tag == Some(&position)
            })
    }
}

/// Asks to become the leader; with `wait`, waits for the election to become vacant.
#[utoipa::path(
    post, path = ELECTION, tag = "elections", params(ElectionPath),
    request_body = CampaignRequest,
    responses((status = 200, description = "The caller leads, or another does", body = CampaignResult),
        (status = 409))
)]
pub(super) async fn campaign(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    extensions: Extensions,
    Target(election): Target,
    Json(request): Json<CampaignRequest>,
) -> Result<JsonReply<CampaignResult>, Problem> {
    let asked = request.campaign(election, gate.max_term())?;
    let wait = stay::begin(request.wait, gate.max_wait(), &extensions)?;
    // A waiting campaign needs nothing else of its request.
    drop((request, extensions));
    let outcome = gate
        .campaign(&caller, &asked, wait.as_ref(), deadline.instant())
        .await?;
    Ok(JsonReply(CampaignResult::new(&asked, outcome)?))
}

/// Extends the leader's term, counted from now; never revives one that has lapsed.
#[utoipa::path(
    patch, path = ELECTION, tag = "elections", params(ElectionPath),
    request_body = ExtendRequest,
    responses((status = 200, description = "The term is extended", body = Done),
        (status = 404), (status = 409))
)]
pub(super) async fn extend(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Target(election): Target,
    Json(request): Json<ExtendRequest>,
) -> Result<JsonReply<Done>, Problem> {
    let (extend, retry) = request.extend(election, gate.max_term())?;
    let valid_for = gate
        .extend(&caller, extend, retry, deadline.instant())
        .await?;
    Ok(JsonReply(Done::new(valid_for)))
}

/// Moves the leadership to another candidate in one step, with a new token.
#[utoipa::path(
    put, path = ELECTION, tag = "elections", params(ElectionPath),
    request_body = HandoverRequest,
    responses((status = 200, description = "The new leader leads", body = Done), (status = 404),
        (status = 409))
)]
pub(super) async fn handover(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Target(election): Target,
    Json(request): Json<HandoverRequest>,
) -> Result<JsonReply<Done>, Problem> {
    let handover = request.handover(election, gate.max_term())?;
    let valid_for = gate.handover(&caller, handover, deadline.instant()).await?;
    Ok(JsonReply(Done::new(valid_for)))
}

/// Gives up the leadership. The query or a JSON body names the leader.
#[utoipa::path(
    delete, path = ELECTION, tag = "elections", params(ElectionPath, ResignRequest),
    request_body = ResignRequest,
    responses((status = 200, description = "The election is vacant", body = Done),
        (status = 404), (status = 409))
)]
pub(super) async fn resign(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Queried(election): Queried,
    uri: Uri,
    request: Request,
) -> Result<JsonReply<Done>, Problem> {
    let (mut parts, body) = request.into_parts();
    let query = uri.query().is_some_and(|query| !query.is_empty());
    let in_query = match query {
        true => Some(
            Search::<ResignRequest>::from_request_parts(&mut parts, &())
                .await?
                .0,
        ),
        false => None,
    };
    let request = Request::from_parts(parts, body);
    let in_body = Option::<Json<ResignRequest>>::from_request(request, &()).await?;
    let request = match (in_query, in_body) {
        (Some(request), None) | (None, Some(Json(request))) => request,
        (Some(_), Some(_)) => {
            return Err(Problem::new(
                Code::InvalidArgument,
                "the leader is named twice: give it in the query or in the body, not in both",
            ));
        }
        (None, None) => {
            return Err(Problem::new(
                Code::InvalidArgument,
                "the leader is not named: give {\"leader\": …} as the body or ?leader=… as the query",
            ));
        }
    };
    gate.resign(&caller, request.resign(election)?, deadline.instant())
        .await?;
    Ok(JsonReply(Done::new(Duration::ZERO)))
}

/// Reports whether a token is that of the present leader: advice for programs without storage that compares tokens.
#[utoipa::path(
    get, path = TOKEN, tag = "elections", params(TokenPath),
    responses((status = 200, description = "Whether it is, and why not", body = Verified))
)]
pub(super) async fn verify(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Named(path): Named<TokenPath>,
) -> Result<JsonReply<Verified>, Problem> {
    let (election, token) = path.token()?;
    let (standing, state) = gate
        .verify(&caller, &election, token, deadline.instant())
        .await?;
    Ok(JsonReply(Verified::new(&election, standing, &state)))
}

/// Lists the leaders of a kind's elections, or of all kinds', page by page.
#[utoipa::path(
    get, path = ELECTIONS, tag = "elections", params(ListQuery),
    responses((status = 200, description = "A page of leaders", body = Leaders))
)]
pub(super) async fn leaders(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Search(query): Search<ListQuery>,
) -> Result<JsonReply<Leaders>, Problem> {
    let page = gate
        .leaders(&caller, query.list()?, deadline.instant())
        .await?;
    Ok(JsonReply(page.into()))
}

/// Lists the kinds that have elections, page by page. A kind whose last leader has just left may be among them.
#[utoipa::path(
    get, path = KINDS, tag = "elections", params(KindsQuery),
    responses((status = 200, description = "A page of kinds", body = Kinds))
)]
pub(super) async fn kinds(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Search(query): Search<KindsQuery>,
) -> Result<JsonReply<Kinds>, Problem> {
    let page = gate
        .kinds(&caller, query.list()?, deadline.instant())
        .await?;
    Ok(JsonReply(page.into()))
}

/// Lists the last changes of the election that this agent remembers, the newest first. It remembers changes of
/// elections while a client observes them or waits for them through it; other agents may remember others.
#[utoipa::path(
    get, path = CHANGES, tag = "elections", params(ElectionPath),
    responses((status = 200, description = "The changes", body = Changes))
)]
pub(super) async fn changes(
    State(gate): State<Gate>,
    caller: Identity,
    Target(election): Target,
) -> Result<JsonReply<Changes>, Problem> {
    Ok(JsonReply(gate.changes(&caller, &election)?.into()))
}

/// Lists the campaigns that wait through this agent for elections of a kind, page by page. Those that wait through
/// other agents are not among them.
#[utoipa::path(
    get, path = WAITERS, tag = "elections", params(WaitersQuery),
    responses((status = 200, description = "A page of waiters", body = Waiters))
)]
pub(super) async fn waiters(
    State(gate): State<Gate>,
    caller: Identity,
    Search(query): Search<WaitersQuery>,
) -> Result<JsonReply<Waiters>, Problem> {
    Ok(JsonReply(query.waiters()?.page(&gate, &caller)?.into()))
}

/// Reports which agent this is, when it started, and how near it is to its limits.
#[utoipa::path(
    get, path = AGENT, tag = "agent",
    responses((status = 200, description = "The agent's state", body = AgentState))
)]
pub(super) async fn agent(
    State(agent): State<Agent>,
    caller: Identity,
) -> Result<JsonReply<AgentState>, Problem> {
    Ok(JsonReply(agent.state(&caller)?))
}

/// Reports the state of the lease nodes at the last health check, which takes place every second.
#[utoipa::path(
    get, path = NODES, tag = "agent",
    responses((status = 200, description = "The lease nodes", body = Nodes))
)]
pub(super) async fn nodes(
    State(agent): State<Agent>,
    caller: Identity,
) -> Result<JsonReply<Nodes>, Problem> {
    Ok(JsonReply(agent.nodes(&caller)?))
}

/// Lists the settings in force, secrets hidden. Policies must permit the action admin.
#[utoipa::path(
    get, path = CONFIGURATION, tag = "agent",
    responses((status = 200, description = "The settings", body = Configuration))
)]
pub(super) async fn configuration(
    State(agent): State<Agent>,
    caller: Identity,
) -> Result<JsonReply<Configuration>, Problem> {
    Ok(JsonReply(agent.configuration(&caller)?))
}

/// Lists the actions that policies permit the caller, on the agent or on an election.
#[utoipa::path(
    get, path = PERMISSIONS, tag = "agent", params(PermissionsQuery),
    responses((status = 200, description = "The permitted actions", body = Permissions))
)]
pub(super) async fn permissions(
    State(agent): State<Agent>,
    caller: Identity,
    Search(query): Search<PermissionsQuery>,
) -> Result<JsonReply<Permissions>, Problem> {
    Ok(JsonReply(agent.permissions(&caller, &query.acting()?)))
}

/// Lists the pods of a Deployment with the revision each belongs to, the newest first.
#[utoipa::path(
    get, path = PODS, tag = "pods", params(DeploymentPath),
    responses((status = 200, description = "The pods", body = Pods,
        headers(("x-election-agent-cache-age" = u64, description = "The maximum age of the data, in ms"))),
        (status = 404), (status = 501))
)]
pub(super) async fn pods(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Named(path): Named<DeploymentPath>,
) -> Result<impl IntoResponse, Problem> {
    list_pods(&gate, &caller, path.wanted(), deadline).await
}

/// Lists a pod's siblings: the pods of its Deployment, itself among them.
#[utoipa::path(
    get, path = SIBLINGS, tag = "pods", params(PodPath),
    responses((status = 200, description = "The pods", body = Pods,
        headers(("x-election-agent-cache-age" = u64, description = "The maximum age of the data, in ms"))),
        (status = 404), (status = 501))
)]
pub(super) async fn siblings(
    State(gate): State<Gate>,
    caller: Identity,
    deadline: Deadline,
    Named(path): Named<PodPath>,
) -> Result<impl IntoResponse, Problem> {
    list_pods(&gate, &caller, path.wanted(), deadline).await
}

async fn list_pods(
    gate: &Gate,
    caller: &Identity,
    wanted: Result<Wanted, Invalid>,
    deadline: Deadline,
) -> Result<impl IntoResponse + use<>, Problem> {
    gate.looks_up_pods()?;
    let pods = gate.pods(caller, &wanted?, deadline.instant()).await?;
    let age = cache_age(pods.age);
    Ok(([(CACHE_AGE, age)], JsonReply(Pods::from(pods))))
}

/// Changes the log level of this agent until the next change or the agent's end. Policies must permit the action admin.
#[utoipa::path(
    put, path = LOG, tag = "administration", request_body = LogLevel,
    responses((status = 200, description = "The new log level", body = LogLevel), (status = 501))
)]
pub(super) async fn log(
    State(gate): State<Gate>,
    caller: Identity,
    Json(wanted): Json<LogLevel>,
) -> Result<JsonReply<LogLevel>, Problem> {
    gate.authorize_admin(&caller)?;
    let filter = wanted.filter()?;
    if !telemetry::log::change(&filter) {
        return Err(Problem::new(
            Code::Disabled,
            "the agent does not control this process's log",
        ));
    }
    tracing::info!(%caller, level = filter.directives(), "changed the log level");
    Ok(JsonReply(wanted))
}

/// Responds as long as the process works.
#[utoipa::path(
    get, path = LIVEZ, tag = "operations",
    responses((status = 200, description = "The process works", body = String, content_type = "text/plain"))
)]
pub(super) async fn livez() -> &'static str {
    ALIVE
}

/// Reports whether a quorum of lease nodes replies, and which node does not.
#[utoipa::path(
    get, path = READYZ, tag = "operations",
    responses((status = 200, description = "The agent is ready", body = Readiness),
        (status = 503, description = "Too few lease nodes reply, or the agent is shutting down",
            body = NotReady, content_type = "application/problem+json"))
)]
pub(super) async fn readyz(
    State((report, lookup)): State<(watch::Receiver<Report>, Lookup)>,
) -> Result<JsonReply<Readiness>, Problem> {
    let report = report.borrow();
    let document = Readiness {
        ready: report.ready(),
        needed: report.needed,
        nodes: report.nodes.iter().map(Into::into).collect(),
        pods: lookup.report().into(),
    };
    match report.why_not() {
        None => Ok(JsonReply(document)),
        Some(reason) => Err(Problem::new(Code::Unavailable, reason)
            .with("needed", document.needed)
            .with(
                "nodes",
                serde_json::to_value(document.nodes).unwrap_or_default(),
            )
            .with(
                "pods",
                serde_json::to_value(document.pods).unwrap_or_default(),
            )),
    }
}

/// Returns the agent's metrics: as OpenMetrics if the caller accepts that, else as Prometheus text.
#[utoipa::path(
    get, path = METRICS, tag = "operations",
    responses((status = 200, description = "The metrics, which docs/METRICS.md lists", content(
        (String = "text/plain; version=0.0.4; charset=utf-8"),
        (String = "application/openmetrics-text; version=1.0.0; charset=utf-8")
    )))
)]
pub(super) async fn metrics(
    State(metrics): State<Metrics>,
    headers: HeaderMap,
) -> impl IntoResponse {
    let format = Format::accepted(&headers);
    let described = [
        (header::CONTENT_TYPE, format.content_type()),
        (header::VARY, "accept"),
    ];
    (described, metrics.text(format))
}
