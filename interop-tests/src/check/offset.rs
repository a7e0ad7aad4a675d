//! Offsets are dense and for ever: one place, one message, the one that the sender was told; ends and cursors only grow.
//!
//! Owns: rule 5. Promises: replicas that were scanned are held to the same places; a hole counts only between two places
//! that were read. Does not know: publishers' order.

use std::collections::HashMap;

use super::Findings;
use super::view::{Life, View};
use crate::history::event::{Cursor, Edge, Event, Msg, Name, Offset, Op};

/// Finds `offset.reused` (two messages at one place), `offset.moved` (one copy at two places), `offset.send_differs`
/// (seen elsewhere than its sender was told), `offset.gap` (nothing between two places that were read),
/// `offset.max_went_back`, `offset.min_went_back`, `offset.commit_went_back`.
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    for life in view.lives() {
        judge_copy(view, life, &mut findings);
    }
    judge_places(view, &mut findings);
    judge_ends(view, End::Max, "offset.max_went_back", &mut findings);
    judge_ends(view, End::Min, "offset.min_went_back", &mut findings);
    judge_cursors(view, &mut findings);
    findings
}

/// A message at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    queue: Name,
    part: u16,
    offset: Offset,
    msg: Msg,
    /// Whether it was read there, or its sender was told so.
    read: bool,
    index: u32,
}

impl Place {
    fn of(index: usize, event: &Event) -> Option<Self> {
        let (queue, part, offset, msg, read) = match event.op {
            Op::Publish(publish) if event.happened() => {
                (publish.queue, publish.part.unwrap_or(0), publish.offset?, publish.msg, false)
            }
            Op::Deliver(delivery) => (delivery.queue, delivery.part, delivery.offset?, delivery.msg, true),
            Op::Scan(scan) => (scan.queue, scan.part, scan.offset, scan.msg, true),
            _ => return None,
        };
        let index = u32::try_from(index).expect("a view has fewer than 2^32 events");
        Some(Self { queue, part, offset, msg, read, index })
    }

    fn queue(&self) -> (Name, u16) {
        (self.queue, self.part)
    }

    fn whole(&self) -> (Name, u16, Offset) {
        (self.queue, self.part, self.offset)
    }
}

/// What was sent once lies at one place of a queue: where its sender was told, if the sender was told.
fn judge_copy(view: &View<'_>, life: Life<'_>, findings: &mut Findings) {
    let Some((sent, ..)) = view.only_attempt(life) else {
        return;
    };
    let mut first_of: Vec<Place> = Vec::new();
    for (index, event) in life.iter() {
        let Some(place) = Place::of(index, event) else {
            continue;
        };
        match first_of.iter().find(|first| first.queue == place.queue) {
            None => first_of.push(place),
            Some(first) if first.whole() == place.whole() => {}
            Some(first) => {
                let (first, rule, how) = (first.index as usize, "offset.moved", "lies at two places");
                let told = first == sent || index == sent;
                let (rule, how) = if told {
                    ("offset.send_differs", "lies elsewhere than its sender was told")
                } else {
                    (rule, how)
                };
                findings.add(rule, &[first, index], || {
                    format!("{} {how}, in {:?}", view.msg(life.msg()), view.text(place.queue))
                });
            }
        }
    }
}

fn judge_places(view: &View<'_>, findings: &mut Findings) {
    let mut places: Vec<_> = view.events().filter_map(|(index, event)| Place::of(index, event)).collect();
    places.sort_unstable();
    places.dedup_by_key(|place| (place.whole(), place.msg, place.read));
    for pair in places.windows(2).filter(|pair| pair[0].whole() == pair[1].whole()) {
        if pair[0].msg != pair[1].msg {
            findings.add("offset.reused", &[pair[0].index as usize, pair[1].index as usize], || {
                let [a, b] = [pair[0], pair[1]].map(|place| view.msg(place.msg));
                let (queue, offset) = (view.text(pair[0].queue), pair[0].offset.get());
                format!("{a} and {b} both at offset {offset} of {queue:?} {}", pair[0].part)
            });
        }
    }
    for queue in places.chunk_by(|a, b| a.queue() == b.queue()) {
        if !view.topology.may_have_holes(queue[0].queue) {
            judge_density(view, queue, findings);
        }
    }
}

/// Beyond what was read, places may be unknown; between two that were read, each must be known.
fn judge_density(view: &View<'_>, places: &[Place], findings: &mut Findings) {
    let Some(first) = places.iter().position(|place| place.read) else {
        return;
    };
    let last = places.iter().rposition(|place| place.read).unwrap_or(first);
    for pair in places[first..=last].windows(2) {
        let (before, after) = (pair[0].offset.get(), pair[1].offset.get());
        if after - before > 1 {
            findings.add("offset.gap", &[pair[0].index as usize, pair[1].index as usize], || {
                let queue = view.text(pair[0].queue);
                format!("nothing between offsets {before} and {after} of {queue:?} {}", pair[0].part)
            });
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Min,
    Max,
}

/// What an event proves about an end of a queue.
#[derive(Debug, Clone, Copy)]
struct Proof {
    index: usize,
    begin: u64,
    end: u64,
    at: u64,
    /// Whether it is an answer to "where is the end", or just lies before the end.
    answer: bool,
}

/// An answer must not be below what was proven before its question began.
fn judge_ends(view: &View<'_>, which: End, rule: &'static str, findings: &mut Findings) {
    let mut queues: HashMap<(Name, u16), Vec<Proof>> = HashMap::new();
    let mut add = |index: usize, event: &Event, edge: Edge, at: u64, answer: bool| {
        let proof = Proof { index, begin: event.t0, end: event.t1, at, answer };
        queues.entry((edge.queue, edge.part)).or_default().push(proof);
    };
    for (index, event) in view.events().filter(|(_, event)| event.happened()) {
        match (event.op, which) {
            (Op::MaxOffset(edge), End::Max) | (Op::MinOffset(edge), End::Min) => {
                add(index, event, edge, edge.offset.get(), true);
            }
            (Op::Publish(publish), End::Max) => {
                if let Some((part, offset)) = publish.part.zip(publish.offset) {
                    add(index, event, Edge { queue: publish.queue, part, offset }, offset.get() + 1, false);
                }
            }
            _ => {}
        }
    }
    for ((queue, part), proofs) in queues {
        sweep(&proofs, |proven, answer| {
            findings.add(rule, &[proven.index, answer.index], || {
                let (queue, before, after) = (view.text(queue), proven.at, answer.at);
                format!("the end of {queue:?} {part} was answered as {after} when it was {before} already")
            });
        });
    }
}

/// Calls `back` for each answer below something proven before it began. `proofs` are in order of their beginning.
fn sweep(proofs: &[Proof], mut back: impl FnMut(&Proof, &Proof)) {
    if !proofs.iter().any(|proof| proof.answer) {
        return;
    }
    let mut ended = proofs.to_vec();
    ended.sort_by_key(|proof| proof.end);
    let mut ended = ended.into_iter().peekable();
    let mut highest: Option<Proof> = None;
    for answer in proofs.iter().filter(|proof| proof.answer) {
        while let Some(proof) = ended.next_if(|proof| proof.end < answer.begin) {
            if highest.is_none_or(|highest| highest.at < proof.at) {
                highest = Some(proof);
            }
        }
        if let Some(proven) = highest.filter(|highest| highest.at > answer.at) {
            back(&proven, answer);
        }
    }
}

fn judge_cursors(view: &View<'_>, findings: &mut Findings) {
    for (index, event) in view.events().filter(|(_, event)| event.happened()) {
        let Op::Committed(read) = event.op else {
            continue;
        };
        let proven = view.floors.floor(&read, event.t0).filter(|(floor, _)| *floor > read.offset);
        if let Some((floor, proof)) = proven {
            findings.add("offset.commit_went_back", &[proof, index], || describe(view, &read, floor));
        }
    }
}

fn describe(view: &View<'_>, read: &Cursor, floor: Offset) -> String {
    let (group, queue) = (view.text(read.group), view.text(read.queue));
    let (before, after) = (floor.get(), read.offset.get());
    format!("group {group:?} stands at {after} of {queue:?} {} after it stood at {before}", read.part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::{broken, tale};

    fn rules(lines: &[&str]) -> Vec<&'static str> {
        broken(&check(&View::of(&tale(lines))))
    }

    const SENT: [&str; 3] = [
        "p publish queue=t msg=p/1 part=0 offset=0",
        "p publish queue=t msg=p/2 part=0 offset=1",
        "p publish queue=t msg=p/3 part=0 offset=2",
    ];

    fn after_sent(lines: &[&str]) -> Vec<&'static str> {
        rules(&[&SENT[..], lines].concat())
    }

    #[test]
    fn messages_at_the_places_their_senders_were_told_are_right() {
        let seen = [
            "c deliver queue=t group=g msg=p/1 offset=0",
            "n1 scan queue=t msg=p/2 offset=1",
            "n2 scan queue=t msg=p/3 offset=2",
        ];
        assert!(after_sent(&seen).is_empty());
    }

    #[test]
    fn two_messages_at_one_place_are_found_across_replicas_and_restarts() {
        let lines = [
            "p publish queue=t msg=p/1 outcome=info",
            "p publish queue=t msg=p/2 outcome=info",
            "n1 scan queue=t msg=p/1 offset=0",
            "n2 scan queue=t msg=p/2 offset=0",
        ];
        assert_eq!(rules(&lines), ["offset.reused"]);
    }

    #[test]
    fn a_message_elsewhere_than_its_sender_was_told_is_found() {
        assert_eq!(after_sent(&["c deliver queue=t group=g msg=p/3 offset=3"]), ["offset.send_differs"]);
        assert_eq!(
            after_sent(&["c deliver queue=t group=g msg=p/3 offset=2 part=1"]),
            ["offset.send_differs"]
        );
    }

    #[test]
    fn one_copy_at_two_places_is_found_and_two_copies_are_not() {
        let lines = [
            "p publish queue=t msg=p/1 outcome=info",
            "n1 scan queue=t msg=p/1 offset=0",
            "n1 scan queue=t msg=p/1 offset=1",
        ];
        assert_eq!(rules(&lines), ["offset.moved"]);
        assert!(rules(&[&[lines[0]], &lines[..]].concat()).is_empty());
    }

    #[test]
    fn a_hole_counts_between_two_places_that_were_read_unless_holes_are_declared() {
        let read = ["n1 scan queue=t msg=p/1 offset=0", "n1 scan queue=t msg=p/3 offset=2"];
        let lines = [&[SENT[0], SENT[2]], &read[..]].concat();
        assert_eq!(rules(&lines), ["offset.gap"]);
        assert!(rules(&lines[..3]).is_empty());
        assert!(rules(&[&["h allow queue=t what=holes"], &lines[..]].concat()).is_empty());
    }

    #[test]
    fn the_next_offset_never_goes_back_nor_behind_a_confirmed_message() {
        assert!(after_sent(&["h max_offset queue=t offset=3", "h max_offset queue=t offset=3"]).is_empty());
        assert_eq!(after_sent(&["h max_offset queue=t offset=2"]), ["offset.max_went_back"]);
        let falls = ["h max_offset queue=t offset=5", "h max_offset queue=t offset=4"];
        assert_eq!(after_sent(&falls), ["offset.max_went_back"]);
    }

    #[test]
    fn answers_given_side_by_side_may_differ() {
        let beside =
            ["h max_offset queue=t offset=9 t0=10 t1=30", "h max_offset queue=t offset=3 t0=20 t1=40"];
        assert!(rules(&beside).is_empty());
    }

    #[test]
    fn the_lowest_offset_never_goes_back() {
        let falls = ["h min_offset queue=t offset=2", "h min_offset queue=t offset=1"];
        assert_eq!(rules(&falls), ["offset.min_went_back"]);
    }

    #[test]
    fn a_stored_offset_goes_back_by_a_reset_only() {
        let head = ["c commit queue=t group=g offset=5"];
        let read = "c committed queue=t group=g offset=4";
        assert_eq!(rules(&[head[0], read]), ["offset.commit_went_back"]);
        assert!(rules(&[head[0], "h reset queue=t group=g offset=0", read]).is_empty());
        assert!(rules(&["c commit queue=t group=g offset=5 outcome=info", read]).is_empty());
    }
}
