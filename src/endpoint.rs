//! What a request asks for, told once from its head: how its caller speaks, what it is for, and its path without the
//! names in it. Every path that the agent serves is here.
//!
//! [`classified`] stands outermost in [`crate::stack`]; whatever is below reads the [`Endpoint`] among the request's
//! extensions.

use std::borrow::Cow;

use http::{Extensions, HeaderMap, Method, Request, header};

/// Who leads an election, and how to become it.
pub const ELECTION: &str = "/election/{kind}/{name}";
/// The same for elections of the kind "default".
pub const ELECTION_OF_DEFAULT_KIND: &str = "/election/{name}";
/// The leaders of a kind's elections.
pub const ELECTIONS: &str = "/elections";
/// What is logged.
pub const LOG: &str = "/log";
/// The pods of a Deployment.
pub const PODS: &str = "/kube/{namespace}/{deployment}/pods";
/// The pods of the Deployment that a pod is of.
pub const SIBLINGS: &str = "/kube/{namespace}/pods/{pod}/siblings";
/// Whether the process works.
pub const LIVEZ: &str = "/livez";
/// Whether the agent can answer.
pub const READYZ: &str = "/readyz";
/// The metrics.
pub const METRICS: &str = "/metrics";
/// Where people and programs begin.
pub const ROOT: &str = "/";
/// The OpenAPI document for programs.
pub const OPENAPI_JSON: &str = "/openapi.json";
/// The OpenAPI document for people.
pub const OPENAPI_YAML: &str = "/openapi_v3.yaml";
/// Where people go on; has further paths below it.
pub const USER_INTERFACE: &str = "/swagger-ui/";

/// What the paths of the election service's methods begin with.
pub const ELECTION_PATH: &str = "/grpc.election_agent.v1.Election/";
/// What the paths of the health service's methods begin with.
pub const HEALTH_PATH: &str = "/grpc.health.v1.Health/";
/// The full names of the reflection services.
pub const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// What is known of a request by its head. Outermost, it is put among the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// How the caller speaks.
    pub protocol: Protocol,
    /// What the path is for, as far as it matters who may ask.
    pub area: Area,
    /// What the request is for.
    pub action: Action,
    /// How limits count it.
    pub counted: Counted,
    /// The path as it is served: with `{names}` over REST. [`None`] where there is none over this protocol.
    pub route: Option<&'static str>,
}

impl Endpoint {
    /// What a request asks for.
    #[must_use]
    pub fn of<B>(request: &Request<B>) -> Self {
        let protocol = Protocol::of(request.headers());
        let (method, path) = (request.method(), request.uri().path());
        let served = Served::at(path);
        let over_grpc = protocol != Protocol::Rest;
        Self {
            protocol,
            area: served.area,
            action: (served.action)(method),
            counted: served.counted,
            route: served.path.filter(|_| served.over_grpc == over_grpc),
        }
    }

    /// The endpoint of the request with these extensions, if that has been told.
    #[must_use]
    pub fn among(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }
}

/// The request with its [`Endpoint`] among its extensions.
#[must_use]
pub fn classified<B>(mut request: Request<B>) -> Request<B> {
    let endpoint = Endpoint::of(&request);
    request.extensions_mut().insert(endpoint);
    request
}

/// How requests are counted by what limits them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// As a request.
    Request,
    /// As a stream that is none of the API, of the health service or of reflection: it lasts as long as its client
    /// likes.
    Stream,
    /// Not at all: it is for those who watch the agent, and answered at once.
    Never,
}

/// How a caller speaks, and so how it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web over HTTP/1.1 or HTTP/2, with the content type of its answers.
    GrpcWeb(&'static str),
    /// REST, and everything else that is not gRPC.
    Rest,
}

impl Protocol {
    /// Tells the protocol from a request's content type.
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

/// The content type without its parameters, in lower case.
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

/// What a path is for, as far as it matters who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Whether the agent works: `/livez`, `/readyz`, gRPC health.
    Probes,
    /// `/metrics`.
    Metrics,
    /// How to ask: `/`, the OpenAPI document, Swagger UI, gRPC reflection.
    Documents,
    /// Everything else.
    Api,
}

impl Area {
    /// The areas that may be public, and how `EA_AUTH_PUBLIC` calls them.
    pub const NAMED: [(&'static str, Self); 3] = [
        ("probes", Self::Probes),
        ("metrics", Self::Metrics),
        ("docs", Self::Documents),
    ];
}

/// What a request is for: few and fixed, whatever paths callers make up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// To campaign.
    Campaign,
    /// To extend a term.
    Extend,
    /// To resign.
    Resign,
    /// To hand over.
    Handover,
    /// To learn who leads.
    Leader,
    /// To list leaders.
    List,
    /// To list pods.
    Pods,
    /// To learn whether the agent works.
    Probe,
    /// Everything else.
    Other,
}

impl Action {
    /// Every action, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Campaign,
        Self::Extend,
        Self::Resign,
        Self::Handover,
        Self::Leader,
        Self::List,
        Self::Pods,
        Self::Probe,
        Self::Other,
    ];

    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Campaign => "campaign",
            Self::Extend => "extend",
            Self::Resign => "resign",
            Self::Handover => "handover",
            Self::Leader => "leader",
            Self::List => "list",
            Self::Pods => "pods",
            Self::Probe => "probe",
            Self::Other => "other",
        }
    }
}

/// What is known of a path.
#[derive(Clone, Copy)]
struct Served {
    /// [`None`] of what is below a path and is not served.
    path: Option<&'static str>,
    over_grpc: bool,
    area: Area,
    action: fn(&Method) -> Action,
    counted: Counted,
}

/// Paths that are one text.
const PLAIN: [Served; 21] = [
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
    rpc("/grpc.election_agent.v1.Election/ListLeaders", |_| {
        Action::List
    }),
    rpc("/grpc.election_agent.v1.Election/GetPods", |_| Action::Pods),
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
    rest(LOG, other),
    rest(LIVEZ, probe).of(Area::Probes, Counted::Never),
    rest(READYZ, probe).of(Area::Probes, Counted::Never),
    rest(METRICS, other).of(Area::Metrics, Counted::Never),
    rest(ROOT, other).of(Area::Documents, Counted::Request),
    rest(OPENAPI_JSON, other).of(Area::Documents, Counted::Request),
    rest(OPENAPI_YAML, other).of(Area::Documents, Counted::Request),
    rest(USER_INTERFACE, other).of(Area::Documents, Counted::Request),
];

/// Paths with names in them.
const NAMED: [Served; 4] = [
    rest(ELECTION, lead),
    rest(ELECTION_OF_DEFAULT_KIND, lead),
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

/// The first segment of a path.
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

    /// What is known of a path that callers may have made up.
    fn at(path: &str) -> Self {
        let plain = PLAIN.iter().find(|served| served.path == Some(path));
        let found = plain.or_else(|| NAMED.iter().find(|served| served.takes(path)));
        found.copied().unwrap_or_else(|| Self::near(path))
    }

    /// Whether a path is this one with names in it.
    fn takes(&self, path: &str) -> bool {
        let mut given = path.split('/');
        let mut wanted = self.path.unwrap_or_default().split('/');
        wanted.all(|wanted| match given.next() {
            Some(given) if wanted.starts_with('{') => !given.is_empty(),
            given => given == Some(wanted),
        }) && given.next().is_none()
    }

    /// What is known of a path that is not served: it is for what its neighbours are for.
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
        if first(path) == first(USER_INTERFACE) {
            return unknown.of(Area::Documents, Counted::Request);
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

    /// What is known of a request to this path, over the protocol of its content type.
    fn endpoint(method: Method, path: &str, content_type: &'static str) -> Endpoint {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::CONTENT_TYPE, content_type).body(());
        Endpoint::of(&request.expect("a request"))
    }

    #[test]
    fn actions_are_numbered_in_their_order() {
        for (number, action) in Action::ALL.into_iter().enumerate() {
            assert_eq!(action as usize, number);
        }
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
                    "/",
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
                Area::Api,
                &[
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
