//! `copse.door.v1.Directory`: the signed records of all known nodes, and what is signed about silent
//! ones.
//!
//! Owns how they are cut into messages. Refuses nothing: all of it is public, and each proves itself
//! to whoever reads it; but who does not read it is cut off.

use std::{pin::Pin, sync::Arc};

use copse_core::{
    directory::SignedRecord,
    eviction::{Observation, SignedObservation},
    ids::NodeId,
};
use copse_proto::{
    convert,
    door::{self, directory_server},
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{clients::Client, shards::Answers};

/// Records or observations in one message: some 400 bytes each, far below a message's limit even with the
/// longest zones and most addresses. A message is made when the one before it is on its way, so this is what
/// a call that is not read from holds, too.
const RECORDS_MAX: usize = 128;

/// Who knows the nodes.
pub trait Records: Send + Sync + 'static {
    /// The records of known nodes behind this one, by id, so many at most; this node's is among them.
    fn records_after(&self, after: Option<NodeId>, most: usize) -> Vec<SignedRecord>;

    /// What nodes sign about silent ones, by silent node and who says it, behind these two, so many at most.
    fn observations_after(
        &self,
        after: Option<(NodeId, NodeId)>,
        most: usize,
    ) -> Vec<SignedObservation>;
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
        request: Request<door::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let client = request.extensions().get::<Client>().cloned();
        let client = client.ok_or_else(|| Status::internal("a call that came on no connection"))?;
        let (out, replies) = mpsc::channel(1);
        let answers = Answers { out, client };
        tokio::spawn(send_all(Arc::clone(&self.records), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }
}

/// Sends all that is known, or as much as the client takes.
async fn send_all(known: Arc<dyn Records>, answers: Answers<door::ListReply>) {
    let mut after = None;
    loop {
        let page = known.records_after(after, RECORDS_MAX);
        let Some(last) = page.last() else { break };
        after = Some(last.node());
        let records = page.iter().map(convert::signed_record).collect();
        if !answers.send(Ok(door::ListReply { records, ..door::ListReply::default() })).await {
            return;
        }
    }
    // Behind all records: an observation is of use beside the record that it is of.
    let mut after = None;
    loop {
        let page = known.observations_after(after, RECORDS_MAX);
        let Some(last) = page.last() else { break };
        let Observation { observer, subject, .. } = *last.observation();
        after = Some((subject, observer));
        let observations = page.iter().map(convert::signed_observation).collect();
        let reply = door::ListReply { observations, ..door::ListReply::default() };
        if !answers.send(Ok(reply)).await {
            return;
        }
    }
}
