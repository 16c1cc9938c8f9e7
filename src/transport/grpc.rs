//! The gRPC services: elections, health and reflection.

pub mod codec;
mod convert;
mod lead;

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use election_core::{
    board::Patience,
    election::{Campaign, ListKinds},
    lease::State,
    types::{ElectionId, Token},
};
use election_proto as proto;
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _, TryFutureExt as _, ready},
    stream::BoxStream,
};
use http::{Extensions, HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, metadata::MetadataMap};
use tonic_health::{pb::health_server::HealthServer, server::HealthService};
use tonic_reflection::server::Builder;
use tower::{Service, util::BoxCloneSyncService};

use super::{
    CACHE_AGE,
    agent::{Acting, Agent},
    cache_age,
    observe::Observing,
    problem::vacant,
    request::{Deadline, MAX_BODY, identity, too_large},
    stay,
};
use crate::{
    auth::{Identity, gate::Gate},
    endpoint::{
        AGENT_PATH, Action, ELECTION_PATH, Endpoint, HEALTH_PATH, LEADERSHIP_PATH, REFLECTION,
    },
    proto::{
        agent_server::AgentServer, election_server::ElectionServer,
        leadership_server::LeadershipServer,
    },
    status::{Code, Problem},
};

/// The services of elections and of the agent.
#[derive(Debug, Clone)]
pub struct Handler {
    gate: Gate,
    agent: Agent,
}

impl Handler {
    /// Creates a handler that sends requests through this gate, and reports on this agent.
    #[must_use]
    pub fn new(gate: Gate, agent: Agent) -> Self {
        Self { gate, agent }
    }

    /// The state of an election that a request with these extensions names.
    async fn state(
        &self,
        extensions: &Extensions,
        kind: &str,
        name: &str,
    ) -> Result<(ElectionId, State), Problem> {
        let deadline = Deadline::of(extensions).instant();
        let caller = identity(extensions)?;
        let election = ElectionId::new(kind, name)?;
        let state = self.gate.state(caller, &election, deadline).await?;
        Ok((election, state))
    }

    /// Returns the caller, the campaign, its wait, and its deadline. Consumes the request: a campaign that waits keeps
    /// no headers.
    fn campaigning(
        &self,
        request: tonic::Request<proto::CampaignRequest>,
    ) -> Result<(Identity, Campaign, Option<Patience>, Instant), Problem> {
        let (_, extensions, request) = request.into_parts();
        let caller = identity(&extensions)?.clone();
        let campaign = convert::campaign(&request, self.gate.max_term())?;
        let wait = stay::begin(request.wait.into(), self.gate.max_wait(), &extensions)?;
        let deadline = Deadline::of(&extensions).instant();
        Ok((caller, campaign, wait, deadline))
    }
}

#[tonic::async_trait]
impl crate::proto::election_server::Election for Handler {
    async fn campaign(
        &self,
        request: tonic::Request<proto::CampaignRequest>,
    ) -> Result<tonic::Response<proto::CampaignResult>, Status> {
        let (caller, asked, wait, deadline) = self.campaigning(request)?;
        let outcome = self
            .gate
            .campaign(&caller, &asked, wait.as_ref(), deadline)
            .await
            .map_err(Problem::from)?;
        Ok(convert::campaign_result(&asked, outcome)?.into())
    }

    async fn extend_elected_term(
        &self,
        request: tonic::Request<proto::ExtendElectedTermRequest>,
    ) -> Result<tonic::Response<proto::BoolValue>, Status> {
        let deadline = Deadline::of(request.extensions()).instant();
        let caller = identity(request.extensions())?;
        let (extend, retry) =
            convert::extend(request.get_ref(), self.gate.max_term()).map_err(Problem::from)?;
        let done = self.gate.extend(caller, extend, retry, deadline).await;
        Ok(convert::verdict(done)?.into())
    }

    async fn resign(
        &self,
        request: tonic::Request<proto::ResignRequest>,
    ) -> Result<tonic::Response<proto::BoolValue>, Status> {
        let deadline = Deadline::of(request.extensions()).instant();
        let caller = identity(request.extensions())?;
        let resign = convert::resign(request.get_ref()).map_err(Problem::from)?;
        let done = self.gate.resign(caller, resign, deadline).await;
        Ok(convert::verdict(done.map(|()| Duration::ZERO))?.into())
    }

    async fn handover(
        &self,
        request: tonic::Request<proto::HandoverRequest>,
    ) -> Result<tonic::Response<proto::BoolValue>, Status> {
        let deadline = Deadline::of(request.extensions()).instant();
        let caller = identity(request.extensions())?;
        let handover =
            convert::handover(request.get_ref(), self.gate.max_term()).map_err(Problem::from)?;
        let done = self.gate.handover(caller, handover, deadline).await;
        Ok(convert::verdict(done)?.into())
    }

    async fn get_leader(
        &self,
        request: tonic::Request<proto::GetLeaderRequest>,
    ) -> Result<tonic::Response<proto::StringValue>, Status> {
        let (extensions, asked) = (request.extensions(), request.get_ref());
        let (_, state) = self.state(extensions, &asked.kind, &asked.election).await?;
        let lease = state.lease().ok_or_else(vacant)?;
        Ok(proto::StringValue {
            value: lease.leader.as_str().to_owned(),
        }
        .into())
    }

    async fn get_election(
        &self,
        request: tonic::Request<proto::GetElectionRequest>,
    ) -> Result<tonic::Response<proto::State>, Status> {
        let (extensions, asked) = (request.extensions(), request.get_ref());
        let (election, state) = self.state(extensions, &asked.kind, &asked.election).await?;
        Ok(convert::state(&election, &state).into())
    }

    async fn verify_token(
        &self,
        request: tonic::Request<proto::VerifyTokenRequest>,
    ) -> Result<tonic::Response<proto::VerifyTokenResult>, Status> {
        let deadline = Deadline::of(request.extensions()).instant();
        let caller = identity(request.extensions())?;
        let request = request.get_ref();
        let election = ElectionId::new(&request.kind, &request.election).map_err(Problem::from)?;
        let token = Token::required(request.token).map_err(Problem::from)?;
        let (standing, state) = self
            .gate
            .verify(caller, &election, token, deadline)
            .await
            .map_err(Problem::from)?;
        Ok(convert::verified(&election, standing, &state).into())
    }

    async fn list_leaders(
        &self,
        request: tonic::Request<proto::ListLeadersRequest>,
    ) -> Result<tonic::Response<proto::Leaders>, Status> {
        let deadline = Deadline::of(request.extensions()).instant();
        let caller = identity(request.extensions())?;
        let list = convert::list(request.get_ref()).map_err(Problem::from)?;
        let page = self
            .gate
            .leaders(caller, list, deadline)
            .await
            .map_err(Problem::from)?;
        Ok(convert::leaders(page).into())
    }

    async fn list_kinds(
        &self,
        request: tonic::Request<proto::ListKindsRequest>,
    ) -> Result<tonic::Response<proto::Kinds>, Status> {
        let deadline = Deadline::of(request.extensions()).instant();
        let caller = identity(request.extensions())?;
        let request = request.get_ref();
        let list =
            ListKinds::new(request.page_size.into(), &request.page_token).map_err(Problem::from)?;
        let page = self
            .gate
            .kinds(caller, list, deadline)
            .await
            .map_err(Problem::from)?;
        Ok(convert::kinds(page).into())
    }

    async fn list_changes(
        &self,
        request: tonic::Request<proto::ListChangesRequest>,
    ) -> Result<tonic::Response<proto::Changes>, Status> {
        let caller = identity(request.extensions())?;
        let request = request.get_ref();
        let election = ElectionId::new(&request.kind, &request.election).map_err(Problem::from)?;
        let changes = self
            .gate
            .changes(caller, &election)
            .map_err(Problem::from)?;
        Ok(convert::changes(&changes).into())
    }

    async fn list_waiters(
        &self,
        request: tonic::Request<proto::ListWaitersRequest>,
    ) -> Result<tonic::Response<proto::Waiters>, Status> {
        let caller = identity(request.extensions())?;
        let asked = convert::waiters_of(request.get_ref()).map_err(Problem::from)?;
        let page = asked.page(&self.gate, caller).map_err(Problem::from)?;
        Ok(convert::waiters(page).into())
    }

    async fn get_pods(
        &self,
        request: tonic::Request<proto::GetPodsRequest>,
    ) -> Result<tonic::Response<proto::Pods>, Status> {
        let deadline = Deadline::of(request.extensions()).instant();
        let caller = identity(request.extensions())?;
        self.gate.looks_up_pods().map_err(Problem::from)?;
        let wanted = convert::wanted(request.get_ref()).map_err(Problem::from)?;
        let pods = self
            .gate
            .pods(caller, &wanted, deadline)
            .await
            .map_err(Problem::from)?;
        let age = cache_age(pods.age);
        let mut answer = tonic::Response::new(convert::pods(pods));
        let headers = HeaderMap::from_iter([(CACHE_AGE, age)]);
        *answer.metadata_mut() = MetadataMap::from_headers(headers);
        Ok(answer)
    }
}

#[tonic::async_trait]
impl crate::proto::leadership_server::Leadership for Handler {
    type ObserveStream = BoxStream<'static, Result<proto::Observation, Status>>;

    async fn observe(
        &self,
        request: tonic::Request<proto::ObserveRequest>,
    ) -> Result<tonic::Response<Self::ObserveStream>, Status> {
        let wanted = convert::wanted_of(request.get_ref()).map_err(Problem::from)?;
        let observing = Observing::begin(&self.gate, wanted, request.extensions())?;
        let said = observing.stream().map(|said| match said {
            Ok(said) => Ok(convert::observation(said)),
            Err(problem) => Err(problem.into()),
        });
        Ok(tonic::Response::new(said.boxed()))
    }

    type LeadStream = BoxStream<'static, Result<proto::LeadEvent, Status>>;

    async fn lead(
        &self,
        request: tonic::Request<tonic::Streaming<proto::LeadRequest>>,
    ) -> Result<tonic::Response<Self::LeadStream>, Status> {
        let events = lead::begin(&self.gate, self.agent.name(), request)?;
        Ok(tonic::Response::new(events.boxed()))
    }
}

#[tonic::async_trait]
impl crate::proto::agent_server::Agent for Handler {
    async fn get_agent(
        &self,
        request: tonic::Request<proto::GetAgentRequest>,
    ) -> Result<tonic::Response<proto::AgentState>, Status> {
        let caller = identity(request.extensions())?;
        let state = self.agent.state(caller).map_err(Problem::from)?;
        Ok(convert::agent(state).into())
    }

    async fn list_nodes(
        &self,
        request: tonic::Request<proto::ListNodesRequest>,
    ) -> Result<tonic::Response<proto::Nodes>, Status> {
        let caller = identity(request.extensions())?;
        let nodes = self.agent.nodes(caller).map_err(Problem::from)?;
        Ok(convert::nodes(nodes).into())
    }

    async fn get_configuration(
        &self,
        request: tonic::Request<proto::GetConfigurationRequest>,
    ) -> Result<tonic::Response<proto::Configuration>, Status> {
        let caller = identity(request.extensions())?;
        let settings = self.agent.configuration(caller).map_err(Problem::from)?;
        Ok(convert::configuration(settings).into())
    }

    async fn list_permissions(
        &self,
        request: tonic::Request<proto::ListPermissionsRequest>,
    ) -> Result<tonic::Response<proto::Permissions>, Status> {
        let caller = identity(request.extensions())?;
        let request = request.get_ref();
        let asked = Acting::new(&request.kind, &request.election, &request.candidate);
        let permitted = self
            .agent
            .permissions(caller, &asked.map_err(Problem::from)?);
        Ok(proto::Permissions {
            actions: permitted.actions.into_iter().map(str::to_owned).collect(),
        }
        .into())
    }
}

/// All gRPC services, by path. Responds with UNIMPLEMENTED to other paths.
#[derive(Clone)]
pub struct Services {
    election: Option<Servers>,
    health: HealthServer<HealthService>,
    /// The full names and services of reflection.
    reflection: [(&'static str, Boxed); 2],
    closing: CancellationToken,
}

/// The services of the contract.
type Servers = (
    ElectionServer<Handler>,
    LeadershipServer<Handler>,
    AgentServer<Handler>,
);

type Boxed = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

impl Services {
    /// Creates the services of elections (unless they are disabled), health and reflection. When `closing` is
    /// cancelled, reflection streams end.
    ///
    /// # Errors
    /// Returns an error if the built-in descriptors do not parse.
    pub fn new(
        election: Option<Handler>,
        health: HealthService,
        closing: CancellationToken,
    ) -> Result<Self, tonic_reflection::server::Error> {
        let descriptors = || {
            let builder = Builder::configure()
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            match election {
                Some(_) => builder.register_encoded_file_descriptor_set(proto::DESCRIPTORS),
                None => builder,
            }
        };
        let v1 = descriptors()
            .build_v1()?
            .max_decoding_message_size(MAX_BODY);
        let v1alpha = descriptors()
            .build_v1alpha()?
            .max_decoding_message_size(MAX_BODY);
        Ok(Self {
            reflection: [
                (REFLECTION[0], Boxed::new(v1)),
                (REFLECTION[1], Boxed::new(v1alpha)),
            ],
            election: election.map(|handler| {
                let streams = LeadershipServer::new(handler.clone());
                let agent = AgentServer::new(handler.clone());
                (
                    ElectionServer::new(handler).max_decoding_message_size(MAX_BODY),
                    streams.max_decoding_message_size(MAX_BODY),
                    agent.max_decoding_message_size(MAX_BODY),
                )
            }),
            health: HealthServer::new(health).max_decoding_message_size(MAX_BODY),
            closing,
        })
    }
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Generated services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let streams = path.starts_with(LEADERSHIP_PATH);
        let of_agent = path.starts_with(AGENT_PATH);
        if streams || of_agent || path.starts_with(ELECTION_PATH) {
            let action = Endpoint::among(request.extensions()).map(|endpoint| endpoint.action);
            return match &mut self.election {
                Some((_, leadership, _)) if streams => leadership.call(request),
                Some((_, _, agent)) if of_agent => agent.call(request),
                Some((election, ..)) if action == Some(Action::Pods) => {
                    election.call(request).map_ok(repeat_age).boxed()
                }
                Some((election, ..)) => election.call(request),
                None => refuse(Problem::new(
                    Code::Disabled,
                    "this agent does not serve elections over gRPC (EA_GRPC_ENABLE=false)",
                )),
            };
        }
        if path.starts_with(HEALTH_PATH) {
            return self.health.call(request);
        }
        let service = path.split('/').nth(1);
        for (name, reflection) in &mut self.reflection {
            if service == Some(*name) {
                let closing = self.closing.clone().cancelled_owned();
                return reflection
                    .call(request.map(|body| until(body, closing)))
                    .boxed();
            }
        }
        refuse(Problem::new(
            Code::MethodNotAllowed,
            "there is no such gRPC service: the reflection service lists the services",
        ))
    }
}

/// Repeats the age of pod data in the trailers, for clients that cannot read headers.
fn repeat_age(response: Response<Body>) -> Response<Body> {
    let Some(age) = response.headers().get(CACHE_AGE).cloned() else {
        return response;
    };
    response.map(|body| {
        Body::new(body.map_frame(move |frame| match frame.into_trailers() {
            Ok(mut trailers) => {
                trailers.insert(CACHE_AGE, age.clone());
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        }))
    })
}

/// A body that ends when `end` completes. A stream continues until its request body ends, which a client may
/// keep open for any time.
fn until(body: Body, end: impl Future<Output = ()> + Send + 'static) -> Body {
    Body::new(StreamBody::new(BodyStream::new(body).take_until(end)))
}

fn refuse(problem: Problem) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
    ready(Ok(Status::from(problem).into_http())).boxed()
}

/// Maps tonic's own refusals to the error table. In tonic, a message over the limit is OUT_OF_RANGE, a frame
/// that cannot be read INTERNAL, and a body that breaks off UNKNOWN. A response that already names a row of
/// the table is not tonic's.
pub(super) fn blame_the_caller<B>(mut response: Response<B>) -> Response<B> {
    if Code::of(&response).is_some() {
        return response;
    }
    let Some(status) = Status::from_header_map(response.headers()) else {
        return response;
    };
    let problem = match status.code() {
        tonic::Code::OutOfRange => too_large(),
        tonic::Code::Internal => Problem::new(
            Code::InvalidArgument,
            format!("the request is not a gRPC message: {}", status.message()),
        ),
        tonic::Code::Unknown => Problem::new(
            Code::InvalidArgument,
            format!("the body breaks off: {}", status.message()),
        ),
        _ => return response,
    };
    // Adding a header fails only if it cannot be built; these are plain text.
    let _ = Status::from(problem).add_header(response.headers_mut());
    response
}
