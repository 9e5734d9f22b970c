//! The directory, fetched from a few doors at once and again from time to time.
//!
//! Owns which doors are asked and how long one is waited for. Believes no record that is not
//! signed. The one idea: a door may hide nodes, so several are asked; a door may hang, so none is
//! waited for while others have answered.

use std::{
    collections::HashSet,
    sync::{PoisonError, Weak},
    time::Duration,
};

use copse_core::{directory::DIRECTORY_NODES_MAX, eviction::OBSERVERS_MAX, ids::NodeId};
use copse_proto::{
    door::{self, directory_client::DirectoryClient},
    status::Refusal,
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{Inner, Network, lock, timed_out};
use crate::error::NetworkError;

/// Doors asked at once for the directory. Two of three may be dead or out of date.
const DIRECTORY_DOORS: usize = 3;

/// A door that has not sent its directory within this time is given up.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a silent door holds up those who have answered, and after which another is asked too.
/// A host that is gone says nothing at all: without this every command would wait seconds for it.
const SLOW_DOOR: Duration = Duration::from_millis(500);

/// How often the directory is fetched again while the network is in use.
const REFRESH_EVERY: Duration = Duration::from_secs(60);

impl Network {
    /// Fetches the directory from a few doors and merges what they say. Every record is verified;
    /// a door can hide a node, so several are asked, and nothing known is forgotten.
    ///
    /// # Errors
    /// When no door answered.
    pub async fn refresh(&self) -> Result<(), NetworkError> {
        let started = Instant::now();
        let mut doors = self.doors().into_iter();
        let mut asking: FuturesUnordered<_> =
            doors.by_ref().take(DIRECTORY_DOORS).map(|node| self.list_of(node)).collect();
        let mut list = door::ListReply::default();
        let mut answers = 0;
        let mut refused = Vec::new();
        let mut slow_at = started + SLOW_DOOR;
        loop {
            let answer = tokio::select! {
                biased;
                answer = asking.next() => answer,
                // Those who have not answered by now are not waited for.
                () = sleep_until(slow_at), if answers > 0 => break,
                () = sleep_until(slow_at) => {
                    slow_at += SLOW_DOOR;
                    asking.extend(doors.next().map(|node| self.list_of(node)));
                    continue;
                }
            };
            match answer {
                None => break,
                Some((_, Ok(more))) => {
                    if answers == 0 {
                        // On a slow way all take long: the others get the same time once more.
                        slow_at = Instant::now() + SLOW_DOOR.max(started.elapsed());
                    }
                    answers += 1;
                    list.records.extend(more.records);
                    list.observations.extend(more.observations);
                }
                Some((node, Err(refusal))) => {
                    tracing::debug!(node = %node.short(), %refusal, "no directory from this door");
                    refused.push((node, refusal));
                    // One after the other until enough have answered.
                    if answers < DIRECTORY_DOORS {
                        asking.extend(doors.next().map(|node| self.list_of(node)));
                    }
                }
            }
        }
        if answers == 0 {
            return Err(NetworkError::Unreachable { network: self.inner.id, refused });
        }
        let known = self.view();
        let merging = crate::task::beside(move || known.with(&list));
        if let Ok(Some(view)) = merging.await {
            *self.inner.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        }
        Ok(())
    }

    /// Fetches the directory, unless that was done within `age`.
    ///
    /// # Errors
    /// When no door answered.
    pub async fn refresh_if_older(&self, age: Duration) -> Result<(), NetworkError> {
        let mut refreshed = self.inner.refreshed.lock().await;
        if refreshed.elapsed() < age {
            return Ok(());
        }
        let result = self.refresh().await;
        // A failure counts too: asking at once again would find the same.
        *refreshed = Instant::now();
        result
    }

    /// Doors to try, in order: those already open, then those of the join token, then all in the
    /// directory.
    pub(super) fn doors(&self) -> Vec<NodeId> {
        let mut all: Vec<NodeId> = self.open_doors();
        all.extend(self.inner.bootstrap.iter().map(|door| door.node));
        all.extend(self.view().directory.iter().map(|record| record.node()));
        let mut seen = HashSet::new();
        all.retain(|node| seen.insert(*node));
        all
    }

    fn open_doors(&self) -> Vec<NodeId> {
        let nodes = lock(&self.inner.nodes);
        let mut open: Vec<NodeId> = nodes
            .iter()
            .filter(|(_, way)| lock(&way.link).as_ref().is_some_and(|(link, _)| link.via.is_none()))
            .map(|(node, _)| *node)
            .collect();
        // Of those, the ones not known to be dead, in an order that does not change by chance.
        open.retain(|node| !self.holder(*node).is_dead());
        open.sort_unstable();
        open
    }

    async fn list_of(&self, node: NodeId) -> (NodeId, Result<door::ListReply, Refusal>) {
        let asking = async {
            let channel = self.dial(node).await?;
            let mut client = DirectoryClient::new(channel);
            let mut stream = client.list(door::ListRequest {}).await?.into_inner();
            let mut list = door::ListReply::default();
            while let Some(reply) = stream.message().await? {
                list.records.extend(reply.records);
                list.observations.extend(reply.observations);
                if list.records.len().max(list.observations.len() / OBSERVERS_MAX)
                    > DIRECTORY_NODES_MAX
                {
                    break;
                }
            }
            Ok(list)
        };
        let answer = match tokio::time::timeout(DIRECTORY_TIMEOUT, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(timed_out(DIRECTORY_TIMEOUT)),
        };
        if let Err(refusal) = &answer {
            self.holder(node).failed(refusal.to_string());
        }
        (node, answer)
    }
}

/// Fetches the directory from time to time, for as long as the network is in use.
pub(super) async fn keep_fresh(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(REFRESH_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        let network = Network { inner };
        if let Err(error) = network.refresh().await {
            tracing::warn!(%error, "the directory could not be refreshed");
        }
    }
}
