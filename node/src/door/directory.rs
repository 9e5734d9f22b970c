//! `copse.door.v1.Directory`: the signed records of all known nodes, and what is signed about silent
//! ones.
//!
//! Owns how they are cut into messages. Refuses nothing: all of it is public, and each proves itself
//! to whoever reads it.

use std::{pin::Pin, sync::Arc};

use copse_core::{directory::SignedRecord, ids::NodeId};
use copse_proto::{
    convert,
    door::{self, directory_server},
};
use futures::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status};

/// Records in one message: some 400 bytes each, far below a message's limit even with the longest
/// zones and most addresses. A message is made when the one before it is sent, so this is what a call
/// that is not read from holds, too.
const RECORDS_MAX: usize = 128;

/// Who knows the nodes.
pub trait Records: Send + Sync + 'static {
    /// The records of known nodes behind this one, by id, so many at most; this node's is among them.
    fn records_after(&self, after: Option<NodeId>, most: usize) -> Vec<SignedRecord>;

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
        let known = Arc::clone(&self.records);
        let records = stream::unfold(None, move |after| {
            let page = known.records_after(after, RECORDS_MAX);
            let reply = page.last().map(|last| {
                let records = page.iter().map(convert::signed_record).collect();
                (Ok(door::ListReply { records, ..door::ListReply::default() }), Some(last.node()))
            });
            std::future::ready(reply)
        });
        // Behind all records: an observation is of use beside the record that it is of.
        let known = Arc::clone(&self.records);
        let observations = stream::once(async move { known.observations() }).flat_map(|all| {
            let pages: Vec<_> = all.chunks(RECORDS_MAX).map(<[_]>::to_vec).collect();
            stream::iter(pages.into_iter().map(|observations| {
                Ok(door::ListReply { observations, ..door::ListReply::default() })
            }))
        });
        Ok(Response::new(Box::pin(records.chain(observations))))
    }
}
