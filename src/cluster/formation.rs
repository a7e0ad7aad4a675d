//! How an empty store finds its cluster.
//!
//! Owns: the question who founds and who joins. Promises: a cluster is founded once: by the lowest listed number, and only when
//! every listed node was reached and none of them has one; everybody else joins the one that there is; two clusters of one
//! name are never mixed; while it waits it says for whom, each reason once.
//! Does not know: files; its caller writes what is found here into the genesis, and only then is it so.

use std::sync::Arc;
use std::time::Duration;

use dassie_storage::Uuid;

use super::handshake::uuid_text;
use super::transport::Transport;

/// Between two rounds of questions.
const ROUND: Duration = Duration::from_millis(200);

/// What an empty store is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The first of a new cluster.
    NewCluster,
    /// One of a cluster that there is: its UUID, its shard's, bytes of a segment.
    Cluster(Uuid, Uuid, u64),
}

/// Asks the listed nodes until it is clear. Must be called on the transport's runtime.
pub async fn find(transport: &Arc<Transport>) -> Found {
    let settings = transport.settings();
    let first = settings.peers.keys().next().is_none_or(|lowest| *lowest >= settings.node);
    let mut said = Vec::new();
    loop {
        let mut waiting = Vec::new();
        let mut found: Vec<(u64, Found)> = Vec::new();
        for (node, address) in settings.peers.iter().filter(|(node, _)| **node != settings.node) {
            match transport.greet(*node, address).await {
                Ok((card, _)) => found
                    .extend(card.replicates.map(|there| {
                        (*node, Found::Cluster(there.cluster, there.shard, there.segment_size))
                    })),
                Err(error) => waiting.push(error.to_string()),
            }
        }
        match found.first().copied() {
            None if waiting.is_empty() && first => return Found::NewCluster,
            None if waiting.is_empty() => {
                let lowest = settings.peers.keys().next().copied().unwrap_or_default();
                waiting.push(format!("node {lowest} to found the cluster"));
            }
            None => {}
            Some((one, cluster)) => match found.iter().find(|(_, other)| *other != cluster) {
                None => return cluster,
                Some((another, _)) => waiting.push(format!(
                    "somebody to decide: node {one} and node {another} are of two clusters of this name"
                )),
            },
        }
        for why in waiting.iter().filter(|why| !said.contains(*why)) {
            tracing::info!("waiting for {why}");
        }
        said = waiting;
        tokio::time::sleep(ROUND).await;
    }
}

/// A line for a store that was made.
pub fn announce(transport: &Transport, found: Found, cluster: &Uuid) {
    let (name, node) = (&transport.settings().name, transport.settings().node);
    match found {
        Found::NewCluster => {
            tracing::info!("node {node} founds the cluster '{name}' ({})", uuid_text(cluster))
        }
        Found::Cluster(..) => {
            tracing::info!("node {node} joins the cluster '{name}' ({})", uuid_text(cluster))
        }
    }
}
