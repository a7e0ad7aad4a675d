//! Headers of sending: requests 10, 310, 320 and 324, 325, their answer, and callback 326.
//!
//! Owns both spellings of a send: long names, and the single letters that save a quarter of the header.

use super::{Field, Header, HeaderError, headers};
use crate::code::RequestCode;
use crate::command::{Command, FieldReader, FieldWriter, Fields};

headers! {
    /// One message, or with `batch` a batch body, for one queue: SEND_MESSAGE (10), SEND_MESSAGE_V2 (310),
    /// SEND_BATCH_MESSAGE (320), SEND_REPLY_MESSAGE (324, 325). Read it with [`SendMessage::of`], write it as it is
    /// (long names) or through [`ShortNames`].
    pub struct SendMessage<'a> {
        /// The producer group.
        producer_group: &'a str = "producerGroup",
        /// The topic.
        topic: &'a str = "topic",
        /// The topic whose settings a new topic takes over, TBW102.
        default_topic: &'a str = "defaultTopic",
        /// How many queues the client would give a new topic.
        default_topic_queue_nums: i32 = "defaultTopicQueueNums",
        /// The queue; below 0 the broker picks one.
        queue_id: i32 = "queueId",
        /// Bits of [`SysFlag`](crate::message::SysFlag).
        sys_flag: i32 = "sysFlag",
        /// When the client made the message, in ms since 1970.
        born_timestamp: i64 = "bornTimestamp",
        /// The application's own flag.
        flag: i32 = "flag",
        /// Property text ([`Properties`](crate::message::Properties)); absent from batches.
        properties: Option<&'a str> = "properties",
        /// How often the message was consumed in vain, on topics `%RETRY%`.
        reconsume_times: Option<i32> = "reconsumeTimes",
        /// Multi-site deployments.
        unit_mode: Option<bool> = "unitMode",
        /// The body holds several messages. The C++ client sends batches with code 310 and this.
        batch: Option<bool> = "batch",
        /// After so many retries the message is dead, on topics `%RETRY%`.
        max_reconsume_times: Option<i32> = "maxReconsumeTimes",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
    }

    /// The answer to a send. `msg_id` and `transaction_id` of a batch are comma-joined.
    pub struct SendAnswer<'a> {
        /// The offset message id ([`MessageId`](crate::message::MessageId)).
        msg_id: &'a str = "msgId",
        /// The queue that took the message.
        queue_id: i32 = "queueId",
        /// Its offset there.
        queue_offset: i64 = "queueOffset",
        /// The message's unique key.
        transaction_id: Option<&'a str> = "transactionId",
        /// The key of a batch stored as one record.
        batch_uniq_id: Option<&'a str> = "batchUniqId",
        /// What takes a delayed message back.
        recall_handle: Option<&'a str> = "recallHandle",
        /// The region, `DefaultRegion`.
        region: Option<&'a str> = "MSG_REGION",
        /// Whether the client may write traces.
        trace_on: Option<bool> = "TRACE_ON",
    }

    /// The answer to a request message on its way to the requester: PUSH_REPLY_MESSAGE_TO_CLIENT (326).
    pub struct PushReply<'a> {
        /// The responder's producer group.
        producer_group: &'a str = "producerGroup",
        /// The reply topic.
        topic: &'a str = "topic",
        /// As in [`SendMessage`].
        default_topic: &'a str = "defaultTopic",
        /// As in [`SendMessage`].
        default_topic_queue_nums: i32 = "defaultTopicQueueNums",
        /// As in [`SendMessage`].
        queue_id: i32 = "queueId",
        /// As in [`SendMessage`].
        sys_flag: i32 = "sysFlag",
        /// As in [`SendMessage`].
        born_timestamp: i64 = "bornTimestamp",
        /// As in [`SendMessage`].
        flag: i32 = "flag",
        /// As in [`SendMessage`].
        properties: Option<&'a str> = "properties",
        /// As in [`SendMessage`].
        reconsume_times: Option<i32> = "reconsumeTimes",
        /// As in [`SendMessage`].
        unit_mode: Option<bool> = "unitMode",
        /// The responder's address, `host:port`.
        born_host: &'a str = "bornHost",
        /// The broker's address, `host:port`.
        store_host: &'a str = "storeHost",
        /// When the broker stored the reply, in ms since 1970.
        store_timestamp: i64 = "storeTimestamp",
    }
}

/// A send under its one-letter names, as codes 310, 320 and 325 carry it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShortNames<'a>(pub SendMessage<'a>);

/// The second spelling of [`SendMessage`]: `field = "letter"`.
macro_rules! short_names {
    ($( $field:ident = $letter:literal, )*) => {
        impl<'a> Header<'a> for ShortNames<'a> {
            fn read(fields: &mut FieldReader<'a>) -> Result<Self, HeaderError> {
                Ok(Self(SendMessage { $( $field: Field::read(fields, $letter)?, )* }))
            }
        }

        impl Fields for ShortNames<'_> {
            fn write_to(&self, out: &mut FieldWriter<'_>) {
                $( Field::write(&self.0.$field, $letter, out); )*
            }
        }
    };
}

short_names! {
    producer_group = "a",
    topic = "b",
    default_topic = "c",
    default_topic_queue_nums = "d",
    queue_id = "e",
    sys_flag = "f",
    born_timestamp = "g",
    flag = "h",
    properties = "i",
    reconsume_times = "j",
    unit_mode = "k",
    max_reconsume_times = "l",
    batch = "m",
    broker_name = "n",
}

impl<'a> SendMessage<'a> {
    /// Reads the header of a send with any of its codes: the code tells the spelling.
    pub fn of(command: &'a Command<'_>) -> Result<Self, HeaderError> {
        match command.head.request_code() {
            Some(
                RequestCode::SendMessageV2 | RequestCode::SendBatchMessage | RequestCode::SendReplyMessageV2,
            ) => command.header::<ShortNames<'_>>().map(|short| short.0),
            _ => command.header(),
        }
    }
}
