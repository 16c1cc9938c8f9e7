//! gRPC and gRPC-Web calls: frames, well formed or not, to methods, real or made up.

use arbitrary::{Arbitrary, Unstructured};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use election_proto::{
    CampaignRequest, CampaignResult, ExtendElectedTermRequest, GetLeaderRequest, GetPodsRequest,
    HandoverRequest, Leaders, ListLeadersRequest, ResignRequest,
};
use http::{Request, Version, header};
use prost::Message as _;

use super::{
    input::{Delivery, Name, Term, Token, append, raw_request, request},
    tree::{Answer, ask, with_agent},
};

const METHODS: [&str; 11] = [
    "/grpc.election_agent.v1.Election/Campaign",
    "/grpc.election_agent.v1.Election/ExtendElectedTerm",
    "/grpc.election_agent.v1.Election/Resign",
    "/grpc.election_agent.v1.Election/Handover",
    "/grpc.election_agent.v1.Election/GetLeader",
    "/grpc.election_agent.v1.Election/ListLeaders",
    "/grpc.election_agent.v1.Election/GetPods",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
const CONTENT_TYPES: [&str; 6] = [
    "application/grpc",
    "application/grpc+proto",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc+json",
    "Application/gRPC-Web; charset=utf-8",
];

/// One call.
#[derive(Debug, Arbitrary)]
struct Call {
    path: Path,
    content_type: ContentType,
    post: Usually,
    http2: Usually,
    headers: Vec<Header>,
    frames: Vec<Sent>,
    /// Where the body is cut off.
    cut: Option<u16>,
    delivery: Delivery,
}

#[derive(Debug, Arbitrary)]
enum Path {
    /// The method that takes the first frame's message.
    Fitting,
    Method(u8),
    Of(u8, String),
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum ContentType {
    Known(u8),
    Any(String),
}

/// True but for one byte in 16.
#[derive(Debug, Arbitrary)]
struct Usually(u8);

impl Usually {
    fn so(&self) -> bool {
        self.0 < 240
    }
}

#[derive(Debug, Arbitrary)]
enum Header {
    Timeout(u32, u8),
    TimeoutText(String),
    Encoding(u8),
    Accept(u8),
    Any(String, Vec<u8>),
}

/// A message in a frame, or what is none.
#[derive(Debug, Arbitrary)]
pub(crate) enum Sent {
    Framed(Message),
    Flagged(u8, Message),
    Sized(u32, Message),
    Raw(Vec<u8>),
    Large(u32),
}

/// A request of one of the services.
#[derive(Debug, Arbitrary)]
pub(crate) enum Message {
    Campaign(Name, Name, Term, Name, Name, Option<Name>),
    Extend(Name, Name, Term, Name, i32, i32, Token),
    Resign(Name, Name, Name, Token),
    Handover(Name, Name, Term, Name, Option<Name>, Token),
    GetLeader(Name, Name),
    ListLeaders(Name, i32, Page),
    GetPods(Name, Name, Name),
    /// A field of health and reflection requests, which are a text each.
    Text(u8, String),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
pub(crate) enum Page {
    First,
    Next,
    Any(String),
}

/// What answers told that requests may refer to.
#[derive(Debug, Default)]
pub(crate) struct Known {
    token: u64,
    page: String,
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
        let mut known = Known::default();
        for _ in 0..8 {
            if data.is_empty() {
                break;
            }
            let Ok(call) = Call::arbitrary(&mut data) else {
                break;
            };
            let Some(request) = call.request(&known) else {
                continue;
            };
            let path = request.uri().path().to_owned();
            let answer = ask(&agent, request, call.delivery.stalls()).await;
            known.learn(&path, &answer);
        }
    });
}

impl Call {
    fn request(&self, known: &Known) -> Option<Request<axum::body::Body>> {
        let path = match &self.path {
            Path::Fitting => METHODS[self.frames.first().map_or(4, Sent::method)].to_owned(),
            Path::Method(nth) => METHODS[usize::from(*nth) % METHODS.len()].to_owned(),
            Path::Of(nth, method) => {
                let whole = METHODS[usize::from(*nth) % METHODS.len()];
                let service = whole.rsplit_once('/').map_or("", |(service, _)| service);
                format!("{service}/{method}")
            }
            Path::Any(path) => format!("/{path}"),
        };
        let method = if self.post.so() { "POST" } else { "GET" };
        let content_type = match &self.content_type {
            ContentType::Known(nth) => CONTENT_TYPES[usize::from(*nth) % CONTENT_TYPES.len()],
            ContentType::Any(text) => text,
        };
        let is_web = content_type.to_ascii_lowercase().contains("-web");
        let version = match self.http2.so() == is_web {
            true => Version::HTTP_11,
            false => Version::HTTP_2,
        };
        let mut request = request(method, &path, version)?;
        let headers = request.headers_mut();
        append(
            headers,
            header::CONTENT_TYPE.as_str(),
            content_type.as_bytes(),
        );
        for header in &self.headers {
            match header {
                Header::Timeout(number, unit) => {
                    let unit = ["H", "M", "S", "m", "u", "n"][usize::from(unit % 6)];
                    append(
                        headers,
                        "grpc-timeout",
                        format!("{number}{unit}").as_bytes(),
                    );
                }
                Header::TimeoutText(text) => append(headers, "grpc-timeout", text.as_bytes()),
                Header::Encoding(nth) => {
                    let encoding = ["gzip", "identity", "zstd", "x"][usize::from(nth % 4)];
                    append(headers, "grpc-encoding", encoding.as_bytes());
                }
                Header::Accept(nth) => {
                    let accepted = CONTENT_TYPES[usize::from(*nth) % CONTENT_TYPES.len()];
                    append(headers, "accept", accepted.as_bytes());
                }
                Header::Any(name, value) => append(headers, name, value),
            }
        }
        let mut body: Vec<u8> = self
            .frames
            .iter()
            .flat_map(|sent| sent.bytes(known))
            .collect();
        if let Some(cut) = self.cut {
            body.truncate(usize::from(cut));
        }
        if content_type.to_ascii_lowercase().contains("-web-text") {
            body = BASE64_STANDARD.encode(body).into_bytes();
        }
        Some(request.map(|()| self.delivery.body(body)))
    }
}

impl Sent {
    pub(crate) fn bytes(&self, known: &Known) -> Vec<u8> {
        let frame = |flag, length: usize, message: &[u8]| {
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            [&[flag][..], &length.to_be_bytes(), message].concat()
        };
        match self {
            Self::Framed(message) => {
                let message = message.bytes(known);
                frame(0, message.len(), &message)
            }
            Self::Flagged(flag, message) => {
                let message = message.bytes(known);
                frame(*flag, message.len(), &message)
            }
            Self::Sized(length, message) => {
                let length = usize::try_from(*length).unwrap_or(usize::MAX);
                frame(0, length, &message.bytes(known))
            }
            Self::Raw(bytes) => bytes.clone(),
            Self::Large(length) => {
                let length = usize::try_from(length % 140_000).unwrap_or(0);
                frame(0, length, &vec![0x0a; length])
            }
        }
    }

    /// The path of the method that takes the message.
    pub(crate) fn path(&self) -> &'static str {
        METHODS[self.method()]
    }

    fn method(&self) -> usize {
        match self {
            Self::Framed(message) | Self::Flagged(_, message) | Self::Sized(_, message) => {
                match message {
                    Message::Campaign(..) => 0,
                    Message::Extend(..) => 1,
                    Message::Resign(..) => 2,
                    Message::Handover(..) => 3,
                    Message::GetLeader(..) => 4,
                    Message::ListLeaders(..) => 5,
                    Message::GetPods(..) => 6,
                    Message::Text(field, _) => 7 + usize::from(field % 4),
                    Message::Bytes(_) => 8,
                }
            }
            Self::Raw(_) | Self::Large(_) => 0,
        }
    }
}

impl Message {
    fn bytes(&self, known: &Known) -> Vec<u8> {
        let text = |name: &Option<Name>| name.as_ref().map(Name::text).unwrap_or_default();
        let int = |term: &Term| i32::try_from(term.millis()).unwrap_or(i32::MIN);
        match self {
            Self::Campaign(election, candidate, term, kind, value, request_id) => CampaignRequest {
                election: election.text(),
                candidate: candidate.text(),
                term: int(term),
                kind: kind.text(),
                value: value.text(),
                request_id: text(request_id),
                ..CampaignRequest::default()
            }
            .encode_to_vec(),
            Self::Extend(election, leader, term, kind, retries, retry_interval, token) => {
                ExtendElectedTermRequest {
                    election: election.text(),
                    leader: leader.text(),
                    term: int(term),
                    kind: kind.text(),
                    retries: *retries,
                    retry_interval: *retry_interval,
                    token: token.number(known.token),
                }
                .encode_to_vec()
            }
            Self::Resign(election, leader, kind, token) => ResignRequest {
                election: election.text(),
                leader: leader.text(),
                kind: kind.text(),
                token: token.number(known.token),
            }
            .encode_to_vec(),
            Self::Handover(election, leader, term, kind, current_leader, token) => {
                HandoverRequest {
                    election: election.text(),
                    leader: leader.text(),
                    term: int(term),
                    kind: kind.text(),
                    current_leader: text(current_leader),
                    token: token.number(known.token),
                }
                .encode_to_vec()
            }
            Self::GetLeader(election, kind) => GetLeaderRequest {
                election: election.text(),
                kind: kind.text(),
            }
            .encode_to_vec(),
            Self::ListLeaders(kind, page_size, page) => ListLeadersRequest {
                kind: kind.text(),
                page_size: *page_size,
                page_token: match page {
                    Page::First => String::new(),
                    Page::Next => known.page.clone(),
                    Page::Any(text) => text.clone(),
                },
                ..ListLeadersRequest::default()
            }
            .encode_to_vec(),
            Self::GetPods(namespace, deployment, pod_name) => GetPodsRequest {
                namespace: namespace.text(),
                deployment: deployment.text(),
                pod_name: pod_name.text(),
            }
            .encode_to_vec(),
            Self::Text(field, text) => {
                let mut message = Vec::new();
                prost::encoding::string::encode(u32::from(field % 8) + 1, text, &mut message);
                message
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

impl Known {
    fn learn(&mut self, path: &str, answer: &Answer) {
        let Some(messages) = answer.messages() else {
            return;
        };
        let Some((0, message)) = messages.first() else {
            return;
        };
        if path.ends_with("/Campaign")
            && let Ok(result) = CampaignResult::decode(&message[..])
        {
            self.token = result.token;
        } else if path.ends_with("/ListLeaders")
            && let Ok(page) = Leaders::decode(&message[..])
        {
            self.page = page.next_page_token;
        }
    }
}
