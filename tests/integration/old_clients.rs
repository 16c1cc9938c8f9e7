//! Requests of a client of version 0.1.0, byte for byte, get answers that such a client reads as that version's.

use http::Method;
use http_body_util::BodyExt as _;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _, Value,
};
use serde_json::Value as Json;

use crate::harness::{Ask, Fixture, Protocol, Store, framed};

/// The contract of version 0.1.0.
const PROTO: (&str, &str) = (
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/integration/fixtures/v0_1_0"
    ),
    "election_agent.proto",
);

/// What differs from one run to the next.
const VOLATILE: [&str; 4] = ["token", "valid_for", "remaining", "elected_at"];

fn calls(protocol: &str) -> Vec<Json> {
    let calls = include_str!("fixtures/v0_1_0/calls.json");
    let mut calls: Json = serde_json::from_str(calls).expect("JSON");
    let Json::Array(calls) = calls[protocol].take() else {
        panic!("no calls of {protocol}");
    };
    calls
}

fn bytes(hex: &Json) -> Vec<u8> {
    let hex = hex.as_str().expect("hexadecimal digits").as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16);
    let bytes = hex.chunks(2).map(|pair| byte(pair).expect("two digits"));
    bytes.collect()
}

/// What a client of 0.1.0 reads: without the fields that it does not know, which it skips, and what is volatile.
fn read(message: &DynamicMessage) -> DynamicMessage {
    let mut known = DynamicMessage::new(message.descriptor());
    for (field, value) in message.fields() {
        let value = match value {
            Value::List(items) => {
                let item = |item: &Value| match item {
                    Value::Message(message) => Value::Message(read(message)),
                    item => item.clone(),
                };
                Value::List(items.iter().map(item).collect())
            }
            value => value.clone(),
        };
        if !VOLATILE.contains(&field.name()) {
            known.set_field(&field, value);
        }
    }
    known
}

/// The first frame of a gRPC body, or of a gRPC-Web body: the message.
fn message(descriptor: MessageDescriptor, body: &[u8]) -> DynamicMessage {
    let (head, rest) = body.split_at(5);
    let [0, length @ ..] = head else {
        panic!("no message: {body:?}");
    };
    let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
    let message = &rest[..usize::try_from(length).expect("short")];
    DynamicMessage::decode(descriptor, message).expect("a message")
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_0_1_0_get_its_answers_over_grpc_and_grpc_web() {
    let files = protox::compile([PROTO.1], [PROTO.0]).expect("valid");
    let pool = DescriptorPool::from_file_descriptor_set(files).expect("valid");
    let name = "grpc.election_agent.v1.Election";
    let service = pool.get_service_by_name(name).expect("described");
    for protocol in [Protocol::Grpc, Protocol::GrpcWeb] {
        let fixture = Fixture::on(Store::Memory).await;
        for call in calls("grpc") {
            let name = call["method"].as_str().expect("a name");
            let mut methods = service.methods();
            let method = methods.find(|method| method.name() == name);
            let method = method.expect("of 0.1.0");
            let path = format!("/{}/{name}", service.full_name());
            let ask = Ask::new(protocol).at(&path, "");
            let ask = ask.sending(framed(&bytes(&call["request"])));
            let answer = ask.send(fixture.agent.address()).await;
            let status = answer.headers().get("grpc-status");
            let status = status.map(|status| status.to_str().expect("ASCII").to_owned());
            let refused = call["status"].as_u64().map(|status| status.to_string());
            assert_eq!(status, refused, "{protocol:?} {call}");
            if refused.is_some() {
                continue;
            }
            let body = answer.into_body().collect().await.expect("a body");
            let answer = read(&message(method.output(), &body.to_bytes()));
            let expected = bytes(&call["answer"]);
            assert_eq!(
                answer.encode_to_vec(),
                expected,
                "{protocol:?} {call}: {answer:?}"
            );
        }
    }
}

/// Whether the answer has all members that are expected, with these values or, where they are null, with any. Programs
/// skip members that they do not know.
fn has(answer: &Json, expected: &Json) -> bool {
    match (answer, expected) {
        (answer, Json::Null) => !answer.is_null(),
        (Json::Object(answer), Json::Object(expected)) => {
            let mut members = expected.iter();
            members.all(|(name, value)| answer.get(name).is_some_and(|answer| has(answer, value)))
        }
        (Json::Array(answer), Json::Array(expected)) => {
            let mut both = answer.iter().zip(expected);
            answer.len() == expected.len() && both.all(|(answer, expected)| has(answer, expected))
        }
        _ => answer == expected,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_0_1_0_get_its_answers_over_rest() {
    let fixture = Fixture::on(Store::Memory).await;
    for call in calls("rest") {
        let method: Method = call["method"]
            .as_str()
            .expect("a name")
            .parse()
            .expect("a method");
        let body = Some(call["body"].clone()).filter(|body| !body.is_null());
        let path = call["path"].as_str().expect("a path");
        let answer = fixture.agent.rest(method, path, body).await;
        assert_eq!(answer.status, call["status"], "{call}: {answer:?}");
        assert!(has(&answer.body, &call["answer"]), "{call}: {answer:?}");
    }
}
