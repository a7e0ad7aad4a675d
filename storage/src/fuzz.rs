//! What the fuzzer calls: each function takes any bytes for a file of a store, with checksums made right, since a fuzzer does not
//! guess those; a panic breaks a promise.
//!
//! Owns: how bytes become files. Promises of this crate that are checked: what can not be a store's file is an error that says
//! where; what opens reads the same a second time. Not part of the public API.

use bytes::Bytes;

use crate::checkpoint::{CheckpointStore, fuzzed_file};
use crate::disk::{Disk, File};
use crate::format::{self, END_MARKER, HEADER, MAGIC, VERSION, crc32c, crc64, framed};
use crate::sim::SimDisk;
use crate::{Genesis, Log, Options, block_on};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target and its name: that of its corpus.
pub const TARGETS: &[(&str, Target)] = &[("checkpoint", checkpoint), ("log", log)];

const SEGMENT: u64 = 8192;

fn genesis() -> Genesis {
    Genesis {
        cluster: [1; 16],
        shard: [2; 16],
        store: [3; 16],
        shard_number: 0,
        node: 1,
        segment_size: SEGMENT,
        created: 0,
        joins: false,
    }
}

fn put(disk: &SimDisk, path: &str, bytes: Vec<u8>) {
    let written = block_on(async {
        let file = disk.create(path, bytes.len() as u64).await?;
        file.write_at(0, &[Bytes::from(bytes)]).await
    });
    written.expect("a simulated disk takes it");
}

/// A base checkpoint: the blocks of the file are pieces of the input.
pub fn checkpoint(data: &[u8]) {
    let disk = SimDisk::new();
    block_on(genesis().create(&disk)).expect("a new disk");
    put(&disk, "checkpoint/base-00000000000000000007", fuzzed_file(&genesis().store, data));
    let load = || block_on(CheckpointStore::load(&disk, genesis().store, None));
    let (Ok((_, first)), Ok((_, second))) = (load(), load()) else { return };
    assert_eq!(first.map(|state| state.objects), second.map(|state| state.objects));
}

/// The first segment of a log: batches as the input has them, each with the right checksums and place.
pub fn log(data: &[u8]) {
    let disk = SimDisk::new();
    block_on(genesis().create(&disk)).expect("a new disk");
    let mut segment = vec![0; usize::try_from(SEGMENT).expect("small")];
    let (mut at, mut rest) = (0, data);
    let mut previous = 0;
    // Each: what of the header is free to choose, then the payload.
    while let Some((head, behind)) = rest.split_first_chunk::<8>() {
        let length = usize::from(head[0]) * 4 % (behind.len() + 1);
        let payload = &behind[..length];
        let end = at + usize::try_from(framed(length)).expect("small");
        if end + END_MARKER > segment.len() {
            break;
        }
        let header = &mut segment[at..at + HEADER];
        header[..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[6] = head[1];
        header[8..12].copy_from_slice(&u32::try_from(length).expect("small").to_le_bytes());
        header[12..16].copy_from_slice(&crc32c(payload).to_le_bytes());
        header[16..32].copy_from_slice(&genesis().shard);
        header[32..40].copy_from_slice(&(at as u64).to_le_bytes());
        header[40] = head[2];
        header[48] = head[3];
        header[56] = head[4];
        let linked = if head[5] < 0x80 { previous } else { u64::from(head[5]) };
        header[64..72].copy_from_slice(&linked.to_le_bytes());
        previous = crc64(&header[..72]);
        header[72..80].copy_from_slice(&previous.to_le_bytes());
        header[80] = head[6];
        let crc = crc64(&header[72..88]);
        header[88..96].copy_from_slice(&crc.to_le_bytes());
        segment[at + HEADER..at + HEADER + length].copy_from_slice(payload);
        if head[7] >= 0xf0 {
            // One byte anywhere is not what it was.
            let place = usize::from(head[7]) * 7 % end;
            segment[place] ^= 1;
        }
        (at, rest) = (end, &behind[length..]);
    }
    if rest.first().is_some_and(|byte| byte % 2 == 1) && at + END_MARKER <= segment.len() {
        segment[at..at + END_MARKER].copy_from_slice(&format::end_marker(at as u64));
    }
    put(&disk, &format::segment_path(0), segment);
    let open = || block_on(Log::open(&disk, Options::default(), &genesis(), None));
    let Ok(first) = open() else { return };
    let last = first.recovered.last;
    drop(first);
    // What recovery cut off is gone, and what it kept stays.
    let again = open().expect("what was opened opens again");
    assert_eq!(again.recovered.last, last);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn every_target_holds_on_its_corpus() {
        let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../interop-tests/fuzzing/corpus");
        for (name, target) in TARGETS {
            let inputs = fs::read_dir(all.join(format!("storage-{name}"))).expect("a corpus");
            let inputs: Vec<_> = inputs.map(|entry| entry.expect("an entry").path()).collect();
            assert!(!inputs.is_empty(), "{name}");
            inputs.iter().for_each(|input| target(&fs::read(input).expect("a readable file")));
        }
    }
}
