//! The gRPC client, by tonic.

use std::error::Error;

use election_proto::{
    CampaignRequest, ExtendElectedTermRequest, GetLeaderRequest, GetPodsRequest,
    election_client::ElectionClient,
};
use hyper_util::rt::TokioIo;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{Answer, Ask, Connector, Failed, answer};
use crate::options::Load;

/// A gRPC connection.
#[derive(Debug, Clone)]
pub struct Client {
    election: ElectionClient<Channel>,
    health: HealthClient<Channel>,
    authorization: Option<MetadataValue<Ascii>>,
    term: i32,
    namespace: String,
    deployment: String,
}

impl Client {
    pub(super) async fn connect(connector: &Connector, load: &Load) -> Result<Self, Failed> {
        let failed =
            |error: tonic::transport::Error| Failed::lost("cannot connect", causes(&error));
        // The connector chooses the real destination. This is only the name of the agent in requests.
        let name = format!(
            "http://{}",
            load.host.authority().map_or("agent", |name| name.as_str())
        );
        let endpoint = Endpoint::from_shared(name).map_err(failed)?;
        let connector = connector.clone();
        let connecting = tower::service_fn(move |_: http::Uri| {
            let connector = connector.clone();
            async move { connector.open().await.map(TokioIo::new) }
        });
        let channel = endpoint
            .connect_with_connector(connecting)
            .await
            .map_err(failed)?;
        let authorization = load
            .token
            .as_ref()
            .map(|token| format!("Bearer {token}").parse());
        let authorization = authorization.transpose();
        Ok(Self {
            election: ElectionClient::new(channel.clone()),
            health: HealthClient::new(channel),
            authorization: authorization
                .map_err(|_| Failed::answered("--token", "it is no valid header value"))?,
            term: load.term_millis(),
            namespace: load.namespace.clone(),
            deployment: load.deployment.clone(),
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", authorization.clone());
        }
        request
    }

    pub(super) async fn call(&mut self, ask: Ask<'_>) -> Result<Answer, Failed> {
        match ask {
            Ask::Campaign {
                election,
                candidate,
            } => {
                let request = self.request(CampaignRequest {
                    election: election.to_owned(),
                    candidate: candidate.to_owned(),
                    term: self.term,
                    ..CampaignRequest::default()
                });
                let result = self
                    .election
                    .campaign(request)
                    .await
                    .map_err(|status| failed(&status))?;
                Ok(answer(result.get_ref().elected))
            }
            Ask::Extend { election, leader } => {
                let request = self.request(ExtendElectedTermRequest {
                    election: election.to_owned(),
                    leader: leader.to_owned(),
                    term: self.term,
                    ..ExtendElectedTermRequest::default()
                });
                let extended = self.election.extend_elected_term(request).await;
                Ok(answer(
                    extended.map_err(|status| failed(&status))?.get_ref().value,
                ))
            }
            Ask::Leader { election } => {
                let request = self.request(GetLeaderRequest {
                    election: election.to_owned(),
                    ..GetLeaderRequest::default()
                });
                match self.election.get_leader(request).await {
                    Ok(_) => Ok(Answer::Yes),
                    Err(status) if status.code() == Code::NotFound => Ok(Answer::No),
                    Err(status) => Err(failed(&status)),
                }
            }
            Ask::Health => {
                let request = self.request(HealthCheckRequest::default());
                let health = self
                    .health
                    .check(request)
                    .await
                    .map_err(|status| failed(&status))?;
                Ok(answer(health.get_ref().status == 1))
            }
            Ask::Pods => {
                let request = self.request(GetPodsRequest {
                    namespace: self.namespace.clone(),
                    deployment: self.deployment.clone(),
                    pod_name: String::new(),
                });
                self.election
                    .get_pods(request)
                    .await
                    .map_err(|status| failed(&status))?;
                Ok(Answer::Yes)
            }
        }
    }
}

fn failed(status: &Status) -> Failed {
    let code = format!("{:?}", status.code());
    // A status that the agent has sent has no source.
    match status.source() {
        None => Failed::answered(code, status.message()),
        Some(error) => Failed::lost(code, causes(error)),
    }
}

/// The root cause of an error. The errors around it only say where it occurred.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<Failed>() {
        Some(failed) => failed.message.clone(),
        None => cause.to_string(),
    }
}
