//! The real disk: every future is complete when it is first polled, because each operation is a plain system call.
//!
//! Owns: a root directory and the calls pwritev, pread, fdatasync, fallocate, rename, flock. Promises: writes are whole or an
//! error, `sync` is fdatasync, `sync_dir` fsyncs the directory, a write through is one pwritev2 with `RWF_DSYNC` on a second, direct
//! way into the file. Does not know: what the files hold.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use crate::disk::{Disk, File, fault};
use crate::map::map_read_only;
use crate::queue::lock;

/// More parts than this in one call is an error of the system (`IOV_MAX`).
const MAX_PARTS: usize = 1024;
/// What every disk takes for direct writes: the largest sector there is.
const BLOCK: usize = 4096;

/// A directory of the machine's file system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: Arc<Path>,
}

/// A file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile {
    path: String,
    file: fs::File,
    through: Mutex<Through>,
}

/// The direct way into a file.
#[derive(Debug, Default)]
enum Through {
    #[default]
    Untried,
    Open(fs::File),
    Impossible,
}

/// An exclusive flock, held until dropped.
#[derive(Debug)]
pub struct RealLock {
    _file: fs::File,
}

impl RealDisk {
    /// Opens the directory, creating it (and its parents) when missing.
    pub fn open(root: impl AsRef<Path>) -> io::Result<RealDisk> {
        let root = root.as_ref();
        let name = root.display().to_string();
        if !root.is_dir() {
            fs::create_dir_all(root).map_err(|e| fault("create directory", &name, None, e))?;
            if let Some(parent) = root.parent().filter(|p| !p.as_os_str().is_empty()) {
                sync_directory(parent).map_err(|e| fault("sync directory", &name, None, e))?;
            }
        }
        Ok(RealDisk { root: root.into() })
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn full(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

impl Disk for RealDisk {
    type File = RealFile;
    type Lock = RealLock;

    async fn create(&self, path: &str, len: u64) -> io::Result<RealFile> {
        let made = fs::OpenOptions::new().read(true).write(true).create_new(true).open(self.full(path));
        let file = made.map_err(|e| fault("create", path, None, e))?;
        if len > 0 {
            // Real blocks now: running out of space later would strike in the middle of a batch.
            let allocated = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len);
            let allocated = match allocated {
                // The file system can not reserve: zeros that were written are blocks too.
                Err(Errno::OPNOTSUPP) => write_zeros(&file, len),
                other => other.map_err(io::Error::from),
            };
            if let Err(error) = allocated {
                drop(file);
                let _ = fs::remove_file(self.full(path)); // what was taken must not stay taken
                return Err(fault("allocate", path, Some(len), error));
            }
        }
        Ok(RealFile { path: path.to_owned(), file, through: Mutex::default() })
    }

    async fn open(&self, path: &str) -> io::Result<RealFile> {
        let opened = fs::OpenOptions::new().read(true).write(true).open(self.full(path));
        let file = opened.map_err(|e| fault("open", path, None, e))?;
        Ok(RealFile { path: path.to_owned(), file, through: Mutex::default() })
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.full(from), self.full(to)).map_err(|e| fault("rename", from, None, e))
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.full(path)).map_err(|e| fault("remove", path, None, e))
    }

    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let read = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(self.full(dir))? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    names.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        read().map_err(|e| fault("list", dir, None, e))
    }

    async fn create_dir(&self, dir: &str) -> io::Result<()> {
        match fs::create_dir(self.full(dir)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|e| fault("create directory", dir, None, e)),
        }
    }

    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        sync_directory(&self.full(dir)).map_err(|e| fault("sync directory", dir, None, e))
    }

    async fn lock(&self, path: &str) -> io::Result<RealLock> {
        let opened =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.full(path));
        let file = opened.map_err(|e| fault("open", path, None, e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(RealLock { _file: file }),
            Err(errno) => Err(fault("lock", path, None, errno.into())),
        }
    }
}

impl File for RealFile {
    fn path(&self) -> &str {
        &self.path
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata().map_err(|e| fault("stat", &self.path, None, e))?.len())
    }

    fn read_at_sync(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; len];
        let read = self.file.read_exact_at(&mut buffer, offset);
        read.map_err(|e| fault("read", &self.path, Some(offset), e))?;
        Ok(buffer.into())
    }

    async fn write_at(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        write_all(&self.file, offset, parts).map_err(|e| fault("write", &self.path, Some(offset), e))
    }

    async fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(|e| fault("sync", &self.path, None, e))
    }

    fn through_block(&self) -> Option<usize> {
        let mut through = lock(&self.through);
        if let Through::Untried = *through {
            // By its number: it may have been renamed since it was opened.
            let place = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
            let opened = fs::OpenOptions::new().write(true).custom_flags(direct).open(place);
            *through = opened.map_or(Through::Impossible, Through::Open);
        }
        matches!(*through, Through::Open(_)).then_some(BLOCK)
    }

    fn write_through(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut through = lock(&self.through);
        let Through::Open(file) = &*through else { return Err(io::ErrorKind::Unsupported.into()) };
        loop {
            match rustix::io::pwritev2(file, &[IoSlice::new(bytes)], offset, ReadWriteFlags::DSYNC) {
                Ok(written) if written == bytes.len() => return Ok(()),
                // Who writes the rest otherwise is told why it does not fit.
                Ok(_) => return Err(io::ErrorKind::Unsupported.into()),
                Err(Errno::INTR) => {}
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    *through = Through::Impossible;
                    return Err(io::ErrorKind::Unsupported.into());
                }
                Err(errno) => return Err(fault("write", &self.path, Some(offset), errno.into())),
            }
        }
    }

    fn end_through(&self) {
        let mut through = lock(&self.through);
        if let Through::Open(_) = *through {
            *through = Through::Untried;
        }
    }

    fn map(&self) -> io::Result<Bytes> {
        map_read_only(&self.file).map_err(|e| fault("map", &self.path, None, e))
    }
}

fn write_zeros(file: &fs::File, len: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let n = zeros.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
        file.write_all_at(&zeros[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

fn write_all(file: &fs::File, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
    for chunk in parts.chunks(MAX_PARTS) {
        let mut slices: Vec<IoSlice<'_>> = chunk.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0); // skips empty parts, which would look like a write of nothing
        while !rest.is_empty() {
            match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}
