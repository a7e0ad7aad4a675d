//! What the unit tests share: frames written without the code under test, and the oracle.
//!
//! Owns a second, naive writer of argument types (by the spec, one byte after the other) and the calls into
//! `amq-protocol`. The oracle recurses without limit and rewrites tables, so it is fed only canonical tables
//! of small depth: sorted unique names, `l` never `L`, booleans 0 or 1.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::method::{MethodId, ROWS};

/// One row of the method table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: MethodId,
    pub(crate) name: &'static str,
    /// Argument names and type names.
    pub(crate) arguments: &'static [(&'static str, &'static str)],
}

/// Which tables a generated payload may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tables {
    Any,
    Canonical,
}

pub(crate) fn row(name: &str) -> &'static Row {
    ROWS.iter().find(|row| row.name == name).expect("a method of the table")
}

impl Row {
    /// The arguments that the oracle drops: reserved ones, and the prefetch size that no server supports.
    pub(crate) const DROPPED: &str =
        "ticket capabilities insist known_hosts out_of_band channel_id cluster_id prefetch_size";

    /// Payloads of this method, arguments named in `zeroed` being zero or empty.
    pub(crate) fn payload(&'static self, tables: Tables, zeroed: &'static str) -> BoxedStrategy<Vec<u8>> {
        let zeroed = move |name: &str| zeroed.split(' ').any(|zeroed| zeroed == name);
        // Consecutive bits go into one strategy: a run of flags, packed lowest first.
        let mut parts: Vec<BoxedStrategy<Vec<u8>>> = vec![Just(self.ids()).boxed()];
        for run in self.arguments.chunk_by(|a, b| a.1 == "bit" && b.1 == "bit") {
            let (name, kind) = run[0];
            parts.push(match kind {
                "bit" => {
                    let mask =
                        run.iter().rev().fold(0u8, |mask, (name, _)| mask << 1 | u8::from(!zeroed(name)));
                    any::<u8>().prop_map(move |bits| vec![bits & mask]).boxed()
                }
                // The oracle knows one answer to access.request, and that is RabbitMQ's.
                "short" if zeroed(name) && self.name == "access.request-ok" => Just(vec![0, 1]).boxed(),
                kind if zeroed(name) => Just(zero(kind)).boxed(),
                kind => argument(kind, tables),
            });
        }
        parts.prop_map(|parts| parts.concat()).boxed()
    }

    /// The payload whose arguments are all zero or empty.
    pub(crate) fn smallest(&self) -> Vec<u8> {
        let runs = self.arguments.chunk_by(|a, b| a.1 == "bit" && b.1 == "bit");
        self.ids().into_iter().chain(runs.flat_map(|run| zero(run[0].1))).collect()
    }

    fn ids(&self) -> Vec<u8> {
        [self.id.class, self.id.method].map(u16::to_be_bytes).concat()
    }
}

fn zero(kind: &str) -> Vec<u8> {
    let width = match kind {
        "bit" | "octet" | "shortstr" => 1,
        "short" => 2,
        "long" | "longstr" | "table" => 4,
        "longlong" => 8,
        other => panic!("no argument type {other}"),
    };
    vec![0; width]
}

fn argument(kind: &str, tables: Tables) -> BoxedStrategy<Vec<u8>> {
    match kind {
        "octet" => vec(any::<u8>(), 1).boxed(),
        "short" => vec(any::<u8>(), 2).boxed(),
        "long" => vec(any::<u8>(), 4).boxed(),
        "longlong" => vec(any::<u8>(), 8).boxed(),
        "shortstr" => short_text().prop_map(|text| shortstr(text.as_bytes())).boxed(),
        "longstr" => vec(any::<u8>(), 0..40).prop_map(|bytes| longstr(&bytes)).boxed(),
        "table" => table(tables).prop_map(|entries| longstr(&entries)).boxed(),
        other => panic!("no argument type {other}"),
    }
}

pub(crate) fn short_text() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z0-9.]{0,20}", 1 => "\\PC{0,60}", 1 => "[x]{200,255}"]
}

pub(crate) fn shortstr(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).expect("short")], bytes].concat()
}

pub(crate) fn longstr(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).expect("below 4 GiB").to_be_bytes(), bytes].concat()
}

/// The entries of a table, without the length in front.
pub(crate) fn table(tables: Tables) -> BoxedStrategy<Vec<u8>> {
    entries(value(tables), tables).boxed()
}

/// The items of an array, without the length in front.
pub(crate) fn array(tables: Tables) -> BoxedStrategy<Vec<u8>> {
    vec(value(tables), 0..5).prop_map(|items| items.concat()).boxed()
}

fn entries(value: BoxedStrategy<Vec<u8>>, tables: Tables) -> BoxedStrategy<Vec<u8>> {
    let name = "[a-z\\-]{0,12}";
    match tables {
        Tables::Any => vec((name, value), 0..6)
            .prop_map(|entries| {
                entries
                    .iter()
                    .flat_map(|(name, value)| [shortstr(name.as_bytes()), value.clone()].concat())
                    .collect()
            })
            .boxed(),
        Tables::Canonical => btree_map(name, value, 0..6)
            .prop_map(|entries| {
                entries
                    .iter()
                    .flat_map(|(name, value)| [shortstr(name.as_bytes()), value.clone()].concat())
                    .collect()
            })
            .boxed(),
    }
}

/// A tag and its value.
fn value(tables: Tables) -> BoxedStrategy<Vec<u8>> {
    let tagged = |tag: u8, value: BoxedStrategy<Vec<u8>>| {
        value.prop_map(move |value| [&[tag], &value[..]].concat()).boxed()
    };
    let fixed = |tag: u8, width: usize| tagged(tag, vec(any::<u8>(), width).boxed());
    let text = || vec(any::<u8>(), 0..20).prop_map(|bytes| longstr(&bytes)).boxed();
    let boolean = match tables {
        Tables::Any => any::<u8>().boxed(),
        Tables::Canonical => (0..=1u8).boxed(),
    };
    // A NaN may lose its payload in the oracle's hands: keep to finite numbers.
    let float =
        any::<f32>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| f.to_be_bytes().to_vec()).boxed();
    let double =
        any::<f64>().prop_filter("finite", |d| d.is_finite()).prop_map(|d| d.to_be_bytes().to_vec()).boxed();
    let mut leaves = vec![
        tagged(b't', boolean.prop_map(|bit| vec![bit]).boxed()),
        fixed(b'b', 1),
        fixed(b'B', 1),
        fixed(b's', 2),
        fixed(b'u', 2),
        fixed(b'I', 4),
        fixed(b'i', 4),
        fixed(b'l', 8),
        tagged(b'f', float),
        tagged(b'd', double),
        fixed(b'D', 5),
        fixed(b'T', 8),
        fixed(b'V', 0),
        tagged(b'S', text()),
        tagged(b'x', text()),
    ];
    if matches!(tables, Tables::Any) {
        leaves.push(fixed(b'L', 8));
    }
    proptest::strategy::Union::new(leaves)
        .prop_recursive(3, 24, 4, move |inner| {
            let nested_array = vec(inner.clone(), 0..4).prop_map(|items| longstr(&items.concat()));
            let nested_table = entries(inner.boxed(), tables).prop_map(|entries| longstr(&entries));
            prop_oneof![tagged(b'A', nested_array.boxed()), tagged(b'F', nested_table.boxed())]
        })
        .boxed()
}

/// `amq-protocol`, reduced to bytes in, bytes out.
pub(crate) mod oracle {
    use amq_protocol::frame::{AMQPFrame, WriteContext, gen_frame, parse_frame};
    use amq_protocol::protocol::parse_class;
    use amq_protocol::types::FieldTable;
    use amq_protocol::types::parsing::parse_field_table;

    /// Parses a frame and writes it again.
    pub(crate) fn rewrite(frame: &[u8]) -> Vec<u8> {
        write(&parse(frame))
    }

    pub(crate) fn parse(frame: &[u8]) -> AMQPFrame {
        let (rest, parsed) = parse_frame(frame).expect("the oracle reads it");
        assert_eq!(rest, b"", "the oracle reads it to the end");
        parsed
    }

    pub(crate) fn write(frame: &AMQPFrame) -> Vec<u8> {
        let out = WriteContext::from(Vec::new());
        gen_frame(frame)(out).expect("the oracle writes it").into_inner().0
    }

    /// Parses a table with its length in front.
    pub(crate) fn table(bytes: &[u8]) -> FieldTable {
        let (rest, table) = parse_field_table(bytes).expect("the oracle reads it");
        assert_eq!(rest, b"", "the oracle reads it to the end");
        table
    }

    /// Whether the oracle has a method with these ids.
    pub(crate) fn knows(class: u16, method: u16) -> bool {
        let zeros = [0; 64];
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), &zeros].concat();
        parse_class(&payload[..]).is_ok()
    }
}
