//! The log's contract, on the real disk and on the simulated one.
#![allow(clippy::cast_possible_truncation, clippy::needless_pass_by_value)] // small numbers, whole disks

mod common;

use common::{Node, SEGMENT, payload};
use dassie_storage::{Disk, RealDisk, sim::SimDisk};

fn on_real<T>(test: impl FnOnce(RealDisk) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    test(RealDisk::open(dir.path()).unwrap())
}

fn appends_survive_a_restart<D: Disk>(disk: D) {
    let mut node = Node::create(&disk);
    let points: Vec<_> = (0..40).map(|i| node.append(payload(i, 50 * (i as usize % 9))).unwrap()).collect();
    node.log.committed(points[30].end);
    let check = |node: &Node<D>| {
        for (i, point) in points.iter().enumerate() {
            let batch = node.reader.batch(point.position).unwrap();
            assert_eq!((batch.point, &batch.payload), (*point, &payload(i as u64, 50 * (i % 9))));
            assert_eq!(node.log.point(i as u64).unwrap(), Some(*point));
            for inside in [point.position, point.position + 1, point.end - 1] {
                assert_eq!(node.reader.holding(inside).unwrap().point, *point);
            }
            let next = points.get(i + 1).map_or(u64::MAX, |next| next.position);
            if next > point.end {
                let error = node.reader.holding(point.end).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "the gap behind batch {i}");
            }
        }
        for first in 0..40 {
            let got = node.log.get(first, 100, usize::MAX).unwrap();
            assert_eq!(got.iter().map(|b| b.point).collect::<Vec<_>>(), points[first as usize..]);
        }
        assert_eq!(node.log.get(3, 9, 1).unwrap().len(), 1);
    };
    check(&node);
    node.close().unwrap();
    let node = Node::open(&disk, None).unwrap();
    assert!(node.recovered.clean && node.recovered.cut.is_none() && node.recovered.walked == 40);
    check(&node);
    drop(node);
    let node = Node::open(&disk, Some(points[20])).unwrap();
    assert!(!node.recovered.clean && node.recovered.walked == 19);
    check(&node);
}

#[test]
fn appends_survive_a_restart_on_the_simulated_disk() {
    appends_survive_a_restart(SimDisk::new());
}

#[test]
fn appends_survive_a_restart_on_the_real_disk() {
    on_real(appends_survive_a_restart);
}

fn truncation_drops_the_suffix_for_good<D: Disk>(disk: D) {
    let mut node = Node::create(&disk);
    let points: Vec<_> = (0..40).map(|i| node.append(payload(i, 300)).unwrap()).collect();
    assert!(points[39].end > 3 * SEGMENT);
    let done = node.done();
    node.log.truncate_after(Some(4), done).unwrap();
    let new: Vec<_> = (5..30).map(|i| node.submit(payload(i + 100, 200))).collect();
    for point in &new {
        assert_eq!(node.reader.batch(point.position).unwrap().point, *point);
    }
    node.finish().unwrap();
    drop(node);
    let node = Node::open(&disk, None).unwrap();
    let all: Vec<_> = node.log.get(0, 100, usize::MAX).unwrap().iter().map(|b| b.point).collect();
    assert_eq!(all, points[..5].iter().chain(&new).copied().collect::<Vec<_>>());
    assert_eq!(node.log.get(7, 8, 0).unwrap()[0].payload, payload(107, 200));
}

#[test]
fn truncation_drops_the_suffix_for_good_on_the_simulated_disk() {
    truncation_drops_the_suffix_for_good(SimDisk::new());
}

#[test]
fn truncation_drops_the_suffix_for_good_on_the_real_disk() {
    on_real(truncation_drops_the_suffix_for_good);
}
