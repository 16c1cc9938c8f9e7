//! The OpenAPI document, generated from the handlers and the error table.

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ContentBuilder, HeaderBuilder, Ref, RefOr, Required, Response, ResponseBuilder,
        path::{Operation, PathItem},
        schema::{Object, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use super::{dto, routes};
use crate::{
    endpoint::{ELECTION, ELECTION_OF_DEFAULT_KIND},
    status::Code,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Election Agent",
        description = "Leader election as a service. At most one candidate leads an election while its \
            term has time left; every grant carries a fencing token that only rises."
    ),
    servers((url = "/")),
    components(schemas(dto::ProblemDocument, dto::Leader)),
    tags(
        (name = "elections", description = "Leaders and campaigns"),
        (name = "pods", description = "Which pods of a Kubernetes Deployment are newer"),
        (name = "agent", description = "The agent, its lease nodes, its settings, and the caller's permissions"),
        (name = "administration", description = "For operators; policies must permit it"),
        (name = "operations", description = "Probes and metrics, public unless EA_AUTH_PUBLIC says otherwise"),
    )
)]
struct Document;

/// Generates the document.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi().merge_from(routes::described());
    Errors.modify(&mut document);
    Credentials.modify(&mut document);
    DefaultKind.modify(&mut document);
    document
}

/// Renders the document as YAML, as in `openapi/openapi_v3.yaml`.
#[must_use]
pub fn yaml(document: &utoipa::openapi::OpenApi) -> String {
    #[expect(
        clippy::expect_used,
        reason = "a tree of strings and numbers always serializes"
    )]
    document.to_yaml().expect("the document serializes")
}

/// Adds the election routes without the kind.
struct DefaultKind;

impl Modify for DefaultKind {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let Some(with_kind) = openapi.paths.paths.get(ELECTION) else {
            return;
        };
        let mut without = with_kind.clone();
        for operation in operations(&mut without) {
            operation.operation_id = operation.operation_id.take().map(|id| id + "_default");
            if let Some(parameters) = &mut operation.parameters {
                parameters.retain(|parameter| {
                    !matches!(parameter, RefOr::T(parameter) if parameter.name == "kind")
                });
            }
            operation.description = Some("As with a kind, for the kind \"default\".".to_owned());
        }
        openapi
            .paths
            .paths
            .insert(ELECTION_OF_DEFAULT_KIND.to_owned(), without);
    }
}

/// Adds the errors of layers to every operation of the API.
struct Errors;

/// The errors of any request. Operations without an election have only the first [`UNGUARDED`].
const COMMON: [Code; 9] = [
    Code::InvalidArgument,
    Code::MethodNotAllowed,
    Code::PayloadTooLarge,
    Code::DeadlineExceeded,
    Code::Internal,
    Code::Unauthenticated,
    Code::PermissionDenied,
    Code::RateLimited,
    Code::Unavailable,
];
const UNGUARDED: usize = 5;

impl Modify for Errors {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for item in openapi.paths.paths.values_mut() {
            for operation in operations(item) {
                let common = if is_of_the_api(operation) {
                    &COMMON[..]
                } else {
                    &COMMON[..UNGUARDED]
                };
                let responses = &mut operation.responses.responses;
                for (status, declared) in responses.iter_mut() {
                    let row = Code::ALL.iter().find(|code| code.http().as_str() == status);
                    let bare =
                        matches!(declared, RefOr::T(response) if response.content.is_empty());
                    if let Some(code) = row.filter(|_| bare) {
                        *declared = Ref::from_response_name(code.name()).into();
                    }
                }
                for code in common {
                    responses
                        .entry(code.http().as_str().to_owned())
                        .or_insert_with(|| Ref::from_response_name(code.name()).into());
                }
                if let Some(RefOr::T(body)) = &mut operation.request_body {
                    if operation.operation_id.as_deref() == Some("resign") {
                        // The query may name the leader instead.
                        body.required = Some(Required::False);
                    }
                    let code = Code::UnsupportedMediaType;
                    responses.insert(
                        code.http().as_str().to_owned(),
                        Ref::from_response_name(code.name()).into(),
                    );
                }
            }
        }
        if let Some(components) = &mut openapi.components {
            for code in Code::ALL {
                components
                    .responses
                    .insert(code.name().to_owned(), response(*code).into());
            }
        }
    }
}

/// Adds the bearer token to every operation of the API. The agent's configuration decides whether it is
/// required.
struct Credentials;

const BEARER: &str = "bearer";

impl Modify for Credentials {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let either = [
            SecurityRequirement::default(),
            SecurityRequirement::new(BEARER, [""; 0]),
        ];
        for item in openapi.paths.paths.values_mut() {
            for operation in operations(item).filter(|operation| is_of_the_api(operation)) {
                operation.security = Some(either.to_vec());
            }
        }
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "EA_AUTH_MODES configures whether callers must authenticate, and how. A token is one that \
                 the agent lists, a JSON Web Token of its issuer, or a Kubernetes service account's. The \
                 agent may also accept a client certificate, or no credential.",
            ));
        if let Some(components) = &mut openapi.components {
            components.add_security_scheme(BEARER, SecurityScheme::Http(scheme.build()));
        }
    }
}

/// Merges the rows that share this row's HTTP status into one response.
fn response(code: Code) -> Response {
    let same_status: Vec<_> = Code::ALL
        .iter()
        .filter(|other| other.http() == code.http())
        .collect();
    let meaning: Vec<_> = same_status
        .iter()
        .map(|code| format!("{}: {}", code.name(), code.meaning()))
        .collect();
    let mut example = json!({
        "type": "about:blank",
        "title": code.http().canonical_reason(),
        "status": code.http().as_u16(),
        "detail": code.meaning(),
        "message": code.meaning(),
        "code": code.name(),
    });
    if code == Code::Conflict {
        example["reason"] = "HELD_BY_OTHER".into();
    }
    let mut response = ResponseBuilder::new()
        .description(meaning.join(" "))
        .content(
            "application/problem+json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("Problem")))
                .example(Some(example))
                .build(),
        );
    for (header, description, of) in [
        (
            "Retry-After",
            "After how many seconds to try again",
            &[429, 503][..],
        ),
        ("Allow", "The methods that the path has", &[405]),
        ("WWW-Authenticate", "How to authenticate", &[401]),
    ] {
        if of.contains(&code.http().as_u16()) {
            response = response.header(
                header,
                HeaderBuilder::new()
                    .schema(Some(Object::with_type(Type::String)))
                    .description(Some(description))
                    .build(),
            );
        }
    }
    response.build()
}

/// Returns whether the operation belongs to the API, as opposed to public ones such as probes.
fn is_of_the_api(operation: &Operation) -> bool {
    let tags = operation.tags.iter().flatten();
    !tags.into_iter().any(|tag| tag == "operations")
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.post,
        &mut item.put,
        &mut item.patch,
        &mut item.delete,
    ]
    .into_iter()
    .flatten()
}

/// Returns every documented path and its methods, for tests and tools.
#[must_use]
pub fn documented() -> BTreeMap<String, Vec<&'static str>> {
    document()
        .paths
        .paths
        .iter()
        .map(|(path, item)| {
            let methods = [
                ("GET", &item.get),
                ("POST", &item.post),
                ("PUT", &item.put),
                ("PATCH", &item.patch),
                ("DELETE", &item.delete),
            ];
            let methods = methods
                .into_iter()
                .filter(|(_, operation)| operation.is_some())
                .map(|(method, _)| method);
            (path.clone(), methods.collect())
        })
        .collect()
}
