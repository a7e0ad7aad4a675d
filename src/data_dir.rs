//! The data directory: whose it is, and that it is ours alone.
//!
//! Owns: opening it, making the store's identity at the first start, refusing what is foreign, used or unreadable.
//! Promises: nothing is written into a directory that holds something else; every refusal is one line that names the directory.
//! Does not know: what the log holds, nor how it is recovered.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use dassie_storage::{
    Disk, Genesis, RealDisk, RealLock, Uuid, block_on, finish_install, is_unfinished, lock_store,
};

/// A store that this process holds. Dropping it lets others have it.
#[derive(Debug)]
pub struct DataDir {
    /// The directory.
    pub disk: RealDisk,
    /// Who the store is.
    pub genesis: Genesis,
    /// It was made by this start.
    pub is_new: bool,
    _lock: RealLock,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Permissions, a file in the way, damage, a newer format: the cause says which.
    #[error("can not use data directory '{path}' (data_dir): {cause}", path = path.display())]
    Unusable {
        /// As configured.
        path: PathBuf,
        /// Names operation and file.
        cause: io::Error,
    },
    /// Another process has it.
    #[error("data directory '{path}' (data_dir) is in use by another process", path = path.display())]
    InUse {
        /// As configured.
        path: PathBuf,
    },
    /// A restore did not finish.
    #[error("data directory '{path}' (data_dir) holds a restore that did not finish: restore into it again", path = path.display())]
    Unfinished {
        /// As configured.
        path: PathBuf,
    },
    /// It holds other things and no store.
    #[error("data directory '{path}' (data_dir) holds '{found}' and no store of Dassie: give it an empty directory", path = path.display())]
    Foreign {
        /// As configured.
        path: PathBuf,
        /// The first name that is not ours.
        found: String,
    },
}

/// What the first start of a store writes down for ever.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Number of this node, from 1.
    pub node: u64,
    /// Number of the shard.
    pub shard_number: u32,
    /// Bytes of one log segment.
    pub segment_size: u64,
    /// Now, ms since 1970.
    pub wall_ms: u64,
}

/// Names that a store without genesis may hold: a start that was interrupted. `lost+found` is a fresh file system's own.
const BEFORE_GENESIS: &[&str] =
    &["LOCK", "genesis.new", "state", "state.new", "log", "pages", "checkpoint", "lost+found"];

/// A directory that this process holds.
#[derive(Debug)]
pub enum Opened {
    /// There is a store in it.
    Store(DataDir),
    /// There is none yet.
    Empty(Empty),
}

/// A held directory without a store.
#[derive(Debug)]
pub struct Empty {
    path: PathBuf,
    disk: RealDisk,
    lock: RealLock,
}

impl Empty {
    /// Makes the store.
    ///
    /// # Errors
    /// What the disk says, as [`DataDirError::Unusable`].
    pub fn make(self, genesis: Genesis) -> Result<DataDir, DataDirError> {
        let Self { path, disk, lock } = self;
        match block_on(genesis.create(&disk)) {
            Ok(()) => Ok(DataDir { disk, genesis, is_new: true, _lock: lock }),
            Err(cause) => Err(DataDirError::Unusable { path, cause }),
        }
    }
}

/// Takes the directory `path`, which may be missing. The process holds it from here on.
///
/// # Errors
/// [`DataDirError`]; also for a store of another node or shard.
pub fn look(path: &Path, node: u64, shard_number: u32) -> Result<Opened, DataDirError> {
    let unusable = |cause| DataDirError::Unusable { path: path.to_owned(), cause };
    let disk = RealDisk::open(path).map_err(unusable)?;
    if is_unfinished(&block_on(disk.list("")).map_err(unusable)?) {
        return Err(DataDirError::Unfinished { path: path.to_owned() });
    }
    // Before the lock: that is a file, and in somebody else's directory not even that may be left behind.
    if let Some(found) = foreign_name(path).map_err(unusable)? {
        return Err(DataDirError::Foreign { path: path.to_owned(), found });
    }
    let lock = block_on(lock_store(&disk)).map_err(|cause| match cause.kind() {
        io::ErrorKind::WouldBlock => DataDirError::InUse { path: path.to_owned() },
        _ => unusable(cause),
    })?;
    let Some(genesis) = block_on(Genesis::load(&disk)).map_err(unusable)? else {
        return Ok(Opened::Empty(Empty { path: path.to_owned(), disk, lock }));
    };
    genesis.verify(&genesis.cluster, node, shard_number).map_err(unusable)?;
    if let Some(point) = block_on(finish_install(&disk, &genesis)).map_err(unusable)? {
        tracing::info!("the store is now a copy of the leader's, up to entry {}", point.index);
    }
    Ok(Opened::Store(DataDir { disk, genesis, is_new: false, _lock: lock }))
}

/// Opens the store in `path`, or makes one of a new cluster in an empty or missing directory with `identity`.
///
/// # Errors
/// [`DataDirError`].
pub fn open(path: &Path, identity: Identity) -> Result<DataDir, DataDirError> {
    match look(path, identity.node, identity.shard_number)? {
        Opened::Store(store) => Ok(store),
        Opened::Empty(empty) => {
            let random = || random().map_err(|cause| DataDirError::Unusable { path: path.to_owned(), cause });
            let genesis = identity.genesis(random()?, random()?, random()?, false);
            empty.make(genesis)
        }
    }
}

impl Identity {
    /// The genesis of a store with these names. `joins`: its cluster is there already.
    #[must_use]
    pub fn genesis(&self, cluster: Uuid, shard: Uuid, store: Uuid, joins: bool) -> Genesis {
        Genesis {
            cluster,
            shard,
            store,
            shard_number: self.shard_number,
            node: self.node,
            segment_size: self.segment_size,
            created: self.wall_ms,
            joins,
        }
    }
}

/// What is in the way of making a store in this directory by a restore; `None`: nothing, or one that did not finish.
///
/// # Errors
/// The directory can not be read; one that is missing is empty.
pub fn not_empty(path: &Path) -> io::Result<Option<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<String>>>()?;
    names.sort_unstable();
    if is_unfinished(&names) {
        return Ok(None);
    }
    Ok(names.into_iter().find(|name| name != "LOCK" && name != "lost+found"))
}

fn foreign_name(path: &Path) -> io::Result<Option<String>> {
    let mut foreign = None;
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == "genesis" {
            return Ok(None);
        }
        if !BEFORE_GENESIS.contains(&&*name) && foreign.as_ref().is_none_or(|first| name < *first) {
            foreign = Some(name);
        }
    }
    Ok(foreign)
}

/// A random UUID (version 4).
///
/// # Errors
/// When the system has no randomness.
pub fn random() -> io::Result<Uuid> {
    let mut uuid = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut uuid)?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity { node: 1, shard_number: 0, segment_size: 4 << 20, wall_ms: 1 };

    fn complaint(path: &Path, identity: Identity) -> String {
        open(path, identity).expect_err("it should be refused").to_string()
    }

    #[test]
    fn a_missing_directory_is_made_and_the_store_in_it_keeps_its_identity() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("a/b");
        let first = open(&path, IDENTITY).unwrap();
        assert!(first.is_new);
        let genesis = first.genesis;
        drop(first);
        let second = open(&path, Identity { segment_size: 8 << 20, wall_ms: 2, ..IDENTITY }).unwrap();
        assert!(!second.is_new);
        assert_eq!(second.genesis, genesis);
    }

    #[test]
    fn a_directory_in_use_is_refused_until_it_is_given_back() {
        let top = tempfile::tempdir().unwrap();
        let first = open(top.path(), IDENTITY).unwrap();
        assert!(complaint(top.path(), IDENTITY).ends_with("is in use by another process"));
        drop(first);
        open(top.path(), IDENTITY).unwrap();
    }

    #[test]
    fn a_foreign_directory_is_refused_and_nothing_is_left_in_it() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("thesis.tex"), "text").unwrap();
        assert!(complaint(top.path(), IDENTITY).contains("holds 'thesis.tex'"));
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_store_of_another_node_and_a_damaged_one_are_refused_by_name() {
        let top = tempfile::tempdir().unwrap();
        drop(open(top.path(), IDENTITY).unwrap());
        assert!(complaint(top.path(), Identity { node: 2, ..IDENTITY }).contains("belongs to node 1"));
        fs::write(top.path().join("genesis"), "x").unwrap();
        let text = complaint(top.path(), IDENTITY);
        assert!(text.contains("genesis") && text.contains(&*top.path().to_string_lossy()), "{text}");
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = complaint(file.path(), IDENTITY);
        assert!(text.contains(&*file.path().to_string_lossy()) && !text.contains('\n'), "{text}");
    }

    #[test]
    fn an_interrupted_first_start_is_taken_up_again() {
        let top = tempfile::tempdir().unwrap();
        for name in ["log", "pages"] {
            fs::create_dir(top.path().join(name)).unwrap();
        }
        fs::write(top.path().join("genesis.new"), "half").unwrap();
        assert!(open(top.path(), IDENTITY).unwrap().is_new);
    }
}
