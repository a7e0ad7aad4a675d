//! The genesis record: who this store is. Written once, when the store is made; afterwards only verified.
//!
//! Owns: the file `genesis` and the making of an empty store. Promises: a store exists exactly when its genesis does (it is
//! renamed into place last), and a foreign, newer or damaged one is refused with file, offset and reason.

use std::io;

use bytes::Bytes;

use crate::disk::{Disk, File, damaged, fault};
use crate::format::{Uuid, crc64, segment_start};
use crate::hard_state;

const PATH: &str = "genesis";
const NEW_PATH: &str = "genesis.new";
const SIZE: usize = 128;
const MAGIC: [u8; 7] = *b"DASSIE\0";
const VERSION: u8 = 1;

/// Who a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The cluster all its replicas belong to.
    pub cluster: Uuid,
    /// The shard whose log this is; part of every batch header.
    pub shard: Uuid,
    /// This copy. A wiped store gets a new one and may not use the old.
    pub store: Uuid,
    /// The shard's number.
    pub shard_number: u32,
    /// The node the copy belongs to.
    pub node: u64,
    /// Bytes of a segment, the same on every replica: a multiple of 4096.
    pub segment_size: u64,
    /// Milliseconds since 1970.
    pub created: u64,
    /// The store was made to join a cluster: empty, it waits until a leader writes to it.
    pub joins: bool,
}

impl Genesis {
    /// Makes an empty store of this identity. Fails when there is one, or bytes that look like one without genesis.
    /// A crash leaves either nothing that counts or the whole store.
    pub async fn create<D: Disk>(&self, disk: &D) -> io::Result<()> {
        if self.segment_size == 0 || !self.segment_size.is_multiple_of(4096) {
            let reason = format!("segment size {} is not a multiple of 4096", self.segment_size);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let names = disk.list("").await?;
        if names.iter().any(|name| name == PATH) {
            return Err(fault("create", PATH, None, io::ErrorKind::AlreadyExists.into()));
        }
        for dir in ["log", "pages", "checkpoint"] {
            disk.create_dir(dir).await?;
        }
        if let Some(name) = disk.list("log").await?.iter().find(|name| segment_start(name).is_some()) {
            return Err(damaged(&format!("log/{name}"), 0, "a log without genesis: not touched"));
        }
        hard_state::create(disk, &self.store).await?;
        if names.iter().any(|name| name == NEW_PATH) {
            disk.remove(NEW_PATH).await?; // left by a crash in an earlier attempt
        }
        let file = disk.create(NEW_PATH, 0).await?;
        file.write_at(0, &[Bytes::copy_from_slice(&self.encode())]).await?;
        file.sync().await?;
        // All else first: once the genesis stands, whatever is missing counts as lost.
        disk.sync_dir("").await?;
        disk.rename(NEW_PATH, PATH).await?;
        disk.sync_dir("").await
    }

    /// Loads the genesis; `None` when there is no store.
    pub async fn load<D: Disk>(disk: &D) -> io::Result<Option<Genesis>> {
        if !disk.list("").await?.iter().any(|name| name == PATH) {
            return Ok(None);
        }
        let file = disk.open(PATH).await?;
        let len = file.len()?;
        if len != SIZE as u64 {
            return Err(damaged(PATH, 0, format_args!("{len} bytes instead of {SIZE}")));
        }
        Genesis::decode(&file.read_at(0, SIZE).await?).map(Some)
    }

    /// Refuses a store that is not the expected one, naming the field.
    pub fn verify(&self, cluster: &Uuid, node: u64, shard_number: u32) -> io::Result<()> {
        if self.cluster != *cluster {
            return Err(damaged(PATH, 8, "the store belongs to another cluster"));
        }
        if self.shard_number != shard_number {
            let reason = format!("the store is shard {}, not {shard_number}", self.shard_number);
            return Err(damaged(PATH, 56, reason));
        }
        if self.node != node {
            return Err(damaged(
                PATH,
                64,
                format_args!("the store belongs to node {}, not {node}", self.node),
            ));
        }
        Ok(())
    }

    fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..7].copy_from_slice(&MAGIC);
        bytes[7] = VERSION;
        bytes[8..24].copy_from_slice(&self.cluster);
        bytes[24..40].copy_from_slice(&self.shard);
        bytes[40..56].copy_from_slice(&self.store);
        bytes[56..60].copy_from_slice(&self.shard_number.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.node.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.segment_size.to_le_bytes());
        bytes[80..88].copy_from_slice(&self.created.to_le_bytes());
        bytes[88] = u8::from(self.joins);
        let crc = crc64(&bytes[..120]);
        bytes[120..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> io::Result<Genesis> {
        if bytes[..7] != MAGIC {
            return Err(damaged(PATH, 0, "not a store of this broker"));
        }
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        // The version decides how the rest is read, so it is looked at first; with a wrong checksum it is damage, not news.
        let sound = u64_at(120) == crc64(&bytes[..120]);
        if !sound {
            return Err(damaged(
                PATH,
                120,
                format_args!("checksum does not match (format version {})", bytes[7]),
            ));
        }
        if bytes[7] != VERSION {
            let reason =
                format!("format version {} is not the version {VERSION} this release reads", bytes[7]);
            return Err(damaged(PATH, 7, reason));
        }
        if bytes[60..64].iter().chain(&bytes[89..120]).any(|&byte| byte != 0) || bytes[88] > 1 {
            return Err(damaged(PATH, 88, "reserved bytes are not zero"));
        }
        let uuid = |at: usize| -> Uuid { bytes[at..at + 16].try_into().expect("sixteen bytes") };
        let genesis = Genesis {
            cluster: uuid(8),
            shard: uuid(24),
            store: uuid(40),
            shard_number: u32::from_le_bytes(bytes[56..60].try_into().expect("four bytes")),
            node: u64_at(64),
            segment_size: u64_at(72),
            created: u64_at(80),
            joins: bytes[88] == 1,
        };
        if genesis.segment_size == 0 || !genesis.segment_size.is_multiple_of(4096) {
            return Err(damaged(PATH, 72, "segment size is not a multiple of 4096"));
        }
        Ok(genesis)
    }
}
