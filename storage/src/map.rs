//! Read-only memory maps: the one module of the workspace that lifts `unsafe_code`.
//!
//! Owns: the step from an open file to bytes that live in the page cache. Promises: nothing by itself about the file
//! standing still; that is the caller's promise, kept by `log`: only wholly committed segments are mapped, nobody writes to
//! them afterwards, and a retired file is overwritten only when no slice of its map lives.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use bytes::Bytes;
use memmap2::Mmap;

/// Maps a whole file read-only.
///
/// The caller promises that the file is neither written nor shortened while a slice of the answer lives.
pub(crate) fn map_read_only(file: &File) -> io::Result<Bytes> {
    // SAFETY: the map must not change under a reader. Our own writes can not touch it: a segment is mapped only once
    // everything in it is committed, hence never truncated or appended to, and it is recycled only when its map's last
    // slice is gone (else unlinked, which leaves the mapped inode alone). No file of the store is ever shortened, so no
    // access runs past the end of the file. Other processes are kept out by the store's LOCK.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}
