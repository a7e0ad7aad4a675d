//! What the server allows, and what the two sides agreed on (spec 1.4.2.6, 4.2.3).
//!
//! Owns the negotiation of `connection.tune`. Promises that what was agreed never exceeds what was offered,
//! and is always a limit: this server knows no "unlimited".

use crate::frame::FRAME_MIN_SIZE;
use crate::method::{ConnectionTune, ConnectionTuneOk};
use crate::reply::{Exception, ReplyCode};

/// The server's limits for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame after the handshake in bytes; at least [`FRAME_MIN_SIZE`].
    pub frame_max: u32,
    /// Highest channel number; at least 1.
    pub channel_max: u16,
    /// Heartbeat interval to suggest, in seconds; 0 suggests none.
    pub heartbeat: u16,
    /// Largest frame before `tune-ok`, in bytes. Logins with large tokens need more than the minimum.
    pub initial_frame_max: u32,
    /// Bytes a client may send before it may use the connection: the handshake's budget.
    pub handshake_bytes_max: usize,
}

impl Limits {
    /// The `connection.tune` that offers these limits.
    pub(super) const fn offer(&self) -> ConnectionTune {
        ConnectionTune { channel_max: self.channel_max, frame_max: self.frame_max, heartbeat: self.heartbeat }
    }

    /// What a `tune-ok` makes of the offer. The client's heartbeat is taken as it is.
    pub(super) fn agree(&self, answer: &ConnectionTuneOk) -> Result<Tuning, Exception> {
        within("frame_max", answer.frame_max, FRAME_MIN_SIZE, self.frame_max)?;
        within("channel_max", answer.channel_max.into(), 1, self.channel_max.into())?;
        let &ConnectionTuneOk { channel_max, frame_max, heartbeat } = answer;
        Ok(Tuning { frame_max, channel_max, heartbeat })
    }
}

/// RabbitMQ's defaults, which clients expect, with a budget for the handshake.
impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_max: 131_072,
            channel_max: 2047,
            heartbeat: 60,
            initial_frame_max: 8192,
            handshake_bytes_max: 64 * 1024,
        }
    }
}

/// 0 means "no limit" and is therefore above every limit.
fn within(name: &str, chosen: u32, min: u32, max: u32) -> Result<(), Exception> {
    let explanation = if chosen == 0 || chosen > max {
        format!("negotiated {name} = {chosen} is above the server's limit ({max}); 0 means no limit")
    } else if chosen < min {
        format!("negotiated {name} = {chosen} is below the minimum ({min})")
    } else {
        return Ok(());
    };
    Err(Exception::new(ReplyCode::NotAllowed, explanation).during(ConnectionTuneOk::ID))
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Largest frame in bytes, in both directions.
    pub frame_max: u32,
    /// Highest channel number.
    pub channel_max: u16,
    /// Seconds between signs of life, in both directions; 0 for none.
    pub heartbeat: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree(channel_max: u16, frame_max: u32) -> Result<Tuning, Exception> {
        Limits::default().agree(&ConnectionTuneOk { channel_max, frame_max, heartbeat: 7 })
    }

    #[test]
    fn anything_from_the_minimum_to_the_offer_is_agreed() {
        for (channel_max, frame_max) in [(2047, 131_072), (1, 4096), (500, 60_000)] {
            assert_eq!(agree(channel_max, frame_max), Ok(Tuning { frame_max, channel_max, heartbeat: 7 }));
        }
    }

    #[test]
    fn anything_else_is_not_allowed_and_blamed_on_tune_ok() {
        for (channel_max, frame_max) in [
            (2048, 131_072),
            (u16::MAX, 131_072),
            (0, 131_072),
            (2047, 131_073),
            (2047, 4095),
            (2047, 100),
            (2047, 1),
            (2047, 0),
            (2047, u32::MAX),
        ] {
            let exception = agree(channel_max, frame_max).expect_err("out of range");
            assert_eq!(exception.code(), ReplyCode::NotAllowed, "{channel_max} {frame_max}");
            assert_eq!(exception.method(), ConnectionTuneOk::ID);
        }
    }
}
