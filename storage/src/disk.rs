//! The disk as storage sees it: the traits [`Disk`] and [`File`], and errors that name operation, file and offset.
//!
//! Promises: an `async fn` written over these traits is the state machine over submitted and completed operations; on
//! [`RealDisk`](crate::RealDisk) every future is ready at once, on the simulated disk each operation is a step where power
//! may fail. Nothing is durable before `sync` (content and length) or `sync_dir` (names) has returned.
//!
//! Does not know: what the files hold.

use std::fmt;
use std::io;

use bytes::Bytes;

/// A directory tree. Paths are relative to its root, `/`-separated, without `.` or `..`.
///
/// Every error is built by [`fault`], so it names operation and place; its `kind()` is the cause's.
#[allow(async_fn_in_trait)] // static dispatch only; each thread drives its own futures
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file.
    type File: File;
    /// Holds an exclusive lock until dropped.
    type Lock: Send + 'static;

    /// Creates a file of `len` zero bytes with real blocks behind them (`StorageFull` when there are none).
    /// An existing file of that name is an error.
    async fn create(&self, path: &str, len: u64) -> io::Result<Self::File>;
    /// Opens an existing file for reading and writing.
    async fn open(&self, path: &str) -> io::Result<Self::File>;
    /// Renames within one directory, replacing `to`.
    async fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; open handles and maps of it stay valid.
    async fn remove(&self, path: &str) -> io::Result<()>;
    /// The names of the files (not directories) in a directory, sorted. `""` is the root.
    async fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Creates a directory; one that exists already is fine.
    async fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Makes creations, renames and removals in `dir` durable. `""` is the root.
    async fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Takes an exclusive lock on a file (created when missing). `WouldBlock` when another process holds it.
    async fn lock(&self, path: &str) -> io::Result<Self::Lock>;
}

/// An open file of fixed meaning: positioned reads and writes, no cursor.
#[allow(async_fn_in_trait)]
pub trait File: Send + Sync + 'static {
    /// The path it was opened by (a later rename does not change it).
    fn path(&self) -> &str;
    /// Its length in bytes now.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads exactly `len` bytes; `UnexpectedEof` when the file is shorter.
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.read_at_sync(offset, len)
    }
    /// Like [`read_at`](File::read_at), for callers that can not wait (apply on the shard's thread).
    fn read_at_sync(&self, offset: u64, len: usize) -> io::Result<Bytes>;
    /// Writes the parts one after the other, all of them or an error.
    async fn write_at(&self, offset: u64, parts: &[Bytes]) -> io::Result<()>;
    /// Makes content and length durable.
    async fn sync(&self) -> io::Result<()>;
    /// Of what the place, the length and the memory of [`File::write_through`] must be multiples; `None`: the disk has no such way.
    fn through_block(&self) -> Option<usize> {
        None
    }
    /// Writes past the system's cache and makes it durable, in one step; readers see it as if it had been written otherwise.
    /// `Unsupported`: it was not done, and has to be written and synced.
    fn write_through(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// No more of those will come soon: what they need is given back.
    fn end_through(&self) {}
    /// The whole file, read-only, without a copy where the disk can. The caller promises that nobody writes to or
    /// shortens the file while any slice of the answer lives.
    fn map(&self) -> io::Result<Bytes>;
}

/// The cause inside every error of this crate that came from a disk: what was tried, where, and why it failed.
#[derive(Debug)]
pub struct DiskFault {
    /// What was tried: `write`, `sync`, `rename`...
    pub operation: &'static str,
    /// The file, relative to the store's directory.
    pub path: String,
    /// Where in the file, when that has a meaning.
    pub offset: Option<u64>,
    /// The system's answer.
    pub cause: io::Error,
}

impl fmt::Display for DiskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "{} {} at {}: {}", self.operation, self.path, offset, self.cause),
            None => write!(f, "{} {}: {}", self.operation, self.path, self.cause),
        }
    }
}

impl std::error::Error for DiskFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// Builds an error that names operation and place and keeps the cause's kind.
pub fn fault(operation: &'static str, path: &str, offset: Option<u64>, cause: io::Error) -> io::Error {
    io::Error::new(cause.kind(), DiskFault { operation, path: path.to_owned(), offset, cause })
}

/// Builds the error for bytes that are there but wrong: `InvalidData`, naming file and offset.
pub fn damaged(path: &str, offset: u64, reason: impl fmt::Display) -> io::Error {
    let cause = io::Error::new(io::ErrorKind::InvalidData, reason.to_string());
    fault("verify", path, Some(offset), cause)
}
