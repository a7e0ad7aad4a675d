//! A store that others are made of: log, checkpoints, pages, retired segments.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use dassie_storage::sim::SimDisk;
use dassie_storage::{
    CheckpointStore, CopySource, FullSpeed, LogPoint, NewPage, PAGE_CONTENT, PageId, PageStore,
};

use super::{Node, SEGMENT, genesis, payload, run};

pub(crate) type Objects = BTreeMap<Bytes, Bytes>;

/// A store that wrote so many batches, with checkpoints, pages, and two retired segments.
pub(crate) struct Source {
    pub(crate) node: Node<SimDisk>,
    pub(crate) pages: PageStore<SimDisk>,
    pub(crate) checkpoints: CheckpointStore<SimDisk>,
    pub(crate) objects: Objects,
}

impl Source {
    pub(crate) fn new(disk: &SimDisk, batches: u64) -> Source {
        let node = Node::create(disk);
        let (checkpoints, _) = run(CheckpointStore::load(disk, genesis().store, None)).unwrap();
        let pages = run(PageStore::open(disk, [])).unwrap();
        let mut source = Source { node, pages, checkpoints, objects: Objects::new() };
        source.write(batches);
        source
    }

    pub(crate) fn write(&mut self, batches: u64) {
        for _ in 0..batches {
            let index = self.node.next();
            self.node.append(payload(index, 100 + (index as usize * 37) % 900)).unwrap();
        }
        self.node.log.committed(self.node.log.last().unwrap().end);
    }

    /// A checkpoint at the end, with a page of its own.
    pub(crate) fn checkpoint(&mut self) -> LogPoint {
        let point = self.node.log.last().unwrap();
        let id = run(self.pages.allocate(1)).unwrap();
        let page = NewPage { id, owner: point.index, content: payload(point.index, PAGE_CONTENT) };
        run(self.pages.write(&[page])).unwrap();
        run(self.pages.sync()).unwrap();
        let put = (Bytes::from(format!("page {id}")), Bytes::from(point.index.to_string()));
        self.objects.insert(put.0.clone(), put.1.clone());
        let freed = self.pages.checkpoint_started();
        run(self.checkpoints.write_delta(point, [put], [], &FullSpeed)).unwrap();
        self.pages.checkpoint_durable(&freed);
        point
    }

    pub(crate) fn raise_and_retire(&mut self, index: u64, segments: &[u64]) {
        let done = self.node.done();
        self.node.log.raise_floor(index, done).unwrap();
        self.node.finish().unwrap();
        self.node.log.retire(&segments.iter().map(|n| n * SEGMENT).collect::<Vec<_>>()).unwrap();
        self.node.machine.settle();
    }

    pub(crate) fn hold(&self) -> CopySource<SimDisk> {
        run(CopySource::open(&self.checkpoints, &self.pages, &self.node.reader, |_| true)).unwrap().unwrap()
    }
}

// The library hands both over.
#[allow(clippy::needless_pass_by_value)]
pub(crate) fn used(_: LogPoint, objects: Objects) -> io::Result<Vec<(PageId, u64)>> {
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().parse().unwrap();
    Ok(objects.iter().map(|(key, value)| (number(&key[5..]), number(value))).collect())
}
