//! First in, first out: what one publisher sent on one path reaches each queue in that order.
//!
//! Owns: rule 4. Promises: judged by place where the protocol tells places, else by arrival at one consumer between two
//! crashes. Left out: messages that came again, or were sent again, or died into the queue; paths and queues that
//! declare to keep no order; messages whose sender was never told what became of them: a node of a cluster may
//! live on and hand one over when its client has long gone on elsewhere. Does not know: publishers' order among each other (that is `queue_lin`).

use super::Findings;
use super::view::{Life, Seen, View, same_reader};
use crate::history::event::{Event, Name, Op, Publish};

/// Finds `order.position` (a later message at an earlier place), `order.arrival` (arrived later than a message sent
/// after it), `order.tags` (delivery tags of a channel that do not ascend).
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut placed = Vec::new();
    let mut arrived = Vec::new();
    for life in view.lives() {
        // What was sent again has no place of its own.
        let answered = |event: &Event, publish: &Publish| publish.ordered && event.happened();
        if let Some((_, event, publish)) =
            view.only_attempt(life).filter(|(_, event, publish)| answered(event, publish))
        {
            let sent = Sent { from: (event.client, publish.msg.publisher), publish };
            note_places(view, life, sent, &mut placed);
            note_arrivals(view, life, sent, &mut arrived);
        }
    }
    judge(view, placed, "order.position", "lies behind", &mut findings);
    judge(view, arrived, "order.arrival", "arrived after", &mut findings);
    judge_tags(view, &mut findings);
    findings
}

/// A message in a lane that must hold a publisher's messages in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    lane: Lane,
    /// Offset, or index of arrival.
    place: u64,
    seq: u32,
    index: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lane {
    /// The path that sent: client and publisher.
    from: (Name, Name),
    queue: Name,
    part: u16,
    /// Who saw: group, consumer and epoch, where only arrival tells the order.
    to: Option<(Name, Name, u64)>,
}

/// A message's only publish, on a path that keeps order.
#[derive(Debug, Clone, Copy)]
struct Sent<'v> {
    from: (Name, Name),
    publish: &'v Publish,
}

fn note_places(view: &View<'_>, life: Life<'_>, sent: Sent<'_>, steps: &mut Vec<Step>) {
    let first = steps.len();
    for (index, event) in life.iter() {
        let (queue, part, offset) = match event.op {
            Op::Deliver(delivery) => (delivery.queue, delivery.part, delivery.offset),
            Op::Scan(scan) => (scan.queue, scan.part, Some(scan.offset)),
            _ => continue,
        };
        let Some(offset) = offset.filter(|_| view.keeps_order(sent.publish, queue)) else {
            continue;
        };
        let lane = Lane { from: sent.from, queue, part, to: None };
        let known = steps[first..].iter().any(|step| (step.lane, step.place) == (lane, offset.get()));
        if !known {
            steps.push(Step { lane, place: offset.get(), seq: life.msg().seq, index: narrow(index) });
        }
    }
}

fn note_arrivals(view: &View<'_>, life: Life<'_>, sent: Sent<'_>, steps: &mut Vec<Step>) {
    for deliveries in life.deliveries().chunk_by(same_reader) {
        let Seen { index, event, delivery } = deliveries[0];
        let first = delivery.offset.is_none() && delivery.redelivered != Some(true);
        let Some(epoch) = view.breaks.epoch(event.t0).filter(|_| first) else {
            continue;
        };
        if !view.keeps_order(sent.publish, delivery.queue) {
            continue;
        }
        let to = Some((delivery.group, event.client, epoch));
        let lane = Lane { from: sent.from, queue: delivery.queue, part: delivery.part, to };
        steps.push(Step { lane, place: index as u64, seq: life.msg().seq, index: narrow(index) });
    }
}

fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("a view has fewer than 2^32 events")
}

fn judge(view: &View<'_>, mut steps: Vec<Step>, rule: &'static str, how: &str, findings: &mut Findings) {
    steps.sort_unstable();
    for lane in steps.chunk_by(|a, b| a.lane == b.lane) {
        for pair in lane.windows(2).filter(|pair| pair[1].seq < pair[0].seq) {
            let (first, second) = (pair[0].index as usize, pair[1].index as usize);
            findings.add(rule, &[first, second], || {
                let Lane { from: (_, publisher), queue, .. } = pair[0].lane;
                let publisher = view.text(publisher);
                let (later, earlier) = (pair[0].seq, pair[1].seq);
                let queue = view.text(queue);
                format!("{publisher}/{earlier} {how} {publisher}/{later} in {queue:?}")
            });
        }
    }
}

/// Tags of one channel ascend until the channel is lost; its next life may begin again.
fn judge_tags(view: &View<'_>, findings: &mut Findings) {
    let mut tagged = Vec::new();
    for (index, event) in view.events() {
        if let Op::Deliver(delivery) = event.op
            && let Some(tag) = delivery.tag
        {
            tagged.push((event.client, narrow(index), tag));
        }
    }
    tagged.sort_unstable();
    for pair in tagged.windows(2) {
        let [(client, first, before), (same, second, after)] = [pair[0], pair[1]];
        if client != same || before < after {
            continue;
        }
        let (first, second) = (first as usize, second as usize);
        let [from, until] = [first, second].map(|index| view.events[index].t0);
        if view.breaks.end_of(client, from).is_none_or(|end| end > until) {
            findings.add("order.tags", &[first, second], || {
                format!("channel {:?} got tag {after} after tag {before}", view.text(client))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::{broken, tale};

    fn rules(lines: &[&str]) -> Vec<&'static str> {
        broken(&check(&View::of(&tale(lines))))
    }

    const SENT: [&str; 2] = ["p publish queue=q msg=p/1", "p publish queue=q msg=p/2"];

    fn after_sent(lines: &[&str]) -> Vec<&'static str> {
        rules(&[&SENT[..], lines].concat())
    }

    #[test]
    fn a_swap_on_the_way_to_one_consumer_is_found() {
        let swapped = ["c deliver queue=q msg=p/2", "c deliver queue=q msg=p/1"];
        assert_eq!(after_sent(&swapped), ["order.arrival"]);
        assert!(after_sent(&[swapped[1], swapped[0]]).is_empty());
    }

    #[test]
    fn two_consumers_may_be_served_at_different_speed() {
        assert!(after_sent(&["c deliver queue=q msg=p/2", "d deliver queue=q msg=p/1"]).is_empty());
    }

    #[test]
    fn a_message_that_comes_again_may_come_late() {
        let late = ["c deliver queue=q msg=p/2", "c deliver queue=q msg=p/1 redelivered"];
        assert!(after_sent(&late).is_empty());
    }

    #[test]
    fn a_crash_between_two_arrivals_may_have_cost_the_flag_that_excuses_them() {
        let late = ["c deliver queue=q msg=p/2", "n crash", "c deliver queue=q msg=p/1"];
        assert!(after_sent(&late).is_empty());
    }

    #[test]
    fn a_message_sent_again_has_no_place_of_its_own() {
        let lines = ["p publish queue=q msg=p/1", "c deliver queue=q msg=p/2", "c deliver queue=q msg=p/1"];
        assert!(after_sent(&lines).is_empty());
    }

    #[test]
    fn paths_and_queues_that_declare_no_order_are_not_judged() {
        let swapped = ["c deliver queue=q msg=p/2", "c deliver queue=q msg=p/1"];
        let by_path = SENT.map(|line| format!("{line} ordered=false"));
        assert!(rules(&[&by_path[0], &by_path[1], swapped[0], swapped[1]]).is_empty());
        assert!(after_sent(&[&["h allow queue=q what=reorder"], &swapped[..]].concat()).is_empty());
    }

    #[test]
    fn by_place_the_order_is_judged_across_consumers_and_crashes() {
        let swapped =
            ["n1 scan queue=q msg=p/2 offset=0", "n crash", "c deliver queue=q group=g msg=p/1 offset=1"];
        assert_eq!(after_sent(&swapped), ["order.position"]);
        let other_part = ["n1 scan queue=q msg=p/2 offset=0", "n1 scan queue=q msg=p/1 offset=1 part=1"];
        assert!(after_sent(&other_part).is_empty());
    }

    #[test]
    fn tags_of_a_channel_ascend_until_it_is_lost() {
        let tags = ["c deliver queue=q msg=p/1 tag=2", "c deliver queue=q msg=p/2 tag=1"];
        assert_eq!(after_sent(&tags), ["order.tags"]);
        assert!(after_sent(&[tags[0], "c lost", tags[1]]).is_empty());
    }
}
