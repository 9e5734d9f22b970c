//! `copse.door.v1.Node`: what the asked node says about itself.
//!
//! Owns only the call; [`About`] knows the answer.

use std::sync::Arc;

use copse_proto::door::{self, node_server};
use tonic::{Request, Response, Status};

/// Who knows how this node is.
#[tonic::async_trait]
pub trait About: Send + Sync + 'static {
    /// Identity, addresses, store, peers.
    async fn about(&self) -> door::InfoReply;
}

/// The service.
pub(super) struct Info {
    pub(super) about: Arc<dyn About>,
}

#[tonic::async_trait]
impl node_server::Node for Info {
    async fn info(
        &self,
        _request: Request<door::InfoRequest>,
    ) -> Result<Response<door::InfoReply>, Status> {
        Ok(Response::new(self.about.about().await))
    }
}
