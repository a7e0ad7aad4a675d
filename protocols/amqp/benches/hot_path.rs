//! How long the hot path takes: nanoseconds per message, best of several runs.
//!
//! `cargo bench -p dassie-amqp`. Plain loops over one input buffer, as a connection task sees it: the figures
//! are for orders of magnitude, not for percents.

use std::hint::black_box;
use std::time::Instant;

use dassie_amqp::client::{Handshake, Login};
use dassie_amqp::connection::{Connection, Event, Limits};
use dassie_amqp::content::{self, ContentHeader, Properties, PropertyList};
use dassie_amqp::frame::{Split, split};
use dassie_amqp::method::{BasicAck, BasicDeliver, BasicPublish, ChannelOpen, Method};
use dassie_amqp::table::{RawTable, TableBuilder};

const FRAME_MAX: u32 = 131_072;
const MESSAGES: u32 = 1_000;
const RUNS: usize = 300;

fn main() {
    for body in [64, 1024, 16 * 1024] {
        let body = vec![7_u8; body];
        let mut block = Vec::new();
        PropertyList { content_type: Some(b"text/plain"), delivery_mode: Some(2), ..Default::default() }
            .encode(&mut block);
        let plain = Properties::parse(&block).expect("just written");
        let publishes = publishes(plain, &body);
        report("parse publish + header + body, frames only", body.len(), || parse(&publishes));
        let mut server = running();
        report("the same as events of a connection", body.len(), || events(&mut server, &publishes));
        let mut out = Vec::new();
        report("encode deliver + header + body", body.len(), || deliveries(plain, &body, &mut out));
    }

    let mut headers = TableBuilder::new();
    headers
        .put("tenant", "a-customer")
        .put("retries", 3_i32)
        .put("traced", true)
        .put("at", 1_700_000_000_i64);
    let headers = headers.as_table().expect("small");
    let mut block = Vec::new();
    PropertyList { headers: Some(headers), delivery_mode: Some(2), ..Default::default() }.encode(&mut block);
    let publishes = publishes(Properties::parse(&block).expect("just written"), &[7; 64]);
    let mut server = running();
    report("events of a publish with 4 headers", 64, || events(&mut server, &publishes));
    report("look up the last of 4 headers", 0, || {
        for _ in 0..MESSAGES {
            black_box(black_box(headers).get("at"));
        }
    });
    report("check a table of 4 entries", 0, || {
        for _ in 0..MESSAGES {
            RawTable::parse(black_box(headers.as_bytes())).expect("valid");
        }
    });

    let mut acks = Vec::new();
    for delivery_tag in 0..MESSAGES.into() {
        BasicAck { delivery_tag, multiple: false }.encode_frame(1, &mut acks);
    }
    let mut server = running();
    report("event of an ack", 0, || events(&mut server, &acks));
}

fn publishes(properties: Properties<'_>, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..MESSAGES {
        let publish =
            BasicPublish { exchange: "amq.topic", routing_key: "orders.new.eu", ..Default::default() };
        publish.encode_frame(1, &mut bytes);
        content::encode(1, properties, body, FRAME_MAX, &mut bytes);
    }
    bytes
}

fn parse(mut input: &[u8]) {
    while !input.is_empty() {
        black_box(Method::parse(payload(&mut input)).expect("a publish"));
        black_box(ContentHeader::parse(payload(&mut input)).expect("a header"));
        black_box(payload(&mut input));
    }
}

fn payload<'a>(input: &mut &'a [u8]) -> &'a [u8] {
    let Ok(Split::Frame(frame)) = split(input, FRAME_MAX) else { unreachable!("whole frames") };
    *input = &input[frame.encoded_len()..];
    frame.payload
}

fn events(server: &mut Connection, mut input: &[u8]) {
    while let Ok(Some(event)) = &server.next_event(&mut input) {
        black_box(event);
    }
    assert!(input.is_empty());
}

fn deliveries(properties: Properties<'_>, body: &[u8], out: &mut Vec<u8>) {
    for delivery_tag in 0..MESSAGES.into() {
        if delivery_tag % 16 == 0 {
            out.clear(); // about what one system call writes
        }
        let deliver = BasicDeliver {
            consumer_tag: "amq.ctag-0123456789abcdef",
            delivery_tag,
            redelivered: false,
            exchange: "amq.topic",
            routing_key: "orders.new.eu",
        };
        black_box(&deliver).encode_frame(1, out);
        content::encode(1, black_box(properties), black_box(body), FRAME_MAX, out);
        black_box(&out);
    }
}

/// A connection with channel 1 open.
fn running() -> Connection {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut server = Connection::new(Limits::default());
    let mut client = Handshake::new(Login::guest(), &mut to_server);
    loop {
        let mut input = &to_server[..];
        while let Some(event) = server.next_event(&mut input).expect("a proper client") {
            match event {
                Event::ProtocolHeader => server.start(RawTable::EMPTY, "PLAIN", &mut to_client),
                Event::StartOk(_) => server.tune(&mut to_client),
                Event::Open(_) => server.open_ok(&mut to_client),
                _ => {}
            }
        }
        let taken = to_server.len() - input.len();
        to_server.drain(..taken);
        let done = client.advance(&mut &to_client[..], &mut to_server).expect("a proper server");
        to_client.clear();
        if done.is_some() {
            break;
        }
    }
    ChannelOpen::default().encode_frame(1, &mut to_server);
    events(&mut server, &to_server);
    server
}

fn report(what: &str, body: usize, mut run: impl FnMut()) {
    let best = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .min()
        .unwrap_or_default();
    println!("{:>9.1} ns  {what} ({body} B)", best.as_secs_f64() * 1e9 / f64::from(MESSAGES));
}
