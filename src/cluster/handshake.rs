//! How two nodes introduce themselves: a card each, then either a stream of frames or a reason.
//!
//! Owns: the bytes of cards and refusals, and the rules who may speak to whom. Promises: at most [`limits::PEER_CARD_MAX`] bytes
//! are taken from somebody who is not believed yet; both sides check the other; every refusal is said to the peer in words.
//! Does not know: sockets, TLS, who is a member (its caller checks stores and certificates).
//!
//! All numbers are little-endian. Both cards begin with `DASSIE-P` (8) and the length of the rest (2); then:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | what follows: 1 a card, 2 a refusal (its text is the rest) |
//! | 1 | 1 | purpose |
//! | 2 | 2 | lowest version of this protocol that is spoken |
//! | 4 | 2 | highest; in the answer both are the one that was chosen |
//! | 6 | 8 | number of the node that speaks |
//! | 14 | 8 | number of the node that is meant, 0: whoever listens there |
//! | 22 | 16 | cluster, zeros: its store is empty |
//! | 38 | 16 | shard |
//! | 54 | 16 | store |
//! | 70 | 8 | segment size |
//! | 78 | 2+n | name of the cluster |
//! | | 2+n | where the node is reached |
//!
//! Bytes behind that are of a later version and are passed over.

use std::io;

use bytes::{BufMut, BytesMut};
use dassie_storage::Uuid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::stream::Purpose;
use crate::limits;

/// Versions of what is said behind the handshake that this release speaks, lowest and highest.
pub const VERSIONS: (u16, u16) = (1, 1);

const MAGIC: &[u8; 8] = b"DASSIE-P";
const FIXED: usize = 78;
const CARD: u8 = 1;
const REFUSAL: u8 = 2;

/// Which copy of which log a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicates {
    /// The cluster.
    pub cluster: Uuid,
    /// The shard.
    pub shard: Uuid,
    /// This copy.
    pub store: Uuid,
    /// Bytes of a segment.
    pub segment_size: u64,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its number.
    pub node: u64,
    /// Name of its cluster.
    pub name: String,
    /// Where others reach it, `host:port`.
    pub address: String,
    /// `None`: its store is empty, it waits for a cluster.
    pub replicates: Option<Replicates>,
}

/// A card as it is shown: to whom, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) purpose: Purpose,
    pub(crate) versions: (u16, u16),
    /// The node that is meant; 0: whoever listens there.
    pub(crate) to: u64,
    pub(crate) card: Card,
}

/// Why a peer is not spoken to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Turned {
    /// It never was a node of ours, or something on the way.
    #[error("it does not speak the protocol of nodes: {0}")]
    Garbage(&'static str),
    #[error("{0}")]
    Said(String),
    #[error(transparent)]
    Lost(#[from] io::Error),
}

impl Shown {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut rest = Vec::with_capacity(FIXED + 64);
        rest.put_u8(CARD);
        rest.put_u8(self.purpose as u8);
        rest.put_u16_le(self.versions.0);
        rest.put_u16_le(self.versions.1);
        rest.put_u64_le(self.card.node);
        rest.put_u64_le(self.to);
        let none = Replicates { cluster: [0; 16], shard: [0; 16], store: [0; 16], segment_size: 0 };
        let replicates = self.card.replicates.unwrap_or(none);
        for uuid in [replicates.cluster, replicates.shard, replicates.store] {
            rest.put_slice(&uuid);
        }
        rest.put_u64_le(replicates.segment_size);
        for text in [&self.card.name, &self.card.address] {
            // Both come from the configuration, whose bounds are far below.
            let text = &text.as_bytes()[..text.len().min(400)];
            rest.put_u16_le(u16::try_from(text.len()).unwrap_or(0));
            rest.put_slice(text);
        }
        framed(&rest)
    }

    fn read(rest: &[u8]) -> Result<Self, Turned> {
        let fixed = rest.get(..FIXED).ok_or(Turned::Garbage("its card is too short"))?;
        let u16_at = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight bytes"));
        let uuid = |at: usize| -> Uuid { fixed[at..at + 16].try_into().expect("sixteen bytes") };
        let mut tail = &rest[FIXED..];
        let mut text = || -> Option<String> {
            let (len, behind) = tail.split_first_chunk::<2>()?;
            let (text, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
            tail = behind;
            let text = std::str::from_utf8(text).ok()?;
            (!text.chars().any(char::is_control)).then(|| text.to_owned())
        };
        let (Some(name), Some(address)) = (text(), text()) else {
            return Err(Turned::Garbage("a text of its card is broken"));
        };
        let versions = (u16_at(2), u16_at(4));
        if versions.0 > VERSIONS.1 || versions.1 < VERSIONS.0 {
            return Err(Turned::Said(format!(
                "node {} speaks versions {} to {} of the protocol of nodes, and this release {} to {}",
                u64_at(6),
                versions.0,
                versions.1,
                VERSIONS.0,
                VERSIONS.1
            )));
        }
        let purpose = Purpose::from_byte(fixed[1])
            .ok_or_else(|| Turned::Said(format!("a connection for an unknown purpose ({})", fixed[1])))?;
        let replicates =
            Replicates { cluster: uuid(22), shard: uuid(38), store: uuid(54), segment_size: u64_at(70) };
        let replicates = Some(replicates).filter(|replicates| replicates.cluster != [0; 16]);
        Ok(Shown {
            purpose,
            versions,
            to: u64_at(14),
            card: Card { node: u64_at(6), name, address, replicates },
        })
    }
}

fn framed(rest: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.put_u16_le(u16::try_from(rest.len()).unwrap_or(0));
    bytes.extend_from_slice(rest);
    bytes
}

/// Takes exactly one card or refusal off `stream`, and nothing behind it.
pub(crate) async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<Shown, Turned> {
    let mut head = [0; 10];
    let mut got = 0;
    while got < head.len() {
        let more = stream.read(&mut head[got..]).await?;
        if more == 0 {
            return Err(if got == 0 {
                Turned::Said("it said nothing".to_owned())
            } else {
                Turned::Garbage("it ended in the middle of its first words")
            });
        }
        got += more;
        // Somebody else's protocol is known by its first bytes; its sender may never send ten of them.
        let known = got.min(MAGIC.len());
        if head[..known] != MAGIC[..known] {
            let tls = head[0] == 0x16;
            return Err(Turned::Garbage(if tls {
                "TLS where plaintext is spoken"
            } else {
                "its first bytes are wrong"
            }));
        }
    }
    let len = usize::from(u16::from_le_bytes([head[8], head[9]]));
    if len == 0 || len > limits::PEER_CARD_MAX {
        return Err(Turned::Garbage("its card is too long"));
    }
    let mut rest = BytesMut::zeroed(len);
    stream.read_exact(&mut rest).await?;
    match rest[0] {
        CARD => Shown::read(&rest),
        REFUSAL => {
            let said: String =
                String::from_utf8_lossy(&rest[1..]).chars().filter(|c| !c.is_control()).collect();
            Err(Turned::Said(format!("refused: {said}")))
        }
        _ => Err(Turned::Garbage("neither a card nor a refusal")),
    }
}

/// Says why, as far as the peer still listens.
pub(crate) async fn refuse(stream: &mut (impl AsyncWrite + Unpin), reason: &str) {
    let mut rest = vec![REFUSAL];
    rest.extend_from_slice(&reason.as_bytes()[..reason.len().min(limits::PEER_CARD_MAX - 1)]);
    let _ = stream.write_all(&framed(&rest)).await;
    let _ = stream.shutdown().await;
}

/// May these two speak? What one of them would say to the other.
pub(crate) fn agree(ours: &Card, theirs: &Card, purpose: Purpose) -> Result<(), String> {
    if ours.name != theirs.name {
        return Err(format!(
            "node {} is of the cluster named '{}', and node {} of '{}'",
            theirs.node, theirs.name, ours.node, ours.name
        ));
    }
    if ours.node == theirs.node {
        return Err(format!("both call themselves node {}", ours.node));
    }
    match (&ours.replicates, &theirs.replicates) {
        (Some(ours_), Some(theirs_)) if ours_.cluster != theirs_.cluster => Err(format!(
            "node {} is of cluster {}, and node {} of cluster {}, which only has the same name",
            theirs.node,
            uuid_text(&theirs_.cluster),
            ours.node,
            uuid_text(&ours_.cluster)
        )),
        (Some(ours_), Some(theirs_)) if ours_.shard != theirs_.shard => {
            Err(format!("nodes {} and {} have different shards", theirs.node, ours.node))
        }
        (Some(ours_), Some(theirs_)) if ours_.store == theirs_.store => Err(format!(
            "nodes {} and {} have the same store {}: one is a copy of the other's files",
            theirs.node,
            ours.node,
            uuid_text(&ours_.store)
        )),
        (Some(_), Some(_)) => Ok(()),
        _ if purpose == Purpose::Admin => Ok(()),
        (None, _) => Err(format!("node {} has not joined a cluster yet", ours.node)),
        (_, None) => Err(format!("node {} has not joined a cluster yet", theirs.node)),
    }
}

/// As people write it.
#[must_use]
pub fn uuid_text(uuid: &Uuid) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn shown() -> Shown {
        let replicates =
            Replicates { cluster: [1; 16], shard: [2; 16], store: [3; 16], segment_size: 1 << 26 };
        let card =
            Card { node: 3, name: "dassie".into(), address: "c:7673".into(), replicates: Some(replicates) };
        Shown { purpose: Purpose::Front, versions: VERSIONS, to: 2, card }
    }

    async fn read(bytes: &[u8]) -> Result<Shown, Turned> {
        receive(&mut &bytes[..]).await
    }

    #[tokio::test]
    async fn a_card_survives_its_bytes_and_every_shorter_one_is_refused() {
        for replicates in [shown().card.replicates, None] {
            let shown = Shown { card: Card { replicates, ..shown().card }, ..shown() };
            let bytes = shown.bytes();
            assert_eq!(read(&bytes).await.unwrap(), shown);
            for len in 0..bytes.len() {
                assert!(read(&bytes[..len]).await.is_err(), "{len}");
            }
        }
    }

    #[tokio::test]
    async fn what_a_later_version_adds_is_passed_over_and_its_range_is_looked_at() {
        let mut bytes = Shown { versions: (1, 7), ..shown() }.bytes();
        bytes.extend_from_slice(&[9; 40]);
        let len = u16::try_from(bytes.len() - 10).unwrap();
        bytes[8..10].copy_from_slice(&len.to_le_bytes());
        assert_eq!(read(&bytes).await.unwrap().versions, (1, 7));
        let error = read(&Shown { versions: (2, 3), ..shown() }.bytes()).await.unwrap_err();
        assert!(error.to_string().contains("speaks versions 2 to 3"), "{error}");
    }

    #[tokio::test]
    async fn a_refusal_arrives_in_words_on_one_line() {
        let mut bytes = Vec::new();
        refuse(&mut bytes, "no\nentry").await;
        assert_eq!(read(&bytes).await.unwrap_err().to_string(), "refused: noentry");
    }

    #[tokio::test]
    async fn other_protocols_are_known_by_their_first_bytes() {
        for (bytes, why) in
            [(&b"GET / "[..], "first bytes"), (&[0x16, 3, 1], "TLS"), (b"AMQP", "first bytes")]
        {
            let text = read(bytes).await.unwrap_err().to_string();
            assert!(text.contains(why), "{text}");
        }
    }

    #[test]
    fn only_nodes_of_one_cluster_with_stores_of_their_own_agree() {
        let (ours, theirs) = (shown().card, Card { node: 2, ..shown().card });
        let with = |change: fn(&mut Replicates)| {
            let mut replicates = Replicates { store: [4; 16], ..shown().card.replicates.unwrap() };
            change(&mut replicates);
            Card { replicates: Some(replicates), ..theirs.clone() }
        };
        let ask = |theirs: &Card, purpose| agree(&ours, theirs, purpose);
        assert_eq!(ask(&with(|_| ()), Purpose::Consensus), Ok(()));
        for (theirs, word) in [
            (theirs.clone(), "same store"),
            (with(|r| r.cluster = [9; 16]), "only has the same name"),
            (with(|r| r.shard = [9; 16]), "different shards"),
            (Card { name: "other".into(), ..with(|_| ()) }, "'other'"),
            (Card { node: 3, ..with(|_| ()) }, "both call themselves node 3"),
            (Card { replicates: None, ..theirs.clone() }, "not joined"),
        ] {
            let text = ask(&theirs, Purpose::Consensus).unwrap_err();
            assert!(text.contains(word), "{text}");
        }
        assert_eq!(ask(&Card { replicates: None, ..theirs }, Purpose::Admin), Ok(()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), framed_too in any::<bool>()) {
            let bytes = if framed_too { framed(&bytes) } else { bytes };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read(&bytes));
        }
    }
}
