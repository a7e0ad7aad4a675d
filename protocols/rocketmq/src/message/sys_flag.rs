//! The system flag of a message: how its body is packed, how far its transaction is, how its addresses are written.

/// The bits of a message's system flag. Clients send it; the two address bits are set by whoever writes a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SysFlag(pub i32);

/// How far a message's transaction is: two bits of [`SysFlag`], and the verdict of an END_TRANSACTION.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(i32)]
pub enum TransactionState {
    /// No transaction; as a verdict: not known yet.
    None = 0,
    /// A half message: stored, not to be seen.
    Prepared = 4,
    /// To be seen.
    Commit = 8,
    /// Never to be seen.
    Rollback = 12,
}

impl TransactionState {
    /// The state of its number, as END_TRANSACTION carries it.
    pub const fn from_bits(bits: i32) -> Option<Self> {
        match bits {
            0 => Some(Self::None),
            4 => Some(Self::Prepared),
            8 => Some(Self::Commit),
            12 => Some(Self::Rollback),
            _ => None,
        }
    }
}

impl SysFlag {
    /// The body is compressed.
    pub const COMPRESSED: i32 = 0x1;
    /// The message has several tags; obsolete.
    pub const MULTI_TAGS: i32 = 0x2;
    /// The two bits of [`TransactionState`].
    pub const TRANSACTION: i32 = 0xC;
    /// The born host of the record is IPv6.
    pub const BORN_HOST_V6: i32 = 0x10;
    /// The store host of the record is IPv6.
    pub const STORE_HOST_V6: i32 = 0x20;
    /// The consumer unwraps the body into several messages.
    pub const NEED_UNWRAP: i32 = 0x40;
    /// The record is a batch.
    pub const INNER_BATCH: i32 = 0x80;
    /// The three bits of the compression's kind, from bit 8.
    pub const COMPRESSION: i32 = 0x700;

    /// Whether all of `bits` are set.
    pub const fn has(self, bits: i32) -> bool {
        self.0 & bits == bits
    }

    /// The same flag with `bits` set or cleared.
    #[must_use]
    pub const fn with(self, bits: i32, set: bool) -> Self {
        Self(if set { self.0 | bits } else { self.0 & !bits })
    }

    /// How far the transaction is.
    pub const fn transaction(self) -> TransactionState {
        match self.0 & Self::TRANSACTION {
            4 => TransactionState::Prepared,
            8 => TransactionState::Commit,
            12 => TransactionState::Rollback,
            _ => TransactionState::None,
        }
    }

    /// The same flag with another state.
    #[must_use]
    pub const fn with_transaction(self, state: TransactionState) -> Self {
        Self(self.0 & !Self::TRANSACTION | state as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transaction_bits_change_alone() {
        for bits in [0, 4, 8, 12] {
            let state = TransactionState::from_bits(bits).unwrap();
            let flag = SysFlag(!0).with_transaction(state);
            assert_eq!((flag.transaction(), flag.0 | SysFlag::TRANSACTION), (state, !0));
        }
        assert_eq!(TransactionState::from_bits(1), None);
        assert_eq!(TransactionState::from_bits(16), None);
    }

    #[test]
    fn bits_are_set_cleared_and_tested_together() {
        let flag = SysFlag(SysFlag::COMPRESSED).with(SysFlag::NEED_UNWRAP | SysFlag::INNER_BATCH, true);
        assert!(flag.has(SysFlag::NEED_UNWRAP | SysFlag::INNER_BATCH));
        assert!(!flag.with(SysFlag::NEED_UNWRAP, false).has(SysFlag::NEED_UNWRAP | SysFlag::INNER_BATCH));
        assert!(flag.has(SysFlag::COMPRESSED));
    }
}
