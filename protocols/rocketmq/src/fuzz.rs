//! Fuzz targets as plain functions: any bytes in, a panic if a promise is broken.
//!
//! Owns the promises: nothing panics, cutting the input in pieces changes nothing, what was read can be written and
//! reads the same again. `interop-tests/fuzz` runs each target guided by coverage; the test below runs them all over the committed
//! corpus and over mutations of it.

use crate::body::{
    self, CheckClient, ConsumeDirectlyResult, GroupConfig, Heartbeat, LockQueues, OffsetTable,
};
use crate::command::{Command, encode};
use crate::frame::{Frame, HeaderCodec, MAX_FRAME, Split, split};
use crate::header::{
    CheckTransactionState, ConsumeMessageDirectly, ConsumerSendBack, CreateTopic, EndTransaction,
    PullMessage, PushReply, QueryMessage, ResetConsumerOffset, SearchOffset, SendAnswer, SendMessage,
    ShortNames,
};
use crate::message::{
    Batch, BatchMessage, MessageId, Properties, PropertiesText, StoredMessage, TagFilter,
    encode_batch_message, tag_hash,
};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame_stream", frame_stream),
    ("json_header", json_header),
    ("binary_header", binary_header),
    ("heartbeat_body", heartbeat_body),
    ("json_bodies", json_bodies),
    ("batch_body", batch_body),
    ("properties", properties),
    ("stored_record", stored_record),
    ("subscription", subscription),
];

/// A connection's bytes; the first one says how they are cut into reads.
pub fn frame_stream(data: &[u8]) {
    let Some((&chunk, stream)) = data.split_first() else { return };
    let at_once = frames(stream, stream.len().max(1));
    let in_pieces = frames(stream, usize::from(chunk) + 1);
    assert_eq!(at_once, in_pieces, "reads of {} bytes", usize::from(chunk) + 1);
}

/// The commands of a stream that arrives in reads of `chunk` bytes, and whether it ended in a refusal.
fn frames(stream: &[u8], chunk: usize) -> (Vec<String>, bool) {
    let mut buffer = Vec::new();
    let mut commands = Vec::new();
    for read in stream.chunks(chunk) {
        buffer.extend_from_slice(read);
        loop {
            match split(&buffer, MAX_FRAME) {
                Ok(Split::Frame { frame, consumed }) => {
                    commands.push(format!("{:?}", Command::decode(&frame)));
                    buffer.drain(..consumed);
                }
                Ok(Split::Incomplete { missing }) => {
                    assert!(missing > 0);
                    break;
                }
                Err(_) => return (commands, true),
            }
        }
    }
    (commands, false)
}

/// A JSON header.
pub fn json_header(data: &[u8]) {
    let frame = Frame { codec: HeaderCodec::Json, header: data, body: b"body" };
    let Ok(command) = Command::decode(&frame) else { return };
    written_and_read_again(&command);
    // Where a general parser reads the header too, it reads the same texts.
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(data) else { return };
    for (name, value) in command.ext.iter() {
        if let Some(text) = object["extFields"][name].as_str() {
            assert_eq!(text, value);
        }
    }
}

/// A binary header.
pub fn binary_header(data: &[u8]) {
    let frame = Frame { codec: HeaderCodec::Binary, header: data, body: b"body" };
    if let Ok(command) = Command::decode(&frame) {
        written_and_read_again(&command);
    }
}

fn written_and_read_again(command: &Command<'_>) {
    typed_headers(command);
    for codec in [HeaderCodec::Json, HeaderCodec::Binary] {
        let mut out = Vec::new();
        if encode(&mut out, codec, &command.head, &command.ext, command.body).is_err() {
            continue;
        }
        let Ok(Split::Frame { frame, consumed }) = split(&out, MAX_FRAME) else {
            panic!("no frame in {out:?}")
        };
        assert_eq!(consumed, out.len());
        let again = Command::decode(&frame).expect("a written header");
        // A binary header has no difference between an empty remark and none.
        let remark = |command: &Command<'_>| command.head.remark.clone().unwrap_or_default().into_owned();
        assert_eq!((again.head.code, again.head.flag), (command.head.code, command.head.flag));
        assert_eq!((remark(&again), &again.ext, again.body), (remark(command), &command.ext, command.body));
    }
}

/// Reads the fields as many a header, whatever the code.
fn typed_headers(command: &Command<'_>) {
    let _ = SendMessage::of(command);
    let _ = command.header::<SendMessage<'_>>();
    let _ = command.header::<ShortNames<'_>>();
    let _ = command.header::<SendAnswer<'_>>();
    let _ = command.header::<PushReply<'_>>();
    let _ = command.header::<PullMessage<'_>>();
    let _ = command.header::<SearchOffset<'_>>();
    let _ = command.header::<QueryMessage<'_>>();
    let _ = command.header::<EndTransaction<'_>>();
    let _ = command.header::<ConsumerSendBack<'_>>();
    let _ = command.header::<CreateTopic<'_>>();
    let _ = command.header::<CheckTransactionState<'_>>();
    let _ = command.header::<ResetConsumerOffset<'_>>();
    let _ = command.header::<ConsumeMessageDirectly<'_>>();
}

/// The body of a heartbeat.
pub fn heartbeat_body(data: &[u8]) {
    if let Ok(heartbeat) = Heartbeat::from_json(data) {
        let again = Heartbeat::from_json(&body::to_json(&heartbeat)).expect("a written heartbeat");
        assert_eq!(again, heartbeat);
    }
}

/// Every other JSON body that a client may send.
pub fn json_bodies(data: &[u8]) {
    if let Ok(lock) = body::from_json::<LockQueues>(data) {
        assert_eq!(body::from_json::<LockQueues>(&body::to_json(&lock)).expect("a written lock"), lock);
    }
    if let Ok(check) = body::from_json::<CheckClient>(data) {
        assert_eq!(body::from_json::<CheckClient>(&body::to_json(&check)).expect("a written check"), check);
    }
    let _ = body::from_json::<GroupConfig>(data);
    let _ = body::from_json::<ConsumeDirectlyResult>(data);
    if let Ok(table) = OffsetTable::from_reset_body(data) {
        assert_eq!(OffsetTable::from_reset_body(&table.to_reset_body()).expect("a written table"), table);
        assert_eq!(
            OffsetTable::from_reset_body(&table.to_reset_body_for_cpp()).expect("a written list"),
            table
        );
    }
    if let Ok(table) = OffsetTable::from_status_body(data) {
        assert_eq!(OffsetTable::from_status_body(&table.to_status_body()).expect("a written table"), table);
    }
}

/// The body of a batch send.
pub fn batch_body(data: &[u8]) {
    let Ok(batch) = Batch::check(data, 1_000) else { return };
    let messages: Vec<BatchMessage<'_>> = batch.iter().collect();
    assert_eq!(messages.len(), batch.message_count());
    let mut again = Vec::new();
    for message in &messages {
        encode_batch_message(&mut again, message).expect("a message that was read");
    }
    assert_eq!(again.len(), data.len());
    assert!(Batch::check(&again, 1_000).expect("a written batch").iter().eq(messages));
}

/// A property text.
pub fn properties(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = Properties::new(text);
    for (name, _) in read.iter() {
        let last = read.iter().filter(|(known, _)| *known == name).last().map(|(_, value)| value);
        assert_eq!(read.get(name), last);
    }
    let Ok(checked) = Properties::check(text) else { return };
    let Ok(mut longer) = PropertiesText::from_properties(checked) else { return };
    if longer.set("UNIQ_KEY", "key").is_ok() {
        let longer = Properties::check(longer.properties().text()).expect("a written text");
        assert_eq!(longer.get("UNIQ_KEY"), Some("key"));
        let others =
            |properties: Properties<'_>| properties.iter().filter(|(name, _)| *name != "UNIQ_KEY").count();
        assert_eq!(others(longer), others(checked));
    }
}

/// Stored records, as a pull answer carries them.
pub fn stored_record(data: &[u8]) {
    for message in StoredMessage::decode_all(data) {
        let Ok(message) = message else { return };
        let _ = message.check_body();
        let mut again = Vec::new();
        message.record.encode(message.body, &mut again).expect("a record that was read");
        let (read, _) = StoredMessage::decode(&again).expect("a written record");
        assert_eq!((read.record, read.body), (message.record, message.body));
        let id = MessageId { store_host: read.record.store_host, offset: read.record.physical_offset };
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}

/// A subscription expression, and as a message id.
pub fn subscription(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(filter) = TagFilter::parse(text) {
        assert!(filter.tags().iter().all(|tag| filter.matches(tag_hash(Some(tag)))));
        assert!(filter.hashes().is_sorted());
    }
    if let Ok(id) = text.parse::<MessageId>() {
        assert_eq!(id.to_string(), text.to_uppercase());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Mutations of each corpus file: enough for a second or two in all.
    const MUTATIONS: usize = 4_000;

    /// Xorshift: the same mutations on every run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, bound: usize) -> usize {
            usize::try_from(self.next() >> 1).unwrap_or(0) % bound.max(1)
        }

        /// Changes, inserts, removes, doubles or cuts a few bytes.
        fn mutate(&mut self, data: &mut Vec<u8>) {
            const EDGES: [u8; 12] = [0, 1, 2, 0x7f, 0x80, 0xff, b'"', b'\\', b'{', b'[', b'}', b'0'];
            for _ in 0..=self.below(4) {
                let at = self.below(data.len());
                let byte = EDGES[self.below(EDGES.len())];
                match self.below(6) {
                    0 if !data.is_empty() => data[at] = byte,
                    1 if !data.is_empty() => data[at] ^= 1 << self.below(8),
                    2 if !data.is_empty() => drop(data.remove(at)),
                    3 => data.insert(at, byte),
                    4 => data.truncate(at),
                    _ => data.extend_from_within(at..(at + self.below(16)).min(data.len())),
                }
            }
        }
    }

    #[test]
    fn every_target_survives_its_corpus_and_mutations_of_it() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        for (name, target) in TARGETS {
            let mut seeds: Vec<_> = std::fs::read_dir(corpus.join(name))
                .unwrap_or_else(|error| panic!("{name}: {error}"))
                .map(|entry| entry.unwrap().path())
                .collect();
            seeds.sort();
            assert!(!seeds.is_empty(), "{name} has no corpus");
            for seed in seeds {
                let seed = std::fs::read(seed).unwrap();
                target(&seed);
                for _ in 0..MUTATIONS {
                    let mut mutant = seed.clone();
                    random.mutate(&mut mutant);
                    target(&mutant);
                }
            }
        }
    }
}
