//! AMQP: what breaks the protocol, by stage.
//!
//! Owns: the cases. Promises: each is answered by a code it may have, or by a closed connection.
//! Does not know: the RocketMQ side.

use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use dassie_amqp::client::{Handshake, Incoming, Login, next_incoming};
use dassie_amqp::frame::PROTOCOL_HEADER;
use dassie_amqp::method::{
    BasicAck, BasicConsume, BasicPublish, ChannelOpen, ConnectionOpen, Method, QueueDeclare, QueueDelete,
};

use crate::bystander::Bystander;
use crate::peer::{GRACE, Peer, SOON, Target};

/// When a hostile peer begins to be one.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// It has said nothing.
    Fresh,
    /// It has said the protocol header and heard `start`.
    Greeted,
    /// It has logged in and opened channel 1.
    Open,
}

/// What it is due.
#[derive(Debug, Clone, Copy)]
enum Due {
    /// The protocol header this server speaks, and the end.
    Header,
    /// `connection.close` with one of these codes. An empty list: any code, or the bare end.
    Close(&'static [u16]),
    /// `channel.close` with this code; the connection goes on.
    ChannelClose(u16),
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&u32::try_from(payload.len()).expect("a small payload").to_be_bytes());
    out.extend_from_slice(payload);
    out.push(0xCE);
    out
}

/// A method frame from class, method and argument bytes.
fn method(channel: u16, class: u16, id: u16, arguments: &[u8]) -> Vec<u8> {
    frame(1, channel, &[&class.to_be_bytes()[..], &id.to_be_bytes(), arguments].concat())
}

fn encoded(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn publish(queue: &str) -> Vec<u8> {
    encoded(|out| BasicPublish { routing_key: queue, ..Default::default() }.encode_frame(1, out))
}

/// A content header with these property flags and bytes.
fn header(class: u16, size: u64, flags_and_properties: &[u8]) -> Vec<u8> {
    let head = [&class.to_be_bytes()[..], &[0, 0], &size.to_be_bytes(), flags_and_properties].concat();
    frame(2, 1, &head)
}

/// A field table with tables inside tables, `depth` of them; the lengths are those of what is there.
fn nested(depth: usize) -> Vec<u8> {
    let mut table = vec![0, 0, 0, 0];
    for _ in 0..depth {
        let mut outer = u32::try_from(table.len() + 3).expect("a small table").to_be_bytes().to_vec();
        outer.extend_from_slice(b"\x01aF");
        outer.extend_from_slice(&table);
        table = outer;
    }
    table
}

/// `start-ok` with these client properties.
fn start_ok(properties: &[u8]) -> Vec<u8> {
    method(0, 10, 11, &[properties, b"\x05PLAIN", &[0, 0, 0, 12], b"\0guest\0guest", b"\x05en_US"].concat())
}

fn queue_declare(arguments: &[u8]) -> Vec<u8> {
    // reserved, queue "q", no bits, arguments
    method(1, 50, 10, &[&[0, 0, 1, b'q', 0][..], arguments].concat())
}

type Case = (&'static str, Stage, Vec<u8>, Due);

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    use Due::{ChannelClose, Close, Header};
    use Stage::{Fresh, Greeted, Open};
    let deep = nested(2_500);
    let deeper = nested(10_000);
    vec![
        ("an HTTP request", Fresh, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), Header),
        ("a TLS hello", Fresh, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Header),
        ("AMQP 1.0", Fresh, b"AMQP\x00\x01\x00\x00".to_vec(), Header),
        ("AMQP 0-8", Fresh, b"AMQP\x01\x01\x08\x00".to_vec(), Header),
        ("64 KiB of noise", Fresh, (0..65_536_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect(), Header),
        ("zeros", Fresh, vec![0; 4_096], Header),

        ("a frame of 4 GiB before login", Greeted, b"\x01\x00\x00\xff\xff\xff\xff".to_vec(), Close(&[])),
        ("a frame of kind 0", Greeted, frame(0, 0, b"abc"), Close(&[])),
        ("a frame of kind 255", Greeted, frame(255, 0, b"abc"), Close(&[])),
        ("a frame without its end", Greeted, b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0b\x00".to_vec(), Close(&[])),
        ("open before start-ok", Greeted, encoded(|out| ConnectionOpen { virtual_host: "/", ..Default::default() }.encode_frame(0, out)), Close(&[])),
        ("publish before login", Greeted, publish("q"), Close(&[])),
        ("content before login", Greeted, header(60, 1, &[0, 0]), Close(&[])),
        ("2,500 tables inside each other at login", Greeted, start_ok(&deep), Close(&[])),
        ("a table beyond its frame at login", Greeted, start_ok(b"\xff\xff\xff\xff"), Close(&[])),
        ("a wrong password", Greeted, method(0, 10, 11, b"\0\0\0\0\x05PLAIN\0\0\0\x0c\0guest\0wrong\x05en_US"), Close(&[])),
        ("a login without its zeros", Greeted, method(0, 10, 11, b"\0\0\0\0\x05PLAIN\0\0\0\x05guest\x05en_US"), Close(&[])),
        ("a mechanism nobody knows", Greeted, method(0, 10, 11, b"\0\0\0\0\x05MAGIC\0\0\0\x05guest\x05en_US"), Close(&[])),
        ("AMQPLAIN with nested tables", Greeted, method(0, 10, 11, &[b"\0\0\0\0\x08AMQPLAIN", &deep[..], b"\x05en_US"].concat()), Close(&[])),
        ("a header twice", Greeted, PROTOCOL_HEADER.to_vec(), Close(&[])),

        ("a wrong frame end", Open, b"\x08\x00\x00\x00\x00\x00\x00\xcd".to_vec(), Close(&[501])),
        ("a frame above the limit", Open, b"\x01\x00\x01\x7f\xff\xff\xff".to_vec(), Close(&[501])),
        ("a frame of kind 4", Open, frame(4, 1, b"abc"), Close(&[501])),
        ("a heartbeat on a channel", Open, frame(8, 1, b""), Close(&[501, 503, 505])),
        ("a method of no class", Open, method(1, 999, 10, b""), Close(&[503, 540])),
        ("a method of no number", Open, method(1, 60, 999, b""), Close(&[503, 540])),
        ("a server's method", Open, method(1, 60, 60, b"\x01c\0\0\0\0\0\0\0\x01\0\0\0"), Close(&[503, 505, 540])),
        ("a method frame of two bytes", Open, frame(1, 1, &[0, 60]), Close(&[501, 502])),
        ("arguments cut short", Open, method(1, 50, 10, b"\0\0\x09ab"), Close(&[501, 502])),
        ("a table beyond its frame", Open, queue_declare(b"\xff\xff\xff\xff"), Close(&[501, 502])),
        ("a table with a value of no kind", Open, queue_declare(b"\0\0\0\x03\x01a?"), Close(&[501, 502])),
        ("10,000 tables inside each other", Open, queue_declare(&deeper), Close(&[501, 502])),
        ("a name that is no text", Open, method(1, 50, 10, b"\0\0\x02\xff\xfe\0\0\0\0\0"), Close(&[501, 502])),
        ("a second open", Open, encoded(|out| ConnectionOpen { virtual_host: "/", ..Default::default() }.encode_frame(0, out)), Close(&[503, 504, 530])),
        ("a channel opened twice", Open, encoded(|out| ChannelOpen::default().encode_frame(1, out)), Close(&[504])),
        ("a channel beyond the limit", Open, encoded(|out| ChannelOpen::default().encode_frame(65_535, out)), Close(&[504, 530])),
        ("a channel that is not open", Open, encoded(|out| BasicConsume { queue: "q", ..Default::default() }.encode_frame(7, out)), Close(&[504])),
        ("a header without its method", Open, header(60, 1, &[0, 0]), Close(&[505])),
        ("a body without its method", Open, frame(3, 1, b"abc"), Close(&[505])),
        ("a method inside of content", Open, [publish("q"), publish("q")].concat(), Close(&[505])),
        ("content of another class", Open, [publish("q"), header(50, 1, &[0, 0])].concat(), Close(&[501, 505])),
        ("a body longer than said", Open, [publish("q"), header(60, 2, &[0, 0]), frame(3, 1, b"abc")].concat(), Close(&[501])),
        ("property flags without end", Open, [publish("q"), header(60, 0, &[0, 1].repeat(2_000))].concat(), Close(&[501, 502])),
        ("headers beyond their frame", Open, [publish("q"), header(60, 0, b"\x20\x00\xff\xff\xff\xff")].concat(), Close(&[501, 502])),
        ("10,000 tables in the headers", Open, [publish("q"), header(60, 0, &[b"\x20\x00", &deeper[..]].concat())].concat(), Close(&[501, 502])),
        ("a property cut short", Open, [publish("q"), header(60, 0, b"\x80\x00\xffabc")].concat(), Close(&[501, 502])),
        ("a body of 2^63 bytes", Open, [publish("q"), header(60, 1 << 63, &[0, 0])].concat(), ChannelClose(406)),
        ("a body of 2^64 - 1 bytes", Open, [publish("q"), header(60, u64::MAX, &[0, 0])].concat(), ChannelClose(406)),
        ("an acknowledgement of nothing", Open, encoded(|out| BasicAck { delivery_tag: 42, multiple: false }.encode_frame(1, out)), ChannelClose(406)),
        ("a consumer of no queue", Open, encoded(|out| BasicConsume { queue: "nowhere", ..Default::default() }.encode_frame(1, out)), ChannelClose(404)),
        ("a name that is reserved", Open, encoded(|out| QueueDeclare { queue: "amq.mine", ..Default::default() }.encode_frame(1, out)), ChannelClose(403)),
        ("a queue that is not empty of conditions", Open, encoded(|out| QueueDelete { queue: "bystander", if_empty: true, if_unused: true, ..Default::default() }.encode_frame(1, out)), ChannelClose(406)),
    ]
}

/// A peer at `stage`.
fn at(stage: Stage, server: SocketAddr) -> Peer {
    let mut peer = Peer::connect(server);
    match stage {
        Stage::Fresh => {}
        Stage::Greeted => {
            peer.say(&PROTOCOL_HEADER);
            assert!(peer.hear_until(SOON + GRACE, |heard| heard.last() == Some(&0xCE)), "no start");
            peer.heard.clear();
        }
        Stage::Open => log_in(&mut peer),
    }
    peer
}

fn log_in(peer: &mut Peer) {
    let mut out = Vec::new();
    let mut handshake = Handshake::new(Login::guest(), &mut out);
    loop {
        peer.say(&std::mem::take(&mut out));
        assert!(peer.hear_until(SOON + GRACE, |heard| heard.last() == Some(&0xCE)), "no answer at login");
        let heard = std::mem::take(&mut peer.heard);
        if handshake.advance(&mut &heard[..], &mut out).expect("it follows the protocol").is_some() {
            break;
        }
    }
    ChannelOpen::default().encode_frame(1, &mut out);
    peer.say(&out);
    assert!(peer.hear_until(SOON + GRACE, |heard| heard.last() == Some(&0xCE)), "no channel");
    peer.heard.clear();
}

/// The code of the last close that was heard: of the connection, and of the channel.
fn closes(heard: &[u8]) -> (Option<u16>, Option<u16>) {
    let (mut connection, mut channel) = (None, None);
    let mut rest = heard;
    while let Ok(Some(incoming)) = next_incoming(&mut rest, 131_072) {
        match incoming {
            Incoming::Method { method: Method::ConnectionClose(close), .. } => {
                connection = Some(close.reply_code);
            }
            Incoming::Method { method: Method::ChannelClose(close), .. } => channel = Some(close.reply_code),
            _ => {}
        }
    }
    (connection, channel)
}

/// Says what is wrong, if anything is.
fn judge(server: SocketAddr, (name, stage, bytes, due): &Case) -> Result<(), String> {
    let mut peer = at(*stage, server);
    peer.say(bytes);
    let begin = Instant::now();
    let within = SOON + GRACE;
    let right = match due {
        Due::Header => peer.is_closed(within) && peer.heard == PROTOCOL_HEADER,
        Due::Close([]) => {
            peer.hear_until(within, |heard| closes(heard).0.is_some()) || peer.is_closed(within)
        }
        Due::Close(codes) => {
            peer.hear_until(within, |heard| closes(heard).0.is_some());
            closes(&peer.heard).0.is_some_and(|code| codes.contains(&code))
        }
        Due::ChannelClose(code) => {
            peer.hear_until(within, |heard| closes(heard).1.is_some());
            closes(&peer.heard) == (None, Some(*code))
        }
    };
    let took = begin.elapsed();
    let heard = closes(&peer.heard);
    peer.leave();
    if right {
        return Ok(());
    }
    Err(format!("{name} ({stage:?}): due {due:?}, heard closes {heard:?}, after {took:?}"))
}

#[test]
fn whoever_breaks_the_protocol_is_told_or_cut_off_and_nobody_else_notices() {
    let mut target = Target::start("amqp");
    let ports = target.broker.ports;
    let bystander = Bystander::start(ports.amqp, ports.rocketmq);
    let wrong: Vec<_> = cases().iter().filter_map(|case| judge(ports.amqp, case).err()).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases().len(), wrong.join("\n"));
    bystander.assert_unharmed();
    target.assert_well();
}

#[test]
fn a_stranger_who_is_slow_or_silent_is_cut_off_in_time_however_many_there_are() {
    let mut target = Target::start("amqp-slow");
    let ports = target.broker.ports;
    let bystander = Bystander::start(ports.amqp, ports.rocketmq);
    let begin = Instant::now();
    let silent: Vec<_> = (0..200).map(|_| Peer::connect(ports.amqp)).collect();
    let halfway: Vec<_> = (0..100)
        .map(|n| {
            let mut peer = Peer::connect(ports.amqp);
            peer.say(if n % 2 == 0 { &PROTOCOL_HEADER[..5] } else { &PROTOCOL_HEADER });
            peer
        })
        .collect();
    // One byte a second, for ever: a deadline that starts again with each byte would never come.
    let mut slow = Peer::connect(ports.amqp);
    let drip = slow.stream.try_clone().expect("a socket");
    let dripping = thread::spawn(move || {
        let mut drip = drip;
        for byte in PROTOCOL_HEADER.iter().cycle().take(60) {
            if drip.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(500));
        }
    });
    assert!(slow.is_closed(Duration::from_secs(20)), "the slow one is still there");
    for mut peer in silent.into_iter().chain(halfway) {
        let left = Duration::from_secs(20).saturating_sub(begin.elapsed()).max(SOON);
        assert!(peer.is_closed(left), "a silent one is still there after {:?}", begin.elapsed());
    }
    dripping.join().expect("it ended");
    bystander.assert_unharmed();
    target.assert_well();
}

#[test]
fn bodies_that_are_announced_and_never_come_take_no_memory() {
    let mut target = Target::start("amqp-announced");
    let ports = target.broker.ports;
    let bystander = Bystander::start(ports.amqp, ports.rocketmq);
    let mut peers: Vec<_> = (0..100).map(|_| at(Stage::Open, ports.amqp)).collect();
    for peer in &mut peers {
        let begun = [publish("nowhere"), header(60, 16 << 20, &[0, 0]), frame(3, 1, &[7; 1_000])].concat();
        peer.say(&begun);
    }
    // One more is served as if nothing were.
    at(Stage::Open, ports.amqp).leave();
    peers.into_iter().for_each(Peer::leave);
    bystander.assert_unharmed();
    target.assert_well();
}

#[test]
fn half_a_body_on_each_of_2047_channels_takes_what_one_connection_may_take() {
    let mut target = Target::start("amqp-channels");
    let ports = target.broker.ports;
    let bystander = Bystander::start(ports.amqp, ports.rocketmq);
    let begun = |channel: u16, bytes: usize| {
        let publish = BasicPublish { routing_key: "nowhere", ..Default::default() };
        let size = (16_u64 << 20).to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, &[0, 0]].concat();
        let method = encoded(|out| publish.encode_frame(channel, out));
        [method, frame(2, channel, &header), frame(3, channel, &vec![7; bytes])].concat()
    };
    let on_all = |bytes: usize| {
        let mut peer = at(Stage::Open, ports.amqp);
        for channel in 1..=2_047 {
            if channel > 1 {
                peer.say(&encoded(|out| ChannelOpen::default().encode_frame(channel, out)));
            }
            peer.say(&begun(channel, bytes));
        }
        peer
    };
    let patient: Vec<_> = (0..4).map(|_| on_all(1_000)).collect();
    // Together more than the bodies of one connection may hold.
    let mut greedy = on_all(20_000);
    let told = greedy.hear_until(SOON + GRACE, |heard| closes(heard).0.is_some());
    assert!(told && closes(&greedy.heard).0 == Some(506), "{:?}", closes(&greedy.heard));
    patient.into_iter().for_each(Peer::leave);
    greedy.leave();
    bystander.assert_unharmed();
    target.assert_well();
}
