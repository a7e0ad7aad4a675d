//! A conversation as a client has it: requests in, verbs and answers out.
//!
//! Owns: a session without socket and shard. Promises: nothing waits. Does not know: what the shard would answer.

use crate::security::permissions::Rights;
use crate::security::signature::SigningSecret;
use crate::security::{
    Realm,
    users::{User, Users},
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use std::sync::Arc;

use super::super::codes::why_not;
use crate::broker::api::{Destination, QueueStats};
use crate::broker::topology::Change;
use dassie_rocketmq::body::{ConsumerList, from_json};
use dassie_rocketmq::frame::MAX_FRAME;
use dassie_rocketmq::header::{SendMessage, ShortNames};
use dassie_rocketmq::{Split, split};

use super::super::Settings;
use super::super::group::Groups;
use super::*;
use crate::clock::SystemClock;

struct NoLog;

impl Batches for NoLog {
    fn batch(&self, position: u64) -> std::io::Result<dassie_storage::Batch> {
        Err(std::io::Error::other(format!("nothing at {position}")))
    }

    fn holding(&self, position: u64) -> std::io::Result<dassie_storage::Batch> {
        self.batch(position)
    }

    fn is_at_hand(&self, _: u64) -> bool {
        true
    }
}

/// A client's requests, and what came back.
struct Test {
    session: Session,
    notices: mpsc::Receiver<Notice>,
}

/// An answer: opaque, code, remark.
type Heard = (i32, i32, Option<String>);

impl Test {
    fn new(peer: &str) -> Self {
        let settings = Settings {
            advertised_host: Some("127.0.0.1".into()),
            advertised_port: 10911,
            broker_name: "b".into(),
            cluster_name: "c".into(),
            auto_create_topics: true,
            default_topic_queues: 8,
            delay_levels: 18,
        };
        let front = Arc::new(Front {
            registry: crate::server::registry::Registry::new(Arc::new(SystemClock::new())),
            settings,
            nodes: None,
            store_host: "127.0.0.1:10911".parse().unwrap(),
            groups: Arc::new(Groups::default()),
            realm: Realm::new(Users::only_guest()),
            clock: Arc::new(SystemClock::new()),
            misled: std::sync::Once::new(),
            started_ms: 0,
            alarms: crate::alarms::Alarms::new(),
            instance: 1,
            keys: 0.into(),
        });
        let (notices_in, notices) = mpsc::channel(8);
        let member = Member::new(1, notices_in, peer.parse().unwrap());
        let topology = Arc::new(Topology::new());
        let peers = (peer.parse().unwrap(), "127.0.0.1".parse().unwrap());
        let session = Session::new(front, peers, topology, Box::new(NoLog), member);
        Self { session, notices }
    }

    /// Returns the verbs that the request became.
    fn says(&mut self, head: &Head<'_>, fields: &impl Fields, body: &[u8]) -> Vec<Verb> {
        let mut bytes = Vec::new();
        encode(&mut bytes, HeaderCodec::Json, head, fields, body).unwrap();
        let Ok(Split::Frame { frame, .. }) = split(&bytes, MAX_FRAME) else { panic!("no frame") };
        self.session.on_command(&Command::decode(&frame).unwrap());
        self.session.take_verbs()
    }

    fn asks(&mut self, code: i32, opaque: i32, fields: &[(&str, &str)], body: &[u8]) -> Vec<Verb> {
        let mut head = Head::request(RequestCode::HeartBeat, Language::Java, version::V4_9_8, opaque);
        head.code = code;
        self.says(&head, &fields, body)
    }

    fn replies(&mut self, request: u64, result: Result<Reply, Refusal>) {
        self.session.on_events(vec![Event::Reply { request, result }]);
        self.session.answer_events();
    }

    fn hears(&mut self) -> Vec<Heard> {
        let bytes = std::mem::take(&mut self.session.output.tail);
        let (mut rest, mut heard) = (&bytes[..], Vec::new());
        while let Ok(Split::Frame { frame, consumed }) = split(rest, MAX_FRAME) {
            let command = Command::decode(&frame).unwrap();
            heard.push((command.head.opaque, command.head.code, command.head.remark.map(Into::into)));
            rest = &rest[consumed..];
        }
        heard
    }
}

fn send(topic: &str) -> ShortNames<'_> {
    let header =
        SendMessage { producer_group: "P", topic, default_topic_queue_nums: 4, ..SendMessage::default() };
    ShortNames(header)
}

fn request(code: RequestCode, opaque: i32) -> Head<'static> {
    Head::request(code, Language::Java, version::V4_9_8, opaque)
}

const HEARTBEAT: &[u8] =
    br#"{"clientID":"a@1","consumerDataSet":[{"groupName":"G","consumeType":"CONSUME_PASSIVELY",
    "messageModel":"CLUSTERING","consumeFromWhere":"CONSUME_FROM_LAST_OFFSET",
    "subscriptionDataSet":[{"topic":"T","subString":"*","subVersion":1}]}]}"#;

#[test]
fn every_request_has_its_answer_in_whatever_order_the_shard_replies() {
    let mut test = Test::new("127.0.0.1:5");
    let first = test.says(&request(RequestCode::SendMessageV2, 11), &send("T"), b"one");
    let second = test.says(&request(RequestCode::SendMessageV2, 12), &send("T"), b"two");
    assert!(matches!(&first[0].op, Op::CreateTopic { write_queues: 4, .. }));
    assert_eq!(test.session.sends_waiting(), 2);
    let sent = |offset| Ok(Reply::Sent { queue_id: 0, offsets: vec![offset], positions: vec![100 + offset] });
    test.replies(second[1].request, sent(1));
    test.replies(first[1].request, Err(Refusal::Busy("later".into())));
    assert_eq!(test.hears(), [(12, 0, None), (11, 2, Some("later".to_owned()))]);
    assert_eq!(test.session.sends_waiting(), 0);
}

#[test]
fn a_one_way_request_gets_no_answer_even_when_it_is_refused() {
    let mut test = Test::new("127.0.0.1:5");
    let verbs = test.says(&request(RequestCode::SendMessageV2, 1).one_way(), &send("T"), b"x");
    assert_eq!(verbs.iter().map(|verb| verb.request).collect::<Vec<_>>(), [0, 0]);
    let refused = test.says(&request(RequestCode::SendMessageV2, 2).one_way(), &send("T"), b"");
    assert!(refused.is_empty() && test.hears().is_empty());
}

#[test]
fn a_heartbeat_is_answered_when_the_retry_topic_is_there_and_its_group_is_known_before() {
    let mut test = Test::new("127.0.0.1:5");
    let verbs = test.asks(34, 1, &[], HEARTBEAT);
    let Op::CreateTopic { topic, write_queues: 1, .. } = &verbs[0].op else { panic!("{:?}", verbs[0].op) };
    assert_eq!(&**topic, "%RETRY%G");
    assert!(matches!(test.notices.try_recv(), Ok(Notice::Changed(group)) if &*group == "G"));
    test.asks(38, 2, &[("consumerGroup", "G")], &[]);
    let body = br#"{"consumerIdList":["a@1"]}"#;
    assert!(test.session.output.tail.ends_with(body) && from_json::<ConsumerList>(body).is_ok());
    assert_eq!(test.hears(), [(2, 0, None)]);
    test.replies(verbs[0].request, Ok(Reply::Ok));
    assert_eq!(test.hears(), [(1, 0, None)]);
}

#[test]
fn a_client_leaves_its_group_after_the_offsets_it_committed_are_stored() {
    let mut test = Test::new("127.0.0.1:5");
    test.asks(34, 1, &[], HEARTBEAT);
    let fields = [("consumerGroup", "G"), ("topic", "T"), ("queueId", "0"), ("commitOffset", "7")];
    let commit = test.says(&request(RequestCode::UpdateConsumerOffset, 2).one_way(), &&fields[..], &[]);
    test.asks(35, 3, &[("clientID", "a@1"), ("consumerGroup", "G")], &[]);
    assert_eq!((test.hears(), test.session.front.groups.clients("G").len()), (vec![], 1));
    test.replies(commit[0].request, Ok(Reply::Ok));
    assert_eq!((test.hears(), test.session.front.groups.clients("G").len()), (vec![(3, 0, None)], 0));
}

#[test]
fn a_group_without_a_subscription_can_not_pull() {
    let mut test = Test::new("127.0.0.1:5");
    test.asks(34, 1, &[], HEARTBEAT);
    let pull = |topic, flags, version| {
        [
            ("consumerGroup", "G"),
            ("topic", topic),
            ("queueId", "0"),
            ("queueOffset", "0"),
            ("maxMsgNums", "32"),
            ("sysFlag", flags),
            ("commitOffset", "5"),
            ("suspendTimeoutMillis", "15000"),
            ("subVersion", version),
        ]
    };
    let verbs = test.asks(11, 2, &pull("T", "3", "1"), &[]);
    assert!(matches!(verbs[0].op, Op::CommitOffset { offset: 5, .. }));
    assert!(matches!(&verbs[1].op, Op::Fetch(fetch) if fetch.wait_ms == 15_000 && fetch.tags.is_empty()));
    assert!(test.asks(11, 3, &pull("U", "0", "1"), &[]).is_empty());
    assert_eq!(test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(), [24]);
    // Of a group without members the client of a new connection may just not have told yet: it is not made to wait.
    let other = |group| {
        let mut fields = pull("T", "0", "1");
        fields[0].1 = group;
        fields
    };
    assert!(matches!(&test.asks(11, 5, &other("H"), &[])[0].op, Op::Fetch(fetch) if fetch.tags.is_empty()));
    test.session.new_until = Duration::ZERO;
    assert!(test.asks(11, 6, &other("H"), &[]).is_empty());
    assert_eq!(test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(), [24]);
    // A rebalance renews the version before a heartbeat tells: such a pull is no reason to wait.
    assert!(
        matches!(&test.asks(11, 4, &pull("T", "0", "2"), &[])[0].op, Op::Fetch(fetch) if fetch.tags.is_empty())
    );
}

#[test]
fn a_retry_that_is_one_too_many_or_of_an_ordered_group_goes_to_the_dead_letters() {
    let mut test = Test::new("127.0.0.1:5");
    test.asks(34, 1, &[], HEARTBEAT);
    let mut goes = |topic, times, most| {
        let header = SendMessage { reconsume_times: times, max_reconsume_times: most, ..send(topic).0 };
        let verbs = test.says(&request(RequestCode::SendMessageV2, 2), &ShortNames(header), b"x");
        let Some(Op::Send(send)) = verbs.last().map(|verb| &verb.op) else { panic!("no send") };
        send.topic.to_string()
    };
    for (topic, times, most, expected) in [
        ("%RETRY%G", None, None, "%RETRY%G"),
        ("%RETRY%G", Some(16), None, "%RETRY%G"),
        ("%RETRY%G", Some(17), None, "%DLQ%G"),
        ("%RETRY%G", Some(3), Some(3), "%RETRY%G"),
        ("%RETRY%G", Some(4), Some(3), "%DLQ%G"),
        ("T", Some(99), None, "T"),
    ] {
        assert_eq!(goes(topic, times, most), expected, "{topic} {times:?} {most:?}");
    }
    let locks = br#"{"consumerGroup":"G","clientId":"a@1","mqSet":[]}"#;
    test.asks(41, 3, &[], locks);
    let header = SendMessage { reconsume_times: Some(1), ..send("%RETRY%G").0 };
    let verbs = test.says(&request(RequestCode::SendMessageV2, 4), &ShortNames(header), b"x");
    assert!(matches!(&verbs.last().unwrap().op, Op::Send(send) if &*send.topic == "%DLQ%G"));
}

#[test]
fn a_topic_that_stands_for_an_exchange_is_made_and_bound_by_its_first_send() {
    let mut test = Test::new("127.0.0.1:5");
    let verbs = test.says(&request(RequestCode::SendMessageV2, 1), &send("AMQP-X-amq|2Etopic"), b"x");
    let ops: Vec<_> = verbs.iter().map(|verb| &verb.op).collect();
    let [Op::CreateTopic { write_queues: 1, .. }, Op::Bind(binding), Op::Send(_)] = ops[..] else {
        panic!("{ops:?}")
    };
    assert_eq!(
        (&*binding.source, &binding.destination, &*binding.key),
        ("amq.rmq.AMQP-X-amq|2Etopic", &Destination::Exchange("amq.topic".into()), "#")
    );
    assert!(test.says(&request(RequestCode::SendMessageV2, 2), &send("AMQP-X-none"), b"x").is_empty());
    assert_eq!(test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(), [17]);
}

#[test]
fn a_code_is_served_or_refused_with_its_reason() {
    let mut test = Test::new("127.0.0.1:5");
    for code in RequestCode::ALL {
        let verbs = test.asks(code.code(), 1, &[], &[]);
        let heard = test.hears();
        let refused = heard.iter().any(|(_, code, _)| *code == 3);
        assert_eq!(refused, why_not(*code).is_some(), "{code}: {heard:?}");
        assert!(verbs.len() + heard.len() == 1, "{code}: {verbs:?} {heard:?}");
    }
    test.asks(9_999, 1, &[], &[]);
    assert_eq!(test.hears(), [(1, 3, Some(" request type 9999 not supported".to_owned()))]);
}

#[test]
fn a_brokers_permission_to_be_written_to_is_taken_from_its_routes() {
    let mut test = Test::new("127.0.0.1:5");
    let verbs = test.asks(205, 1, &[("brokerName", "b")], &[]);
    let Op::PutSetting { space, name, value: Some(value) } = &verbs[0].op else { panic!("{verbs:?}") };
    let mut topology = Topology::new();
    topology.apply(&Change::Setting(Arc::clone(space), Arc::clone(name), value.clone()));
    test.session.topology = Arc::new(topology);
    test.replies(verbs[0].request, Ok(Reply::Ok));
    test.asks(205, 2, &[("brokerName", "b")], &[]);
    test.asks(205, 3, &[("brokerName", "another")], &[]);
    assert_eq!(test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(), [0, 0, 0]);
    test.asks(105, 4, &[("topic", "TBW102")], &[]);
    let route = String::from_utf8_lossy(&test.session.output.tail).into_owned();
    assert!(route.contains(r#""perm":5"#), "{route}");
    assert!(matches!(
        &test.asks(327, 5, &[("brokerName", "b")], &[])[0].op,
        Op::PutSetting { value: None, .. }
    ));
}

#[test]
fn a_list_is_answered_when_its_last_part_is_done_and_one_wrong_part_refuses_it_whole() {
    let mut test = Test::new("127.0.0.1:5");
    let topic =
        |name: &str| format!(r#"{{"topicName":"{name}","readQueueNums":2,"writeQueueNums":2,"perm":6}}"#);
    let body = format!(r#"{{"topicConfigList":[{},{}]}}"#, topic("A"), topic("B"));
    let verbs = test.asks(18, 1, &[], body.as_bytes());
    assert!(verbs.iter().all(|verb| matches!(verb.op, Op::CreateTopic { write_queues: 2, .. })));
    test.replies(verbs[1].request, Ok(Reply::Ok));
    assert!(test.hears().is_empty());
    test.replies(verbs[0].request, Err(Refusal::Busy("later".into())));
    assert_eq!(test.hears(), [(1, 2, Some("later".to_owned()))]);
    let body = format!(r#"{{"topicConfigList":[{},{}]}}"#, topic("A"), topic("a b"));
    assert!(test.asks(18, 2, &[], body.as_bytes()).is_empty());
    assert!(test.asks(225, 3, &[], br#"{"groupConfigList":[{"groupName":"a b"}]}"#).is_empty());
    let verbs = test.asks(225, 4, &[], br#"{"groupConfigList":[{"groupName":"G"}]}"#);
    assert!(matches!(&verbs[0].op, Op::PutSetting { name, .. } if &**name == "G"));
    assert_eq!(test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(), [29, 29]);
}

#[test]
fn a_groups_offsets_are_copied_where_its_members_want_the_topic() {
    let mut test = Test::new("127.0.0.1:5");
    test.asks(34, 1, &[], HEARTBEAT);
    let verbs = test.asks(314, 2, &[("srcGroup", "G"), ("destGroup", "H"), ("offline", "false")], &[]);
    let stats = |group| QueueStats { min: 0, max: 9, latest: 1, group, reached: 1, waiting: 1, earliest: 1 };
    let topics = vec![
        ("T".into(), vec![stats(Some(3)), stats(None), stats(Some(4))]),
        ("U".into(), vec![stats(Some(5))]),
    ];
    test.replies(verbs[0].request, Ok(Reply::Stats(topics)));
    let verbs = test.session.take_verbs();
    let given: Vec<_> = verbs
        .iter()
        .filter_map(|verb| match &verb.op {
            Op::CommitOffset { group, topic, queue_id, offset, wait } => {
                Some((&**group, &**topic, *queue_id, *offset, *wait))
            }
            _ => None,
        })
        .collect();
    assert_eq!(given, [("H", "T", 0, 3, false), ("H", "T", 2, 4, true)]);
    test.replies(verbs[1].request, Ok(Reply::Ok));
    assert!(test.hears().contains(&(2, 0, None)));
}

#[test]
fn what_several_consumers_hold_is_one_answer() {
    let mut test = Test::new("127.0.0.1:5");
    test.asks(34, 1, &[], HEARTBEAT);
    let fields = [("topic", "T"), ("group", "G")];
    test.asks(223, 2, &fields, &[]);
    let mut pushes = Vec::new();
    while let Ok(notice) = test.notices.try_recv() {
        pushes.extend(match notice {
            Notice::Push(push) => Some(push),
            _ => None,
        });
    }
    assert!(matches!(&pushes[..], [push] if push.code == RequestCode::GetConsumerStatusFromClient));
    let (_, number) = pushes[0].back.clone().unwrap();
    let body = Bytes::from_static(br#"{"messageQueueTable":{{"brokerName":"b","queueId":0,"topic":"T"}:7}}"#);
    test.session.on_notice(Notice::Answer(Answer { number, code: 0, remark: None, body }));
    let told = String::from_utf8_lossy(&test.session.output.tail).into_owned();
    assert!(
        told.contains(r#"{"consumerTable":{"a@1":{{"topic":"T","brokerName":"b","queueId":0}:7}}"#),
        "{told}"
    );
    test.hears();
    test.asks(223, 3, &[("topic", "T"), ("group", "nobody")], &[]);
    test.asks(309, 4, &[("consumerGroup", "G"), ("clientId", "z"), ("msgId", "0")], &[]);
    assert_eq!(test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_signed_request_is_its_signers_and_one_signed_wrong_is_nobodys() {
    // From afar `guest` may nothing: only who signs may.
    let mut test = Test::new("192.0.2.1:5");
    let mut users = Users::only_guest();
    let vhosts = HashMap::from([("/".into(), Arc::new(Rights::all()))]);
    let shop = User { secret: Some(SigningSecret::new("secret")), vhosts, ..User::default() };
    users.users.insert("shop".into(), shop);
    test.session.front.realm.load(users);
    let sign = |secret: &str, text: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        STANDARD.encode(hmac::sign(&key, text.as_bytes()))
    };
    let right = sign("secret", "shopTBW102body");
    for (signature, name, body, code) in [
        (right.as_str(), "shop", &b"body"[..], 0),
        (&sign("other", "shopTBW102body"), "shop", b"body", 16),
        (&right, "shop", b"another body", 16),
        (&right, "nobody", b"body", 16),
        ("", "shop", b"body", 16),
        // As the C++ client sends them when it has none.
        ("", "", b"body", 16),
        (&right, "shop", b"body", 0),
    ] {
        test.asks(105, 1, &[("topic", "TBW102"), ("AccessKey", name), ("Signature", signature)], body);
        assert_eq!(
            test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(),
            [code],
            "{name} {signature}"
        );
    }
}

#[test]
fn a_stranger_is_refused_whatever_it_asks() {
    let mut test = Test::new("192.0.2.1:5");
    for code in [10, 34, 105, 106, 206, 9_999] {
        assert!(test.asks(code, code, &[], HEARTBEAT).is_empty());
    }
    assert!(test.hears().iter().all(|(_, code, _)| *code == 16));
}

#[test]
fn a_client_that_does_not_read_is_not_given_more_answers() {
    let mut test = Test::new("127.0.0.1:5");
    let verbs = test.says(&request(RequestCode::SendMessageV2, 1), &send("T"), b"x");
    test.session.output.tail = vec![0; OUTPUT_MAX];
    let reply = Reply::Sent { queue_id: 0, offsets: vec![0], positions: vec![0] };
    test.replies(verbs[1].request, Ok(reply));
    assert!(!test.session.is_idle() && test.session.output.tail.len() == OUTPUT_MAX);
    test.session.output.tail.clear();
    test.session.answer_events();
    assert_eq!((test.session.is_idle(), test.hears().len()), (true, 1));
}
