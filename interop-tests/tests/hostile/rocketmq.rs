//! RocketMQ: frames that are none, requests that make no sense, bombs.
//!
//! Owns: the cases. Promises: bytes that are no command end their connection, a request that can not be served is answered by a code
//! and its connection goes on. Does not know: the AMQP side, but for the queue that opens a bomb.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dassie_interop::remoting::{Remoting, refusal};
use dassie_interop::wire::{Client, Durability, Error, Heard};
use dassie_rocketmq::code::version;
use dassie_rocketmq::header::{CreateTopic, GetMaxOffset, PullMessage, SendMessage, ShortNames};
use dassie_rocketmq::{HeaderCodec, RequestCode};
use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::bystander::Bystander;
use crate::peer::{GRACE, Peer, SOON, Target};

fn frame(codec: u8, header: &[u8], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(4 + header.len() + body.len()).expect("a small frame");
    let mut out = length.to_be_bytes().to_vec();
    let mark = u32::try_from(header.len()).expect("a small header") | u32::from(codec) << 24;
    out.extend_from_slice(&mark.to_be_bytes());
    out.extend_from_slice(header);
    out.extend_from_slice(body);
    out
}

fn json(header: &str) -> Vec<u8> {
    frame(0, header.as_bytes(), b"")
}

/// Bytes that are no command: the connection ends.
#[rustfmt::skip]
fn no_commands() -> Vec<(&'static str, Vec<u8>)> {
    let head = r#""code":10,"language":"JAVA","version":409,"opaque":1,"flag":0"#;
    let fields: String = (0..20_000).map(|n| format!("\"k{n}\":\"v\",")).collect();
    vec![
        ("length 0", vec![0; 8]),
        ("length 3", vec![0, 0, 0, 3, 0, 0, 0, 0]),
        ("a negative length", vec![0xff; 8]),
        ("2 GiB", vec![0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 4]),
        ("one byte above the limit", vec![1, 0, 0, 1, 0, 0, 0, 4]),
        ("codec 2", frame(2, b"{}", b"")),
        ("codec 255", frame(255, b"{}", b"")),
        ("a header beyond its frame", vec![0, 0, 0, 10, 0, 0, 0, 7]),
        ("a header of 16 MiB", vec![0, 0xff, 0xff, 0xf0, 0, 0xff, 0xff, 0xe0]),
        ("a header of 128 KiB and one", frame(0, &vec![b' '; 131_073], b"")),
        ("HTTP", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("AMQP", b"AMQP\x00\x00\x09\x01".to_vec()),
        ("no JSON", frame(0, b"nonsense", b"")),
        ("an empty header", frame(0, b"", b"")),
        ("JSON without a code", json(r#"{"language":"JAVA","opaque":1}"#)),
        ("a code that is a text", json(r#"{"code":"ten","opaque":1}"#)),
        ("a number beyond 32 bits", json(r#"{"code":99999999999999999999,"opaque":1}"#)),
        ("arrays 30,000 deep", json(&format!("{{{head},\"extFields\":{}", "[".repeat(30_000)))),
        ("objects 10,000 deep", json(&format!("{{{head},\"extFields\":{}", "{\"a\":".repeat(10_000)))),
        ("a field twice", json(&format!("{{{head},\"extFields\":{{\"Signature\":\"a\",\"Signature\":\"b\"}}}}"))),
        ("thousands of fields", json(&format!("{{{head},\"extFields\":{{{}\"z\":\"\"}}}}", &fields[..60_000 - 60_000 % 11]))),
        ("text that is none", frame(0, b"{\"code\":10,\"remark\":\"\xff\xfe\"}", b"")),
        ("half an escape", json(r#"{"code":10,"remark":"\ud800\u00"}"#)),
        ("a binary header of two bytes", frame(1, &[0, 10], b"")),
        ("a binary text of negative length", frame(1, &[0, 10, 0, 1, 153, 0, 0, 0, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], b"")),
        ("binary fields beyond the header", frame(1, &[0, 10, 0, 1, 153, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff], b"")),
        ("noise", (0..4_096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect()),
    ]
}

/// What a request that makes no sense is answered with: one of these codes.
type Answered = (&'static str, i32, &'static str, Vec<u8>, &'static [i32]);

const SYSTEM_ERROR: i32 = 1;
const NOT_SUPPORTED: i32 = 3;
const ILLEGAL: i32 = 13;

#[rustfmt::skip]
fn requests() -> Vec<Answered> {
    const SEND: &str = r#""producerGroup":"g","topic":"hostile","defaultTopic":"TBW102","defaultTopicQueueNums":"4","queueId":"0","sysFlag":"0","bornTimestamp":"0","flag":"0""#;
    const BATCH: &str = r#""producerGroup":"g","topic":"hostile","defaultTopic":"TBW102","defaultTopicQueueNums":"4","queueId":"0","sysFlag":"0","bornTimestamp":"0","flag":"0","batch":"true""#;
    const TIMED: &str = r#""producerGroup":"g","topic":"hostile","defaultTopic":"TBW102","defaultTopicQueueNums":"4","queueId":"0","sysFlag":"0","bornTimestamp":"0","flag":"0","properties":"TIMER_DELAY_SEC\u00013\u0002""#;
    const BAD_TOPIC: &str = r#""producerGroup":"g","topic":"a b/c","defaultTopic":"TBW102","defaultTopicQueueNums":"4","queueId":"0","sysFlag":"0","bornTimestamp":"0","flag":"0""#;
    const BAD_NUMBER: &str = r#""producerGroup":"g","topic":"hostile","defaultTopic":"TBW102","defaultTopicQueueNums":"many","queueId":"0","sysFlag":"0","bornTimestamp":"0","flag":"0""#;
    const FLAGS: &str = r#""producerGroup":"g","topic":"hostile","defaultTopic":"TBW102","defaultTopicQueueNums":"4","queueId":"0","sysFlag":"2147483647","bornTimestamp":"0","flag":"0""#;
    const PULL: &str = r#""consumerGroup":"g","topic":"bystander","queueId":"-1","queueOffset":"0","maxMsgNums":"32","sysFlag":"4","commitOffset":"0","suspendTimeoutMillis":"0","subscription":"*","subVersion":"0""#;
    const PULL_NOWHERE: &str = r#""consumerGroup":"g","topic":"nowhere","queueId":"0","queueOffset":"0","maxMsgNums":"32","sysFlag":"4","commitOffset":"0","suspendTimeoutMillis":"0","subscription":"*","subVersion":"0""#;
    const PULL_FAR: &str = r#""consumerGroup":"g","topic":"bystander","queueId":"0","queueOffset":"9223372036854775807","maxMsgNums":"2147483647","sysFlag":"4","commitOffset":"0","suspendTimeoutMillis":"0","subscription":"*","subVersion":"0""#;
    const PULL_BELOW: &str = r#""consumerGroup":"g","topic":"bystander","queueId":"0","queueOffset":"-9223372036854775808","maxMsgNums":"-5","sysFlag":"4","commitOffset":"-7","suspendTimeoutMillis":"-9","subscription":"*","subVersion":"-1""#;
    const COMMIT: &str = r#""consumerGroup":"g","topic":"bystander","queueId":"0","commitOffset":"-1""#;
    const TRANSACTION: &str = r#""producerGroup":"g","tranStateTableOffset":"9223372036854775807","commitLogOffset":"9223372036854775807","commitOrRollback":"8","fromTransactionCheck":"false","msgId":"zz""#;
    const HEAD: &str = r#""producerGroup":"g","defaultTopic":"TBW102","defaultTopicQueueNums":"4","queueId":"0","sysFlag":"0","bornTimestamp":"0","flag":"0""#;
    let head = |rest: &str| -> &'static str { Box::leak(format!("{HEAD},{rest}").into_boxed_str()) };
    let separators = head(r#""topic":"hostile","properties":"KEYSabc""#);
    let no_value = head(r#""topic":"hostile","properties":"KEYS""#);
    let no_queue = head(r#""topic":"AMQP-Q-none""#);
    let no_level = head(r#""topic":"hostile","properties":"DELAY-x""#);
    const SIGNED: &str = r#""topic":"bystander","queueId":"0","AccessKey":"nobody","Signature":"AAAA""#;
    let item = |size: i32, body: i32, rest: &[u8]| {
        [&size.to_be_bytes()[..], &[0; 12], &body.to_be_bytes(), rest].concat()
    };
    vec![
        ("a code nobody knows", 9_999, "", Vec::new(), &[NOT_SUPPORTED]),
        ("a negative code", -5, "", Vec::new(), &[NOT_SUPPORTED]),
        ("the largest code", i32::MAX, "", Vec::new(), &[NOT_SUPPORTED]),
        ("a send without fields", 10, "", b"x".to_vec(), &[SYSTEM_ERROR]),
        ("a send with a number that is none", 10, BAD_NUMBER, b"x".to_vec(), &[SYSTEM_ERROR]),
        ("a topic that is no name", 10, BAD_TOPIC, b"x".to_vec(), &[SYSTEM_ERROR, 29]),
        ("all system flags at once", 10, FLAGS, b"x".to_vec(), &[SYSTEM_ERROR, NOT_SUPPORTED, ILLEGAL]),
        ("a timer", 10, TIMED, b"x".to_vec(), &[ILLEGAL]),
        ("an empty batch", 10, BATCH, Vec::new(), &[ILLEGAL]),
        ("a batch cut short", 10, BATCH, item(100, 50, b"abc"), &[ILLEGAL]),
        ("a batch of negative size", 10, BATCH, item(-1, 3, b"abc\0\0"), &[ILLEGAL]),
        ("a batch of size zero", 10, BATCH, item(0, 0, b"\0\0"), &[ILLEGAL]),
        ("a batch with a body of 2 GiB", 10, BATCH, item(27, i32::MAX, b"abc\0\0"), &[ILLEGAL]),
        ("a batch of 3 bytes", 10, BATCH, vec![0, 0, 1], &[ILLEGAL]),
        ("five MiB", 10, SEND, vec![7; 5 << 20], &[ILLEGAL]),
        ("a pull without fields", 11, "", Vec::new(), &[SYSTEM_ERROR]),
        ("a pull of queue -1", 11, PULL, Vec::new(), &[SYSTEM_ERROR, 29]),
        ("a pull of no topic", 11, PULL_NOWHERE, Vec::new(), &[17]),
        ("a pull beyond everything", 11, PULL_FAR, Vec::new(), &[19, 21]),
        ("a pull below everything", 11, PULL_BELOW, Vec::new(), &[19, 20, 21]),
        ("an offset below zero", 15, COMMIT, Vec::new(), &[SYSTEM_ERROR, 29]),
        ("a heartbeat that is no JSON", 34, "", b"nonsense".to_vec(), &[SYSTEM_ERROR]),
        ("a heartbeat 100,000 deep", 34, "", [br#"{"clientID":"c","x":"#.to_vec(), b"[".repeat(100_000)].concat(), &[SYSTEM_ERROR]),
        ("a lock of nonsense", 41, "", b"[[[[".to_vec(), &[SYSTEM_ERROR, NOT_SUPPORTED]),
        ("a list of topics without names", 18, "", br#"{"topicConfigList":[{}]}"#.to_vec(), &[SYSTEM_ERROR]),
        ("a list of topics that ends", 18, "", br#"{"topicConfigList":[{"#.to_vec(), &[SYSTEM_ERROR]),
        ("a reply to nobody", 324, SEND, b"x".to_vec(), &[SYSTEM_ERROR]),
        ("a signature where nobody signs", 30, SIGNED, Vec::new(), &[0]),
        ("separators inside a value", 10, separators, b"x".to_vec(), &[0, ILLEGAL]),
        ("a property without a value", 10, no_value, b"x".to_vec(), &[0, ILLEGAL]),
        ("a queue that is none as a topic", 10, no_queue, b"x".to_vec(), &[17]),
        ("a delay of no level", 10, no_level, b"x".to_vec(), &[ILLEGAL]),
        ("a copy of offsets without groups", 314, "", Vec::new(), &[SYSTEM_ERROR]),
        ("the end of no transaction", 37, TRANSACTION, Vec::new(), &[SYSTEM_ERROR, NOT_SUPPORTED]),
    ]
}

fn request(code: i32, fields: &str, body: &[u8]) -> Vec<u8> {
    let version = version::V4_9_8;
    let header = format!(
        r#"{{"code":{code},"language":"JAVA","version":{version},"opaque":77,"flag":0,"extFields":{{{fields}}}}}"#
    );
    frame(0, header.as_bytes(), body)
}

/// The code of the answer with this number among whole frames.
fn code_of(heard: &[u8], opaque: i32) -> Option<i32> {
    let mut rest = heard;
    while let Ok(dassie_rocketmq::Split::Frame { frame, consumed }) =
        dassie_rocketmq::split(rest, dassie_rocketmq::frame::MAX_FRAME)
    {
        rest = &rest[consumed..];
        let command = dassie_rocketmq::Command::decode(&frame).ok()?;
        if command.head.is_response() && command.head.opaque == opaque {
            return Some(command.head.code);
        }
    }
    None
}

/// A request that makes sense, with the number 78.
fn sane() -> Vec<u8> {
    let header = r#"{"code":30,"language":"JAVA","version":409,"opaque":78,"flag":0,"extFields":{"topic":"bystander","queueId":"0"}}"#;
    json(header)
}

#[test]
fn bytes_that_are_no_command_end_their_connection_and_nonsense_is_answered_by_its_code() {
    let mut target = Target::start("rocketmq");
    let ports = target.broker.ports;
    let bystander = Bystander::start(ports.amqp, ports.rocketmq);
    wait_for_topic(ports.rocketmq);
    let mut wrong = Vec::new();
    for (name, bytes) in no_commands() {
        let mut peer = Peer::connect(ports.rocketmq);
        peer.say(&bytes);
        if !peer.is_closed(SOON + GRACE) {
            wrong.push(format!("{name}: still open"));
        }
    }
    for (name, code, fields, body, due) in requests() {
        let mut peer = Peer::connect(ports.rocketmq);
        peer.say(&request(code, fields, &body));
        peer.hear_until(SOON + GRACE, |heard| code_of(heard, 77).is_some());
        let answered = code_of(&peer.heard, 77);
        if !answered.is_some_and(|answered| due.contains(&answered)) {
            wrong.push(format!("{name}: due {due:?}, answered {answered:?}"));
            continue;
        }
        peer.say(&sane());
        if !peer.hear_until(SOON + GRACE, |heard| code_of(heard, 78) == Some(0)) {
            wrong.push(format!("{name}: the connection is of no more use"));
        }
    }
    // An answer to nothing, and a one-way request that makes no sense, are nobody's business.
    let mut peer = Peer::connect(ports.rocketmq);
    peer.say(&json(r#"{"code":0,"language":"JAVA","version":409,"opaque":4711,"flag":1}"#));
    peer.say(&json(r#"{"code":10,"language":"JAVA","version":409,"opaque":5,"flag":2}"#));
    peer.say(&sane());
    assert!(
        peer.hear_until(SOON + GRACE, |heard| code_of(heard, 78) == Some(0)),
        "after an answer to nothing"
    );
    assert_eq!(code_of(&peer.heard, 5), None, "a one-way request was answered");
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    bystander.assert_unharmed();
    target.assert_well();
}

/// The bystander's first message makes its topic.
fn wait_for_topic(server: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut peer = Peer::connect(server);
        peer.say(&sane());
        peer.hear_until(SOON + GRACE, |heard| code_of(heard, 78).is_some());
        if code_of(&peer.heard, 78) == Some(0) {
            return;
        }
        assert!(Instant::now() < deadline, "no topic");
    }
}

#[test]
fn frames_that_are_announced_and_never_come_take_no_memory() {
    let mut target = Target::start("rocketmq-announced");
    let ports = target.broker.ports;
    let bystander = Bystander::start(ports.amqp, ports.rocketmq);
    let mut peers: Vec<_> = (0..300).map(|_| Peer::connect(ports.rocketmq)).collect();
    for (n, peer) in peers.iter_mut().enumerate() {
        match n % 3 {
            0 => {}
            1 => peer.say(&[0, 0xff]),
            _ => peer.say(&[&[0, 0xff, 0xff, 0xf0, 0, 0, 0, 4][..], b"{\"co"].concat()),
        }
    }
    wait_for_topic(ports.rocketmq);
    peers.into_iter().for_each(Peer::leave);
    bystander.assert_unharmed();
    target.assert_well();
}

#[test]
fn a_body_that_unpacks_to_gigabytes_is_passed_on_as_it_is() {
    let mut target = Target::start("rocketmq-bomb");
    let ports = target.broker.ports;
    let bystander = Bystander::start(ports.amqp, ports.rocketmq);
    let bomb = bomb();
    let topic = CreateTopic {
        topic: "bombs",
        default_topic: "TBW102",
        read_queue_nums: 1,
        write_queue_nums: 1,
        perm: 6,
        topic_filter_type: "SINGLE_TAG",
        ..CreateTopic::default()
    };
    let mut producer = Remoting::connect(ports.rocketmq, HeaderCodec::Json).expect("it accepts");
    let answered = |answer: &dassie_rocketmq::Command<'_>| match answer.head.code {
        0 => Ok(()),
        _ => Err(refusal(answer)),
    };
    producer.ask(RequestCode::UpdateAndCreateTopic, &topic, b"", answered).expect("a topic");
    let mut consumer = Client::connect(ports.amqp).expect("it accepts");
    consumer.declare_queue("bombs", Durability::Durable).expect("a queue");
    consumer.bind("bombs", "amq.rmq.bombs", "#").expect("a binding");
    consumer.consume("bombs", None).expect("a consumer");
    // Compressed, says the flag; by zlib, says nothing else.
    for _ in 0..10 {
        let send = SendMessage {
            producer_group: "bombers",
            topic: "bombs",
            default_topic: "TBW102",
            default_topic_queue_nums: 1,
            sys_flag: 1,
            properties: Some(""),
            ..SendMessage::default()
        };
        producer.ask(RequestCode::SendMessageV2, &ShortNames(send), &bomb, answered).expect("it takes them");
    }
    let mut arrived = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    while arrived < 10 && Instant::now() < deadline {
        consumer.receive(Duration::from_millis(100)).expect("it writes");
        while let Some(Heard::Delivered(message)) = consumer.hear().expect("it follows the protocol") {
            assert!(*message.body == *bomb, "{} bytes instead of {}", message.body.len(), bomb.len());
            arrived += 1;
        }
    }
    assert_eq!(arrived, 10);
    // Whoever pulls gets what was sent: opening it is the puller's business.
    let pull = PullMessage {
        consumer_group: "g",
        topic: "bombs",
        max_msg_nums: 32,
        sys_flag: 4,
        subscription: Some("*"),
        ..PullMessage::default()
    };
    let pulled: Result<usize, Error> =
        producer.ask(RequestCode::PullMessage, &pull, b"", |answer| Ok(answer.body.len()));
    assert!(pulled.expect("it answers") > bomb.len());
    let end = GetMaxOffset { topic: "bombs", ..GetMaxOffset::default() };
    producer.ask(RequestCode::GetMaxOffset, &end, b"", answered).expect("it answers");
    bystander.assert_unharmed();
    target.assert_well();
}

/// A few hundred KiB that unpack to 200 MiB.
fn bomb() -> Vec<u8> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..200 {
        std::io::Write::write_all(&mut packed, &zeros).expect("memory");
    }
    packed.finish().expect("memory")
}
