//! The body of HEART_BEAT (34): who a client is, what it produces and consumes.
//!
//! Owns its shape and its bound: [`MAX_SUBSCRIPTIONS`] producers, consumers and subscriptions together. The hash
//! codes and tags that clients send beside an expression are not read: the expression says the same, and the C++
//! client's codes are wrong.

use super::{BodyError, lenient};
use crate::message::TagFilter;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

/// How many producers, consumers and subscriptions one heartbeat may name.
pub const MAX_SUBSCRIPTIONS: usize = 10_000;

lenient::named! {
    /// How a group gets its messages.
    pub enum ConsumeType {
        /// The application pulls.
        Actively = "CONSUME_ACTIVELY",
        /// The client pulls and calls the application.
        Passively = "CONSUME_PASSIVELY",
        /// By leases.
        Pop = "CONSUME_POP",
    }

    /// Whether members share the messages.
    pub enum MessageModel {
        /// Each member gets all.
        Broadcasting = "BROADCASTING",
        /// Each message goes to one member.
        Clustering = "CLUSTERING",
    }

    /// Where a group without stored offsets begins.
    pub enum ConsumeFromWhere {
        /// At the end.
        LastOffset = "CONSUME_FROM_LAST_OFFSET",
        /// Deprecated; as the first.
        LastOffsetAndFromMinWhenBootFirst = "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
        /// Deprecated.
        MinOffset = "CONSUME_FROM_MIN_OFFSET",
        /// Deprecated.
        MaxOffset = "CONSUME_FROM_MAX_OFFSET",
        /// At the beginning.
        FirstOffset = "CONSUME_FROM_FIRST_OFFSET",
        /// At a time the client knows.
        Timestamp = "CONSUME_FROM_TIMESTAMP",
    }
}

/// A client's heartbeat.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// The client's id, `ip@pid#nanos` or less.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// The producer groups.
    pub producer_data_set: Vec<Producer>,
    /// The consumer groups.
    pub consumer_data_set: Vec<Consumer>,
    /// Stands for the whole in later heartbeats, if the server supports that.
    pub heartbeat_fingerprint: i32,
    /// Only the fingerprint counts.
    pub without_sub: bool,
}

/// A producer group of a client.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Producer {
    /// The group.
    pub group_name: String,
}

/// A consumer group of a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Consumer {
    /// The group.
    pub group_name: String,
    /// How it gets its messages.
    pub consume_type: ConsumeType,
    /// Whether members share them.
    pub message_model: MessageModel,
    /// Where it begins, if the client says something known: the Go client may say "UNKNOWN".
    #[serde(default, deserialize_with = "if_known", skip_serializing_if = "Option::is_none")]
    pub consume_from_where: Option<ConsumeFromWhere>,
    /// What it consumes.
    #[serde(default, deserialize_with = "lenient::list::<_, _, MAX_SUBSCRIPTIONS>")]
    pub subscription_data_set: Vec<Subscription>,
    /// Multi-site deployments.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub unit_mode: bool,
}

/// One topic a group consumes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    /// The topic.
    pub topic: String,
    /// The filter expression; `*` for everything.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub sub_string: String,
    /// Milliseconds since 1970 when it was made: the later one counts.
    #[serde(default, deserialize_with = "lenient::integer")]
    pub sub_version: i64,
    /// TAG or SQL92; the C++ client says nothing.
    #[serde(default = "tag", deserialize_with = "or_tag")]
    pub expression_type: String,
    /// Filtering by uploaded classes; obsolete.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub class_filter_mode: bool,
}

fn if_known<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<ConsumeFromWhere>, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).ok())
}

fn tag() -> String {
    "TAG".to_owned()
}

fn or_tag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|kind| !kind.is_empty()).unwrap_or_else(tag))
}

impl Serialize for Subscription {
    /// With the tags and hash codes of the expression: Apache's broker filters by them.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let filter =
            if self.expression_type == "TAG" { TagFilter::parse(&self.sub_string).ok() } else { None };
        let filter = filter.unwrap_or(TagFilter::All);
        let mut map = serializer.serialize_map(Some(7))?;
        map.serialize_entry("classFilterMode", &self.class_filter_mode)?;
        map.serialize_entry("codeSet", filter.hashes())?;
        map.serialize_entry("expressionType", &self.expression_type)?;
        map.serialize_entry("subString", &self.sub_string)?;
        map.serialize_entry("subVersion", &self.sub_version)?;
        map.serialize_entry("tagsSet", filter.tags())?;
        map.serialize_entry("topic", &self.topic)?;
        map.end()
    }
}

/// A heartbeat whose consumers are not read yet: the bound is on all their subscriptions together.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unread<'a> {
    #[serde(rename = "clientID")]
    client_id: String,
    #[serde(default, deserialize_with = "lenient::list::<_, _, MAX_SUBSCRIPTIONS>")]
    producer_data_set: Vec<Producer>,
    #[serde(default, borrow, deserialize_with = "lenient::list::<_, _, MAX_SUBSCRIPTIONS>")]
    consumer_data_set: Vec<&'a RawValue>,
    #[serde(default, deserialize_with = "lenient::integer")]
    heartbeat_fingerprint: i32,
    #[serde(default, deserialize_with = "lenient::boolean")]
    without_sub: bool,
}

impl Heartbeat {
    /// Reads a heartbeat.
    pub fn from_json(body: &[u8]) -> Result<Self, BodyError> {
        let unread: Unread<'_> = serde_json::from_slice(body)?;
        let mut names = unread.producer_data_set.len() + unread.consumer_data_set.len();
        let mut consumers = Vec::new();
        for consumer in unread.consumer_data_set {
            let consumer: Consumer = serde_json::from_str(consumer.get())?;
            names += consumer.subscription_data_set.len();
            if names > MAX_SUBSCRIPTIONS {
                return Err(BodyError(format!("a heartbeat with more than {MAX_SUBSCRIPTIONS} names")));
            }
            consumers.push(consumer);
        }
        Ok(Self {
            client_id: unread.client_id,
            producer_data_set: unread.producer_data_set,
            consumer_data_set: consumers,
            heartbeat_fingerprint: unread.heartbeat_fingerprint,
            without_sub: unread.without_sub,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::to_json;
    use crate::golden;

    fn expected() -> Heartbeat {
        let subscription = |topic: &str, expression: &str, version| Subscription {
            topic: topic.to_owned(),
            sub_string: expression.to_owned(),
            sub_version: version,
            expression_type: tag(),
            class_filter_mode: false,
        };
        Heartbeat {
            client_id: "10.1.2.3@42#7".to_owned(),
            producer_data_set: vec![Producer { group_name: "PG".to_owned() }],
            consumer_data_set: vec![Consumer {
                group_name: "CG".to_owned(),
                consume_type: ConsumeType::Passively,
                message_model: MessageModel::Clustering,
                consume_from_where: Some(ConsumeFromWhere::LastOffset),
                subscription_data_set: vec![
                    subscription("%RETRY%CG", "*", 1_700_000_000_001),
                    subscription("TopicTest", "TagA || TagB", 1_700_000_000_000),
                ],
                unit_mode: false,
            }],
            heartbeat_fingerprint: 0,
            without_sub: false,
        }
    }

    #[test]
    fn javas_heartbeat_is_read_and_written_alike() {
        let java = golden::body("heartbeat");
        let read = Heartbeat::from_json(java.as_bytes()).unwrap();
        assert_eq!(read, expected());
        let ours: serde_json::Value = serde_json::from_slice(&to_json(&read)).unwrap();
        assert_eq!(ours, serde_json::from_str::<serde_json::Value>(java).unwrap());
    }

    #[test]
    fn the_cpp_heartbeat_with_ordinals_quoted_versions_and_missing_fields_is_read() {
        // As jsoncpp's FastWriter prints it: sorted keys, a newline at the end, no expressionType, no unitMode.
        let cpp = concat!(
            r#"{"clientID":"10.1.2.3@42#7","consumerDataSet":[{"consumeFromWhere":0,"consumeType":1,"#,
            r#""groupName":"CG","messageModel":1,"subscriptionDataSet":["#,
            r#"{"subString":"*","subVersion":"1700000000001","topic":"%RETRY%CG"},"#,
            r#"{"codeSet":[2598919,2598920],"subString":"TagA || TagB","subVersion":"1700000000000","#,
            r#""tagsSet":["TagA","TagB"],"topic":"TopicTest"}]}],"producerDataSet":[{"groupName":"PG"}]}"#,
            "\n"
        );
        assert_eq!(Heartbeat::from_json(cpp.as_bytes()).unwrap(), expected());
    }

    #[test]
    fn the_go_heartbeat_of_a_producer_is_read() {
        let go = br#"{"clientID":"10.1.2.3@42","producerDataSet":[{"groupName":"PG"}],"consumerDataSet":[]}"#;
        let read = Heartbeat::from_json(go).unwrap();
        assert_eq!(
            (read.client_id.as_str(), read.producer_data_set.len(), read.consumer_data_set.len()),
            ("10.1.2.3@42", 1, 0)
        );
    }

    #[test]
    fn the_go_heartbeat_of_a_consumer_with_codes_in_quotes_and_an_unknown_start_is_read() {
        let go = concat!(
            r#"{"clientID":"c","producerDataSet":[],"consumerDataSet":[{"groupName":"CG","consumeType":"CONSUME_PASSIVELY","#,
            r#""messageModel":"CLUSTERING","consumeFromWhere":"UNKNOWN","subscriptionDataSet":[{"classFilterMode":false,"#,
            r#""topic":"T","subString":"a","tagsSet":["a"],"codeSet":["97"],"subVersion":5,"expressionType":""}],"#,
            r#""unitMode":false}]}"#
        );
        let read = Heartbeat::from_json(go.as_bytes()).unwrap();
        assert_eq!(read.consumer_data_set[0].consume_from_where, None);
        let subscription = &read.consumer_data_set[0].subscription_data_set[0];
        assert_eq!((subscription.sub_version, subscription.expression_type.as_str()), (5, "TAG"));
    }

    #[test]
    fn null_lists_are_empty_lists() {
        let read = Heartbeat::from_json(
            br#"{"clientID":"c","producerDataSet":null,"consumerDataSet":null,"x":[{}]}"#,
        );
        assert_eq!(read.unwrap(), Heartbeat { client_id: "c".to_owned(), ..Heartbeat::default() });
    }

    #[test]
    fn a_heartbeat_without_a_client_or_with_unknown_enums_is_refused() {
        assert!(Heartbeat::from_json(b"{}").is_err());
        assert!(Heartbeat::from_json(br#"{"clientID":null}"#).is_err());
        let with = |field: &str, value: &str| {
            let known = r#""consumeType":0,"messageModel":0,"consumeFromWhere":0,"#;
            let consumer = known.replace(&format!("\"{field}\":0"), &format!("\"{field}\":{value}"));
            Heartbeat::from_json(
                format!(r#"{{"clientID":"c","consumerDataSet":[{{{consumer}"groupName":"g"}}]}}"#).as_bytes(),
            )
        };
        assert!(with("consumeType", "2").is_ok());
        for value in ["3", "-1", "\"PUSH\"", "null", "true", "[0]", "1e400"] {
            assert!(with("consumeType", value).is_err(), "{value}");
        }
    }

    #[test]
    fn ten_thousand_names_pass_and_one_more_is_refused_wherever_they_stand() {
        let subscriptions = |count: usize| vec![r#"{"topic":"t"}"#; count].join(",");
        let consumer = |count| {
            format!(
                r#"{{"groupName":"g","consumeType":0,"messageModel":0,"consumeFromWhere":0,"subscriptionDataSet":[{}]}}"#,
                subscriptions(count)
            )
        };
        let heartbeat = |consumers: &[String]| {
            Heartbeat::from_json(
                format!(r#"{{"clientID":"c","consumerDataSet":[{}]}}"#, consumers.join(",")).as_bytes(),
            )
        };
        assert!(heartbeat(&[consumer(9_999)]).is_ok());
        assert!(heartbeat(&[consumer(10_000)]).is_err());
        assert!(heartbeat(&[consumer(10_001)]).is_err());
        assert!(heartbeat(&[consumer(4_999), consumer(4_999)]).is_ok());
        assert!(heartbeat(&[consumer(4_999), consumer(5_000)]).is_err());
        let many = vec![consumer(0); 10_001];
        assert!(heartbeat(&many).is_err());
    }
}
