//! A client that knows the service only by reflection, as grpcurl does.

use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, Value};
use tonic::{
    Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use tonic_reflection::pb;

use crate::harness::{Fixture, Store};

macro_rules! reflection_client {
    ($version:ident) => {
        /// The names of all services, and the descriptors of the one asked for.
        async fn $version(channel: Channel, symbol: &str) -> (Vec<String>, DescriptorPool) {
            use pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let ask = [
                MessageRequest::ListServices(String::new()),
                MessageRequest::FileContainingSymbol(symbol.to_owned()),
            ];
            let requests = ask.map(|message_request| ServerReflectionRequest {
                host: String::new(),
                message_request: Some(message_request),
            });
            let mut answers = ServerReflectionClient::new(channel)
                .server_reflection_info(futures_util::stream::iter(requests))
                .await
                .expect("a stream")
                .into_inner();
            let (mut services, mut pool) = (Vec::new(), DescriptorPool::new());
            while let Some(answer) = answers.message().await.expect("an answer") {
                match answer.message_response.expect("content") {
                    MessageResponse::ListServicesResponse(list) => {
                        services.extend(list.service.into_iter().map(|service| service.name));
                    }
                    MessageResponse::FileDescriptorResponse(files) => {
                        for file in files.file_descriptor_proto {
                            pool.decode_file_descriptor_proto(&*file)
                                .expect("a descriptor");
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
            services.sort_unstable();
            (services, pool)
        }
    };
}
reflection_client!(v1);
reflection_client!(v1alpha);

/// Encodes and decodes messages of types known only at run time.
#[derive(Clone)]
struct Dynamic(MethodDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::Message::encode(&item, buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        DynamicMessage::decode(self.0.output(), buffer)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

async fn campaign(channel: Channel, pool: &DescriptorPool, candidate: &str) -> DynamicMessage {
    let service = pool
        .get_service_by_name("grpc.election_agent.v1.Election")
        .expect("described");
    let method = service
        .methods()
        .find(|method| method.name() == "Campaign")
        .expect("described");
    let mut request = DynamicMessage::new(method.input());
    for (field, value) in [
        ("election", Value::String("e".to_owned())),
        ("candidate", Value::String(candidate.to_owned())),
        ("term", Value::I32(30_000)),
    ] {
        request.set_field_by_name(field, value);
    }
    let path = format!("/{}/{}", service.full_name(), method.name());
    let mut client = Grpc::new(channel);
    client.ready().await.expect("ready");
    let path = path.parse().expect("a path");
    let answer = client
        .unary(tonic::Request::new(request), path, Dynamic(method))
        .await;
    answer.expect("an answer").into_inner()
}

#[tokio::test]
async fn a_client_that_knows_only_reflection_gets_elected() {
    let fixture = Fixture::on(Store::Memory).await;
    let channel = || fixture.agent.channel();
    let symbol = "grpc.election_agent.v1.Election";
    let first = v1(channel(), symbol).await;
    let second = v1alpha(channel(), symbol).await;
    for ((services, pool), candidate, elected) in [(first, "a", true), (second, "b", false)] {
        for expected in [symbol, "grpc.health.v1.Health"] {
            assert!(
                services.iter().any(|service| service == expected),
                "{services:?}"
            );
        }
        let answer = campaign(channel(), &pool, candidate).await;
        let field = |name| answer.get_field_by_name(name).expect(name).into_owned();
        assert_eq!(field("elected"), Value::Bool(elected));
        assert_eq!(field("leader"), Value::String("a".to_owned()));
        assert_ne!(field("token"), Value::U64(0));
    }
    // curl speaks to the same port.
    assert_eq!(fixture.agent.get("/election/e").await.text("leader"), "a");
}
