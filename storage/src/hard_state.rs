//! Hard state: the vote, the log floor and the truncation mark, in the file `state`.
//!
//! Owns: that file, two slots of 4096 bytes written in turn. Promises: after a crash the newest state whose write was
//! acknowledged is found, and no single damaged byte can bring an older vote back: each slot holds its 512-byte record
//! twice, so a flip leaves a sound twin, while a torn write (both twins broken) leaves the other slot, whose write was
//! acknowledged before. Does not know: what a vote says.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `DSTA` |
//! | 4 | 2 | format version, 1 |
//! | 6 | 1 | flags: 1 clean shutdown, 2 floor present, 4 truncation mark present |
//! | 7 | 1 | length of the vote |
//! | 8 | 8 | sequence of this state; slot = sequence modulo 2 |
//! | 16 | 16 | store UUID |
//! | 32 | 64 | vote, opaque |
//! | 96 | 48 | floor: index, term, leader, position, end, hash of the last purged batch |
//! | 144 | 8 | synced to: a position known to be synced |
//! | 152 | 8 | truncation mark: position from which everything goes |
//! | 160 | 1 | truncation mark: length of its vote |
//! | 161 | 7 | reserved |
//! | 168 | 64 | truncation mark: the vote under which it was made |
//! | 232 | 272 | reserved |
//! | 504 | 8 | CRC-64/NVME of bytes 0..504 |
//!
//! The second record of a slot stands 2048 bytes behind the first; the rest of the slot is zero.

use std::io;

use bytes::Bytes;

use crate::disk::{Disk, File, damaged};
use crate::format::{LogPoint, Uuid, crc64};

const PATH: &str = "state";
const NEW_PATH: &str = "state.new";
const SLOT: usize = 4096;
const TWIN: usize = 2048;
const RECORD: usize = 512;
/// The longest vote.
pub const MAX_VOTE: usize = 64;

/// Everything from `position` on is being dropped. Stands only while the zeroing is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TruncationMark {
    pub(crate) position: u64,
    pub(crate) vote: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HardState {
    pub(crate) vote: Bytes,
    pub(crate) floor: Option<LogPoint>,
    pub(crate) mark: Option<TruncationMark>,
    /// The log is synced at least to here; a batch that does not verify below it is damage.
    pub(crate) synced_to: u64,
    pub(crate) clean: bool,
}

/// The open file and what stands in it.
pub(crate) struct StateFile<F> {
    file: F,
    store: Uuid,
    sequence: u64,
    pub(crate) state: HardState,
}

/// Writes the first state of an empty store. Does not sync the directory.
pub(crate) async fn create<D: Disk>(disk: &D, store: &Uuid) -> io::Result<()> {
    let names = disk.list("").await?;
    if names.iter().any(|name| name == NEW_PATH) {
        disk.remove(NEW_PATH).await?; // left by a crash in an earlier attempt
    }
    let file = disk.create(NEW_PATH, 2 * SLOT as u64).await?;
    // Both slots: a damaged slot must never look like one that was not written yet.
    let slots = [0, 1].map(|sequence| encode(&HardState::default(), store, sequence));
    file.write_at(0, &slots).await?;
    file.sync().await?;
    disk.rename(NEW_PATH, PATH).await
}

impl<F: File> StateFile<F> {
    pub(crate) async fn open<D: Disk<File = F>>(disk: &D, store: &Uuid) -> io::Result<StateFile<F>> {
        let file = disk.open(PATH).await?;
        let len = file.len()?;
        if len != 2 * SLOT as u64 {
            return Err(damaged(PATH, 0, format_args!("{len} bytes instead of {}", 2 * SLOT)));
        }
        let bytes = file.read_at(0, 2 * SLOT).await?;
        let mut newest: Option<(u64, HardState)> = None;
        for at in [0, TWIN, SLOT, SLOT + TWIN] {
            let record = &bytes[at..at + RECORD];
            if u64_at(record, 504) != crc64(&record[..504]) {
                continue;
            }
            let (sequence, state) =
                decode(record, store).map_err(|reason| damaged(PATH, at as u64, reason))?;
            if sequence % 2 != (at / SLOT) as u64 {
                return Err(damaged(PATH, at as u64, "a state written for the other slot"));
            }
            if newest.as_ref().is_none_or(|(known, _)| *known < sequence) {
                newest = Some((sequence, state));
            }
        }
        let Some((sequence, state)) = newest else {
            return Err(damaged(PATH, 0, "no state matches its checksum: the vote is lost"));
        };
        Ok(StateFile { file, store: *store, sequence, state })
    }

    /// Writes `state` durably over the older slot. On an error the file must not be used any more.
    pub(crate) async fn save(&mut self, state: HardState) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let slot = encode(&state, &self.store, sequence);
        self.file.write_at((sequence % 2) * SLOT as u64, &[slot]).await?;
        self.file.sync().await?;
        self.sequence = sequence;
        self.state = state;
        Ok(())
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put_vote(bytes: &mut [u8], vote: &[u8]) -> u8 {
    bytes[..vote.len()].copy_from_slice(vote);
    u8::try_from(vote.len()).expect("vote length was checked")
}

fn encode(state: &HardState, store: &Uuid, sequence: u64) -> Bytes {
    let mut record = [0; RECORD];
    record[..4].copy_from_slice(b"DSTA");
    record[4] = 1;
    record[6] =
        u8::from(state.clean) | u8::from(state.floor.is_some()) << 1 | u8::from(state.mark.is_some()) << 2;
    record[8..16].copy_from_slice(&sequence.to_le_bytes());
    record[16..32].copy_from_slice(store);
    record[7] = put_vote(&mut record[32..96], &state.vote);
    if let Some(p) = state.floor {
        for (i, field) in [p.index, p.term, p.leader, p.position, p.end, p.hash].into_iter().enumerate() {
            record[96 + i * 8..104 + i * 8].copy_from_slice(&field.to_le_bytes());
        }
    }
    record[144..152].copy_from_slice(&state.synced_to.to_le_bytes());
    if let Some(mark) = &state.mark {
        record[152..160].copy_from_slice(&mark.position.to_le_bytes());
        record[160] = put_vote(&mut record[168..232], &mark.vote);
    }
    let crc = crc64(&record[..504]);
    record[504..].copy_from_slice(&crc.to_le_bytes());
    let mut slot = vec![0; SLOT];
    slot[..RECORD].copy_from_slice(&record);
    slot[TWIN..TWIN + RECORD].copy_from_slice(&record);
    slot.into()
}

/// Reads a record whose checksum matched.
fn decode(record: &[u8], store: &Uuid) -> Result<(u64, HardState), &'static str> {
    if record[..4] != *b"DSTA" {
        return Err("not a hard state");
    }
    if u16::from_le_bytes([record[4], record[5]]) != 1 {
        return Err("hard state of a format version this release does not read");
    }
    if record[16..32] != store[..] {
        return Err("the hard state belongs to another store");
    }
    let vote = |len: u8, at: usize| -> Result<Bytes, &'static str> {
        let len = usize::from(len);
        if len > MAX_VOTE {
            Err("vote is too long")
        } else {
            Ok(Bytes::copy_from_slice(&record[at..at + len]))
        }
    };
    let flags = record[6];
    let floor = (flags & 2 != 0).then(|| LogPoint {
        index: u64_at(record, 96),
        term: u64_at(record, 104),
        leader: u64_at(record, 112),
        position: u64_at(record, 120),
        end: u64_at(record, 128),
        hash: u64_at(record, 136),
    });
    let mark = match flags & 4 {
        0 => None,
        _ => Some(TruncationMark { position: u64_at(record, 152), vote: vote(record[160], 168)? }),
    };
    let state = HardState {
        vote: vote(record[7], 32)?,
        floor,
        mark,
        synced_to: u64_at(record, 144),
        clean: flags & 1 != 0,
    };
    Ok((u64_at(record, 8), state))
}
