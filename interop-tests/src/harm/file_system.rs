//! A file system of one's own, in a file: mounted, cut off from its disk like by a power loss, mounted again, filled up.
//!
//! Owns: an image, its mount point, the mount. Promises: what was not synced when it is cut off is gone, as far as it had not
//! reached the disk by itself ([`FileSystem::cut`] proves it with files of its own each time); unmounted when dropped.
//! Does not know: brokers.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: nothing more reaches the disk, not even the journal. Through
/// Python, which has ioctl without any unsafe code of ours.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys; \
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";
/// How long the last user of a mount may take to go away.
const UNUSED_WITHIN: Duration = Duration::from_secs(20);

/// An ext4 file system in a file.
#[derive(Debug)]
pub struct FileSystem {
    image: PathBuf,
    /// Where it is mounted.
    pub root: PathBuf,
    mounted: bool,
    cuts: u32,
}

/// What was found of the files that each cut writes, to show that it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// The synced file is there, whole.
    pub synced_is_there: bool,
    /// The file that was written and not synced has lost its bytes.
    pub unsynced_is_gone: bool,
}

impl FileSystem {
    /// Makes one of `bytes` in `directory`, sparse, and mounts it.
    ///
    /// # Errors
    /// The user is not root, or the machine lacks loop devices, ext4 or Python; the text says so.
    pub fn make(directory: &Path, bytes: u64) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting a file system needs root: run this as root, with loop devices".to_owned());
        }
        let (image, root) = (directory.join("disk.ext4"), directory.join("disk"));
        let made = File::create(&image).and_then(|file| file.set_len(bytes));
        made.and_then(|()| fs::create_dir(&root)).map_err(|error| format!("{}: {error}", image.display()))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let mut made = Self { image, root, mounted: false, cuts: 0 };
        made.mount()?;
        Ok(made)
    }

    fn mount(&mut self) -> Result<(), String> {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).args([&self.image, &self.root]))?;
        self.mounted = true;
        Ok(())
    }

    /// Cuts it off from its disk: from now on every operation fails, and what was not synced never will be.
    ///
    /// # Errors
    /// The machine can not do it.
    pub fn cut(&mut self) -> Result<(), String> {
        self.cuts += 1;
        let write = |name: &str, sync: bool| -> io::Result<()> {
            let mut file = File::create(self.root.join(name))?;
            file.write_all(name.as_bytes())?;
            if sync {
                file.sync_all()?;
                File::open(&self.root)?.sync_all()?;
            }
            Ok(())
        };
        // The synced one first: its sync commits the journal, and with it what came before.
        let written = write(&self.control(true), true).and_then(|()| write(&self.control(false), false));
        written.map_err(|error| format!("control files: {error}"))?;
        run(Command::new("python3").args(["-c", SHUT_DOWN]).arg(&self.root))
    }

    fn control(&self, synced: bool) -> String {
        format!("{}-{}", if synced { "synced" } else { "unsynced" }, self.cuts)
    }

    /// Unmounts what was cut off and mounts what the disk has. Its users must have ended, or end soon.
    ///
    /// # Errors
    /// It is in use, or can not be mounted.
    pub fn restore(&mut self) -> Result<Control, String> {
        self.unmount()?;
        self.mount()?;
        let holds =
            |name: String| fs::read(self.root.join(&name)).is_ok_and(|found| found == name.as_bytes());
        Ok(Control {
            synced_is_there: holds(self.control(true)),
            unsynced_is_gone: !holds(self.control(false)),
        })
    }

    /// Takes all space that is left.
    ///
    /// # Errors
    /// What the system says.
    pub fn fill(&self) -> Result<(), String> {
        let full = || -> io::Result<()> {
            let ballast = File::create(self.ballast())?;
            let (mut at, mut chunk) = (0, 256 << 20);
            // Smaller and smaller pieces, down to a block.
            while chunk >= 4_096 {
                match rustix::fs::fallocate(&ballast, FallocateFlags::empty(), at, chunk) {
                    Ok(()) => at += chunk,
                    Err(Errno::NOSPC) => chunk /= 2,
                    Err(error) => return Err(error.into()),
                }
            }
            ballast.sync_all()
        };
        full().map_err(|error| format!("ballast: {error}"))
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// What the system says.
    pub fn empty(&self) -> Result<(), String> {
        fs::remove_file(self.ballast()).map_err(|error| format!("ballast: {error}"))
    }

    fn ballast(&self) -> PathBuf {
        self.root.join("ballast")
    }

    fn unmount(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + UNUSED_WITHIN;
        loop {
            match run(Command::new("umount").arg(&self.root)) {
                Ok(()) => {
                    self.mounted = false;
                    return Ok(());
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = self.unmount()
        {
            eprintln!("{} stays mounted: {error}", self.root.display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed, {}: {}", output.status, said.trim()))
}
