//! Small groups on their way past the system's cache.
//!
//! Owns: the last block of the log as it stands on the disk, in memory aligned as the disk wants it. Promises: what stood in a block
//! before is written again unchanged, what stands behind the group is the zeros that stood there. Does not know: batches.
//!
//! Why: a write and a sync through the cache hand the pages to kernel threads and wait for them twice. Written directly, with the
//! sync in the same call, a small group is durable in three quarters of the time, and hardly later when others want the
//! processors. Larger groups go through the cache: consumers that are a little behind read them from there.

use std::io;

use bytes::Bytes;

use crate::disk::File;

/// Groups up to this size go this way.
const LARGEST: usize = 16 << 10;
/// After so many of them in a row. Under load small groups stand between large ones: a write through the cache to a page that a
/// direct write has just thrown out of it would have to read it first.
const IN_A_ROW: u32 = 32;

/// See the module.
pub(crate) struct Through {
    memory: Vec<u8>,
    /// Where the aligned part of the memory begins.
    start: usize,
    block: usize,
    /// Segment and place in it behind the last group, when its last bytes are those before `filled` in the aligned part.
    behind: Option<(u64, u64)>,
    filled: usize,
    /// Small groups since the last large one.
    in_a_row: u32,
}

impl Through {
    pub(crate) fn new() -> Through {
        Through { memory: Vec::new(), start: 0, block: 0, behind: None, filled: 0, in_a_row: 0 }
    }

    /// The log was changed in another way.
    pub(crate) fn forget(&mut self) {
        self.behind = None;
    }

    /// Writes the parts at `offset` of a segment, durably, if they may go this way; false: nothing was done. The segment holds zeros
    /// from `offset` on.
    pub(crate) fn write<F: File>(
        &mut self,
        (segment, file, size): (u64, &F, u64),
        offset: u64,
        parts: &[Bytes],
    ) -> io::Result<bool> {
        let length: usize = parts.iter().map(Bytes::len).sum();
        self.in_a_row = if length <= LARGEST { self.in_a_row.saturating_add(1) } else { 0 };
        if self.in_a_row <= IN_A_ROW {
            return Ok(false);
        }
        let Some(block) = file.through_block() else { return Ok(false) };
        let before = usize::try_from(offset % block as u64).expect("less than a block");
        let (begin, filled) = (offset - before as u64, before + length);
        let whole = filled.next_multiple_of(block);
        if begin + whole as u64 > size {
            return Ok(false);
        }
        if self.block != block {
            self.memory = vec![0; LARGEST + 3 * block];
            self.start = self.memory.as_ptr().align_offset(block);
            (self.block, self.behind) = (block, None);
        }
        let memory = &mut self.memory[self.start..];
        if before > 0 && self.behind == Some((segment, offset)) {
            memory.copy_within(self.filled - before..self.filled, 0);
        } else if before > 0 {
            memory[..before].copy_from_slice(&file.read_at_sync(begin, before)?);
        }
        let mut at = before;
        for part in parts {
            memory[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        memory[filled..whole].fill(0);
        self.behind = None;
        match file.write_through(begin, &memory[..whole]) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(false),
            done => done?,
        }
        (self.behind, self.filled) = (Some((segment, offset + length as u64)), filled);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_on::block_on;
    use crate::disk::Disk;
    use crate::real::RealDisk;

    /// It has seen small groups only.
    fn ready() -> Through {
        Through { in_a_row: IN_A_ROW, ..Through::new() }
    }

    #[test]
    fn small_groups_between_large_ones_go_the_other_way() {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        let file = block_on(disk.create("segment", 1 << 20)).unwrap();
        let [small, large] = [8, LARGEST + 1].map(|length| [Bytes::from(vec![1; length])]);
        let mut through = Through::new();
        for _ in 0..IN_A_ROW {
            assert!(!through.write((0, &file, 1 << 20), 0, &small).unwrap());
        }
        assert_eq!(through.write((0, &file, 1 << 20), 0, &small).unwrap(), file.through_block().is_some());
        assert!(!through.write((0, &file, 1 << 20), 0, &large).unwrap());
        assert!(!through.write((0, &file, 1 << 20), 0, &small).unwrap());
    }

    #[test]
    fn the_segment_holds_what_was_written_whichever_way_it_went() {
        const SIZE: usize = 1 << 20;
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        let file = block_on(disk.create("segment", SIZE as u64)).unwrap();
        let mut expected = vec![0_u8; SIZE];
        let (mut through, mut offset, mut direct) = (ready(), 0, 0);
        for n in 0..400_usize {
            let length = [8, 1_304, 4_096, 40, 9_000, 16_384][n * 7 % 6];
            if offset + length > expected.len() {
                break;
            }
            let bytes = vec![u8::try_from(n % 255 + 1).unwrap(); length];
            expected[offset..offset + length].copy_from_slice(&bytes);
            let (first, last) = bytes.split_at(length / 3);
            let parts = [first, last].map(Bytes::copy_from_slice);
            if n % 5 != 4 && through.write((0, &file, SIZE as u64), offset as u64, &parts).unwrap() {
                direct += 1;
            } else {
                block_on(file.write_at(offset as u64, &parts)).unwrap();
                through.forget();
            }
            if n % 50 == 49 {
                file.end_through();
            }
            offset += length;
            let seen = file.read_at_sync(0, expected.len()).unwrap();
            assert!(seen == expected, "after {n} writes, {direct} of them direct");
        }
        // Where the file system has no direct way everything went the other one.
        assert!(direct > 20 || file.through_block().is_none());
    }

    #[test]
    fn a_group_whose_last_block_does_not_fit_goes_another_way() {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        let file = block_on(disk.create("segment", 10_000)).unwrap();
        let mut through = ready();
        assert!(!through.write((0, &file, 10_000), 8_192, &[Bytes::from_static(b"end")]).unwrap());
        assert_eq!(file.len().unwrap(), 10_000);
    }
}
