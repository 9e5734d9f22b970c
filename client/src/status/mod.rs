//! How the network is: every node is asked once, and what they say is summed.
//!
//! Owns the asking, with its bounds. The sums are [`Sum`]'s, which does no I/O. The one idea: each
//! chunk is counted by its one steward, so who did not answer is as much part of the result as what
//! was said.

mod sum;
mod verdict;

use std::time::Duration;

use copse_core::ids::NodeId;
use copse_proto::door::InfoReply;
use futures::{StreamExt as _, stream};
use tokio::time::timeout;

pub use self::{
    sum::{Chunks, Decision, FailingJob, NetworkStatus, NodeStatus, Queue, Standing, Sum},
    verdict::{Verdict, all_whole},
};
use crate::network::Network;

/// Nodes asked at once. An answer names every node that its sender knows, so this bounds memory.
const ASKED_AT_ONCE: usize = 32;

/// A node that has not answered within this time did not answer. More than a dial to a door that
/// swallows packets may take, so that such a door is told with its reason.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(7);

/// Asks every node of the directory that has not left, each at its own door.
pub async fn ask(network: &Network) -> NetworkStatus {
    ask_within(network, ANSWER_TIMEOUT).await
}

/// The same with another time for each node.
pub async fn ask_within(network: &Network, limit: Duration) -> NetworkStatus {
    let view = network.view();
    let mut sum = Sum::new(&view.directory);
    let nodes: Vec<NodeId> = sum.to_ask().collect();
    let mut answers = stream::iter(nodes)
        .map(|node| async move { (node, answer(network, node, limit).await) })
        .buffer_unordered(ASKED_AT_ONCE);
    while let Some((node, answer)) = answers.next().await {
        match answer {
            Ok(info) => sum.heard(node, &info),
            Err(why) => sum.silent(node, &why),
        }
    }
    sum.finish()
}

async fn answer(network: &Network, node: NodeId, limit: Duration) -> Result<InfoReply, String> {
    match timeout(limit, network.info(node)).await {
        Ok(answer) => answer.map_err(|refusal| refusal.to_string()),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}
