//! A campaign over each protocol, down to its headers.

use std::net::{IpAddr, SocketAddr};

use election_agent::status;
use http::{HeaderMap, Method, Version};
use prost::Message as _;
use serde_json::json;
use tonic::Code;

use super::campaign;

pub(crate) const CAMPAIGN: &str = "/grpc.election_agent.v1.Election/Campaign";

/// A gRPC message with its length before it, as gRPC-Web has it, too.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short");
    [&[0][..], &length.to_be_bytes(), message].concat()
}

/// A gRPC-Web answer's message, and its trailers.
pub(crate) fn unframed(body: &[u8]) -> (&[u8], String) {
    let length = body[1..5].try_into().map(u32::from_be_bytes);
    let (message, trailers) = body[5..].split_at(length.expect("four bytes") as usize);
    assert_eq!((body[0], trailers[0]), (0, 0x80), "two frames");
    let trailers = String::from_utf8_lossy(&trailers[5..]).into_owned();
    (message, trailers)
}

pub(crate) const GRPC_WEB: &str = "application/grpc-web+proto";

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Protocol {
    Grpc,
    GrpcWeb,
    Rest,
}

impl Protocol {
    pub(crate) const ALL: [Self; 3] = [Self::Grpc, Self::GrpcWeb, Self::Rest];
}

/// A request to campaign, until it is made another; each over a connection of its own.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) protocol: Protocol,
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    source: Option<IpAddr>,
}

impl Ask {
    /// For the election `e`, by `worker`, for a second.
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self::campaign(protocol, "e", "worker", 1_000)
    }

    pub(crate) fn campaign(protocol: Protocol, election: &str, candidate: &str, term: i32) -> Self {
        let (path, content_type, body) = match protocol {
            Protocol::Grpc | Protocol::GrpcWeb => {
                let content_type = match protocol {
                    Protocol::Grpc => "application/grpc",
                    _ => GRPC_WEB,
                };
                let message = campaign(election, candidate, term).encode_to_vec();
                (CAMPAIGN.to_owned(), content_type, framed(&message))
            }
            Protocol::Rest => {
                let body = json!({"candidate": candidate, "term": term});
                let path = format!("/election/{election}");
                (path, "application/json", body.to_string().into())
            }
        };
        Self {
            protocol,
            method: Method::POST,
            path,
            headers: vec![("content-type", content_type.to_owned())],
            body,
            source: None,
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    /// At another path over gRPC, and over REST.
    pub(crate) fn at(mut self, grpc: &str, rest: &str) -> Self {
        self.path = match self.protocol {
            Protocol::Rest => rest,
            Protocol::Grpc | Protocol::GrpcWeb => grpc,
        }
        .to_owned();
        self
    }

    pub(crate) fn by(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    pub(crate) fn sending(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }

    /// From this address of this host.
    pub(crate) fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    pub(crate) async fn send(self, address: SocketAddr) -> http::Response<reqwest::Body> {
        let client = match self.protocol {
            Protocol::Grpc => reqwest::Client::builder().http2_prior_knowledge(),
            Protocol::GrpcWeb | Protocol::Rest => reqwest::Client::builder().http1_only(),
        };
        // Reading the system's authorities, for nothing, would take the most of the time.
        let client = client.tls_certs_only([]).local_address(self.source);
        let client = client.build().expect("a client");
        let mut request = client
            .request(self.method, format!("http://{address}{}", self.path))
            .body(self.body);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let response = request.send().await.expect("an answer");
        let expected = match self.protocol {
            Protocol::Grpc => Version::HTTP_2,
            Protocol::GrpcWeb | Protocol::Rest => Version::HTTP_11,
        };
        assert_eq!(response.version(), expected);
        response.into()
    }
    /// The reply as a gRPC status, and its headers.
    pub(crate) async fn told(self, address: SocketAddr) -> (Code, HeaderMap) {
        let protocol = self.protocol;
        let (answer, _) = self.send(address).await.into_parts();
        let code = match (protocol, answer.headers.get("grpc-status")) {
            (Protocol::Rest, _) if answer.status.is_success() => Code::Ok,
            (Protocol::Rest, _) => {
                let row = status::Code::ALL
                    .iter()
                    .find(|row| row.http() == answer.status);
                row.unwrap_or_else(|| panic!("{answer:?}")).grpc()
            }
            (_, Some(status)) => Code::from_bytes(status.as_bytes()),
            // Refusals are in the headers.
            (_, None) => Code::Ok,
        };
        (code, answer.headers)
    }
}
