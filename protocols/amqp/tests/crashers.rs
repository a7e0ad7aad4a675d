//! Inputs that crashed, hung or confused brokers and clients somewhere, and what becomes of each here.
//!
//! Bytes are written by hand, through the front door: a connection, a frame, and for what lies deeper a
//! method or a header. What only a broker can judge (unknown delivery tags, forged reply queues) must get
//! through to it intact.

use std::thread;

use dassie_amqp::connection::{Connection, Event, Limits, Phase};
use dassie_amqp::content::Properties;
use dassie_amqp::method::Method;
use dassie_amqp::reply::Exception;
use dassie_amqp::sasl::Credentials;
use dassie_amqp::table::{MAX_DEPTH, RawTable, TableError, Value};

const PROTOCOL_HEADER: &[u8] = b"AMQP\0\0\x09\x01";
const START_OK: &[u8] = b"\0\x0a\0\x0b\0\0\0\0\x05PLAIN\0\0\0\x04\0a\0b\x05en_US";
const OPEN: &[u8] = b"\0\x0a\0\x28\x01/\0\0";
const CHANNEL_OPEN: &[u8] = b"\0\x14\0\x0a\0";
const PUBLISH: &[u8] = b"\0\x3c\0\x28\0\0\0\x01q\0";
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("small");
    [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, &[0xce]].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("short")], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).expect("small").to_be_bytes(), bytes].concat()
}

fn tune_ok(channel_max: u16, frame_max: u32) -> Vec<u8> {
    let arguments = [&channel_max.to_be_bytes()[..], &frame_max.to_be_bytes(), &[0, 0]].concat();
    frame(METHOD, 0, &[b"\0\x0a\0\x1f", &arguments[..]].concat())
}

/// A content header: class, weight, body size, flags and properties.
fn header(class: u16, weight: u16, body_size: u64, block: &[u8]) -> Vec<u8> {
    [&class.to_be_bytes()[..], &weight.to_be_bytes(), &body_size.to_be_bytes(), block].concat()
}

/// Tables in tables, the outermost included.
fn nested(levels: usize) -> Vec<u8> {
    (1..levels).fold(Vec::new(), |inner, _| [b"\0F", &long(&inner)[..]].concat())
}

fn queue_declare(arguments: &[u8]) -> Vec<u8> {
    [b"\0\x32\0\x0a\0\0\x01q\0", &long(arguments)[..]].concat()
}

/// Feeds a fresh connection; the events as text, or code, class id and method id of the exception.
fn outcome(bytes: &[u8]) -> Result<Vec<String>, (u16, u16, u16)> {
    let (mut connection, mut out) = (Connection::new(Limits::default()), Vec::new());
    let (mut input, mut events) = (bytes, Vec::new());
    loop {
        match connection.next_event(&mut input) {
            Ok(Some(event)) => events.push(name(&event)),
            Ok(None) => return Ok(events),
            Err(exception) => return Err(blame(&exception)),
        }
        match connection.phase() {
            Phase::OwesStart => connection.start(RawTable::EMPTY, "PLAIN", &mut out),
            Phase::OwesVerdict => connection.tune(&mut out),
            Phase::OwesOpenOk => connection.open_ok(&mut out),
            _ => {}
        }
    }
}

fn blame(exception: &Exception) -> (u16, u16, u16) {
    (exception.code().number(), exception.method().class, exception.method().method)
}

fn name(event: &Event<'_>) -> String {
    let text = format!("{event:?}");
    text.split([' ', '(']).next().unwrap_or_default().to_owned()
}

/// After a handshake, with channel 1 open.
fn when_open(bytes: &[&[u8]]) -> Result<Vec<String>, (u16, u16, u16)> {
    let handshake = [
        PROTOCOL_HEADER.to_vec(),
        frame(METHOD, 0, START_OK),
        tune_ok(2047, 131_072),
        frame(METHOD, 0, OPEN),
        frame(METHOD, 1, CHANNEL_OPEN),
    ];
    outcome(&[handshake.concat(), bytes.concat()].concat()).map(|mut events| events.split_off(5))
}

/// In the place of a start-ok.
fn before_login(payload: &[u8]) -> Result<Vec<String>, (u16, u16, u16)> {
    outcome(&[PROTOCOL_HEADER, &frame(METHOD, 0, payload)].concat())
}

/// Runs with a stack that no recursion over hostile input would survive.
fn on_a_small_stack(test: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().stack_size(96 * 1024).spawn(test).expect("a thread");
    thread.join().expect("no panic");
}

#[test]
fn wrong_headers_are_foreign_and_short_ones_wait() {
    for foreign in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x16\x03\x01\x00\xf1\x01",
        b"AMQP\x03\x01\0\0",
        b"AMQP\0\0\x09\x00",
        b"\0",
    ] {
        assert_eq!(outcome(foreign), Ok(vec!["ForeignHeader".to_owned()]), "{foreign:?}");
    }
    for waiting in [&b""[..], b"A", b"AMQP", b"AMQP\0\0\x09"] {
        assert_eq!(outcome(waiting), Ok(vec![]), "{waiting:?}");
    }
}

#[test]
fn unknown_frame_types_and_wrong_end_octets_are_frame_errors() {
    for kind in [0, 4, 255] {
        assert_eq!(when_open(&[&frame(kind, 1, PUBLISH)]), Err((501, 0, 0)), "type {kind}");
    }
    for end in [0, 0xcd, 0xff] {
        let mut bytes = frame(METHOD, 1, PUBLISH);
        *bytes.last_mut().unwrap() = end;
        assert_eq!(when_open(&[&bytes]), Err((501, 0, 0)), "end {end}");
    }
}

#[test]
fn frame_sizes_of_nothing_too_much_and_four_gigabytes() {
    assert_eq!(when_open(&[&frame(METHOD, 1, b"")]), Err((501, 0, 0)));
    assert_eq!(when_open(&[&frame(METHOD, 1, b"\0\x3c\0")]), Err((501, 0, 0)));
    assert_eq!(when_open(&[b"\x03\0\x01\0\x02\0\x01"]), Err((501, 0, 0)), "131,073");
    assert_eq!(when_open(&[b"\x03\0\x01\xff\xff\xff\xff"]), Err((501, 0, 0)));
    assert_eq!(outcome(&[PROTOCOL_HEADER, b"\x01\0\0\xff\xff\xff\xff"].concat()), Err((501, 0, 0)));
}

#[test]
fn frames_at_the_wrong_time() {
    assert_eq!(outcome(&[PROTOCOL_HEADER, &frame(METHOD, 1, CHANNEL_OPEN)].concat()), Err((505, 0, 0)));
    assert_eq!(outcome(&[PROTOCOL_HEADER, &frame(BODY, 0, b"x")].concat()), Err((505, 0, 0)));
    assert_eq!(when_open(&[&frame(8, 1, b"")]), Err((505, 0, 0)));
    assert_eq!(when_open(&[&frame(HEADER, 1, &header(60, 0, 1, &[0, 0]))]), Err((505, 0, 0)));
    assert_eq!(when_open(&[&frame(METHOD, 2, PUBLISH)]), Err((504, 60, 40)));
}

#[test]
fn contents_that_break_their_own_word() {
    let publish = frame(METHOD, 1, PUBLISH);
    let with_header = |bytes: &[u8]| when_open(&[&publish, &frame(HEADER, 1, bytes)]);
    assert_eq!(with_header(&header(50, 0, 1, &[0, 0])), Err((505, 60, 40)), "wrong class");
    assert_eq!(with_header(&header(60, 1, 1, &[0, 0])), Err((505, 60, 40)), "weight");
    assert_eq!(
        with_header(&header(60, 0, 1, &[0xff, 0xff].repeat(1000))),
        Err((501, 60, 40)),
        "endless flags"
    );
    assert_eq!(with_header(&header(60, 0, 1, &[0, 1, 0, 0])), Err((501, 60, 40)), "more flags");
    assert_eq!(with_header(&header(60, 0, 1, b"\x80\0\x05ab")), Err((501, 60, 40)), "property cut");
    assert_eq!(with_header(&header(60, 0, 1 << 63, &[0, 0])), Ok(vec!["Publish".into(), "Header".into()]));

    let announced = |size| frame(HEADER, 1, &header(60, 0, size, &[0, 0]));
    assert_eq!(when_open(&[&publish, &announced(2), &frame(BODY, 1, b"abc")]), Err((501, 60, 40)), "overrun");
    assert_eq!(
        when_open(&[&publish, &announced(0), &frame(BODY, 1, b"")]),
        Err((505, 0, 0)),
        "body after none"
    );
}

#[test]
fn strings_that_reach_past_their_frame() {
    assert_eq!(
        when_open(&[&frame(METHOD, 1, b"\0\x32\0\x1e\0\0\xffabc")]),
        Err((501, 50, 30)),
        "short string"
    );
    assert_eq!(before_login(b"\0\x0a\0\x0b\0\0\0\0\x01X\xff\xff\xff\xff"), Err((501, 10, 11)), "long string");
    assert_eq!(before_login(b"\0\x0a\0\x0b\xff\xff\xff\xff\0"), Err((501, 10, 11)), "table");
    assert_eq!(
        when_open(&[&frame(METHOD, 1, &queue_declare(b"\x01kF\0\0\0\x09\x01xV"))]),
        Err((501, 50, 10))
    );
}

#[test]
fn a_name_of_255_bytes_is_a_name() {
    let purge = [b"\0\x32\0\x1e\0\0", &short(&[b'n'; 255])[..], b"\0"].concat();
    assert_eq!(when_open(&[&frame(METHOD, 1, &purge)]), Ok(vec!["Method".to_owned()]));
}

#[test]
fn twenty_five_hundred_tables_before_login_are_refused() {
    on_a_small_stack(|| {
        // 15 KB: with frames of that size allowed from the beginning, as a site with large tokens sets it.
        let payload =
            [b"\0\x0a\0\x0b", &long(&nested(2500))[..], b"\x05PLAIN", &long(b"\0a\0b"), b"\0"].concat();
        assert!(payload.len() > 14_000);
        let limits = Limits { initial_frame_max: 65_536, ..Limits::default() };
        let mut connection = Connection::new(limits);
        assert_eq!(connection.next_event(&mut &PROTOCOL_HEADER[..]), Ok(Some(Event::ProtocolHeader)));
        connection.start(RawTable::EMPTY, "PLAIN", &mut Vec::new());
        let bytes = frame(METHOD, 0, &payload);
        let exception = connection.next_event(&mut &bytes[..]).expect_err("too deep");
        assert_eq!(blame(&exception), (502, 10, 11));
        assert_eq!(before_login(&payload), Err((501, 0, 0)), "by default its size is refused already");
    });
}

#[test]
fn ten_thousand_levels_are_refused_wherever_tables_may_be() {
    on_a_small_stack(|| {
        let deep = nested(10_000);
        assert_eq!(when_open(&[&frame(METHOD, 1, &queue_declare(&deep))]), Err((502, 50, 10)));
        let block = [b"\x20\0", &long(&deep)[..]].concat();
        let content = frame(HEADER, 1, &header(60, 0, 0, &block));
        assert_eq!(when_open(&[&frame(METHOD, 1, PUBLISH), &content]), Err((502, 60, 40)));
        assert!(Credentials::from_amqplain(&deep).is_none());
    });
}

#[test]
fn the_deepest_table_allowed_can_be_used_on_a_small_stack() {
    on_a_small_stack(|| {
        let deep = nested(MAX_DEPTH);
        let table = RawTable::parse(&deep).expect("deep enough");
        assert!(table.equivalent(table) && table == table);
        assert!(format!("{table:?}").len() > MAX_DEPTH);
    });
}

#[test]
fn odd_field_values_get_through_and_unknown_types_do_not() {
    let entries =
        b"\x01kL\xff\xff\xff\xff\xff\xff\xff\xff\x01kD\xff\0\0\0\x01\x01kd\x7f\xf8\0\0\0\0\0\0\x01kt\x07";
    let payload = queue_declare(entries);
    let Ok(Method::QueueDeclare(declare)) = Method::parse(&payload) else { panic!("a declare") };
    assert_eq!(declare.arguments.as_bytes(), entries, "duplicate names, an odd boolean: untouched");
    assert_eq!(declare.arguments.get("k"), Some(Value::I64(-1)), "L is signed, as l is");
    for tag in [b'U', b'\0', b'z', 0xff] {
        let entries = [1, b'k', tag, 0, 0];
        assert_eq!(when_open(&[&frame(METHOD, 1, &queue_declare(&entries))]), Err((502, 50, 10)), "{tag}");
    }
}

#[test]
fn invalid_utf8_is_refused_in_names_and_kept_in_values() {
    assert_eq!(when_open(&[&frame(METHOD, 1, b"\0\x32\0\x1e\0\0\x02\xc3\x28\0")]), Err((501, 0, 0)));
    assert_eq!(RawTable::parse(b"\x02\xc3\x28V"), Err(TableError::NameNotUtf8));
    assert!(RawTable::parse(b"\x01kS\0\0\0\x02\xc3\x28").is_ok());
    assert_eq!(
        Properties::parse(b"\x04\0\x02\xc3\x28").map(|block| block.correlation_id()),
        Ok(Some(&b"\xc3\x28"[..]))
    );
}

#[test]
fn logins_without_their_parts() {
    for response in [&b""[..], b"guest", b"guest\0guest", b"\0guest", b"\0\0\0"] {
        assert!(Credentials::from_plain(response).is_none(), "{response:?}");
    }
    for response in [&b""[..], b"\x05LOGINS\0\0\0\x01a", b"\x08PASSWORDS\0\0\0\x01a", b"\x05LOGIN", b"LOGIN"]
    {
        assert!(Credentials::from_amqplain(response).is_none(), "{response:?}");
    }
}

#[test]
fn limits_beyond_the_offer_are_not_allowed() {
    for (channel_max, frame_max) in
        [(2048, 131_072), (2047, 131_073), (2047, 1), (2047, 4095), (2047, 0), (0, 4096)]
    {
        let bytes = [PROTOCOL_HEADER, &frame(METHOD, 0, START_OK), &tune_ok(channel_max, frame_max)].concat();
        assert_eq!(outcome(&bytes), Err((530, 10, 31)), "{channel_max} {frame_max}");
    }
}

#[test]
fn publishes_into_a_channel_that_is_closing_are_ignored() {
    let publish =
        [frame(METHOD, 1, PUBLISH), frame(HEADER, 1, &header(60, 0, 1, &[0, 0])), frame(BODY, 1, b"x")]
            .concat();
    let close = frame(METHOD, 1, b"\0\x14\0\x28\0\xc8\0\0\0\0\0");
    let events = when_open(&[&close, &publish, &publish[..20]]);
    assert_eq!(events, Ok(vec!["ChannelClose".to_owned()]));
}

#[test]
fn what_only_a_broker_can_judge_reaches_it_intact() {
    for (payload, expected) in [
        (
            &b"\0\x3c\0\x0a\xff\xff\xff\xff\0\x05\x01"[..],
            "prefetch_size: 4294967295, prefetch_count: 5, global: true",
        ),
        (
            b"\0\x3c\0\x50\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "delivery_tag: 18446744073709551615, multiple: true",
        ),
        (b"\0\x3c\0\x28\0\0\0\0\x03", "mandatory: true, immediate: true"),
        (b"\0\x3c\0\x28\0\0\0\x18amq.rabbitmq.reply-to.xx\0", "routing_key: \"amq.rabbitmq.reply-to.xx\""),
        (b"\0\x5a\0\x14", "TxCommit"),
    ] {
        let method = Method::parse(payload).expect("well-formed");
        assert!(format!("{method:?}").contains(expected), "{method:?}");
    }
    let arguments = b"\x0ex-max-priorityl\0\0\0\0\x80\0\0\0\x0ax-priorityb\xf6";
    let payload = queue_declare(arguments);
    let Ok(Method::QueueDeclare(declare)) = Method::parse(&payload) else { panic!("a declare") };
    let integer = |name| declare.arguments.get(name).and_then(|value| value.as_integer());
    assert_eq!((integer("x-max-priority"), integer("x-priority")), (Some(1 << 31), Some(-10)));
}
