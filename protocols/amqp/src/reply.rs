//! Reply codes, and the exceptions made of them.
//!
//! Owns the list of codes with their numbers, names and blast radius (channel or connection), and
//! [`Exception`], the one error type a peer ever gets to see. Promises that its text fits a short string.
//! Does not know which broker condition deserves which code.

use std::fmt;

use crate::method::{ChannelClose, ConnectionClose, MethodId};

/// The code of an orderly `connection.close` or `channel.close`: nothing went wrong (spec 1.1,
/// reply-success).
pub const REPLY_SUCCESS: u16 = 200;

/// Longest text of an exception in bytes: `reply-text` is a short string.
const TEXT_MAX: usize = 255;
/// What stands for the rest of a longer one.
const CUT: &str = "...";

/// How much an exception takes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The channel it happened on: answered by `channel.close` ("soft error" in the spec).
    Channel,
    /// The whole connection: answered by `connection.close` ("hard error" in the spec).
    Connection,
}

macro_rules! reply_codes {
    ($($(#[$doc:meta])* $number:literal $variant:ident $name:literal $scope:ident;)+) => {
        /// Every reply code that reports an error (spec 1.1, constants).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ReplyCode {
            $($(#[$doc])* $variant,)+
        }

        impl ReplyCode {
            /// All codes, in the order of the spec.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$variant => $number,)+ }
            }

            /// The name that RabbitMQ puts in front of the text.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What an exception with this code takes down.
            #[must_use]
            pub const fn scope(self) -> Scope {
                match self { $(Self::$variant => Scope::$scope,)+ }
            }

            /// The code with this number, if there is one.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

reply_codes! {
    /// The content is larger than the server takes.
    311 ContentTooLarge "CONTENT_TOO_LARGE" Channel;
    /// In `basic.return` only: mandatory, and no queue matched.
    312 NoRoute "NO_ROUTE" Channel;
    /// In `basic.return` only: immediate, and no consumer was ready. No server sends it any more.
    313 NoConsumers "NO_CONSUMERS" Channel;
    /// An operator closed the connection.
    320 ConnectionForced "CONNECTION_FORCED" Connection;
    /// The virtual host is unknown. RabbitMQ answers [`ReplyCode::NotAllowed`] instead.
    402 InvalidPath "INVALID_PATH" Connection;
    /// The user has no right to do this; the one code of this list that may also end a handshake.
    403 AccessRefused "ACCESS_REFUSED" Channel;
    /// The queue or exchange does not exist.
    404 NotFound "NOT_FOUND" Channel;
    /// Another connection holds the queue exclusively.
    405 ResourceLocked "RESOURCE_LOCKED" Channel;
    /// The request contradicts the state of its object, or an argument is invalid.
    406 PreconditionFailed "PRECONDITION_FAILED" Channel;
    /// A frame could not be decoded.
    501 FrameError "FRAME_ERROR" Connection;
    /// A frame could be decoded, but holds illegal values.
    502 SyntaxError "SYNTAX_ERROR" Connection;
    /// The method does not exist, or its sender may not send it.
    503 CommandInvalid "COMMAND_INVALID" Connection;
    /// The channel is not open, or already is.
    504 ChannelError "CHANNEL_ERROR" Connection;
    /// The frame is valid, but not at this place.
    505 UnexpectedFrame "UNEXPECTED_FRAME" Connection;
    /// The server lacks the resources.
    506 ResourceError "RESOURCE_ERROR" Connection;
    /// The request breaks a limit or a rule of the server.
    530 NotAllowed "NOT_ALLOWED" Connection;
    /// The server does not support this.
    540 NotImplemented "NOT_IMPLEMENTED" Connection;
    /// The server failed.
    541 InternalError "INTERNAL_ERROR" Connection;
}

/// What a peer is told before its channel or its connection ends.
///
/// The text is `"CODE_NAME - explanation"`, at most 255 bytes and then cut with `...`, as RabbitMQ writes it:
/// client suites match parts of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    code: ReplyCode,
    text: String,
    method: MethodId,
}

impl Exception {
    /// An exception that no particular method caused (class and method ids 0).
    #[must_use]
    pub fn new(code: ReplyCode, explanation: impl fmt::Display) -> Self {
        let mut text = format!("{} - {explanation}", code.name());
        if text.len() > TEXT_MAX {
            text.truncate(text.floor_char_boundary(TEXT_MAX - CUT.len()));
            text.push_str(CUT);
        }
        Self { code, text, method: MethodId::NONE }
    }

    /// The same exception, blamed on `method`.
    #[must_use]
    pub fn during(mut self, method: MethodId) -> Self {
        self.method = method;
        self
    }

    /// The code.
    #[must_use]
    pub const fn code(&self) -> ReplyCode {
        self.code
    }

    /// The text as sent: code name, dash, explanation; at most 255 bytes.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The method that caused it, or [`MethodId::NONE`].
    #[must_use]
    pub const fn method(&self) -> MethodId {
        self.method
    }

    /// What it takes down. On channel 0 that is always the connection, whatever this says.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        self.code.scope()
    }

    /// The `channel.close` that reports it.
    #[must_use]
    pub fn to_channel_close(&self) -> ChannelClose<'_> {
        ChannelClose {
            reply_code: self.code.number(),
            reply_text: &self.text,
            class_id: self.method.class,
            method_id: self.method.method,
        }
    }

    /// The `connection.close` that reports it.
    #[must_use]
    pub fn to_connection_close(&self) -> ConnectionClose<'_> {
        ConnectionClose {
            reply_code: self.code.number(),
            reply_text: &self.text,
            class_id: self.method.class,
            method_id: self.method.method,
        }
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.number(), self.text)?;
        if self.method != MethodId::NONE {
            write!(f, " (in {})", self.method)?;
        }
        Ok(())
    }
}

impl std::error::Error for Exception {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::BasicPublish;

    #[test]
    fn every_code_is_found_again_by_its_number() {
        for &code in ReplyCode::ALL {
            assert_eq!(ReplyCode::from_number(code.number()), Some(code));
        }
        assert_eq!(ReplyCode::from_number(REPLY_SUCCESS), None);
        assert_eq!(ReplyCode::from_number(0), None);
    }

    #[test]
    fn the_radius_of_each_code_is_that_of_rabbitmq() {
        let soft: Vec<u16> = ReplyCode::ALL
            .iter()
            .filter(|code| code.scope() == Scope::Channel)
            .map(|code| code.number())
            .collect();
        assert_eq!(soft, [311, 312, 313, 403, 404, 405, 406]);
    }

    #[test]
    fn codes_agree_with_the_oracle() {
        use amq_protocol::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
        for &code in ReplyCode::ALL {
            let kind = AMQPErrorKind::from_id(code.number()).expect("the oracle knows every code");
            let (number, scope) = match kind {
                AMQPErrorKind::Soft(ref soft) => (AMQPSoftError::get_id(soft), Scope::Channel),
                AMQPErrorKind::Hard(ref hard) => (AMQPHardError::get_id(hard), Scope::Connection),
            };
            assert_eq!((number, scope), (code.number(), code.scope()));
            assert!(kind.to_string().replace('-', "_").ends_with(code.name()), "{kind}");
        }
    }

    #[test]
    fn the_text_begins_with_the_name_of_the_code() {
        let exception = Exception::new(ReplyCode::NotFound, "no queue 'q' in vhost '/'");
        assert_eq!(exception.text(), "NOT_FOUND - no queue 'q' in vhost '/'");
        assert_eq!(exception.to_channel_close().reply_text, exception.text());
    }

    #[test]
    fn a_long_text_is_cut_at_255_bytes_between_characters() {
        // "NOT_FOUND - " and "..." are 15 bytes: 240 remain, with an "x" in front 119 "é" and no half of the next.
        let exception = Exception::new(ReplyCode::NotFound, format_args!("x{}", "é".repeat(200)));
        assert_eq!(exception.text().len(), 254);
        assert!(exception.text().ends_with("é..."));
        let exception = Exception::new(ReplyCode::NotFound, "x".repeat(300));
        assert_eq!(exception.text().len(), 255);
        let exception = Exception::new(ReplyCode::NotFound, "x".repeat(243));
        assert!(exception.text().len() == 255 && exception.text().ends_with('x'), "it fits as it is");
    }

    #[test]
    fn the_close_carries_the_ids_of_the_method_to_blame() {
        let exception = Exception::new(ReplyCode::UnexpectedFrame, "why").during(BasicPublish::ID);
        let close = exception.to_connection_close();
        assert_eq!((close.reply_code, close.class_id, close.method_id), (505, 60, 40));
        assert_eq!(exception.to_string(), "505 UNEXPECTED_FRAME - why (in basic.publish)");
    }
}
