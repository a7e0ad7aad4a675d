//! The promise that messages cost no allocation, counted.

use allocation_counter::measure;

use dassie_amqp::client::{Handshake, Login};
use dassie_amqp::connection::{Connection, Event, Limits};
use dassie_amqp::content::{self, Properties, PropertyList, Splice};
use dassie_amqp::method::{BasicAck, BasicDeliver, BasicNack, BasicPublish, ChannelOpen, Method};
use dassie_amqp::table::{RawTable, TableBuilder};

const FRAME_MAX: u32 = 131_072;

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
        let tuning = client.advance(&mut &to_client[..], &mut to_server).expect("a proper server");
        to_client.clear();
        if tuning.is_some() {
            break;
        }
    }
    ChannelOpen::default().encode_frame(1, &mut to_server);
    assert!(matches!(server.next_event(&mut &to_server[..]), Ok(Some(Event::ChannelOpen { channel: 1 }))));
    server
}

/// A property block with a headers table.
fn block() -> Vec<u8> {
    let mut headers = TableBuilder::new();
    headers.put("tenant", "a").put_table("nested", |nested| _ = nested.put("deep", true));
    let headers = Some(headers.as_table().expect("small"));
    let mut block = Vec::new();
    PropertyList { headers, delivery_mode: Some(2), ..Default::default() }.encode(&mut block);
    block
}

#[test]
fn reading_publishes_and_settlements_allocates_nothing() {
    let block = block();
    let properties = Properties::parse(&block).expect("just written");
    let mut input = Vec::new();
    for delivery_tag in 0..100 {
        BasicPublish { exchange: "x", routing_key: "k", ..Default::default() }.encode_frame(1, &mut input);
        content::encode(1, properties, &[0; 5000], 4096, &mut input);
        BasicAck { delivery_tag, multiple: true }.encode_frame(1, &mut input);
        BasicNack { delivery_tag, ..Default::default() }.encode_frame(1, &mut input);
    }
    let mut server = running();
    let mut events = 0;
    let allocations = measure(|| {
        let mut input = &input[..];
        while let Ok(Some(event)) = server.next_event(&mut input) {
            if let Event::Header { properties, .. } = event {
                assert_eq!(properties.delivery_mode(), Some(2));
                let headers = properties.headers().expect("headers");
                assert!(headers.get("nested").and_then(|nested| nested.as_table()).is_some());
            }
            events += 1;
        }
    });
    assert_eq!((events, allocations.count_total), (600, 0));
}

#[test]
fn writing_deliveries_into_a_buffer_with_room_allocates_nothing() {
    let block = block();
    let properties = Properties::parse(&block).expect("just written");
    let (small, large_len) = ([7; 1000], 1_000_000);
    let (mut out, mut splices): (_, Vec<Splice>) = (Vec::with_capacity(64 * 1024), Vec::with_capacity(64));
    let allocations = measure(|| {
        for delivery_tag in 0..30 {
            BasicDeliver { consumer_tag: "tag", delivery_tag, routing_key: "q", ..Default::default() }
                .encode_frame(1, &mut out);
            content::encode(1, properties, &small, FRAME_MAX, &mut out);
        }
        content::encode_spliced(1, properties, large_len, FRAME_MAX, &mut out, &mut splices);
    });
    assert_eq!((splices.len(), allocations.count_total), (8, 0));
}

#[test]
fn lengths_of_four_gigabytes_make_nobody_allocate() {
    let mut server = running();
    let allocations = measure(|| {
        assert!(server.next_event(&mut &b"\x03\0\x01\xff\xff\xff\xff"[..]).is_err(), "frame");
        assert!(Method::parse(b"\0\x0a\0\x15\xff\xff\xff\xff").is_err(), "long string");
        assert!(RawTable::parse(b"\x01kS\xff\xff\xff\xff").is_err(), "field");
    });
    assert!(allocations.bytes_max < 1024, "only the text of an exception: {} bytes", allocations.bytes_max);
}
