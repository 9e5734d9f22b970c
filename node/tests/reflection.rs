//! What a foreign program sees of the door before it has our .proto files: health and reflection.

mod support;

use support::TestNode;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

const SERVICES: [&str; 6] = [
    "copse.door.v1.Directory",
    "copse.door.v1.Node",
    "copse.door.v1.Shards",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

fn check_names(mut names: Vec<String>) {
    names.sort();
    assert_eq!(names, SERVICES);
}

#[tokio::test]
async fn health_is_told_for_the_whole_and_for_each_service() {
    let node = TestNode::start(None).await;
    let mut health = HealthClient::new(node.door.clone());
    for service in ["", "copse.door.v1.Shards", "copse.door.v1.Directory", "copse.door.v1.Node"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.expect("healthy").into_inner().status;
        assert_eq!(status, ServingStatus::Serving as i32, "{service}");
    }
    let request = HealthCheckRequest { service: "copse.files.v1.Files".to_owned() };
    assert_eq!(health.check(request).await.expect_err("not here").code(), Code::NotFound);
    node.node.shutdown().await;
}

#[tokio::test]
async fn reflection_answers_in_its_first_version() {
    let node = TestNode::start(None).await;
    use v1::{
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(node.door.clone());
    let ask = |request| v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("copse.door.v1.Shards".to_owned())),
    ];
    let stream = client.server_reflection_info(tokio_stream::iter(requests)).await;
    let mut stream = stream.expect("answers").into_inner();
    let first = stream.next().await.expect("an answer").expect("no error").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = first else {
        panic!("not a list: {first:?}");
    };
    check_names(list.service.into_iter().map(|service| service.name).collect());
    let second = stream.next().await.expect("an answer").expect("no error").message_response;
    assert!(matches!(second, Some(MessageResponse::FileDescriptorResponse(_))), "{second:?}");
    drop(stream);
    node.node.shutdown().await;
}

#[tokio::test]
async fn reflection_answers_in_the_older_version_too() {
    let node = TestNode::start(None).await;
    use v1alpha::{
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(node.door.clone());
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let stream = client.server_reflection_info(tokio_stream::iter([request])).await;
    let mut stream = stream.expect("answers").into_inner();
    let answer = stream.next().await.expect("an answer").expect("no error").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("not a list: {answer:?}");
    };
    check_names(list.service.into_iter().map(|service| service.name).collect());
    drop(stream);
    node.node.shutdown().await;
}
