//! A network that delays, reorders, loses, repeats and cuts.
//!
//! Owns: links and what is on its way. Promises: a message arrives unchanged, late, twice or never; a cut works one way; all
//! of it follows from the seed. Does not know: what messages say (one planted lie excepted).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use dassie::cluster::Node;
use dassie::cluster::peer::{Answer, NoAnswer, Peers, Request};
use tokio::sync::{mpsc, oneshot};

use super::dice::Dice;
use super::plant::Plant;

/// A peer's request as it arrives at a node, and the way back.
pub(crate) struct Letter {
    pub(crate) request: Request,
    pub(crate) reply: mpsc::UnboundedSender<Answer>,
}

type Door = mpsc::UnboundedSender<Letter>;
/// Something to be done on the network's own tasks, which outlive any node.
type Errand = std::pin::Pin<Box<dyn Future<Output = ()>>>;

struct Inner {
    dice: Dice,
    doors: BTreeMap<u64, Door>,
    cut: BTreeSet<(u64, u64)>,
    /// Lost messages in a thousand.
    loss: u64,
    /// Longest delay of a message, µs.
    delay: u64,
    plant: Plant,
    office: mpsc::UnboundedSender<Errand>,
}

/// The network. Clones share one.
#[derive(Clone)]
pub(crate) struct Network(Rc<RefCell<Inner>>);

impl Network {
    /// A quiet network. Must be made inside the world's `LocalSet`.
    pub(crate) fn new(dice: Dice, plant: Plant) -> Self {
        let (office, mut errands) = mpsc::unbounded_channel::<Errand>();
        tokio::task::spawn_local(async move {
            while let Some(errand) = errands.recv().await {
                tokio::task::spawn_local(errand);
            }
        });
        Network(Rc::new(RefCell::new(Inner {
            dice,
            doors: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss: 0,
            delay: 2_000,
            plant,
            office,
        })))
    }

    pub(crate) fn open_door(&self, node: u64, door: Door) {
        self.0.borrow_mut().doors.insert(node, door);
    }

    pub(crate) fn close_door(&self, node: u64) {
        self.0.borrow_mut().doors.remove(&node);
    }

    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.0.borrow_mut().cut.insert((from, to));
    }

    pub(crate) fn weather(&self, loss: u64, delay: u64) {
        let mut inner = self.0.borrow_mut();
        (inner.loss, inner.delay) = (loss, delay);
    }

    pub(crate) fn heal(&self) {
        self.0.borrow_mut().cut.clear();
        self.weather(0, 2_000);
    }

    /// How long the next message takes; `None`: it is lost.
    fn fate(&self) -> Option<Duration> {
        let inner = self.0.borrow();
        let lost = inner.dice.permille(inner.loss);
        // Nine of ten are quick, one takes its time: that is what lets messages overtake each other.
        let most = if inner.dice.permille(100) { inner.delay * 8 } else { inner.delay };
        let delay = Duration::from_micros(100 + inner.dice.below(most));
        (!lost).then_some(delay)
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.0.borrow().cut.contains(&(from, to))
    }

    /// Runs `arrive` after the way from one node to another, unless the message is lost on it.
    fn travel(&self, from: u64, to: u64, arrive: impl FnOnce(&Network) + 'static) {
        let Some(delay) = self.fate() else { return };
        let network = self.clone();
        let errand: Errand = Box::pin(async move {
            tokio::time::sleep(delay).await;
            if !network.is_cut(from, to) {
                arrive(&network);
            }
        });
        drop(self.0.borrow().office.send(errand));
    }

    fn knock(&self, to: u64, letter: Letter) {
        if let Some(door) = self.0.borrow().doors.get(&to) {
            drop(door.send(letter));
        }
    }

    /// Sends a request; the answer, if one comes, comes through the channel.
    fn ask(&self, from: u64, to: u64, request: Request) -> oneshot::Receiver<Answer> {
        let (reply, mut answers) = mpsc::unbounded_channel();
        let twice = self.0.borrow().dice.permille(20);
        for request in std::iter::repeat_n(request, 1 + usize::from(twice)) {
            let reply = reply.clone();
            self.travel(from, to, move |network| network.knock(to, Letter { request, reply }));
        }
        drop(reply);
        let (home, answer) = oneshot::channel();
        let network = self.clone();
        let errand: Errand = Box::pin(async move {
            if let Some(answer) = answers.recv().await {
                network.travel(to, from, move |_| drop(home.send(answer)));
            }
        });
        drop(self.0.borrow().office.send(errand));
        answer
    }
}

/// One node's end of the network.
pub(crate) struct Wire {
    pub(crate) network: Network,
    pub(crate) node: u64,
}

impl Peers for Wire {
    async fn call(
        &self,
        target: u64,
        _: &Node,
        request: Request,
        patience: Duration,
    ) -> Result<Answer, NoAnswer> {
        let until = tokio::time::Instant::now() + patience;
        let plant = self.network.0.borrow().plant;
        let entries = matches!(&request, Request::Append { entries, .. } if !entries.is_empty());
        let answer = self.network.ask(self.node, target, request);
        if plant == Plant::FalseAck && entries && self.network.is_cut(self.node, target) {
            return Ok(Answer::Appended);
        }
        if let Ok(Ok(answer)) = tokio::time::timeout_at(until, answer).await {
            return Ok(answer);
        }
        // Nobody says that a message was lost: it is only not answered.
        tokio::time::sleep_until(until).await;
        Err(NoAnswer::Lost(format!("node {target} did not answer within {patience:?}")))
    }
}
