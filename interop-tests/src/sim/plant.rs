//! Bugs on purpose: a checker that has never found anything has proven nothing.
//!
//! Owns: the list. Promises: each is put in from outside, by the disk, the network or the state machine of the harness; the
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
    /// Followers acknowledge entries that never reached them.
    FalseAck,
    /// Clients are told when a verb is proposed.
    EarlyConfirm,
    /// A verb that is sent again is decided again, and takes effect again.
    NoSkip,
    /// Batches take effect whatever their ordinal, sections whatever stood before them.
    NoVoid,
    /// One node applies one batch differently.
    OwnMind,
}

impl Plant {
    /// All of them.
    pub const ALL: [Plant; 7] = [
        Plant::LyingSync,
        Plant::ForgottenVote,
        Plant::FalseAck,
        Plant::EarlyConfirm,
        Plant::NoSkip,
        Plant::NoVoid,
        Plant::OwnMind,
    ];

    /// By the name it is printed with.
    #[must_use]
    pub fn named(name: &str) -> Option<Plant> {
        Self::ALL.into_iter().find(|plant| format!("{plant:?}").eq_ignore_ascii_case(name))
    }
}
