//! One end of an AMQP connection without its socket: the codec's state, and the bytes to be written.
//!
//! Owns: which frames may still be sent. Promises: after a close nothing but close-ok follows on that channel or connection.
//! Does not know: what was closed, or why.

use dassie_amqp::connection::Connection;
use dassie_amqp::method::ConnectionClose;
use dassie_amqp::reply::Exception;

use super::deliver::Frames;
use super::output::Output;

/// See the module.
pub(super) struct Line {
    /// The codec's state machine.
    pub(super) wire: Connection,
    /// What is to be written.
    pub(super) output: Output,
    /// Who ended the connection and why, for the log.
    ended: Option<String>,
}

impl Line {
    /// A line on which nothing was said.
    pub(super) fn new(wire: Connection) -> Self {
        Self { wire, output: Output::default(), ended: None }
    }

    /// Where frames are appended.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        self.output.bytes()
    }

    /// Where messages are appended.
    pub(super) fn frames(&mut self, channel: u16) -> Frames<'_> {
        let frame_max = self.wire.tuning().frame_max;
        Frames { output: &mut self.output, channel, frame_max }
    }

    /// May the client use the channel?
    pub(super) fn is_open(&self, channel: u16) -> bool {
        self.wire.is_open(channel)
    }

    /// Ends the connection.
    pub(super) fn close(&mut self, exception: &Exception) {
        if self.wire.close(exception, self.output.bytes()) {
            // The text may quote the client: it must not write lines of its own into the log.
            self.end(|| format!("by the broker: {}", exception.to_string().escape_debug()));
        }
    }

    /// Keeps who ends the connection and why; the first word counts.
    pub(super) fn end(&mut self, why: impl FnOnce() -> String) {
        if self.ended.is_none() {
            self.ended = Some(why());
        }
    }

    /// Answers the client's connection.close.
    pub(super) fn close_ok(&mut self, close: &ConnectionClose<'_>) {
        let text = close.reply_text.escape_debug();
        self.end(|| format!("by the client: {} {text}", close.reply_code));
        self.wire.close_ok(self.output.bytes());
    }

    /// Who ended the connection and why. Without a word of anybody: the socket's end.
    pub(super) fn why_ended(&self) -> &str {
        self.ended.as_deref().unwrap_or("the client left without a close")
    }

    /// Ends a channel.
    pub(super) fn close_channel(&mut self, channel: u16, exception: &Exception) {
        if self.wire.close_channel(channel, exception, self.output.bytes()) {
            tracing::debug!("closing AMQP channel {channel}: {}", exception.to_string().escape_debug());
        }
    }

    /// Answers the client's channel.close.
    pub(super) fn close_channel_ok(&mut self, channel: u16) {
        self.wire.close_channel_ok(channel, self.output.bytes());
    }
}
