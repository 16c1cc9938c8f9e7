//! The floor: a bare tonic server, whose calls cost as little as a gRPC call can.

use std::net::SocketAddr;

use election_proto::election_server::{Election, ElectionServer};
use election_proto::{
    BoolValue, CampaignRequest, CampaignResult, ExtendElectedTermRequest, GetLeaderRequest,
    GetPodsRequest, HandoverRequest, Leaders, ListLeadersRequest, Pods, ResignRequest, StringValue,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Serves forever.
///
/// # Errors
/// Returns an error if it cannot listen on the address.
pub async fn serve(listen: SocketAddr) -> Result<(), String> {
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    println!(
        "listening on http://{address}, process {}",
        std::process::id()
    );
    Server::builder()
        .tcp_nodelay(true)
        .add_service(ElectionServer::new(Echo))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .map_err(|error| error.to_string())
}

#[derive(Debug, Clone, Copy)]
struct Echo;

fn nothing<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the floor answers campaigns alone"))
}

#[tonic::async_trait]
impl Election for Echo {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResult>, Status> {
        let request = request.into_inner();
        Ok(Response::new(CampaignResult {
            elected: true,
            leader: request.candidate,
            kind: request.kind,
            token: 1,
            valid_for: request.term,
            value: request.value,
            provisional: false,
        }))
    }

    async fn extend_elected_term(
        &self,
        _: Request<ExtendElectedTermRequest>,
    ) -> Result<Response<BoolValue>, Status> {
        nothing()
    }

    async fn resign(&self, _: Request<ResignRequest>) -> Result<Response<BoolValue>, Status> {
        nothing()
    }

    async fn handover(&self, _: Request<HandoverRequest>) -> Result<Response<BoolValue>, Status> {
        nothing()
    }

    async fn get_leader(
        &self,
        _: Request<GetLeaderRequest>,
    ) -> Result<Response<StringValue>, Status> {
        nothing()
    }

    async fn list_leaders(
        &self,
        _: Request<ListLeadersRequest>,
    ) -> Result<Response<Leaders>, Status> {
        nothing()
    }

    async fn get_pods(&self, _: Request<GetPodsRequest>) -> Result<Response<Pods>, Status> {
        nothing()
    }
}
