//! Bytes of what replicas say to each other, on a stream of purpose `Consensus`.
//!
//! Owns: the frames of requests and answers, little-endian. Promises: what was encoded decodes to itself, every other sequence
//! of bytes is refused with a reason, payloads are neither copied nor looked at; a count in a frame allocates no more than the
//! frame is long.
//! Does not know: sockets, the consensus library, what a payload says.
//!
//! A frame: number of the request (8), kind (1), then by kind. An *entry id* is a byte (0: none, nothing follows), then term and
//! index (8 each); a *ballot* is term, node (8 each) and whether it is granted (1).
//!
//! | kind | what | fields |
//! |---|---|---|
//! | 1 | append | ballot, previous entry id, committed entry id, number of entries (4); each: term, index, leader (8 each), kind (1), length (4), payload |
//! | 2 | vote | ballot, last entry id, flags (1): 1 transfer, 2 pre-vote |
//! | 3 | transfer | ballot, to whom (8), last entry id |
//! | 129 | appended | |
//! | 130 | appended to | entry id |
//! | 131 | conflict | |
//! | 132 | higher vote | ballot |
//! | 133 | vote | ballot, last entry id, whether it is granted (1) |
//! | 134 | transferring | |
//! | 135 | not transferring | |

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::peer::{Answer, Ballot, Carried, EntryId, Request};

/// Why bytes are no message.
pub(crate) type Reason = &'static str;

/// Bytes of an entry without its payload.
const ENTRY_HEAD: usize = 29;

fn put_id(into: &mut BytesMut, id: Option<EntryId>) {
    into.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        into.put_u64_le(id.term);
        into.put_u64_le(id.index);
    }
}

fn put_ballot(into: &mut BytesMut, ballot: Ballot) {
    into.put_u64_le(ballot.term);
    into.put_u64_le(ballot.node);
    into.put_u8(u8::from(ballot.granted));
}

/// The parts of the frame of a request.
pub(crate) fn encode_request(number: u64, request: Request) -> Vec<Bytes> {
    let mut head = BytesMut::with_capacity(96);
    head.put_u64_le(number);
    match request {
        Request::Append { ballot, previous, entries, committed } => {
            head.put_u8(1);
            put_ballot(&mut head, ballot);
            put_id(&mut head, previous);
            put_id(&mut head, committed);
            // The store gives no more than `ENTRIES_PER_REQUEST`.
            head.put_u32_le(u32::try_from(entries.len()).unwrap_or(u32::MAX));
            let mut parts = Vec::with_capacity(2 * entries.len() + 1);
            head.reserve(entries.len() * ENTRY_HEAD);
            for Carried { id, leader, kind, payload } in entries {
                head.put_u64_le(id.term);
                head.put_u64_le(id.index);
                head.put_u64_le(leader);
                head.put_u8(kind);
                // A batch has at most 1 MiB and a little.
                head.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
                parts.push(head.split().freeze());
                parts.push(payload);
            }
            parts.push(head.freeze());
            return parts;
        }
        Request::Vote { ballot, last, transfer, pre } => {
            head.put_u8(2);
            put_ballot(&mut head, ballot);
            put_id(&mut head, last);
            head.put_u8(u8::from(transfer) | u8::from(pre) << 1);
        }
        Request::Transfer { ballot, to, last } => {
            head.put_u8(3);
            put_ballot(&mut head, ballot);
            head.put_u64_le(to);
            put_id(&mut head, last);
        }
    }
    vec![head.freeze()]
}

/// The frame of an answer.
pub(crate) fn encode_answer(number: u64, answer: &Answer) -> Bytes {
    let mut frame = BytesMut::with_capacity(64);
    frame.put_u64_le(number);
    match answer {
        Answer::Appended => frame.put_u8(129),
        Answer::AppendedTo(id) => {
            frame.put_u8(130);
            put_id(&mut frame, *id);
        }
        Answer::Conflict => frame.put_u8(131),
        Answer::HigherVote(ballot) => {
            frame.put_u8(132);
            put_ballot(&mut frame, *ballot);
        }
        Answer::Vote { ballot, last, granted } => {
            frame.put_u8(133);
            put_ballot(&mut frame, *ballot);
            put_id(&mut frame, *last);
            frame.put_u8(u8::from(*granted));
        }
        Answer::Transferring => frame.put_u8(134),
        Answer::NotTransferring => frame.put_u8(135),
    }
    frame.freeze()
}

/// Takes fields off the front of a frame.
struct Cut(Bytes);

impl Cut {
    fn u8(&mut self) -> Result<u8, Reason> {
        self.0.try_get_u8().map_err(|_| "cut short")
    }

    fn flag(&mut self) -> Result<bool, Reason> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("neither yes nor no"),
        }
    }

    fn u32(&mut self) -> Result<u32, Reason> {
        self.0.try_get_u32_le().map_err(|_| "cut short")
    }

    fn u64(&mut self) -> Result<u64, Reason> {
        self.0.try_get_u64_le().map_err(|_| "cut short")
    }

    fn id(&mut self) -> Result<Option<EntryId>, Reason> {
        Ok(if self.flag()? { Some(EntryId { term: self.u64()?, index: self.u64()? }) } else { None })
    }

    fn ballot(&mut self) -> Result<Ballot, Reason> {
        Ok(Ballot { term: self.u64()?, node: self.u64()?, granted: self.flag()? })
    }

    fn payload(&mut self) -> Result<Bytes, Reason> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if len > self.0.len() {
            return Err("cut short");
        }
        Ok(self.0.split_to(len))
    }

    fn end(&self) -> Result<(), Reason> {
        if self.0.is_empty() { Ok(()) } else { Err("bytes behind the end") }
    }
}

/// A request and its number.
///
/// # Errors
/// Why the frame is none.
pub(crate) fn decode_request(frame: Bytes) -> Result<(u64, Request), Reason> {
    let mut cut = Cut(frame);
    let number = cut.u64()?;
    let request = match cut.u8()? {
        1 => {
            let (ballot, previous, committed) = (cut.ballot()?, cut.id()?, cut.id()?);
            let count = usize::try_from(cut.u32()?).unwrap_or(usize::MAX);
            if count > cut.0.len() / ENTRY_HEAD {
                return Err("more entries than fit");
            }
            let mut entries = Vec::with_capacity(count);
            for _ in 0..count {
                let id = EntryId { term: cut.u64()?, index: cut.u64()? };
                let (leader, kind) = (cut.u64()?, cut.u8()?);
                entries.push(Carried { id, leader, kind, payload: cut.payload()? });
            }
            // Checked: an index near the end of all numbers comes from nobody honest.
            let mut before = previous.map(|previous| previous.index);
            for entry in &entries {
                if before.map_or(Some(0), |before| before.checked_add(1)) != Some(entry.id.index) {
                    return Err("entries that do not follow each other");
                }
                before = Some(entry.id.index);
            }
            Request::Append { ballot, previous, entries, committed }
        }
        2 => {
            let (ballot, last) = (cut.ballot()?, cut.id()?);
            let flags = cut.u8()?;
            if flags > 3 {
                return Err("a vote with unknown flags");
            }
            Request::Vote { ballot, last, transfer: flags & 1 != 0, pre: flags & 2 != 0 }
        }
        3 => Request::Transfer { ballot: cut.ballot()?, to: cut.u64()?, last: cut.id()? },
        _ => return Err("an unknown kind of request"),
    };
    cut.end()?;
    Ok((number, request))
}

/// An answer and the number of its request.
///
/// # Errors
/// Why the frame is none.
pub(crate) fn decode_answer(frame: Bytes) -> Result<(u64, Answer), Reason> {
    let mut cut = Cut(frame);
    let number = cut.u64()?;
    let answer = match cut.u8()? {
        129 => Answer::Appended,
        130 => Answer::AppendedTo(cut.id()?),
        131 => Answer::Conflict,
        132 => Answer::HigherVote(cut.ballot()?),
        133 => Answer::Vote { ballot: cut.ballot()?, last: cut.id()?, granted: cut.flag()? },
        134 => Answer::Transferring,
        135 => Answer::NotTransferring,
        _ => return Err("an unknown kind of answer"),
    };
    cut.end()?;
    Ok((number, answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_at_the_end_of_all_numbers_are_refused_or_taken_and_break_nothing() {
        let append = |previous, index| {
            let ballot = Ballot { term: 1, node: 1, granted: true };
            let previous = Some(EntryId { term: 1, index: previous });
            let id = EntryId { term: 1, index };
            let entries = vec![Carried { id, leader: 1, kind: 1, payload: Bytes::new() }];
            let request = Request::Append { ballot, previous, entries, committed: None };
            decode_request(encode_request(9, request).concat().into()).map(|(number, _)| number)
        };
        assert_eq!(append(u64::MAX - 1, u64::MAX), Ok(9));
        assert!(append(u64::MAX, 0).is_err());
        assert!(append(4, 6).is_err());
    }

    fn id() -> impl Strategy<Value = Option<EntryId>> {
        proptest::option::of(
            (any::<u64>(), 0..u64::MAX / 2).prop_map(|(term, index)| EntryId { term, index }),
        )
    }

    fn ballot() -> impl Strategy<Value = Ballot> {
        (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node, granted)| Ballot {
            term,
            node,
            granted,
        })
    }

    fn request() -> impl Strategy<Value = Request> {
        let entry = (any::<u64>(), any::<u64>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40));
        let append =
            (ballot(), id(), id(), proptest::collection::vec(entry, 0..5)).prop_map(
                |(ballot, previous, committed, entries)| {
                    let first = previous.map_or(0, |previous| previous.index + 1);
                    let entries =
                        entries.into_iter().zip(first..).map(|((term, leader, kind, payload), index)| {
                            Carried { id: EntryId { term, index }, leader, kind, payload: payload.into() }
                        });
                    Request::Append { ballot, previous, entries: entries.collect(), committed }
                },
            );
        prop_oneof![
            append,
            (ballot(), id(), any::<bool>(), any::<bool>())
                .prop_map(|(ballot, last, transfer, pre)| Request::Vote { ballot, last, transfer, pre }),
            (ballot(), any::<u64>(), id()).prop_map(|(ballot, to, last)| Request::Transfer {
                ballot,
                to,
                last
            }),
        ]
    }

    fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            Just(Answer::Appended),
            id().prop_map(Answer::AppendedTo),
            Just(Answer::Conflict),
            ballot().prop_map(Answer::HigherVote),
            (ballot(), id(), any::<bool>()).prop_map(|(ballot, last, granted)| Answer::Vote {
                ballot,
                last,
                granted
            }),
            Just(Answer::Transferring),
            Just(Answer::NotTransferring),
        ]
    }

    proptest! {
        #[test]
        fn a_request_survives_its_bytes_and_no_part_of_them_is_one(number: u64, request in request()) {
            let frame = Bytes::from(encode_request(number, request.clone()).concat());
            for len in 0..frame.len() {
                prop_assert!(decode_request(frame.slice(..len)).is_err(), "{} bytes", len);
            }
            let mut longer = frame.to_vec();
            longer.push(0);
            prop_assert!(decode_request(longer.into()).is_err());
            prop_assert_eq!(decode_request(frame), Ok((number, request)));
        }

        #[test]
        fn an_answer_survives_its_bytes_and_no_part_of_them_is_one(number: u64, answer in answer()) {
            let frame = encode_answer(number, &answer);
            for len in 0..frame.len() {
                prop_assert!(decode_answer(frame.slice(..len)).is_err(), "{} bytes", len);
            }
            prop_assert_eq!(decode_answer(frame), Ok((number, answer)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let bytes = Bytes::from(bytes);
            let _ = decode_request(bytes.clone());
            let _ = decode_answer(bytes);
        }
    }

    #[test]
    fn a_count_that_lies_allocates_nothing_and_a_hole_between_entries_is_refused() {
        let append = |indices: &[u64]| {
            let entry = |index: &u64| Carried {
                id: EntryId { term: 1, index: *index },
                leader: 1,
                kind: 1,
                payload: Bytes::new(),
            };
            let ballot = Ballot { term: 1, node: 1, granted: true };
            let entries = indices.iter().map(entry).collect();
            Bytes::from(
                encode_request(1, Request::Append { ballot, previous: None, entries, committed: None })
                    .concat(),
            )
        };
        assert!(decode_request(append(&[0, 1])).is_ok());
        assert_eq!(decode_request(append(&[0, 2])), Err("entries that do not follow each other"));
        let mut lying = append(&[]).to_vec();
        let at = lying.len() - 4;
        lying[at..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode_request(lying.into()), Err("more entries than fit"));
    }
}
