//! What every gRPC tool expects beside a service: health and reflection.
//!
//! Owns their names and what they tell. Refuses to describe services that are not served here, though
//! their descriptors are compiled in. Reflection is given in v1 and v1alpha: older tools know only
//! the latter.

use copse_proto::{FILE_DESCRIPTOR_SET, files::files_server, routes::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_reflection::server::Builder;

/// Bytes of what is asked of these services, at most: the name of a service, or of a file of them.
const QUESTION_BYTES_MAX: usize = 4 << 10;

/// Where calls of the health service go.
pub(super) const PATH: &str = "/grpc.health.v1.Health/";

/// The services whose health is told; the empty name stands for all.
const SERVED: [&str; 2] = ["", files_server::SERVICE_NAME];

/// Adds health, serving, and both versions of reflection.
pub(super) async fn add(
    routes: Routes,
) -> Result<(Routes, HealthReporter), tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    set(&reporter, ServingStatus::Serving).await;
    let reflection = || {
        Builder::configure()
            .with_service_name(files_server::SERVICE_NAME)
            .with_service_name("grpc.health.v1.Health")
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1()?.max_decoding_message_size(QUESTION_BYTES_MAX);
    let v1alpha = reflection().build_v1alpha()?.max_decoding_message_size(QUESTION_BYTES_MAX);
    let health = health.max_decoding_message_size(QUESTION_BYTES_MAX);
    Ok((routes.with(health).with(v1).with(v1alpha), reporter))
}

/// Says how it is.
pub(super) async fn set(reporter: &HealthReporter, status: ServingStatus) {
    for name in SERVED {
        reporter.set_service_status(name, status).await;
    }
}
