//! Which frame may come next on which channel (spec 4.2.6, 4.7).
//!
//! ```text
//!   ┌────────┐ channel.open  ┌────────────────── open ──────────────────┐
//!   │ closed ├──────────────►│ method ──publish──► header ──size>0──► body│
//!   └────▲───┘               │   ▲                   │ size=0          │ │
//!        │                   │   └───────────────────┴────── last ◄────┘ │
//!        │                   └──┬──────────────────────────────────┬────┘
//!        │         our close    │                                  │ channel.close
//!        │ close-ok  ┌──────────▼─────────────────────┐  ┌─────────▼──────────┐ our close-ok
//!        ├───────────┤ closing: all ignored but close │  │ closing by peer    ├──────────┐
//!        │           └────────────────────────────────┘  └────────────────────┘          │
//!        └───────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Owns the state of every open channel and the order of content frames. Promises memory for open channels only, and no
//! allocation per frame. Does not know the handshake.

use std::collections::BTreeMap;

use super::event::{Event, Yield};
use crate::content::{BASIC_CLASS, ContentHeader};
use crate::frame::{Frame, FrameKind};
use crate::method::{
    BasicPublish, ChannelClose, ChannelCloseOk, ChannelOpen, ConnectionStart, Method, MethodError, MethodId,
    Sender,
};
use crate::reply::{Exception, ReplyCode};

/// The class of the methods that belong on channel 0.
const CONNECTION_CLASS: u16 = ConnectionStart::ID.class;

#[derive(Clone, Copy, Debug)]
enum Channel {
    Open(Expect),
    /// We sent `channel.close`.
    Closing,
    /// The client sent `channel.close`; it must not say anything before it has our answer.
    ClosingByPeer,
}

/// What an open channel waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Method,
    Header,
    /// So many bytes of body; never 0.
    Body(u64),
}

/// The channels of one connection that are not closed.
// A tree: clients use a few low numbers, and whoever opens number 2047 first must not get a table of 2048 for it.
#[derive(Debug, Default)]
pub(super) struct Channels(BTreeMap<u16, Channel>);

impl Channels {
    /// Takes a frame of a channel other than 0. No event means that the frame is ignored.
    #[inline]
    pub(super) fn accept<'a>(&mut self, frame: Frame<'a>, channel_max: u16) -> Yield<'a> {
        let Frame { kind, channel, payload } = frame;
        let Some(state) = self.0.get_mut(&channel) else { return self.open(frame, channel_max) };
        match (*state, kind) {
            (Channel::Open(Expect::Body(left)), FrameKind::Body) => body(state, channel, payload, left),
            (Channel::Open(Expect::Header), FrameKind::Header) => header(state, channel, payload),
            (Channel::Open(Expect::Method), FrameKind::Method) => method(state, channel, payload),
            (Channel::Open(expected), kind) => Err(out_of_order(kind, expected)),
            (Channel::Closing, FrameKind::Method) => self.closing(channel, payload),
            (Channel::Closing | Channel::ClosingByPeer, _) => Ok(None),
        }
    }

    /// A method on a channel that we are closing.
    fn closing<'a>(&mut self, channel: u16, payload: &'a [u8]) -> Yield<'a> {
        match MethodId::peek(payload) {
            Some(ChannelCloseOk::ID) => {
                self.0.remove(&channel);
                Ok(Some(Event::ChannelCloseOk { channel }))
            }
            Some(ChannelClose::ID) => match Method::parse(payload)? {
                Method::ChannelClose(close) => Ok(Some(Event::ChannelClose { channel, close })),
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Anything on a closed channel: `channel.open`, or a mistake.
    fn open<'a>(&mut self, frame: Frame<'a>, channel_max: u16) -> Yield<'a> {
        let Frame { kind, channel, payload } = frame;
        if kind != FrameKind::Method {
            return Err(out_of_order(kind, Expect::Method));
        }
        let id = MethodId::peek(payload).ok_or(MethodError::NoId)?;
        if id.name().is_none() {
            return Err(MethodError::Unknown(id).into());
        }
        if id.class == CONNECTION_CLASS {
            return Err(not_here(id));
        }
        if id != ChannelOpen::ID {
            return Err(channel_error(format_args!("channel {channel} is not open"), id));
        }
        Method::parse(payload)?;
        if channel > channel_max {
            let explanation =
                format!("channel {channel} is beyond the negotiated channel_max ({channel_max})");
            return Err(Exception::new(ReplyCode::NotAllowed, explanation));
        }
        self.0.insert(channel, Channel::Open(Expect::Method));
        Ok(Some(Event::ChannelOpen { channel }))
    }

    /// Whether methods of this channel are still taken.
    pub(super) fn is_open(&self, channel: u16) -> bool {
        matches!(self.0.get(&channel), Some(Channel::Open(_)))
    }

    /// Turns an open channel into one that we are closing; false if it was not open.
    pub(super) fn start_closing(&mut self, channel: u16) -> bool {
        match self.0.get_mut(&channel) {
            Some(state @ Channel::Open(_)) => {
                *state = Channel::Closing;
                true
            }
            _ => false,
        }
    }

    /// Notes that the client's `channel.close` is being answered; false if there was none to answer.
    pub(super) fn finish_closing(&mut self, channel: u16) -> bool {
        match self.0.get(&channel) {
            Some(Channel::ClosingByPeer) => self.0.remove(&channel).is_some(),
            // Both sides closed at once: the client's answer to ours is still to come.
            Some(Channel::Closing) => true,
            _ => false,
        }
    }
}

/// A method where one is expected.
fn method<'a>(state: &mut Channel, channel: u16, payload: &'a [u8]) -> Yield<'a> {
    let method = Method::parse(payload)?;
    let id = method.id();
    match method {
        Method::BasicPublish(publish) => {
            *state = Channel::Open(Expect::Header);
            Ok(Some(Event::Publish { channel, publish }))
        }
        Method::ChannelClose(close) => {
            *state = Channel::ClosingByPeer;
            Ok(Some(Event::ChannelClose { channel, close }))
        }
        Method::ChannelOpen(_) => Err(channel_error(format_args!("channel {channel} is already open"), id)),
        Method::ChannelCloseOk(_) => Err(channel_error(format_args!("channel {channel} is not closing"), id)),
        _ if id.class == CONNECTION_CLASS || method.sender() == Sender::Server => Err(not_here(id)),
        method => Ok(Some(Event::Method { channel, method })),
    }
}

/// A content header where one is expected.
fn header<'a>(state: &mut Channel, channel: u16, payload: &'a [u8]) -> Yield<'a> {
    let blamed = |exception: Exception| exception.during(BasicPublish::ID);
    let ContentHeader { class_id, body_size, properties } =
        ContentHeader::parse(payload).map_err(|error| blamed(error.into()))?;
    if class_id != BASIC_CLASS {
        let explanation = format_args!("content header of class {class_id}, expected {BASIC_CLASS}");
        return Err(blamed(Exception::new(ReplyCode::UnexpectedFrame, explanation)));
    }
    *state = Channel::Open(if body_size == 0 { Expect::Method } else { Expect::Body(body_size) });
    Ok(Some(Event::Header { channel, body_size, properties }))
}

/// A piece of body where one is expected. One that is too long is refused at once: its end belongs to nothing.
fn body<'a>(state: &mut Channel, channel: u16, payload: &'a [u8], left: u64) -> Yield<'a> {
    let Some(left) = left.checked_sub(payload.len() as u64) else {
        let explanation = format_args!("body frame of {} bytes where {left} are left to come", payload.len());
        return Err(Exception::new(ReplyCode::FrameError, explanation).during(BasicPublish::ID));
    };
    let last = left == 0;
    *state = Channel::Open(if last { Expect::Method } else { Expect::Body(left) });
    Ok(Some(Event::Body { channel, bytes: payload, last }))
}

/// A frame at the wrong place. Inside a content that is blamed on the publish, otherwise on nothing.
fn out_of_order(kind: FrameKind, expected: Expect) -> Exception {
    let (expected, blamed) = match expected {
        Expect::Method => ("a method", MethodId::NONE),
        Expect::Header => ("a content header", BasicPublish::ID),
        Expect::Body(_) => ("a content body", BasicPublish::ID),
    };
    let blamed = if kind == FrameKind::Heartbeat { MethodId::NONE } else { blamed };
    Exception::new(ReplyCode::UnexpectedFrame, format_args!("{kind:?} frame where {expected} was expected"))
        .during(blamed)
}

fn channel_error(explanation: std::fmt::Arguments<'_>, id: MethodId) -> Exception {
    Exception::new(ReplyCode::ChannelError, explanation).during(id)
}

fn not_here(id: MethodId) -> Exception {
    Exception::new(ReplyCode::CommandInvalid, format_args!("{id} may not be sent by a client on a channel"))
        .during(id)
}
