//! Payloads of batches, to be changed on their way: the tool of planted bugs.
//!
//! Owns: taking a payload apart and putting it together by `src/docs/record-format.md`. Promises: what is not changed is kept
//! to the byte. Does not know: what records mean.

use bytes::{BufMut, Bytes, BytesMut};

const HEAD: usize = 32;
const SECTION: usize = 48;
/// Kind of a record that holds a message.
pub(crate) const REFERENCE: u8 = 2;

/// A payload, taken apart.
pub(crate) struct Payload {
    head: [u8; HEAD],
    pub(crate) sections: Vec<Section>,
}

/// A section, taken apart.
pub(crate) struct Section {
    head: [u8; SECTION],
    pub(crate) records: Vec<Vec<u8>>,
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Payload {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let head: [u8; HEAD] = bytes[..HEAD].try_into().expect("a head");
        let mut at = HEAD;
        let mut sections = Vec::new();
        for _ in 0..u16::from_le_bytes([head[2], head[3]]) {
            let section: [u8; SECTION] = bytes[at..at + SECTION].try_into().expect("a section");
            at += SECTION;
            let mut records = Vec::new();
            for _ in 0..u32_at(&section, 40) {
                let len = u32_at(bytes, at + 4);
                records.push(bytes[at..at + len].to_vec());
                at += len;
            }
            sections.push(Section { head: section, records });
        }
        Self { head, sections }
    }

    pub(crate) fn bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(&self.head);
        for section in &self.sections {
            let mut head = section.head;
            let len: usize = section.records.iter().map(Vec::len).sum();
            head[40..44].copy_from_slice(&u32::try_from(section.records.len()).expect("few").to_le_bytes());
            head[44..48].copy_from_slice(&u32::try_from(len).expect("short").to_le_bytes());
            out.put_slice(&head);
            section.records.iter().for_each(|record| out.put_slice(record));
        }
        out.freeze()
    }

    pub(crate) fn set_place(&mut self, term: u64, ordinal: u64) {
        self.head[8..16].copy_from_slice(&term.to_le_bytes());
        self.head[16..24].copy_from_slice(&ordinal.to_le_bytes());
    }

    pub(crate) fn log_time(&self) -> u64 {
        u64_at(&self.head, 24)
    }

    pub(crate) fn set_log_time(&mut self, time: u64) {
        self.head[24..32].copy_from_slice(&time.to_le_bytes());
    }
}

impl Section {
    pub(crate) fn session(&self) -> u64 {
        u64_at(&self.head, 0)
    }

    pub(crate) fn last(&self) -> u64 {
        u64_at(&self.head, 24)
    }

    pub(crate) fn set_previous(&mut self, previous: u64) {
        self.head[8..16].copy_from_slice(&previous.to_le_bytes());
    }

    /// Places of the records that hold a message.
    pub(crate) fn messages(&self) -> Vec<usize> {
        self.records.iter().enumerate().filter(|(_, r)| r[0] == REFERENCE).map(|(at, _)| at).collect()
    }
}
