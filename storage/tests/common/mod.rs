//! A store under test: shard, writer and preparer driven turn by turn on one thread, so that every run is the same.
#![allow(clippy::cast_possible_truncation)] // small numbers
#![allow(dead_code)] // each test binary uses its part

pub(crate) mod source;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use dassie_storage::{Disk, Done, Genesis, Log, LogPoint, LogReader, NewBatch, Options, Recovered};

pub(crate) const SEGMENT: u64 = 4096;

pub(crate) fn genesis() -> Genesis {
    Genesis {
        cluster: [1; 16],
        shard: *b"a shard's uuid..",
        store: [3; 16],
        shard_number: 0,
        node: 1,
        segment_size: SEGMENT,
        created: 0,
        joins: false,
    }
}

pub(crate) fn options() -> Options {
    Options { tail_bytes: 1000, keep_dead: 1, ..Options::default() }
}

type Task = Pin<Box<dyn Future<Output = io::Result<()>>>>;

/// The threads of a log, as tasks. The result of each once it has ended.
pub(crate) struct Machine {
    tasks: Vec<(Option<Task>, Option<io::Result<()>>)>,
}

impl Machine {
    /// Drives everything until `future` is ready. `None`: all are waiting for each other.
    pub(crate) fn try_drive<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut context = Context::from_waker(Waker::noop());
        let mut future = pin!(future);
        for _ in 0..100 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Some(output);
            }
            for (task, result) in &mut self.tasks {
                if let Some(running) = task
                    && let Poll::Ready(ended) = running.as_mut().poll(&mut context)
                {
                    *task = None;
                    *result = Some(ended);
                }
            }
        }
        None
    }

    pub(crate) fn drive<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.try_drive(future).expect("nothing moves any more")
    }

    /// Lets the background work until it waits.
    pub(crate) fn settle(&mut self) {
        let mut turns = 0;
        self.drive(poll_fn(|_| {
            turns += 1;
            if turns > 20 { Poll::Ready(()) } else { Poll::Pending }
        }));
    }

    pub(crate) fn writer_result(&mut self) -> Option<io::Result<()>> {
        self.tasks[0].1.take()
    }
}

/// Answers in the order they came: number of the job, result.
pub(crate) type Results = Vec<(u64, io::Result<()>)>;

pub(crate) struct Node<D: Disk> {
    pub(crate) log: Log<D>,
    pub(crate) reader: LogReader<D>,
    pub(crate) recovered: Recovered,
    pub(crate) machine: Machine,
    pub(crate) results: Rc<RefCell<Results>>,
    pub(crate) submitted: u64,
    /// For a test's bookkeeping, one for each job.
    pub(crate) ends: RefCell<Vec<usize>>,
}

/// One turn is enough for the opening itself: nothing else runs yet.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    dassie_storage::block_on(future)
}

impl<D: Disk> Node<D> {
    pub(crate) fn create(disk: &D) -> Node<D> {
        run(genesis().create(disk)).unwrap();
        Node::open(disk, None).unwrap()
    }

    pub(crate) fn open(disk: &D, from: Option<LogPoint>) -> io::Result<Node<D>> {
        Node::open_with(disk, from, options())
    }

    pub(crate) fn open_with(disk: &D, from: Option<LogPoint>, options: Options) -> io::Result<Node<D>> {
        let genesis = run(Genesis::load(disk))?.ok_or(io::ErrorKind::NotFound)?;
        let opened = run(Log::open(disk, options, &genesis, from))?;
        let tasks: Vec<Task> = vec![Box::pin(opened.writer.run()), Box::pin(opened.preparer.run())];
        let machine = Machine { tasks: tasks.into_iter().map(|task| (Some(task), None)).collect() };
        Ok(Node {
            log: opened.log,
            reader: opened.reader,
            recovered: opened.recovered,
            machine,
            results: Rc::default(),
            submitted: 0,
            ends: RefCell::default(),
        })
    }

    pub(crate) fn done(&mut self) -> Done {
        let (number, results) = (self.submitted, self.results.clone());
        self.submitted += 1;
        Box::new(move |result| results.borrow_mut().push((number, result)))
    }

    /// Drives until every job so far has been answered; the first failure is the answer.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        while (self.results.borrow().len() as u64) < self.submitted {
            let log = self.log.clone();
            self.machine.drive(log.completions())?;
        }
        Ok(())
    }

    pub(crate) fn next(&self) -> u64 {
        self.log.last().map_or(0, |last| last.index + 1)
    }

    pub(crate) fn submit(&mut self, payload: Bytes) -> LogPoint {
        let new = NewBatch { term: 1, leader: 1, index: self.next(), kind: 1, payload };
        let done = self.done();
        self.log.append([new], done).unwrap()
    }

    pub(crate) fn append(&mut self, payload: impl Into<Bytes>) -> io::Result<LogPoint> {
        let point = self.submit(payload.into());
        self.finish()?;
        Ok(point)
    }

    pub(crate) fn close(mut self) -> io::Result<()> {
        let done = self.done();
        self.log.close(done);
        self.finish()?;
        self.machine.settle();
        self.machine.writer_result().expect("the writer ends with the log")
    }
}

/// A payload that tells its index and is never zero.
pub(crate) fn payload(index: u64, len: usize) -> Bytes {
    (0..len)
        .map(|i| u8::try_from((index as usize * 31 + i * 7) % 251 + 1).unwrap())
        .collect::<Vec<u8>>()
        .into()
}
