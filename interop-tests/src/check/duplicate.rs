//! Bounded duplicates: a message comes again only for a cause that the promises name, and says so.
//!
//! Owns: rule 3. Promises: a cause counts for one delivery more, and only from when it began; with an acknowledgement
//! of unknown outcome the crash or loss that could have swallowed it is still needed.
//! Does not know: whether a message was owed at all.

use super::Findings;
use super::view::{Life, Seen, View, same_reader};
use crate::history::event::{Cursor, Event, Name, Op, Settle};

/// Finds deliveries beyond the bound: `duplicate.excess`, `duplicate.after_ack` (began after the settlement was
/// certain), `duplicate.below_committed` (asked for after the group's stored offset had passed it),
/// `duplicate.flag_missing` (a second delivery that does not say it is one).
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    for life in view.lives() {
        for deliveries in life.deliveries().chunk_by(same_reader) {
            let queue = deliveries[0].delivery.queue;
            // A phantom has no copies; one delivery of it is another checker's find.
            if let Some(copies) = view.copies(life, queue).map(|copies| copies.max(1)) {
                let reading = Reading { view, life, deliveries, copies };
                reading.judge_number(&mut findings);
                reading.judge_settled(&mut findings);
                reading.judge_flags(&mut findings);
            }
            judge_committed(view, life, deliveries, &mut findings);
        }
    }
    findings
}

/// The deliveries of one message to one reader, who was sent so many copies of it.
struct Reading<'v> {
    view: &'v View<'v>,
    life: Life<'v>,
    deliveries: &'v [Seen<'v>],
    copies: usize,
}

impl Reading<'_> {
    /// The k-th delivery needs k copies, or returns of earlier deliveries that began before it arrived.
    fn judge_number(&self, findings: &mut Findings) {
        if self.deliveries.len() == 1 {
            return;
        }
        let mut causes = Causes::default();
        let mut evidence = Vec::new();
        for (before, (seen, returned)) in self.made().into_iter().enumerate() {
            evidence.push(seen.index);
            if before >= self.copies + causes.until(seen.event.t1) {
                self.add("duplicate.excess", &evidence, "came again without a cause", findings);
                return;
            }
            causes.add(returned);
        }
        findings.note("duplicates with a cause", (self.deliveries.len() - 1) as u64);
    }

    /// Deliveries in the order in which they may have been made, and when each message may first have gone back to the queue. What
    /// arrives while its client loses its hold (its node stood still, say) may have left before: others may have got it since.
    fn made(&self) -> Vec<(&Seen<'_>, Option<u64>)> {
        let mut made: Vec<_> = self.deliveries.iter().zip(self.returns()).collect();
        made.sort_by_key(|(seen, _)| {
            let (client, queue, at) = (seen.event.client, seen.delivery.queue, seen.event.t0);
            self.view.breaks.losing(client, queue, at).unwrap_or(at)
        });
        made
    }

    /// For each delivery, when its message may first have gone back to the queue.
    fn returns(&self) -> Vec<Option<u64>> {
        let settlements = self.settlements();
        self.deliveries.iter().zip(settlements).map(|(seen, end)| self.returned(seen, end)).collect()
    }

    fn returned(&self, seen: &Seen<'_>, end: Option<&Event>) -> Option<u64> {
        let (begin, delivery) = (seen.event.t0, seen.delivery);
        if delivery.auto {
            return self.view.breaks.crash(begin);
        }
        match end {
            // Who gives back what it lost before gives nothing back.
            Some(event) if matches!(event.op, Op::Requeue(_)) => {
                let lost = self.view.breaks.loss(seen.event.client, delivery.queue, begin);
                Some(lost.map_or(event.t0, |lost| lost.min(event.t0)))
            }
            Some(event) if event.happened() => None,
            _ => {
                let set_back = delivery.offset.and_then(|offset| {
                    let Seen { delivery, .. } = *seen;
                    let place =
                        Cursor { queue: delivery.queue, group: delivery.group, part: delivery.part, offset };
                    self.view.floors.set_back(&place, begin)
                });
                let lost = self.view.breaks.loss(seen.event.client, delivery.queue, begin);
                [set_back, lost].into_iter().flatten().min()
            }
        }
    }

    /// For each delivery, the event by which its client ended it. A client ends its latest open delivery first: what
    /// it held earlier it may have lost.
    fn settlements(&self) -> Vec<Option<&Event>> {
        let mut ends = vec![None; self.deliveries.len()];
        let mut open: Vec<usize> = Vec::new();
        let mut next = 0;
        for (index, event) in self.life.iter() {
            if self.deliveries.get(next).is_some_and(|seen| seen.index == index) {
                open.extend((!self.deliveries[next].delivery.auto).then_some(next));
                next += 1;
            } else if event.may_have_happened() && self.settled_here(event).is_some() {
                let latest = open.iter().rposition(|at| self.deliveries[*at].event.client == event.client);
                if let Some(latest) = latest {
                    ends[open.remove(latest)] = Some(event);
                }
            }
        }
        ends
    }

    fn settled_here(&self, event: &Event) -> Option<Settle> {
        let (Op::Ack(settle) | Op::Requeue(settle) | Op::Reject(settle)) = event.op else {
            return None;
        };
        ((settle.queue, settle.group) == self.deliveries[0].reader()).then_some(settle)
    }

    /// Once as many settlements are certain as there are copies, no delivery may begin.
    fn judge_settled(&self, findings: &mut Findings) {
        let done = |(_, event): &(usize, &Event)| {
            event.happened() && !matches!(event.op, Op::Requeue(_)) && self.settled_here(event).is_some()
        };
        let mut settled: Vec<_> =
            self.life.iter().filter(done).map(|(index, event)| (event.t1, index)).collect();
        settled.sort_unstable();
        let Some((end, ack)) = settled.get(self.copies - 1) else {
            return;
        };
        for seen in self.deliveries.iter().filter(|seen| seen.event.t0 > *end) {
            self.add("duplicate.after_ack", &[*ack, seen.index], "came again after its settlement", findings);
        }
    }

    /// All deliveries but the first of each copy say that they are not the first; a crash, or another leader, may have cost the flag
    /// of each copy that went back before it.
    fn judge_flags(&self, findings: &mut Findings) {
        let unflagged = |seen: &&Seen<'_>| seen.delivery.redelivered == Some(false);
        if self.deliveries.iter().filter(unflagged).count() <= self.copies {
            return;
        }
        let mut causes = Causes::default();
        let mut before: Vec<usize> = Vec::new();
        for (seen, returned) in self.made() {
            if unflagged(&seen) {
                before.push(seen.index);
                if before.len() > self.copies + causes.until(seen.event.t1) {
                    self.add("duplicate.flag_missing", &before, "came again without the flag", findings);
                    return;
                }
            }
            causes.add(returned.and_then(|_| self.view.breaks.change(seen.event.t0)));
        }
        findings.note("redelivered flags lost by a crash", (before.len() - self.copies) as u64);
    }

    fn add(&self, rule: &'static str, evidence: &[usize], what: &str, findings: &mut Findings) {
        let (queue, _) = self.deliveries[0].reader();
        findings.add(rule, evidence, || message(self.view, self.life, queue, what));
    }
}

/// Instants from which causes hold. They come nearly in order, so that each finds its place near the end: a message
/// may go back and forth a million times.
#[derive(Debug, Default)]
struct Causes(Vec<u64>);

impl Causes {
    fn add(&mut self, at: Option<u64>) {
        if let Some(at) = at {
            let place = self.0.partition_point(|earlier| *earlier <= at);
            self.0.insert(place, at);
        }
    }

    /// How many hold by `until`.
    fn until(&self, until: u64) -> usize {
        self.0.partition_point(|at| *at <= until)
    }
}

fn message(view: &View<'_>, life: Life<'_>, queue: Name, what: &str) -> String {
    format!("{} {what}, in {:?}", view.msg(life.msg()), view.text(queue))
}

/// Only of deliveries that were asked for is it known that they were not under way when the offset was stored.
fn judge_committed(view: &View<'_>, life: Life<'_>, deliveries: &[Seen<'_>], findings: &mut Findings) {
    for Seen { index, event, delivery } in deliveries.iter().filter(|seen| seen.delivery.asked) {
        let Some(offset) = delivery.offset.filter(|_| delivery.group != Name::NONE) else {
            continue;
        };
        let place = Cursor { queue: delivery.queue, group: delivery.group, part: delivery.part, offset };
        if let Some((_, proof)) = view.floors.floor(&place, event.t0).filter(|(floor, _)| *floor > offset) {
            findings.add("duplicate.below_committed", &[proof, *index], || {
                message(view, life, delivery.queue, "came again below the group's stored offset")
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

    const TWICE: [&str; 3] = [
        "p publish queue=q msg=p/1",
        "c deliver queue=q msg=p/1 redelivered=false",
        "c deliver queue=q msg=p/1 redelivered",
    ];

    /// The message of [`TWICE`] with something between its two deliveries.
    fn between(line: &str) -> Vec<&'static str> {
        rules(&[TWICE[0], TWICE[1], line, TWICE[2]])
    }

    #[test]
    fn a_message_comes_again_after_it_was_given_back_or_its_holder_or_the_broker_was_lost() {
        for cause in [
            "c requeue queue=q msg=p/1",
            "c requeue queue=q msg=p/1 outcome=info",
            "c lost",
            "c lost queue=q",
            "n crash",
        ] {
            assert!(between(cause).is_empty(), "{cause}");
        }
    }

    #[test]
    fn a_message_must_not_come_again_without_a_cause_of_its_own() {
        for cause in ["d lost", "c lost queue=other", "c ack queue=q msg=p/1 outcome=info", "p healed"] {
            assert_eq!(between(cause), ["duplicate.excess"], "{cause}");
        }
    }

    #[test]
    fn a_cause_that_began_after_the_second_delivery_is_none() {
        assert_eq!(rules(&[&TWICE[..], &["c lost"]].concat()), ["duplicate.excess"]);
    }

    #[test]
    fn what_was_lost_came_back_before_it_was_given_back() {
        let late = "c requeue queue=q msg=p/1 outcome=info";
        assert!(rules(&[TWICE[0], TWICE[1], "n crash", TWICE[2], late]).is_empty());
        assert_eq!(rules(&[TWICE[0], TWICE[1], TWICE[2], late]), ["duplicate.excess"]);
        // Then it is the second delivery that was given back, and that is good for a third, and no more.
        let thrice = [TWICE[0], TWICE[1], "n crash", TWICE[2], late, TWICE[2]];
        assert!(rules(&thrice).is_empty());
        assert_eq!(rules(&[&thrice[..], &[TWICE[2]]].concat()), ["duplicate.excess"]);
    }

    #[test]
    fn what_arrives_while_its_holder_loses_it_may_have_left_before_it_came_to_another() {
        let late = "c deliver queue=q msg=p/1 redelivered=false";
        let lost = "c lost t0=1500 t1=9000";
        assert!(rules(&[TWICE[0], "d deliver queue=q msg=p/1 redelivered", late, lost]).is_empty());
        let other = lost.replace("c lost", "d lost queue=other");
        assert_eq!(
            rules(&[TWICE[0], "d deliver queue=q msg=p/1 redelivered", late, &other]),
            ["duplicate.excess"]
        );
    }

    #[test]
    fn one_cause_is_good_for_one_delivery_more() {
        let lines = [TWICE[0], TWICE[1], "c requeue queue=q msg=p/1", TWICE[2], TWICE[2]];
        assert_eq!(rules(&lines), ["duplicate.excess"]);
    }

    #[test]
    fn an_acknowledgement_of_unknown_outcome_may_have_been_swallowed_by_a_crash() {
        let ack = "c ack queue=q msg=p/1 outcome=info";
        assert!(rules(&[TWICE[0], TWICE[1], ack, "n crash", TWICE[2]]).is_empty());
        assert!(rules(&[TWICE[0], TWICE[1], ack, "c lost", TWICE[2]]).is_empty());
    }

    #[test]
    fn a_certain_acknowledgement_survives_every_crash() {
        let lines = [TWICE[0], TWICE[1], "c ack queue=q msg=p/1", "n crash", TWICE[2]];
        assert_eq!(rules(&lines), ["duplicate.after_ack", "duplicate.excess"]);
    }

    #[test]
    fn a_retried_publish_may_come_once_for_each_attempt_and_needs_no_flag() {
        let twice = ["p publish queue=q msg=p/1 outcome=info", "p publish queue=q msg=p/1"];
        let once = "c deliver queue=q msg=p/1 redelivered=false";
        assert!(rules(&[&twice[..], &[once, once]].concat()).is_empty());
        let thrice = rules(&[&twice[..], &[once, once, once]].concat());
        assert_eq!(thrice, ["duplicate.excess", "duplicate.flag_missing"]);
    }

    #[test]
    fn an_attempt_that_failed_allows_nothing() {
        let failed = "p publish queue=q msg=p/1 outcome=fail";
        assert_eq!(rules(&[&[failed], &TWICE[..]].concat()), ["duplicate.excess"]);
    }

    #[test]
    fn a_second_delivery_without_the_flag_is_found_unless_a_crash_may_have_cost_it() {
        let unflagged = "c deliver queue=q msg=p/1 redelivered=false";
        let with = |cause| rules(&[TWICE[0], TWICE[1], cause, unflagged]);
        assert_eq!(with("c requeue queue=q msg=p/1"), ["duplicate.flag_missing"]);
        assert!(with("n crash").is_empty());
    }

    #[test]
    fn a_delivery_without_acknowledgement_comes_again_only_after_a_crash() {
        let auto = "c deliver queue=q msg=p/1 auto";
        assert!(rules(&[TWICE[0], auto, "n crash", auto]).is_empty());
        assert_eq!(rules(&[TWICE[0], auto, "c lost", auto]), ["duplicate.excess"]);
    }

    #[test]
    fn each_group_gets_its_own_first_delivery() {
        let of = |group: &str| format!("c deliver queue=t group={group} msg=p/1 offset=0 asked");
        assert!(rules(&["p publish queue=t msg=p/1 offset=0", &of("g1"), &of("g2")]).is_empty());
    }

    #[test]
    fn below_a_stored_offset_nothing_comes_again_unless_the_group_was_set_back() {
        let pull = "c deliver queue=t group=g msg=p/1 offset=0 asked";
        let head =
            ["p publish queue=t msg=p/1 offset=0", pull, "c commit queue=t group=g offset=1", "c lost"];
        assert_eq!(rules(&[&head[..], &[pull]].concat()), ["duplicate.below_committed"]);
        let reset = "h reset queue=t group=g offset=0";
        assert!(rules(&[&head[..], &[reset, pull]].concat()).is_empty());
    }

    #[test]
    fn a_dead_letter_queue_gets_one_copy_and_a_ring_of_them_has_no_bound() {
        let lines = [
            "h dead_letter from=q queue=dlq",
            "p publish queue=q msg=p/1",
            "c deliver queue=q msg=p/1",
            "c reject queue=q msg=p/1",
            "c deliver queue=dlq msg=p/1",
            "c deliver queue=dlq msg=p/1",
        ];
        assert_eq!(rules(&lines), ["duplicate.excess"]);
        assert!(rules(&[&["h dead_letter from=dlq queue=q"], &lines[..]].concat()).is_empty());
    }
}
