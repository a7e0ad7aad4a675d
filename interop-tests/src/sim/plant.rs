//! Bugs on purpose: a checker that has never found anything has proven nothing.
//!
//! Owns: the list. Promises: each is put in from outside, by the disk, the network, a seam of the node or a client's link; the
//! product has no line for them. Does not know: how they are found.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Plant {
    /// None.
    #[default]
    Nothing,
    /// Syncs of the log are reported and not made.
    LyingSync,
    /// Syncs of votes and floors are reported and not made.
    ForgottenVote,
    /// Syncs of index pages are reported and not made.
    LyingPages,
    /// Followers acknowledge entries that never reached them.
    FalseAck,
    /// Publishers are told before the commit.
    EarlyConfirm,
    /// Batches take effect whatever their ordinal, sections whatever stood before them.
    NoVoid,
    /// One node applies one batch differently.
    OwnMind,
    /// Applying looks at the node's own clock.
    LocalClock,
    /// The leader is not told of refused proposals.
    DeafToRefusals,
    /// A batch holds a message twice.
    DoubleEnqueue,
    /// A message does not get into its batch.
    DroppedRecord,
    /// Two messages of a batch change places.
    SwappedRecords,
    /// What is given back is thrown away.
    DropOnRequeue,
    /// Acknowledgements do not reach the log.
    ForgottenAck,
    /// Deliveries do not say that they are not the first.
    LostFlag,
    /// A checkpoint leaves out a queue that changed.
    StaleCheckpoint,
    /// Segments with live messages are recycled.
    RecycledAlive,
    /// A byte of a message changes while it is read.
    FlippedByte,
    /// Offsets of sends are told one too high.
    WrongOffset,
    /// Directories are not synced: new files are gone after a power cut.
    LyingDirectory,
    /// Who led once serves on when others lead.
    EndlessLease,
    /// Delayed messages come in half the time.
    HastyDelay,
    /// Rolled back transactions are committed.
    CommittedRollback,
}

impl Plant {
    /// All of them.
    pub const ALL: [Plant; 23] = [
        Plant::LyingSync,
        Plant::ForgottenVote,
        Plant::LyingPages,
        Plant::FalseAck,
        Plant::EarlyConfirm,
        Plant::NoVoid,
        Plant::OwnMind,
        Plant::LocalClock,
        Plant::DeafToRefusals,
        Plant::DoubleEnqueue,
        Plant::DroppedRecord,
        Plant::SwappedRecords,
        Plant::DropOnRequeue,
        Plant::ForgottenAck,
        Plant::LostFlag,
        Plant::StaleCheckpoint,
        Plant::RecycledAlive,
        Plant::FlippedByte,
        Plant::WrongOffset,
        Plant::LyingDirectory,
        Plant::EndlessLease,
        Plant::HastyDelay,
        Plant::CommittedRollback,
    ];

    /// By the name it is printed with.
    #[must_use]
    pub fn named(name: &str) -> Option<Plant> {
        Self::ALL.into_iter().find(|plant| format!("{plant:?}").eq_ignore_ascii_case(name))
    }
}
