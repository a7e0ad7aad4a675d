//! Replicas are equal: the same digest of the same scope at the same index.
//!
//! Owns: rule 9. Promises: replicas that were never compared are reported, not trusted.
//! Does not know: how digests are made.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Findings;
use super::view::View;
use crate::history::event::{Name, Op};

/// Finds `replica.diverged` and `replica.never_compared` (no index at which all replicas of a scope were digested).
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut scopes: HashMap<Name, Scope> = HashMap::new();
    for (index, event) in view.events().filter(|(_, event)| event.happened()) {
        if let Op::Digest { scope, index: at, hash } = event.op {
            let digest = Digest { replica: event.client, hash, index };
            scopes.entry(scope).or_default().entry(at).or_default().push(digest);
        }
    }
    for (scope, digests) in scopes {
        judge(view, scope, &digests, &mut findings);
    }
    findings
}

/// Digests of one scope by the index at which they were taken.
type Scope = BTreeMap<u64, Vec<Digest>>;

#[derive(Debug, Clone, Copy)]
struct Digest {
    replica: Name,
    hash: u64,
    index: usize,
}

fn judge(view: &View<'_>, scope: Name, digests: &Scope, findings: &mut Findings) {
    let replicas: HashSet<_> = digests.values().flatten().map(|digest| digest.replica).collect();
    let mut compared = false;
    for (at, here) in digests {
        let present: HashSet<_> = here.iter().map(|digest| digest.replica).collect();
        compared |= present.len() == replicas.len();
        let first = here[0];
        for other in here.iter().filter(|other| other.hash != first.hash) {
            findings.add("replica.diverged", &[first.index, other.index], || {
                let [a, b] = [first, *other].map(|digest| view.text(digest.replica));
                format!("{a:?} and {b:?} differ in {:?} at {at}", view.text(scope))
            });
        }
    }
    if !compared {
        let evidence: Vec<_> = digests.values().flatten().map(|digest| digest.index).take(3).collect();
        findings.add("replica.never_compared", &evidence, || {
            format!(
                "at no index are there digests of {:?} by all {} replicas",
                view.text(scope),
                replicas.len()
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::{broken, tale};

    fn rules(lines: &[&str]) -> Vec<&'static str> {
        broken(&check(&View::of(&tale(lines))))
    }

    #[test]
    fn equal_digests_at_equal_indexes_are_right_whatever_was_seen_between() {
        let lines = [
            "n1 digest index=5 hash=1",
            "n1 digest index=9 hash=2",
            "n2 digest index=9 hash=2",
            "n1 digest queue=q index=9 hash=3",
        ];
        assert!(rules(&lines).is_empty());
    }

    #[test]
    fn a_replica_that_differs_is_found_even_if_it_later_agrees() {
        let lines = [
            "n1 digest index=5 hash=1",
            "n2 digest index=5 hash=2",
            "n1 digest index=9 hash=3",
            "n2 digest index=9 hash=3",
        ];
        assert_eq!(rules(&lines), ["replica.diverged"]);
    }

    #[test]
    fn replicas_that_share_no_index_were_never_compared() {
        let lines = ["n1 digest index=5 hash=1", "n2 digest index=6 hash=2"];
        assert_eq!(rules(&lines), ["replica.never_compared"]);
    }
}
