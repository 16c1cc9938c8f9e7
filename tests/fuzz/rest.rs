//! REST requests, and whatever else is not gRPC.

use arbitrary::{Arbitrary, Unstructured};
use axum::body::Body;
use http::{Request, Version};
use serde_json::{Value, json};

use super::{
    input::{Delivery, Name, Term, Token, append, raw_request, request},
    tree::{ORIGIN, ask, with_agent},
};

const METHODS: [&str; 8] = [
    "GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE",
];
const FIXED: [&str; 8] = [
    "/livez",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/openapi_v3.yaml",
    "/swagger-ui/",
    "/swagger-ui",
    "/swagger-ui/swagger-initializer.js",
];

/// One request.
#[derive(Debug, Arbitrary)]
struct Call {
    method: Method,
    target: Target,
    query: Vec<(Key, Segment)>,
    json: Json,
    /// A byte of the body that is another.
    flip: Option<(u16, u8)>,
    headers: Vec<Header>,
    delivery: Delivery,
}

#[derive(Debug, Arbitrary)]
enum Method {
    /// The one that takes the body.
    Fitting,
    Known(u8),
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Target {
    Election(Segment),
    OfKind(Segment, Segment),
    Elections,
    Pods(Segment, Segment),
    Siblings(Segment, Segment),
    Fixed(u8),
    Swagger(Segment),
    Any(String),
}

/// A part of a path or query.
#[derive(Debug, Arbitrary)]
enum Segment {
    Encoded(Name),
    AsIs(String),
}

#[derive(Debug, Arbitrary)]
enum Key {
    Leader,
    Token,
    Kind,
    PageSize,
    PageToken,
    Any(Segment),
}

#[derive(Debug, Arbitrary)]
enum Json {
    None,
    Campaign(Name, Term, Option<Name>, Option<Name>),
    Extend(Name, Term, Option<(i16, i16)>, Token),
    Handover(Name, Term, Option<Name>, Token),
    Resign(Name, Token),
    Nested(u16, bool),
    Text(String),
    Bytes(Vec<u8>),
    Large(u32),
}

#[derive(Debug, Arbitrary)]
enum Header {
    /// The body's type is announced unless this says another.
    ContentType(String),
    Origin(bool),
    Preflight(u8),
    RequestId(Vec<u8>),
    Timeout(String),
    Length(u64),
    Any(String, Vec<u8>),
}

pub(crate) fn run(data: &[u8]) {
    if let Some(text) = data.strip_prefix(b">") {
        if let Some((request, stalls)) = raw_request(text) {
            with_agent(async |agent| {
                ask(&agent, request, stalls).await;
            });
        }
        return;
    }
    let mut data = Unstructured::new(data);
    with_agent(async |agent| {
        let (mut token, mut page) = (0, String::new());
        for _ in 0..8 {
            if data.is_empty() {
                break;
            }
            let Ok(call) = Call::arbitrary(&mut data) else {
                break;
            };
            let Some(request) = call.request(token, &page) else {
                continue;
            };
            let told = ask(&agent, request, call.delivery.stalls()).await.json();
            token = told["token"].as_u64().unwrap_or(token);
            if let Some(next) = told["next_page_token"].as_str() {
                next.clone_into(&mut page);
            }
        }
    });
}

impl Call {
    fn request(&self, token: u64, page: &str) -> Option<Request<Body>> {
        let method = match &self.method {
            Method::Fitting => self.json.method(),
            Method::Known(nth) => METHODS[usize::from(nth % 8)],
            Method::Any(text) => text,
        };
        let mut target = self.target.text();
        for (nth, (key, value)) in self.query.iter().enumerate() {
            target.push(if nth == 0 { '?' } else { '&' });
            let value = match key {
                Key::Token if matches!(value, Segment::Encoded(_)) => token.to_string(),
                Key::PageToken if matches!(value, Segment::Encoded(_)) => page.to_owned(),
                _ => value.text(),
            };
            target.push_str(&format!("{}={value}", key.text()));
        }
        let mut request = request(method, &target, Version::HTTP_11)?;
        let headers = request.headers_mut();
        let mut content_type = "application/json";
        for header in &self.headers {
            match header {
                Header::ContentType(text) => content_type = text,
                Header::Origin(ours) => {
                    let origin = if *ours {
                        ORIGIN
                    } else {
                        "https://other.example"
                    };
                    append(headers, "origin", origin.as_bytes());
                }
                Header::Preflight(nth) => {
                    let method = METHODS[usize::from(nth % 8)];
                    append(headers, "access-control-request-method", method.as_bytes());
                    append(headers, "access-control-request-headers", b"content-type");
                }
                Header::RequestId(id) => append(headers, "x-request-id", id),
                Header::Timeout(text) => append(headers, "grpc-timeout", text.as_bytes()),
                Header::Length(length) => {
                    append(headers, "content-length", length.to_string().as_bytes());
                }
                Header::Any(name, value) => append(headers, name, value),
            }
        }
        append(headers, "content-type", content_type.as_bytes());
        let mut body = self.json.bytes(token);
        if let Some((at, other)) = self.flip
            && let Some(byte) = body.get_mut(usize::from(at))
        {
            *byte = other;
        }
        Some(request.map(|()| self.delivery.body(body)))
    }
}

impl Target {
    fn text(&self) -> String {
        match self {
            Self::Election(name) => format!("/election/{}", name.text()),
            Self::OfKind(kind, name) => format!("/election/{}/{}", kind.text(), name.text()),
            Self::Elections => "/elections".to_owned(),
            Self::Pods(namespace, name) => {
                format!("/kube/{}/{}/pods", namespace.text(), name.text())
            }
            Self::Siblings(namespace, pod) => {
                format!("/kube/{}/pods/{}/siblings", namespace.text(), pod.text())
            }
            Self::Fixed(nth) => FIXED[usize::from(nth % 8)].to_owned(),
            Self::Swagger(file) => format!("/swagger-ui/{}", file.text()),
            Self::Any(text) => text.clone(),
        }
    }
}

impl Segment {
    fn text(&self) -> String {
        match self {
            Self::Encoded(name) => {
                let name = name.text();
                name.bytes()
                    .map(|byte| match byte {
                        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
                        _ => format!("%{byte:02x}"),
                    })
                    .collect()
            }
            Self::AsIs(text) => text.clone(),
        }
    }
}

impl Key {
    fn text(&self) -> String {
        match self {
            Self::Leader => "leader".to_owned(),
            Self::Token => "token".to_owned(),
            Self::Kind => "kind".to_owned(),
            Self::PageSize => "page_size".to_owned(),
            Self::PageToken => "page_token".to_owned(),
            Self::Any(key) => key.text(),
        }
    }
}

impl Json {
    fn method(&self) -> &'static str {
        match self {
            Self::Campaign(..) | Self::Nested(..) | Self::Large(_) => "POST",
            Self::Extend(..) => "PATCH",
            Self::Handover(..) => "PUT",
            Self::Resign(..) => "DELETE",
            Self::None | Self::Text(_) | Self::Bytes(_) => "GET",
        }
    }

    fn bytes(&self, last: u64) -> Vec<u8> {
        let document = match self {
            Self::None => return Vec::new(),
            Self::Campaign(candidate, term, value, request_id) => {
                let mut document = json!({"candidate": candidate.text(), "term": term.millis()});
                set(&mut document, "value", value);
                set(&mut document, "request_id", request_id);
                document
            }
            Self::Extend(leader, term, retry, token) => {
                let mut document = json!({"leader": leader.text(), "term": term.millis()});
                if let Some((retries, interval)) = retry {
                    document["retries"] = (*retries).into();
                    document["retry_interval"] = (*interval).into();
                }
                document["token"] = token.number(last).into();
                document
            }
            Self::Handover(leader, term, current, token) => {
                let mut document = json!({"leader": leader.text(), "term": term.millis()});
                set(&mut document, "current_leader", current);
                document["token"] = token.number(last).into();
                document
            }
            Self::Resign(leader, token) => {
                json!({"leader": leader.text(), "token": token.number(last)})
            }
            Self::Nested(depth, arrays) => {
                let open = if *arrays {
                    "{\"candidate\":["
                } else {
                    "{\"a\":"
                };
                return open.repeat(usize::from(depth % 8000)).into_bytes();
            }
            Self::Text(text) => return text.clone().into_bytes(),
            Self::Bytes(bytes) => return bytes.clone(),
            Self::Large(size) => {
                let size = usize::try_from(size % 140_000).unwrap_or(0);
                json!({"candidate": "x".repeat(size), "term": 5000})
            }
        };
        document.to_string().into_bytes()
    }
}

fn set(document: &mut Value, member: &str, name: &Option<Name>) {
    if let Some(name) = name {
        document[member] = name.text().into();
    }
}
