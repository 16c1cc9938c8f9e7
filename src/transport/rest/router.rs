//! All HTTP routes, with the OpenAPI document and its user interface.

use std::sync::LazyLock;

use axum::{
    Json as JsonReply, Router,
    extract::Request,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use super::{dashboard::Dashboard, openapi, routes};
use crate::{
    auth::gate::Gate,
    endpoint::{
        DASHBOARD, DOCUMENTATION, ELECTIONS, LIVEZ, METRICS, OPENAPI_JSON, OPENAPI_YAML, READYZ,
        ROOT,
    },
    kube::Lookup,
    readiness::Report,
    status::{Code, Problem},
    telemetry::metrics::Metrics,
    transport::agent::Agent,
};

/// The state that the routes read.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The gate to the elections, and the reports on the agent; `None` if their routes are disabled.
    pub gate: Option<(Gate, Agent)>,
    /// The readiness of the agent.
    pub readiness: watch::Receiver<Report>,
    /// The state of the pod lookup.
    pub lookup: Lookup,
    /// The metrics; `None` if they are disabled.
    pub metrics: Option<Metrics>,
    /// How the dashboard is served.
    pub dashboard: Dashboard,
}

/// Builds all routes. Probes and metrics exist even if the routes of elections are disabled.
pub fn router(sources: Sources) -> Router {
    let mut router = Router::from(routes::probes()).with_state((sources.readiness, sources.lookup));
    if let Some(metrics) = sources.metrics {
        router = router.merge(Router::from(routes::measures()).with_state(metrics));
    }
    let hint = match sources.gate {
        Some(_) => "/openapi.json lists the paths",
        None => "this agent does not serve elections over REST (EA_HTTP_ENABLE=false)",
    };
    let dashboard = sources.dashboard;
    router = router.merge(dashboard.router());
    let mut links = json!({"live": LIVEZ, "ready": READYZ, "metrics": METRICS});
    if dashboard.is_there() {
        links["dashboard"] = DASHBOARD.into();
    }
    if sources.gate.is_some() {
        links["elections"] = ELECTIONS.into();
        links["openapi"] = OPENAPI_JSON.into();
        links["user_interface"] = DOCUMENTATION.into();
    }
    if sources.gate.is_some() || dashboard.off.is_none() {
        let root = async move |headers: HeaderMap| root(&headers, links, &dashboard);
        router = router.route(ROOT, get(root));
    }
    if let Some((gate, agent)) = sources.gate {
        router = router
            .merge(Router::from(routes::api()).with_state(gate))
            .merge(Router::from(routes::about()).with_state(agent))
            .route(OPENAPI_YAML, get(yaml))
            .merge(swagger_ui(openapi::document(), hint));
    }
    router
        .fallback(move |uri: Uri| async move { not_found(&uri, hint) })
        .method_not_allowed_fallback(method_not_allowed)
}

/// Renders the document on the first request: rendering takes a third of the time in which an agent starts.
async fn yaml() -> impl IntoResponse {
    static YAML: LazyLock<String> = LazyLock::new(|| openapi::yaml(&openapi::document()));
    ([(header::CONTENT_TYPE, "application/yaml")], YAML.as_str())
}

/// Serves Swagger UI and its document. Replaces its empty 404 response by a problem document.
fn swagger_ui(document: OpenApi, hint: &'static str) -> Router {
    let found = move |request: Request, next: Next| async move {
        let uri = request.uri().clone();
        let answer = next.run(request).await;
        match answer.status() {
            StatusCode::NOT_FOUND => not_found(&uri, hint).into_response(),
            _ => answer,
        }
    };
    Router::from(SwaggerUi::new(DOCUMENTATION.trim_end_matches('/')).url(OPENAPI_JSON, document))
        .route_layer(from_fn(found))
}

/// Leads browsers to the dashboard. Responds to programs with the locations of the resources.
fn root(headers: &HeaderMap, links: Value, dashboard: &Dashboard) -> Response {
    let accepts = headers.get(header::ACCEPT);
    let accepts = accepts.and_then(|accepts| accepts.to_str().ok());
    let vary = [(header::VARY, "accept")];
    if accepts.is_some_and(|accepts| accepts.contains("text/html")) {
        return (vary, dashboard.root()).into_response();
    }
    (vary, JsonReply(links)).into_response()
}

fn not_found(uri: &Uri, hint: &str) -> Problem {
    let path = uri.path();
    Problem::new(
        Code::NotFound,
        format!("there is nothing at {path}: {hint}"),
    )
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(
        Code::MethodNotAllowed,
        format!(
            "{} has no {method}: the Allow header lists its methods",
            uri.path()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{ELECTION_OF_DEFAULT_KIND, Endpoint};

    fn route(path: &str) -> Option<&'static str> {
        let mut request = Request::new(());
        *request.uri_mut() = Uri::builder().path_and_query(path).build().expect("a path");
        Endpoint::of(&request).route
    }

    #[test]
    fn every_documented_path_has_its_route_without_names() {
        let document = openapi::document();
        assert!(!document.paths.paths.is_empty());
        for template in document.paths.paths.keys() {
            let path = template.replace(['{', '}'], "");
            assert_eq!(route(&path), Some(template.as_str()));
        }
        assert_eq!(route("/election/a"), Some(ELECTION_OF_DEFAULT_KIND));
        assert_eq!(route("/"), Some(ROOT));
        for path in [
            "",
            "/election",
            "/election/",
            "/election/a/",
            "/election/a/b/c",
            "//election/a",
            "/x",
        ] {
            assert_eq!(route(path), None, "{path}");
        }
    }
}
