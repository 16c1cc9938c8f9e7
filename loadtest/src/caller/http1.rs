//! REST and gRPC-Web over HTTP/1.1, one request after another on each connection.

use bytes::Bytes;
use election_proto::{
    BoolValue, CampaignRequest, CampaignResult, ExtendElectedTermRequest, GetLeaderRequest,
    GetPodsRequest,
};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tonic::Code;

use super::{Answer, Ask, Connector, Failed, answer};
use crate::options::Load;

/// An HTTP/1.1 connection, which is reopened after it was closed.
#[derive(Debug)]
pub struct Client {
    connector: Connector,
    /// Concurrent requests wait for their turn.
    sender: Mutex<SendRequest<Full<Bytes>>>,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    /// Whether the protocol is gRPC-Web instead of REST.
    web: bool,
    load: Load,
}

impl Client {
    pub(super) async fn connect(
        connector: &Connector,
        load: &Load,
        web: bool,
    ) -> Result<Self, Failed> {
        let value = |text: &str| {
            let wrong = |_| Failed::answered("--host or --token", "it is no valid header value");
            HeaderValue::try_from(text).map_err(wrong)
        };
        let host = load.host.authority().map_or("agent", |name| name.as_str());
        let authorization = load
            .token
            .as_ref()
            .map(|token| value(&format!("Bearer {token}")));
        Ok(Self {
            connector: connector.clone(),
            sender: Mutex::new(open(connector).await?),
            host: value(host)?,
            authorization: authorization.transpose()?,
            web,
            load: load.clone(),
        })
    }

    pub(super) async fn call(&self, ask: Ask<'_>) -> Result<Answer, Failed> {
        match self.web {
            true => self.call_web(ask).await,
            false => self.call_rest(ask).await,
        }
    }

    async fn call_rest(&self, ask: Ask<'_>) -> Result<Answer, Failed> {
        let term = self.load.term_millis();
        let (method, path, body) = match ask {
            Ask::Campaign {
                election,
                candidate,
            } => {
                let body = json!({"candidate": candidate, "term": term});
                (Method::POST, format!("/election/{election}"), Some(body))
            }
            Ask::Extend { election, leader } => {
                let body = json!({"leader": leader, "term": term});
                (Method::PATCH, format!("/election/{election}"), Some(body))
            }
            Ask::Leader { election } => (Method::GET, format!("/election/{election}"), None),
            Ask::Health => (Method::GET, "/livez".to_owned(), None),
            Ask::Pods => {
                let Load {
                    namespace,
                    deployment,
                    ..
                } = &self.load;
                (
                    Method::GET,
                    format!("/kube/{namespace}/{deployment}/pods"),
                    None,
                )
            }
        };
        let body = body.map(|body| ("application/json", body.to_string().into()));
        let (status, answered) = self.send(method, &path, body).await?;
        match (ask, status) {
            (Ask::Campaign { .. }, StatusCode::OK) => {
                let document: Value = serde_json::from_slice(&answered)
                    .map_err(|_| Failed::answered("wrong: an answer that is no JSON", ""))?;
                Ok(answer(document["elected"] == true))
            }
            (_, StatusCode::OK) => Ok(Answer::Yes),
            (Ask::Extend { .. } | Ask::Leader { .. }, StatusCode::NOT_FOUND)
            | (Ask::Extend { .. }, StatusCode::CONFLICT) => Ok(Answer::No),
            (_, status) => Err(refused(status, &answered)),
        }
    }

    async fn call_web(&self, ask: Ask<'_>) -> Result<Answer, Failed> {
        let term = self.load.term_millis();
        let (method, message) = match ask {
            Ask::Campaign {
                election,
                candidate,
            } => {
                let request = CampaignRequest {
                    election: election.to_owned(),
                    candidate: candidate.to_owned(),
                    term,
                    ..CampaignRequest::default()
                };
                (
                    "grpc.election_agent.v1.Election/Campaign",
                    request.encode_to_vec(),
                )
            }
            Ask::Extend { election, leader } => {
                let request = ExtendElectedTermRequest {
                    election: election.to_owned(),
                    leader: leader.to_owned(),
                    term,
                    ..ExtendElectedTermRequest::default()
                };
                (
                    "grpc.election_agent.v1.Election/ExtendElectedTerm",
                    request.encode_to_vec(),
                )
            }
            Ask::Leader { election } => {
                let request = GetLeaderRequest {
                    election: election.to_owned(),
                    ..GetLeaderRequest::default()
                };
                (
                    "grpc.election_agent.v1.Election/GetLeader",
                    request.encode_to_vec(),
                )
            }
            Ask::Health => ("grpc.health.v1.Health/Check", Vec::new()),
            Ask::Pods => {
                let request = GetPodsRequest {
                    namespace: self.load.namespace.clone(),
                    deployment: self.load.deployment.clone(),
                    pod_name: String::new(),
                };
                (
                    "grpc.election_agent.v1.Election/GetPods",
                    request.encode_to_vec(),
                )
            }
        };
        let length = u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes();
        let frame = [&[0][..], &length, &message].concat();
        let body = Some(("application/grpc-web+proto", frame.into()));
        let (status, answered) = self.send(Method::POST, &format!("/{method}"), body).await?;
        if status != StatusCode::OK {
            return Err(refused(status, &answered));
        }
        let reply = read_web(&answered)?;
        let unreadable = |_| Failed::answered("wrong: an answer that is no message", "");
        match (ask, reply) {
            (Ask::Leader { .. }, (Code::NotFound, _)) => Ok(Answer::No),
            (Ask::Campaign { .. }, (Code::Ok, message)) => {
                let result = CampaignResult::decode(message).map_err(unreadable)?;
                Ok(answer(result.elected))
            }
            (Ask::Extend { .. }, (Code::Ok, message)) => {
                let result = BoolValue::decode(message).map_err(unreadable)?;
                Ok(answer(result.value))
            }
            (_, (Code::Ok, _)) => Ok(Answer::Yes),
            (_, (code, _)) => Err(Failed::answered(format!("{code:?}"), "")),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<(StatusCode, Bytes), Failed> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some((content_type, _)) = &body {
            request = request.header(header::CONTENT_TYPE, *content_type);
        }
        let body = body.map(|(_, body)| body).unwrap_or_default();
        let request = request.body(Full::new(body));
        let request = request.map_err(|error| Failed::answered("no request", error.to_string()))?;
        let mut sender = self.sender.lock().await;
        // The agent may have closed the connection since its last use.
        if sender.ready().await.is_err() {
            *sender = open(&self.connector).await?;
        }
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let grpc_status = answer.headers().get("grpc-status").cloned();
        let status = answer.status();
        let body = answer
            .into_body()
            .collect()
            .await
            .map_err(|error| broken(&error))?
            .to_bytes();
        // A gRPC-Web refusal has its status in the headers, and no body.
        match grpc_status.map(|status| Code::from_bytes(status.as_bytes())) {
            Some(Code::Ok) | None => Ok((status, body)),
            Some(code) => {
                let trailer = format!("grpc-status:{}\r\n", code as i32);
                let length = u32::try_from(trailer.len())
                    .unwrap_or(u32::MAX)
                    .to_be_bytes();
                Ok((
                    status,
                    [&[0x80][..], &length, trailer.as_bytes()].concat().into(),
                ))
            }
        }
    }
}

/// Splits a gRPC-Web response into status and message. The response consists of frames; the last has the
/// trailers.
fn read_web(mut body: &[u8]) -> Result<(Code, &[u8]), Failed> {
    let broken_off = || Failed::answered("wrong: an answer that breaks off", "");
    let mut message: &[u8] = &[];
    while let Some((head, rest)) = body.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let frame = rest.get(..length).ok_or_else(broken_off)?;
        body = rest.get(length..).unwrap_or_default();
        if head[0] & 0x80 == 0 {
            message = frame;
            continue;
        }
        let trailers = String::from_utf8_lossy(frame);
        let status = trailers
            .lines()
            .find_map(|line| line.strip_prefix("grpc-status:"));
        let status = status.ok_or_else(broken_off)?;
        return Ok((Code::from_bytes(status.trim().as_bytes()), message));
    }
    Err(broken_off())
}

/// Opens a new connection.
async fn open(connector: &Connector) -> Result<SendRequest<Full<Bytes>>, Failed> {
    let stream = TokioIo::new(connector.open().await?);
    let (sender, connection) = handshake(stream).await.map_err(|error| broken(&error))?;
    // The request reports errors of the connection.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// Converts a refusal with its problem document.
fn refused(status: StatusCode, body: &[u8]) -> Failed {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let detail = problem["detail"].as_str().unwrap_or_default();
    Failed::answered(status.as_u16().to_string(), detail)
}

fn broken(error: &hyper::Error) -> Failed {
    let closed = error.is_canceled() || error.is_closed() || error.is_incomplete_message();
    let what = if closed { "closed" } else { "broken" };
    Failed::lost(format!("the connection was {what}"), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_over_grpc_web_is_frames_that_end_with_trailers() {
        let frame = |flag: u8, content: &[u8]| {
            let length = u32::try_from(content.len()).expect("short").to_be_bytes();
            [&[flag][..], &length, content].concat()
        };
        let trailers = frame(0x80, b"grpc-status: 0\r\ngrpc-message:\r\n");
        let whole = [frame(0, b"message"), trailers].concat();
        assert_eq!(read_web(&whole), Ok((Code::Ok, &b"message"[..])));
        let refused = frame(0x80, b"grpc-status:14\r\n");
        assert_eq!(read_web(&refused), Ok((Code::Unavailable, &b""[..])));
        for part in 0..whole.len() {
            assert!(read_web(&whole[..part]).is_err(), "{part}");
        }
    }
}
