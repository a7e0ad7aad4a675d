//! Typed headers: the extension fields of each request and answer, read and written.
//!
//! Owns the tables of names and types, one row a field, in the files below, and the few types a field can have. A
//! field of type `Option` may be absent, any other must be there. Texts are borrowed from the command. Extra fields
//! are ignored, as every client and server does. Does not judge a value: a negative queue id or an offset beyond
//! the queue is the broker's business.

mod callback;
mod client;
mod name_server;
mod offset;
mod pull;
mod query;
mod send;
mod topic;
mod transaction;

pub use callback::{
    CheckTransactionState, ConsumeMessageDirectly, GetConsumerRunningInfo, GetConsumerStatus,
    NotifyConsumerIdsChanged, ResetConsumerOffset,
};
pub use client::{
    ConsumerSendBack, GetConsumerList, GetProducers, HeartbeatAnswer, Routing, UnregisterClient,
};
pub use name_server::{
    AddWritePermissionAnswer, BrokerByName, DeleteRoute, GetKv, GetKvAnswer, GetRoute, ListKv, PutKv,
    TopicsByCluster, WipeWritePermissionAnswer,
};
pub use offset::{
    Boundary, GetMaxOffset, OffsetAnswer, QueryConsumerOffset, QueueAddress, SearchOffset, TimestampAnswer,
    UpdateConsumerOffset,
};
pub use pull::{PullAnswer, PullMessage, pull_flag};
pub use query::{QueryMessage, QueryMessageAnswer, ViewMessage};
pub use send::{PushReply, SendAnswer, SendMessage, ShortNames};
pub use topic::{
    BrokerStats, ByGroup, ByTopic, CloneOffsets, ConsumeStats, CreateTopic, DeleteGroup, DeleteTopic,
    GroupAndTopic, TopicTableAnswer,
};
pub use transaction::EndTransaction;

use crate::command::{FieldReader, FieldWriter, Fields};
use std::fmt;

/// A typed header. [`Command::header`](crate::command::Command::header) reads one.
pub trait Header<'a>: Fields + Sized {
    /// Reads the header, naming the first field that is missing or of the wrong type.
    fn read(fields: &mut FieldReader<'a>) -> Result<Self, HeaderError>;
}

/// A request whose fields can not be read. Answer it with SYSTEM_ERROR and this text; the connection is fine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeaderError {
    /// The field's name on the wire.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: HeaderProblem,
}

/// What is wrong with a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderProblem {
    /// It must be there and is not.
    Missing,
    /// It is not what it must be, e.g. "a 32-bit integer".
    NotA(&'static str),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problem {
            HeaderProblem::Missing => write!(f, "the field {} is missing", self.field),
            HeaderProblem::NotA(kind) => write!(f, "the field {} is not {kind}", self.field),
        }
    }
}

impl std::error::Error for HeaderError {}

/// A type that a field's text can have.
trait Value<'a>: Sized {
    const KIND: &'static str;
    fn parse(text: &'a str) -> Option<Self>;
    fn put(&self, name: &str, out: &mut FieldWriter<'_>);
}

impl<'a> Value<'a> for &'a str {
    const KIND: &'static str = "a text";
    fn parse(text: &'a str) -> Option<Self> {
        Some(text)
    }
    fn put(&self, name: &str, out: &mut FieldWriter<'_>) {
        out.text(name, self);
    }
}

impl Value<'_> for i32 {
    const KIND: &'static str = "a 32-bit integer";
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn put(&self, name: &str, out: &mut FieldWriter<'_>) {
        out.integer(name, i64::from(*self));
    }
}

impl Value<'_> for i64 {
    const KIND: &'static str = "a 64-bit integer";
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn put(&self, name: &str, out: &mut FieldWriter<'_>) {
        out.integer(name, *self);
    }
}

impl Value<'_> for bool {
    const KIND: &'static str = "a text";
    /// As Java reads it: what is not true is false. The C++ client sends "0".
    fn parse(text: &str) -> Option<Self> {
        Some(text.eq_ignore_ascii_case("true"))
    }
    fn put(&self, name: &str, out: &mut FieldWriter<'_>) {
        out.text(name, if *self { "true" } else { "false" });
    }
}

/// A field of a table: a [`Value`] that must be there, or an `Option` of one.
trait Field<'a>: Sized {
    fn read(fields: &mut FieldReader<'a>, name: &'static str) -> Result<Self, HeaderError>;
    fn write(&self, name: &'static str, out: &mut FieldWriter<'_>);
}

impl<'a, T: Value<'a>> Field<'a> for T {
    fn read(fields: &mut FieldReader<'a>, name: &'static str) -> Result<Self, HeaderError> {
        let missing = HeaderError { field: name, problem: HeaderProblem::Missing };
        parse(fields.get(name).ok_or(missing)?, name)
    }
    fn write(&self, name: &'static str, out: &mut FieldWriter<'_>) {
        self.put(name, out);
    }
}

impl<'a, T: Value<'a>> Field<'a> for Option<T> {
    fn read(fields: &mut FieldReader<'a>, name: &'static str) -> Result<Self, HeaderError> {
        fields.get(name).map(|text| parse(text, name)).transpose()
    }
    fn write(&self, name: &'static str, out: &mut FieldWriter<'_>) {
        if let Some(value) = self {
            value.put(name, out);
        }
    }
}

fn parse<'a, T: Value<'a>>(text: &'a str, field: &'static str) -> Result<T, HeaderError> {
    T::parse(text).ok_or(HeaderError { field, problem: HeaderProblem::NotA(T::KIND) })
}

/// Declares headers: `field: Type = "name on the wire"`.
macro_rules! headers {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident $(<$life:lifetime>)? {
            $( $(#[$field_meta:meta])* $field:ident: $type:ty = $wire:literal, )*
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $name $(<$life>)? {
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        impl<'a> $crate::header::Header<'a> for $name $(<$life>)? {
            fn read(
                fields: &mut $crate::command::FieldReader<'a>,
            ) -> Result<Self, $crate::header::HeaderError> {
                Ok(Self { $( $field: $crate::header::Field::read(fields, $wire)?, )* })
            }
        }

        impl $(<$life>)? $crate::command::Fields for $name $(<$life>)? {
            fn write_to(&self, out: &mut $crate::command::FieldWriter<'_>) {
                $( $crate::header::Field::write(&self.$field, $wire, out); )*
            }
        }
    )*};
}
use headers;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::{Language, RequestCode};
    use crate::command::{Command, Head, encode};
    use crate::frame::{Frame, HeaderCodec, MAX_FRAME, Split, split};
    use crate::golden;

    fn whole(bytes: &[u8]) -> Command<'_> {
        let Ok(Split::Frame { frame, .. }) = split(bytes, MAX_FRAME) else { panic!("no frame") };
        Command::decode(&frame).unwrap()
    }

    fn frame_of(fields: &impl Fields, codec: HeaderCodec) -> Vec<u8> {
        let head = Head::request(RequestCode::HeartBeat, Language::Rust, 409, 1);
        let mut out = Vec::new();
        encode(&mut out, codec, &head, fields, b"").unwrap();
        out
    }

    /// Reads a header out of Java's frames in both codecs, and ours of it must carry the same fields but for those
    /// that only Java writes.
    macro_rules! check {
        ($name:literal, $expected:expr, $type:ty) => {
            for codec in ["JSON", "ROCKETMQ"] {
                let java = golden::command($name, codec);
                let java = whole(&java);
                let expected = $expected;
                assert_eq!(java.header::<$type>(), Ok(expected), "{} {codec}", $name);
                let ours = frame_of(&expected, java.codec);
                let ours = whole(&ours);
                assert_eq!(ours.header::<$type>(), Ok(expected), "{} {codec}", $name);
                for (name, value) in ours.ext.iter() {
                    assert_eq!(java.ext.get(name), Some(value), "{} {codec}", $name);
                }
                assert_eq!(ours.ext.len(), java.ext.len(), "{}: {:?}", $name, java.ext);
            }
        };
    }

    const PROPERTIES: &str = "KEYS\u{1}key1 key2\u{2}名前\u{1}värde\u{2}UNIQ_KEY\u{1}7F00000100002A139A55150F5C2E0000\u{2}WAIT\u{1}true\u{2}TAGS\u{1}TagA\u{2}";

    const SEND: SendMessage<'static> = SendMessage {
        producer_group: "PG",
        topic: "TopicTest",
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        queue_id: 3,
        sys_flag: 0,
        born_timestamp: 1_700_000_000_123,
        flag: 7,
        properties: Some(PROPERTIES),
        reconsume_times: Some(0),
        unit_mode: Some(false),
        batch: Some(false),
        max_reconsume_times: None,
        broker_name: Some("broker-a"),
    };

    #[test]
    fn sends_are_javas_in_both_spellings() {
        check!("send_v1", SEND, SendMessage<'_>);
        check!("send_v2", ShortNames(SEND), ShortNames<'_>);
        let batch = SendMessage { batch: Some(true), max_reconsume_times: Some(5), ..SEND };
        check!("send_batch", ShortNames(batch), ShortNames<'_>);
        for (name, expected) in [("send_v1", SEND), ("send_v2", SEND), ("send_batch", batch)] {
            let frame = golden::command(name, "JSON");
            assert_eq!(SendMessage::of(&whole(&frame)), Ok(expected), "{name}");
        }
        let answer = SendAnswer {
            msg_id: "7F00000100002A9F00000000000004D2",
            queue_id: 3,
            queue_offset: 41,
            transaction_id: Some("7F00000100002A139A55150F5C2E0000"),
            ..SendAnswer::default()
        };
        check!("send_response", answer, SendAnswer<'_>);
        let reply = PushReply {
            producer_group: "PG",
            topic: "R",
            default_topic: "TBW102",
            default_topic_queue_nums: 4,
            queue_id: 0,
            sys_flag: 0,
            born_timestamp: 1,
            flag: 0,
            properties: Some(PROPERTIES),
            reconsume_times: Some(0),
            unit_mode: Some(false),
            born_host: "/127.0.0.1:1",
            store_host: "/127.0.0.1:10911",
            store_timestamp: 2,
        };
        check!("push_reply", reply, PushReply<'_>);
    }

    #[test]
    fn pulls_are_javas() {
        let pull = PullMessage {
            consumer_group: "CG",
            topic: "TopicTest",
            queue_id: 3,
            queue_offset: 41,
            max_msg_nums: 32,
            sys_flag: pull_flag::SUSPEND | pull_flag::SUBSCRIPTION,
            suspend_timeout_millis: 15_000,
            subscription: Some("TagA || TagB"),
            sub_version: 1_700_000_000_000,
            expression_type: Some("TAG"),
            max_msg_bytes: Some(i32::MAX),
            broker_name: Some("broker-a"),
            ..PullMessage::default()
        };
        check!("pull", pull, PullMessage<'_>);
        let lite = PullMessage {
            consumer_group: "CG",
            topic: "TopicTest",
            max_msg_nums: 10,
            sys_flag: pull_flag::LITE_PULL,
            suspend_timeout_millis: 20_000,
            request_source: Some(-1),
            proxy_forward_client_id: Some("c1"),
            ..PullMessage::default()
        };
        check!("lite_pull", lite, PullMessage<'_>);
        let answer = PullAnswer {
            next_begin_offset: 42,
            max_offset: 42,
            offset_delta: Some(0),
            topic_sys_flag: Some(0),
            group_sys_flag: Some(0),
            forbidden_type: Some(1),
            ..PullAnswer::default()
        };
        check!("pull_response", answer, PullAnswer);
    }

    #[test]
    fn offset_requests_and_answers_are_javas() {
        let (consumer_group, topic, queue_id) = ("CG", "TopicTest", 1);
        let broker_name = Some("broker-a");
        let query = QueryConsumerOffset {
            consumer_group,
            topic,
            queue_id,
            set_zero_if_not_found: Some(false),
            broker_name,
        };
        check!("query_offset", query, QueryConsumerOffset<'_>);
        check!("query_offset_response", OffsetAnswer { offset: 99 }, OffsetAnswer);
        let update =
            UpdateConsumerOffset { consumer_group, topic, queue_id, commit_offset: 100, broker_name: None };
        check!("update_offset", update, UpdateConsumerOffset<'_>);
        let search = SearchOffset {
            topic,
            queue_id,
            timestamp: 1_700_000_000_000,
            boundary_type: Some(Boundary::Upper),
            broker_name: None,
        };
        check!("search_offset", search, SearchOffset<'_>);
        check!("search_offset_response", OffsetAnswer { offset: 5 }, OffsetAnswer);
        let max = GetMaxOffset { topic, queue_id, committed: Some(true), broker_name: None };
        check!("max_offset", max, GetMaxOffset<'_>);
        check!("max_offset_response", OffsetAnswer { offset: 6 }, OffsetAnswer);
        let queue = QueueAddress { topic, queue_id, broker_name: None };
        check!("min_offset", queue, QueueAddress<'_>);
        check!("min_offset_response", OffsetAnswer { offset: -1 }, OffsetAnswer);
        check!("earliest", queue, QueueAddress<'_>);
        check!("earliest_response", TimestampAnswer { timestamp: 1_700_000_000_000 }, TimestampAnswer);
    }

    #[test]
    fn requests_of_clients_and_groups_are_javas() {
        let unregister = UnregisterClient {
            client_id: "127.0.0.1@1",
            producer_group: Some("PG"),
            consumer_group: Some("CG"),
        };
        check!("unregister", unregister, UnregisterClient<'_>);
        let back = ConsumerSendBack {
            offset: 1234,
            group: "CG",
            delay_level: 0,
            origin_msg_id: Some("7F00"),
            origin_topic: Some("TopicTest"),
            unit_mode: Some(false),
            max_reconsume_times: Some(16),
            broker_name: None,
        };
        check!("send_back", back, ConsumerSendBack<'_>);
        check!("consumer_list", GetConsumerList { consumer_group: "CG" }, GetConsumerList<'_>);
        let end = EndTransaction {
            topic: Some("TopicTest"),
            producer_group: "PG",
            tran_state_table_offset: 3,
            commit_log_offset: 1234,
            commit_or_rollback: 8,
            from_transaction_check: Some(true),
            msg_id: "U1",
            transaction_id: Some("T1"),
            broker_name: None,
        };
        check!("end_transaction", end, EndTransaction<'_>);
        check!("heartbeat_empty", Routing::default(), Routing<'_>);
    }

    #[test]
    fn callbacks_are_javas() {
        let check = CheckTransactionState {
            topic: Some("TopicTest"),
            tran_state_table_offset: 3,
            commit_log_offset: 1234,
            msg_id: Some("U1"),
            transaction_id: Some("T1"),
            offset_msg_id: Some("7F00"),
        };
        check!("check_transaction", check, CheckTransactionState<'_>);
        check!(
            "ids_changed",
            NotifyConsumerIdsChanged { consumer_group: "CG" },
            NotifyConsumerIdsChanged<'_>
        );
        let reset = ResetConsumerOffset {
            topic: "TopicTest",
            group: "CG",
            queue_id: Some(-1),
            offset: None,
            timestamp: 1_700_000_000_000,
            is_force: true,
        };
        check!("reset_offset", reset, ResetConsumerOffset<'_>);
        let status = GetConsumerStatus { topic: "TopicTest", group: "CG", client_addr: Some("127.0.0.1:5") };
        check!("consumer_status", status, GetConsumerStatus<'_>);
        let info =
            GetConsumerRunningInfo { consumer_group: "CG", client_id: "c1", jstack_enable: Some(true) };
        check!("running_info", info, GetConsumerRunningInfo<'_>);
        let directly = ConsumeMessageDirectly {
            consumer_group: "CG",
            client_id: Some("c1"),
            msg_id: Some("7F00"),
            broker_name: Some("broker-a"),
            topic: Some("TopicTest"),
            topic_sys_flag: Some(0),
            group_sys_flag: Some(0),
        };
        check!("consume_directly", directly, ConsumeMessageDirectly<'_>);
    }

    #[test]
    fn topic_and_query_requests_are_javas() {
        let create = CreateTopic {
            topic: "TopicTest",
            default_topic: "TBW102",
            read_queue_nums: 8,
            write_queue_nums: 8,
            perm: 6,
            topic_filter_type: "SINGLE_TAG",
            topic_sys_flag: Some(0),
            order: Some(false),
            attributes: Some("+message.type=FIFO"),
            force: Some(false),
        };
        check!("create_topic", create, CreateTopic<'_>);
        check!("delete_topic", DeleteTopic { topic: "TopicTest" }, DeleteTopic<'_>);
        check!("view_message", ViewMessage { topic: Some("TopicTest"), offset: 1234 }, ViewMessage<'_>);
        let query = QueryMessage {
            topic: "TopicTest",
            key: "key1",
            max_num: 32,
            end_timestamp: i64::MAX,
            ..QueryMessage::default()
        };
        check!("query_message", query, QueryMessage<'_>);
        let answer = QueryMessageAnswer { index_last_update_timestamp: 7, index_last_update_phyoffset: 8 };
        check!("query_message_response", answer, QueryMessageAnswer);
    }

    #[test]
    fn name_server_requests_are_javas() {
        let route = GetRoute { topic: "TopicTest", accept_standard_json_only: Some(true) };
        check!("route", route, GetRoute<'_>);
        let delete = DeleteRoute { topic: "TopicTest", cluster_name: Some("DefaultCluster") };
        check!("delete_topic_namesrv", delete, DeleteRoute<'_>);
        let (namespace, key) = ("ORDER_TOPIC_CONFIG", "TopicTest");
        check!("put_kv", PutKv { namespace, key, value: "broker-a:4" }, PutKv<'_>);
        check!("get_kv", GetKv { namespace, key }, GetKv<'_>);
        check!("delete_kv", GetKv { namespace, key }, GetKv<'_>);
        check!("get_kv_response", GetKvAnswer { value: Some("broker-a:4") }, GetKvAnswer<'_>);
        check!("list_kv", ListKv { namespace }, ListKv<'_>);
        check!("topics_by_cluster", TopicsByCluster { cluster: "DefaultCluster" }, TopicsByCluster<'_>);
        check!("wipe_write", BrokerByName { broker_name: "broker-a" }, BrokerByName<'_>);
        check!("add_write", BrokerByName { broker_name: "broker-a" }, BrokerByName<'_>);
        check!(
            "wipe_write_response",
            WipeWritePermissionAnswer { wipe_topic_count: 12 },
            WipeWritePermissionAnswer
        );
    }

    fn json(header: &str) -> Command<'_> {
        Command::decode(&Frame { codec: HeaderCodec::Json, header: header.as_bytes(), body: b"" }).unwrap()
    }

    #[test]
    fn the_cpp_clients_sends_and_topics_are_read() {
        let send = json(
            r#"{"code":310,"extFields":{"a":"PG","b":"T","c":"TBW102","d":4,"e":3,"f":0,
                "g":"1700000000123","h":0,"i":"","j":"0","k":"false","l":0,"m":"true"}}"#,
        );
        let send = SendMessage::of(&send).unwrap();
        assert_eq!((send.queue_id, send.batch, send.broker_name), (3, Some(true), None));
        let create = json(
            r#"{"code":17,"extFields":{"topic":"T","defaultTopic":"TBW102","readQueueNums":4,
                "writeQueueNums":4,"perm":6,"topicFilterType":"SINGLE_TAG"}}"#,
        );
        assert_eq!(create.header::<CreateTopic<'_>>().unwrap().order, None);
        let pull = json(
            r#"{"code":11,"extFields":{"consumerGroup":"g","topic":"T","queueId":0,"queueOffset":"0",
                "maxMsgNums":32,"sysFlag":2,"commitOffset":"0","subVersion":"0",
                "suspendTimeoutMillis":"15000","subscription":"*"}}"#,
        );
        assert_eq!(pull.header::<PullMessage<'_>>().unwrap().expression_type, None);
    }

    #[test]
    fn the_spelling_of_a_send_follows_its_code() {
        let long = r#""producerGroup":"g","topic":"T","defaultTopic":"D","defaultTopicQueueNums":"4",
            "queueId":"1","sysFlag":"0","bornTimestamp":"5","flag":"0""#;
        let short = r#""a":"g","b":"T","c":"D","d":"4","e":"1","f":"0","g":"5","h":"0""#;
        for (code, long_wanted) in [(10, true), (324, true), (310, false), (320, false), (325, false)] {
            for (fields, is_long) in [(long, true), (short, false)] {
                let header = format!(r#"{{"code":{code},"extFields":{{{fields}}}}}"#);
                let command = json(&header);
                assert_eq!(SendMessage::of(&command).is_ok(), is_long == long_wanted, "{code} {fields}");
            }
        }
    }

    #[test]
    fn a_missing_or_ill_typed_field_is_named() {
        let error = |fields: &str| {
            let header = format!(r#"{{"code":14,"extFields":{{"consumerGroup":"g"{fields}}}}}"#);
            json(&header).header::<QueryConsumerOffset<'_>>().unwrap_err().to_string()
        };
        assert_eq!(error(""), "the field topic is missing");
        assert_eq!(error(r#","topic":"T""#), "the field queueId is missing");
        for ill in ["x", "", "1.0", "2147483648", "99999999999999999999", " 1", "0x1"] {
            let fields = format!(r#","topic":"T","queueId":"{ill}""#);
            assert_eq!(error(&fields), "the field queueId is not a 32-bit integer", "{ill}");
        }
    }

    #[test]
    fn each_required_letter_of_a_short_send_is_missed_by_name() {
        for missing in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let fields: Vec<String> = ["a", "b", "c", "d", "e", "f", "g", "h"]
                .into_iter()
                .filter(|letter| *letter != missing)
                .map(|letter| format!("\"{letter}\":\"1\""))
                .collect();
            let header = format!(r#"{{"code":310,"extFields":{{{}}}}}"#, fields.join(","));
            let error = HeaderError { field: missing, problem: HeaderProblem::Missing };
            assert_eq!(SendMessage::of(&json(&header)), Err(error));
        }
        let nothing = json(r#"{"code":310}"#);
        assert_eq!(SendMessage::of(&nothing).unwrap_err().field, "a");
    }

    #[test]
    fn numbers_at_the_edges_are_read_and_left_to_the_broker() {
        let header = r#"{"code":11,"extFields":{"consumerGroup":"g","topic":"T","queueId":"-2147483648",
            "queueOffset":"-9223372036854775808","maxMsgNums":"2147483647","sysFlag":"-1",
            "commitOffset":"9223372036854775807","suspendTimeoutMillis":"-1","subVersion":"0"}}"#;
        let command = json(header);
        let pull: PullMessage<'_> = command.header().unwrap();
        assert_eq!((pull.queue_id, pull.queue_offset, pull.max_msg_nums), (i32::MIN, i64::MIN, i32::MAX));
    }

    #[test]
    fn booleans_are_read_in_any_case_and_boundaries_too() {
        let header = |value: &str| {
            format!(
                r#"{{"code":29,"extFields":{{"topic":"T","queueId":"0","timestamp":"0","boundaryType":"{value}"}}}}"#
            )
        };
        for (value, boundary) in
            [("UPPER", Some(Boundary::Upper)), ("lower", Some(Boundary::Lower)), ("x", None)]
        {
            let header = header(value);
            let read =
                json(&header).header::<SearchOffset<'_>>().ok().and_then(|search| search.boundary_type);
            assert_eq!(read, boundary, "{value}");
        }
        let command = json(r#"{"code":1,"extFields":{"oway":"TRUE","nsd":"False","lo":"0","bname":"b"}}"#);
        let expected = Routing {
            namespace: None,
            namespaced: Some(false),
            broker_name: Some("b"),
            one_way: Some(true),
            logical: Some(false),
        };
        assert_eq!(command.header::<Routing<'_>>(), Ok(expected));
    }
}
