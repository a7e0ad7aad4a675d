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
//! Owns the state of every open channel and the order of content frames. Promises memory for open channels
//! only, and no allocation per frame. Does not know the handshake.

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
    /// The client sent `channel.close`; it should not say anything before it has our answer.
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
// A tree: clients use a few low numbers, and whoever opens number 2047 first must not get a table of 2048 for
// it.
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

    /// Whether this opens a channel whose close the client has no answer to yet.
    pub(super) fn opens_too_early(&self, frame: Frame<'_>) -> bool {
        matches!(self.0.get(&frame.channel), Some(Channel::ClosingByPeer))
            && frame.kind == FrameKind::Method
            && MethodId::peek(frame.payload) == Some(ChannelOpen::ID)
    }

    /// Turns a channel that we have not closed into one that we are closing; false if there is none. If the client has closed it,
    /// its answer is still owed.
    pub(super) fn start_closing(&mut self, channel: u16) -> bool {
        match self.0.get_mut(&channel) {
            Some(state @ (Channel::Open(_) | Channel::ClosingByPeer)) => {
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
        // Answers to what this server never asks.
        Method::ChannelCloseOk(_) | Method::ChannelFlowOk(_) | Method::BasicCancelOk(_) => Err(not_here(id)),
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

/// A piece of body where one is expected. One that is too long is refused at once: its end belongs to
/// nothing.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content;
    use crate::content::Properties;
    use crate::method::{
        BasicAck, BasicCancelOk, BasicDeliver, ChannelFlowOk, ConnectionBlocked, ConnectionTuneOk, QueuePurge,
    };

    const MAX: u16 = 2047;

    fn frame(kind: FrameKind, channel: u16, payload: &[u8]) -> Frame<'_> {
        Frame { kind, channel, payload }
    }

    fn payload<'a>(method: impl Into<Method<'a>>) -> Vec<u8> {
        let mut payload = Vec::new();
        method.into().encode(&mut payload);
        payload
    }

    fn header_payload(class_id: u16, weight: u16, body_size: u64) -> Vec<u8> {
        [&class_id.to_be_bytes()[..], &weight.to_be_bytes(), &body_size.to_be_bytes(), &[0, 0]].concat()
    }

    /// Code, class id and method id of the error that a frame causes.
    fn refused(channels: &mut Channels, frame: Frame<'_>) -> (u16, u16, u16) {
        let exception = channels.accept(frame, MAX).expect_err("refused");
        (exception.code().number(), exception.method().class, exception.method().method)
    }

    /// Channel 1 is open.
    fn opened() -> Channels {
        let mut channels = Channels::default();
        let open = payload(ChannelOpen::default());
        let event = channels.accept(frame(FrameKind::Method, 1, &open), MAX);
        assert_eq!(event, Ok(Some(Event::ChannelOpen { channel: 1 })));
        channels
    }

    fn publish(channels: &mut Channels, channel: u16) {
        let publish = payload(BasicPublish::default());
        let event = channels.accept(frame(FrameKind::Method, channel, &publish), MAX);
        assert_eq!(event, Ok(Some(Event::Publish { channel, publish: BasicPublish::default() })));
    }

    fn announce(channels: &mut Channels, channel: u16, body_size: u64) {
        let header = header_payload(60, 0, body_size);
        let event = channels.accept(frame(FrameKind::Header, channel, &header), MAX);
        assert_eq!(event, Ok(Some(Event::Header { channel, body_size, properties: Properties::EMPTY })));
    }

    fn piece(channels: &mut Channels, channel: u16, bytes: &[u8], last: bool) {
        let event = channels.accept(frame(FrameKind::Body, channel, bytes), MAX);
        assert_eq!(event, Ok(Some(Event::Body { channel, bytes, last })));
    }

    #[test]
    fn contents_of_two_channels_may_interleave() {
        let mut channels = opened();
        let open = payload(ChannelOpen::default());
        channels.accept(frame(FrameKind::Method, 7, &open), MAX).unwrap();
        publish(&mut channels, 1);
        publish(&mut channels, 7);
        announce(&mut channels, 7, 3);
        announce(&mut channels, 1, 2);
        piece(&mut channels, 1, b"a", false);
        piece(&mut channels, 7, b"xyz", true);
        piece(&mut channels, 1, b"b", true);
        publish(&mut channels, 1);
    }

    #[test]
    fn a_content_without_body_ends_with_its_header() {
        let mut channels = opened();
        publish(&mut channels, 1);
        announce(&mut channels, 1, 0);
        assert_eq!(refused(&mut channels, frame(FrameKind::Body, 1, b"")), (505, 0, 0));
    }

    #[test]
    fn empty_pieces_of_a_body_are_pieces() {
        let mut channels = opened();
        publish(&mut channels, 1);
        announce(&mut channels, 1, 1);
        piece(&mut channels, 1, b"", false);
        piece(&mut channels, 1, b"x", true);
    }

    #[test]
    fn a_body_longer_than_announced_is_a_frame_error_at_once() {
        let mut channels = opened();
        publish(&mut channels, 1);
        announce(&mut channels, 1, 5);
        piece(&mut channels, 1, b"abc", false);
        assert_eq!(refused(&mut channels, frame(FrameKind::Body, 1, b"def")), (501, 60, 40));
    }

    #[test]
    fn content_frames_at_the_wrong_place_are_unexpected() {
        let header = header_payload(60, 0, 5);
        let purge = payload(QueuePurge::default());
        assert_eq!(refused(&mut opened(), frame(FrameKind::Header, 1, &header)), (505, 0, 0));
        assert_eq!(refused(&mut opened(), frame(FrameKind::Body, 1, b"x")), (505, 0, 0));
        assert_eq!(refused(&mut Channels::default(), frame(FrameKind::Header, 1, &header)), (505, 0, 0));
        assert_eq!(refused(&mut Channels::default(), frame(FrameKind::Body, 1, b"x")), (505, 0, 0));
        for (kind, bytes) in
            [(FrameKind::Method, &purge), (FrameKind::Body, &header), (FrameKind::Method, &vec![])]
        {
            let mut channels = opened();
            publish(&mut channels, 1);
            assert_eq!(refused(&mut channels, frame(kind, 1, bytes)), (505, 60, 40), "{kind:?} for header");
        }
        for (kind, bytes) in [(FrameKind::Method, &purge), (FrameKind::Header, &header)] {
            let mut channels = opened();
            publish(&mut channels, 1);
            announce(&mut channels, 1, 5);
            assert_eq!(refused(&mut channels, frame(kind, 1, bytes)), (505, 60, 40), "{kind:?} for body");
        }
    }

    #[test]
    fn a_heartbeat_belongs_on_channel_0() {
        assert_eq!(refused(&mut opened(), frame(FrameKind::Heartbeat, 1, b"")), (505, 0, 0));
        assert_eq!(refused(&mut Channels::default(), frame(FrameKind::Heartbeat, 1, b"")), (505, 0, 0));
        let mut channels = opened();
        publish(&mut channels, 1);
        assert_eq!(refused(&mut channels, frame(FrameKind::Heartbeat, 1, b"")), (505, 0, 0));
    }

    #[test]
    fn a_header_of_another_class_or_with_weight_is_unexpected() {
        for header in [header_payload(10, 0, 5), header_payload(60, 1, 5), header_payload(0, 0, 0)] {
            let mut channels = opened();
            publish(&mut channels, 1);
            assert_eq!(refused(&mut channels, frame(FrameKind::Header, 1, &header)), (505, 60, 40));
        }
        let mut channels = opened();
        publish(&mut channels, 1);
        assert_eq!(refused(&mut channels, frame(FrameKind::Header, 1, b"\0\x3c\0\0")), (501, 60, 40));
    }

    #[test]
    fn only_channel_open_works_on_a_closed_channel() {
        let mut channels = Channels::default();
        let ack = payload(BasicAck::default());
        assert_eq!(refused(&mut channels, frame(FrameKind::Method, 1, &ack)), (504, 60, 80));
        let close = payload(ChannelClose::default());
        assert_eq!(refused(&mut channels, frame(FrameKind::Method, 1, &close)), (504, 20, 40));
        let close_ok = payload(ChannelCloseOk {});
        assert_eq!(refused(&mut channels, frame(FrameKind::Method, 1, &close_ok)), (504, 20, 41));
        assert_eq!(refused(&mut channels, frame(FrameKind::Method, 1, b"\0\x3c\0\x63")), (503, 60, 99));
        assert_eq!(refused(&mut channels, frame(FrameKind::Method, 1, b"\0\x3c")), (501, 0, 0));
        assert_eq!(refused(&mut channels, frame(FrameKind::Method, 1, b"\0\x14\0\x0a\x05x")), (501, 20, 10));
    }

    #[test]
    fn an_open_channel_can_not_be_opened_nor_acknowledge_a_close_that_never_was() {
        let open = payload(ChannelOpen::default());
        assert_eq!(refused(&mut opened(), frame(FrameKind::Method, 1, &open)), (504, 20, 10));
        let close_ok = payload(ChannelCloseOk {});
        assert_eq!(refused(&mut opened(), frame(FrameKind::Method, 1, &close_ok)), (503, 20, 41));
    }

    #[test]
    fn a_channel_beyond_the_negotiated_number_is_not_allowed() {
        let mut channels = Channels::default();
        let open = payload(ChannelOpen::default());
        assert_eq!(refused(&mut channels, frame(FrameKind::Method, MAX + 1, &open)), (530, 0, 0));
        assert!(channels.accept(frame(FrameKind::Method, MAX, &open), MAX).is_ok());
    }

    #[test]
    fn methods_of_the_connection_and_of_servers_are_commands_nobody_may_give_here() {
        for (method, class, id) in [
            (payload(ConnectionTuneOk::default()), 10, 31),
            (payload(ConnectionBlocked::default()), 10, 60),
            (payload(BasicDeliver::default()), 60, 60),
        ] {
            assert_eq!(refused(&mut opened(), frame(FrameKind::Method, 1, &method)), (503, class, id));
        }
        let tune_ok = payload(ConnectionTuneOk::default());
        assert_eq!(refused(&mut Channels::default(), frame(FrameKind::Method, 1, &tune_ok)), (504, 10, 31));
        for (answer, class, id) in
            [(payload(ChannelFlowOk::default()), 20, 21), (payload(BasicCancelOk::default()), 60, 31)]
        {
            assert_eq!(
                refused(&mut opened(), frame(FrameKind::Method, 1, &answer)),
                (503, class, id),
                "never asked"
            );
        }
        assert_eq!(refused(&mut opened(), frame(FrameKind::Method, 1, b"\0\x3c\0\x63")), (503, 60, 99));
    }

    #[test]
    fn while_we_close_a_channel_everything_but_close_and_close_ok_is_ignored() {
        let mut channels = opened();
        publish(&mut channels, 1);
        assert!(channels.start_closing(1));
        assert!(!channels.is_open(1) && !channels.start_closing(1));
        for (kind, bytes) in [
            (FrameKind::Header, header_payload(10, 9, 5)),
            (FrameKind::Body, b"body".to_vec()),
            (FrameKind::Method, payload(BasicAck::default())),
            (FrameKind::Method, b"\0\x3c\0\x63garbage".to_vec()),
            (FrameKind::Method, payload(ChannelOpen::default())),
            (FrameKind::Heartbeat, vec![]),
        ] {
            assert_eq!(channels.accept(frame(kind, 1, &bytes), MAX), Ok(None), "{kind:?}");
        }
        let close_ok = payload(ChannelCloseOk {});
        let event = channels.accept(frame(FrameKind::Method, 1, &close_ok), MAX);
        assert_eq!(event, Ok(Some(Event::ChannelCloseOk { channel: 1 })));
        // The number is free, and the half-sent content is forgotten.
        let open = payload(ChannelOpen::default());
        assert!(channels.accept(frame(FrameKind::Method, 1, &open), MAX).is_ok());
        publish(&mut channels, 1);
    }

    #[test]
    fn when_both_sides_close_at_once_each_gets_its_answer() {
        let mut channels = opened();
        assert!(channels.start_closing(1));
        let close = payload(ChannelClose::default());
        let event = channels.accept(frame(FrameKind::Method, 1, &close), MAX);
        assert_eq!(event, Ok(Some(Event::ChannelClose { channel: 1, close: ChannelClose::default() })));
        assert!(channels.finish_closing(1), "theirs is answered");
        let close_ok = payload(ChannelCloseOk {});
        let event = channels.accept(frame(FrameKind::Method, 1, &close_ok), MAX);
        assert_eq!(event, Ok(Some(Event::ChannelCloseOk { channel: 1 })));
        assert!(!channels.finish_closing(1), "there is nothing left to answer");
    }

    #[test]
    fn what_was_wrong_before_a_clients_close_is_still_said() {
        let mut channels = opened();
        let close = payload(ChannelClose { reply_code: 200, ..Default::default() });
        assert!(channels.accept(frame(FrameKind::Method, 1, &close), MAX).is_ok());
        assert!(channels.start_closing(1) && !channels.start_closing(1));
        assert!(channels.finish_closing(1), "theirs is answered");
        let close_ok = payload(ChannelCloseOk {});
        let event = channels.accept(frame(FrameKind::Method, 1, &close_ok), MAX);
        assert_eq!(event, Ok(Some(Event::ChannelCloseOk { channel: 1 })));
        assert!(!channels.start_closing(1));
    }

    #[test]
    fn after_its_own_close_a_client_is_not_heard_until_it_has_the_answer() {
        let mut channels = opened();
        let close = payload(ChannelClose { reply_code: 200, ..Default::default() });
        let event = channels.accept(frame(FrameKind::Method, 1, &close), MAX);
        assert!(matches!(event, Ok(Some(Event::ChannelClose { channel: 1, .. }))));
        assert!(!channels.is_open(1));
        for bytes in [payload(BasicPublish::default()), close, payload(ChannelCloseOk {})] {
            assert_eq!(channels.accept(frame(FrameKind::Method, 1, &bytes), MAX), Ok(None));
            assert!(!channels.opens_too_early(frame(FrameKind::Method, 1, &bytes)));
        }
        let open = payload(ChannelOpen::default());
        assert!(channels.opens_too_early(frame(FrameKind::Method, 1, &open)));
        assert!(channels.finish_closing(1) && !channels.opens_too_early(frame(FrameKind::Method, 1, &open)));
        assert!(channels.accept(frame(FrameKind::Method, 1, &open), MAX).is_ok());
    }

    #[test]
    fn a_body_size_beyond_all_memory_is_only_counted() {
        let mut channels = opened();
        publish(&mut channels, 1);
        announce(&mut channels, 1, u64::MAX);
        piece(&mut channels, 1, b"x", false);
        assert!(channels.start_closing(1), "the broker refuses it");
        assert_eq!(channels.accept(frame(FrameKind::Body, 1, b"rest"), MAX), Ok(None));
    }

    #[test]
    fn a_cut_property_block_is_blamed_on_the_publish() {
        let mut channels = opened();
        publish(&mut channels, 1);
        let mut header = header_payload(60, 0, 0);
        header[12] = 0x80; // announces a content type that is not there
        assert_eq!(refused(&mut channels, frame(FrameKind::Header, 1, &header)), (501, 60, 40));
    }

    #[test]
    fn what_content_encode_writes_is_in_order() {
        let mut bytes = Vec::new();
        content::encode(1, Properties::EMPTY, &[5; 10_000], 4096, &mut bytes);
        let mut channels = opened();
        publish(&mut channels, 1);
        let (mut rest, mut complete) = (&bytes[..], false);
        while let Ok(crate::frame::Split::Frame(frame)) = crate::frame::split(rest, 4096) {
            rest = &rest[frame.encoded_len()..];
            let event = channels.accept(frame, MAX);
            complete = matches!(event, Ok(Some(Event::Body { last: true, .. })));
        }
        assert!(complete && rest.is_empty());
    }
}
