//! Classifies a request by its head: the protocol, the purpose, and the path without the names in it. All paths that
//! the agent serves are listed here.
//!
//! [`classified`] is the outermost step of [`crate::stack`]; the layers below read the [`Endpoint`] from the request's
//! extensions.

use std::borrow::Cow;

use http::{Extensions, HeaderMap, HeaderName, Method, Request, header};
use strum::{IntoStaticStr, VariantArray, VariantNames};

/// Reads the leader of an election; campaigns, extends, resigns and hands over.
pub const ELECTION: &str = "/election/{kind}/{name}";
/// The same for elections of the kind "default".
pub const ELECTION_OF_DEFAULT_KIND: &str = "/election/{name}";
/// Reads the state of an election.
pub const STATE: &str = "/election/{kind}/{name}/state";
/// Reports whether a token is that of an election's leader.
pub const TOKEN: &str = "/election/{kind}/{name}/tokens/{token}";
/// Lists the leaders of a kind, or of all kinds.
pub const ELECTIONS: &str = "/elections";
/// Lists the kinds that have elections.
pub const KINDS: &str = "/kinds";
/// Streams the changes of an election.
pub const EVENTS: &str = "/election/{kind}/{name}/events";
/// Streams the changes of several elections.
pub const ALL_EVENTS: &str = "/elections/events";
/// Lists the changes of an election that the agent remembers.
pub const CHANGES: &str = "/election/{kind}/{name}/changes";
/// Lists the campaigns that wait.
pub const WAITERS: &str = "/waiters";
/// Reports on the agent.
pub const AGENT: &str = "/agent";
/// Reports the state of the lease nodes.
pub const NODES: &str = "/agent/nodes";
/// Lists the settings in force.
pub const CONFIGURATION: &str = "/agent/configuration";
/// Lists what the caller may do.
pub const PERMISSIONS: &str = "/agent/permissions";
/// Changes the log level.
pub const LOG: &str = "/log";
/// Lists the pods of a Deployment.
pub const PODS: &str = "/kube/{namespace}/{deployment}/pods";
/// Lists the pods of the Deployment that a pod belongs to.
pub const SIBLINGS: &str = "/kube/{namespace}/pods/{pod}/siblings";
/// Reports whether the process is alive.
pub const LIVEZ: &str = "/livez";
/// Reports whether the agent is ready.
pub const READYZ: &str = "/readyz";
/// Serves the metrics.
pub const METRICS: &str = "/metrics";
/// Entry point for people and programs.
pub const ROOT: &str = "/";
/// The OpenAPI document in JSON.
pub const OPENAPI_JSON: &str = "/openapi.json";
/// The OpenAPI document in YAML.
pub const OPENAPI_YAML: &str = "/openapi_v3.yaml";
/// The Swagger UI; further paths lie below it.
pub const DOCUMENTATION: &str = "/swagger-ui/";
/// The dashboard.
pub const DASHBOARD: &str = "/ui/";
/// Its files.
pub const DASHBOARD_FILES: &str = "/ui/{*path}";

/// The header in which a caller requests a wait ([RFC 7240](https://www.rfc-editor.org/rfc/rfc7240#section-4.3)).
pub const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Path prefix of the election service's methods.
pub const ELECTION_PATH: &str = "/grpc.election_agent.v1.Election/";
/// Path prefix of the methods of the service that streams.
pub const LEADERSHIP_PATH: &str = "/grpc.election_agent.v1.Leadership/";
/// Path prefix of the methods of the service that reports on the agent.
pub const AGENT_PATH: &str = "/grpc.election_agent.v1.Agent/";
/// Path prefix of the health service's methods.
pub const HEALTH_PATH: &str = "/grpc.health.v1.Health/";
/// The full names of the reflection services.
pub const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The classification of a request by its head. The outermost step puts it into the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The caller's protocol.
    pub protocol: Protocol,
    /// What the path is for, as far as access depends on it.
    pub area: Area,
    /// The requested action.
    pub action: Action,
    /// How limits count the request.
    pub counted: Counted,
    /// The served path, over REST with `{names}` in place of names. [`None`] if the path is not served over this
    /// protocol.
    pub route: Option<&'static str>,
}

impl Endpoint {
    /// Classifies a request.
    #[must_use]
    pub fn of<B>(request: &Request<B>) -> Self {
        let protocol = Protocol::of(request.headers());
        let (method, path) = (request.method(), request.uri().path());
        let served = Served::at(path);
        let over_grpc = protocol != Protocol::Rest;
        let action = (served.action)(method);
        Self {
            protocol,
            area: served.area,
            action,
            counted: match action {
                Action::Campaign => Counted::MayWait,
                Action::Leader if waits(request) => Counted::MayWait,
                _ => served.counted,
            },
            route: served.path.filter(|_| served.over_grpc == over_grpc),
        }
    }

    /// Returns the endpoint in these extensions, if the request has been classified.
    #[must_use]
    pub fn among(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }
}

/// Returns the request with its [`Endpoint`] in its extensions.
#[must_use]
pub fn classified<B>(mut request: Request<B>) -> Request<B> {
    let endpoint = Endpoint::of(&request);
    request.extensions_mut().insert(endpoint);
    request
}

/// How limits count a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// As a request.
    Request,
    /// As a request until it begins to wait for a change, then as a stream of the API: a campaign, or a read of an
    /// election that requests a wait.
    MayWait,
    /// As a stream of the API.
    ApiStream,
    /// As a stream outside the API, of the health service or of reflection. Such a stream lasts as long as its client
    /// keeps it open.
    Stream,
    /// Not counted: probes and metrics that are answered at once.
    Never,
}

/// The protocol of a request and its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web over HTTP/1.1 or HTTP/2, with the content type of replies.
    GrpcWeb(&'static str),
    /// REST, and all other requests that are not gRPC.
    Rest,
}

impl Protocol {
    /// Determines the protocol from a request's content type.
    #[must_use]
    fn of(headers: &HeaderMap) -> Self {
        let media_type = media_type(headers);
        if media_type.starts_with("application/grpc-web-text") {
            Self::GrpcWeb("application/grpc-web-text+proto")
        } else if media_type.starts_with("application/grpc-web") {
            Self::GrpcWeb("application/grpc-web+proto")
        } else if media_type.starts_with("application/grpc") {
            Self::Grpc
        } else {
            Self::Rest
        }
    }
}

/// Returns the media type of the content in lower case, without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> Cow<'_, str> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    match media_type.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => media_type.to_ascii_lowercase().into(),
        false => media_type.into(),
    }
}

/// What a path is for, as far as access depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Probes: `/livez`, `/readyz`, gRPC health.
    Probes,
    /// `/metrics`.
    Metrics,
    /// Documentation: the OpenAPI document, Swagger UI, gRPC reflection.
    Documents,
    /// `/` and the files of the dashboard, which show nothing by themselves.
    Dashboard,
    /// Everything else.
    Api,
}

impl Area {
    /// The areas that may be public, with their names in `EA_AUTH_PUBLIC`.
    pub const NAMED: [(&'static str, Self); 4] = [
        ("probes", Self::Probes),
        ("metrics", Self::Metrics),
        ("docs", Self::Documents),
        ("ui", Self::Dashboard),
    ];
}

/// The action of a request, from a small fixed set regardless of the paths that callers send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    /// To campaign.
    Campaign,
    /// To extend a term.
    Extend,
    /// To resign.
    Resign,
    /// To hand over.
    Handover,
    /// To read the leader or the state.
    Leader,
    /// To list leaders.
    List,
    /// To list kinds.
    ListKinds,
    /// To verify a token.
    Verify,
    /// To observe changes.
    Observe,
    /// To lead by a stream.
    Lead,
    /// To list remembered changes.
    ListChanges,
    /// To list the campaigns that wait.
    ListWaiters,
    /// To read what the agent reports on itself.
    Agent,
    /// To list pods.
    Pods,
    /// To probe the agent.
    Probe,
    /// Everything else.
    Other,
}

impl Action {
    /// Returns the value of the metrics label.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The classification of a path.
#[derive(Clone, Copy)]
struct Served {
    /// [`None`] for a path that is not served.
    path: Option<&'static str>,
    over_grpc: bool,
    area: Area,
    action: fn(&Method) -> Action,
    counted: Counted,
}

/// Paths without names.
const PLAIN: [Served; 40] = [
    rpc("/grpc.election_agent.v1.Election/Campaign", |_| {
        Action::Campaign
    }),
    rpc("/grpc.election_agent.v1.Election/ExtendElectedTerm", |_| {
        Action::Extend
    }),
    rpc("/grpc.election_agent.v1.Election/Resign", |_| {
        Action::Resign
    }),
    rpc("/grpc.election_agent.v1.Election/Handover", |_| {
        Action::Handover
    }),
    rpc("/grpc.election_agent.v1.Election/GetLeader", |_| {
        Action::Leader
    }),
    rpc("/grpc.election_agent.v1.Election/GetElection", |_| {
        Action::Leader
    }),
    rpc("/grpc.election_agent.v1.Election/VerifyToken", |_| {
        Action::Verify
    }),
    rpc("/grpc.election_agent.v1.Election/ListLeaders", |_| {
        Action::List
    }),
    rpc("/grpc.election_agent.v1.Election/ListKinds", |_| {
        Action::ListKinds
    }),
    rpc("/grpc.election_agent.v1.Election/ListChanges", |_| {
        Action::ListChanges
    }),
    rpc("/grpc.election_agent.v1.Election/ListWaiters", |_| {
        Action::ListWaiters
    }),
    rpc("/grpc.election_agent.v1.Election/GetPods", |_| Action::Pods),
    rpc("/grpc.election_agent.v1.Agent/GetAgent", agent),
    rpc("/grpc.election_agent.v1.Agent/ListNodes", agent),
    rpc("/grpc.election_agent.v1.Agent/GetConfiguration", agent),
    rpc("/grpc.election_agent.v1.Agent/ListPermissions", agent),
    rpc("/grpc.election_agent.v1.Leadership/Observe", |_| {
        Action::Observe
    })
    .of(Area::Api, Counted::ApiStream),
    rpc("/grpc.election_agent.v1.Leadership/Lead", |_| Action::Lead)
        .of(Area::Api, Counted::ApiStream),
    rpc("/grpc.health.v1.Health/Check", probe).of(Area::Probes, Counted::Never),
    rpc("/grpc.health.v1.Health/Watch", probe).of(Area::Probes, Counted::Stream),
    rpc("/grpc.health.v1.Health/List", probe).of(Area::Probes, Counted::Request),
    rpc(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        other,
    )
    .of(Area::Documents, Counted::Stream),
    rpc(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        other,
    )
    .of(Area::Documents, Counted::Stream),
    rest(ELECTIONS, |_| Action::List),
    rest(KINDS, |_| Action::ListKinds),
    rest(WAITERS, |_| Action::ListWaiters),
    rest(AGENT, agent),
    rest(NODES, agent),
    rest(CONFIGURATION, agent),
    rest(PERMISSIONS, agent),
    rest(ALL_EVENTS, |_| Action::Observe).of(Area::Api, Counted::ApiStream),
    rest(LOG, other),
    rest(LIVEZ, probe).of(Area::Probes, Counted::Never),
    rest(READYZ, probe).of(Area::Probes, Counted::Never),
    rest(METRICS, other).of(Area::Metrics, Counted::Never),
    rest(ROOT, other).of(Area::Dashboard, Counted::Request),
    rest(DASHBOARD, other).of(Area::Dashboard, Counted::Request),
    rest(OPENAPI_JSON, other).of(Area::Documents, Counted::Request),
    rest(OPENAPI_YAML, other).of(Area::Documents, Counted::Request),
    rest(DOCUMENTATION, other).of(Area::Documents, Counted::Request),
];

/// Paths that contain names.
const NAMED: [Served; 8] = [
    rest(ELECTION, lead),
    rest(ELECTION_OF_DEFAULT_KIND, lead),
    rest(STATE, |_| Action::Leader),
    rest(TOKEN, |_| Action::Verify),
    rest(CHANGES, |_| Action::ListChanges),
    rest(EVENTS, |_| Action::Observe).of(Area::Api, Counted::ApiStream),
    rest(PODS, |_| Action::Pods),
    rest(SIBLINGS, |_| Action::Pods),
];

const fn rpc(path: &'static str, action: fn(&Method) -> Action) -> Served {
    Served {
        over_grpc: true,
        ..rest(path, action)
    }
}

const fn rest(path: &'static str, action: fn(&Method) -> Action) -> Served {
    Served {
        path: Some(path),
        over_grpc: false,
        area: Area::Api,
        action,
        counted: Counted::Request,
    }
}

fn other(_: &Method) -> Action {
    Action::Other
}

fn agent(_: &Method) -> Action {
    Action::Agent
}

fn probe(_: &Method) -> Action {
    Action::Probe
}

fn lead(method: &Method) -> Action {
    match *method {
        Method::POST => Action::Campaign,
        Method::PATCH => Action::Extend,
        Method::DELETE => Action::Resign,
        Method::PUT => Action::Handover,
        Method::GET => Action::Leader,
        _ => Action::Other,
    }
}

/// Returns whether a read over REST may wait for a change.
fn waits<B>(request: &Request<B>) -> bool {
    let query = request.uri().query();
    query.is_some_and(|query| query.contains("wait=")) || request.headers().contains_key(PREFER)
}

/// Returns the first segment of a path.
fn first(path: &str) -> Option<&str> {
    path.split('/').nth(1)
}

impl Served {
    const fn of(self, area: Area, counted: Counted) -> Self {
        Self {
            area,
            counted,
            ..self
        }
    }

    /// Classifies a path, which may be unknown.
    fn at(path: &str) -> Self {
        let plain = PLAIN.iter().find(|served| served.path == Some(path));
        let found = plain.or_else(|| NAMED.iter().find(|served| served.takes(path)));
        found.copied().unwrap_or_else(|| Self::near(path))
    }

    /// Returns whether this path with its names filled in matches the given one.
    fn takes(&self, path: &str) -> bool {
        let mut given = path.split('/');
        let mut wanted = self.path.unwrap_or_default().split('/');
        wanted.all(|wanted| match given.next() {
            Some(given) if wanted.starts_with('{') => !given.is_empty(),
            given => given == Some(wanted),
        }) && given.next().is_none()
    }

    /// Classifies a path that is not served in the area of its neighbours.
    fn near(path: &str) -> Self {
        let unknown = Self {
            path: None,
            ..rest("", other)
        };
        if REFLECTION
            .iter()
            .any(|service| first(path) == Some(service))
        {
            return unknown.of(Area::Documents, Counted::Stream);
        }
        for (page, area) in [
            (DOCUMENTATION, Area::Documents),
            (DASHBOARD, Area::Dashboard),
        ] {
            if first(path) == first(page) {
                return unknown.of(area, Counted::Request);
            }
        }
        let segment = path.trim_start_matches('/').split('/').next();
        let mut api = NAMED.iter().chain(&PLAIN);
        let neighbour = api.find(|served| {
            served.area == Area::Api && !served.over_grpc && served.path.and_then(first) == segment
        });
        Self {
            action: neighbour.map_or(other, |served| served.action),
            ..unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Classifies a request to this path with this content type.
    fn endpoint(method: Method, path: &str, content_type: &'static str) -> Endpoint {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::CONTENT_TYPE, content_type).body(());
        Endpoint::of(&request.expect("a request"))
    }

    #[test]
    fn made_up_paths_do_not_make_up_actions() {
        let campaign = "/grpc.election_agent.v1.Election/Campaign";
        for (method, path, action) in [
            (Method::POST, "/election/a/b", Action::Campaign),
            (Method::POST, campaign, Action::Campaign),
            (
                Method::POST,
                "/grpc.election_agent.v1.Election/x",
                Action::Other,
            ),
            (Method::GET, "/wp-login.php", Action::Other),
            (Method::OPTIONS, "/election/x", Action::Other),
        ] {
            let endpoint = endpoint(method, path, "application/json");
            assert_eq!(endpoint.action, action, "{path}");
        }
    }

    #[test]
    fn the_content_type_tells_the_protocol() {
        for (content_type, protocol) in [
            ("application/grpc", Protocol::Grpc),
            ("application/grpc+proto", Protocol::Grpc),
            (
                "application/grpc-web",
                Protocol::GrpcWeb("application/grpc-web+proto"),
            ),
            (
                "application/grpc-web-text",
                Protocol::GrpcWeb("application/grpc-web-text+proto"),
            ),
            (
                "Application/gRPC-Web; charset=utf-8",
                Protocol::GrpcWeb("application/grpc-web+proto"),
            ),
            ("application/grpc+json", Protocol::Grpc),
            ("application/json", Protocol::Rest),
        ] {
            let headers = HeaderMap::from_iter([(
                header::CONTENT_TYPE,
                HeaderValue::from_static(content_type),
            )]);
            assert_eq!(Protocol::of(&headers), protocol, "{content_type}");
        }
        assert_eq!(Protocol::of(&HeaderMap::new()), Protocol::Rest);
    }

    #[test]
    fn an_area_has_the_paths_that_there_are_and_no_others() {
        for (area, paths) in [
            (
                Area::Probes,
                &[
                    "/livez",
                    "/readyz",
                    "/grpc.health.v1.Health/Check",
                    "/grpc.health.v1.Health/Watch",
                    "/grpc.health.v1.Health/List",
                ][..],
            ),
            (Area::Metrics, &["/metrics"]),
            (
                Area::Documents,
                &[
                    "/openapi.json",
                    "/openapi_v3.yaml",
                    "/swagger-ui",
                    "/swagger-ui/",
                    "/swagger-ui/index.html",
                    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                ],
            ),
            (
                Area::Dashboard,
                &["/", "/ui", "/ui/", "/ui/index.html", "/ui/assets/index.js"],
            ),
            (
                Area::Api,
                &[
                    "/uix",
                    "/election/livez",
                    "//livez",
                    "/livez/",
                    "/livez/anything",
                    "/readyz/x",
                    "//metrics/x",
                    "/metrics/",
                    "/grpc.health.v1.Health/",
                    "/grpc.health.v1.Health/Check/x",
                    "/openapi.json/x",
                    "/swagger-uix",
                ],
            ),
        ] {
            for path in paths {
                let endpoint = endpoint(Method::GET, path, "application/json");
                assert_eq!(endpoint.area, area, "{path}");
                let is_probe = endpoint.action == Action::Probe;
                assert_eq!(is_probe, area == Area::Probes, "{path}");
            }
        }
    }

    #[test]
    fn what_passes_limits_is_answered_at_once() {
        for path in [
            "/livez",
            "/readyz",
            "/metrics",
            "/grpc.health.v1.Health/Check",
        ] {
            let endpoint = endpoint(Method::GET, path, "application/json");
            assert_eq!(endpoint.counted, Counted::Never, "{path}");
        }
        for path in [
            "/grpc.health.v1.Health/Watch",
            "/grpc.health.v1.Health/List",
            "/livez/x",
            "//metrics",
            "/openapi.json",
        ] {
            let endpoint = endpoint(Method::GET, path, "application/json");
            assert_ne!(endpoint.counted, Counted::Never, "{path}");
        }
    }

    #[test]
    fn a_route_is_of_the_protocol_that_serves_it_and_made_up_paths_have_none() {
        let campaign = "/grpc.election_agent.v1.Election/Campaign";
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        for (path, rest, grpc) in [
            ("/election/a/b", Some(ELECTION), None),
            ("/livez", Some(LIVEZ), None),
            (campaign, None, Some(campaign)),
            (reflection, None, Some(reflection)),
            ("/grpc.election_agent.v1.Election/x", None, None),
            ("/grpc.reflection.v1.ServerReflection/x", None, None),
            ("/swagger-ui/index.css", None, None),
        ] {
            let route = |content_type| endpoint(Method::POST, path, content_type).route;
            assert_eq!(route("application/json"), rest, "{path}");
            assert_eq!(route("application/grpc"), grpc, "{path}");
            assert_eq!(route("application/grpc-web"), grpc, "{path}");
        }
    }
}
