//! `copse.door.v1.Directory`: the signed records of all known nodes, and what is signed about silent
//! ones.
//!
//! Owns how they are cut into messages. Refuses nothing: all of it is public, and each proves itself
//! to whoever reads it.

use std::{pin::Pin, sync::Arc};

use copse_proto::door::{self, directory_server};
use futures::{Stream, stream};
use tonic::{Request, Response, Status};

/// Records in one message: some 400 bytes each, far below a message's limit even with the longest
/// zones and most addresses.
const RECORDS_MAX: usize = 256;

/// Who knows the nodes.
pub trait Records: Send + Sync + 'static {
    /// The records of all known nodes, this one's among them.
    fn records(&self) -> Vec<door::SignedRecord>;

    /// What nodes sign about silent ones.
    fn observations(&self) -> Vec<door::SignedObservation>;
}

/// The service.
pub(super) struct Directory {
    pub(super) records: Arc<dyn Records>,
}

#[tonic::async_trait]
impl directory_server::Directory for Directory {
    type ListStream = Pin<Box<dyn Stream<Item = Result<door::ListReply, Status>> + Send>>;

    async fn list(
        &self,
        _request: Request<door::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let (records, observations) = (self.records.records(), self.records.observations());
        let records = records.chunks(RECORDS_MAX).map(|records| door::ListReply {
            records: records.to_vec(),
            ..door::ListReply::default()
        });
        // Behind all records: an observation is of use beside the record that it is of.
        let observations = observations.chunks(RECORDS_MAX).map(|observations| door::ListReply {
            observations: observations.to_vec(),
            ..door::ListReply::default()
        });
        let replies: Vec<_> = records.chain(observations).map(Ok).collect();
        Ok(Response::new(Box::pin(stream::iter(replies))))
    }
}
