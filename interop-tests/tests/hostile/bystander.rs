//! A well-behaved client of each world, that must not notice anything.
//!
//! Owns: a publisher with confirms and its consumer, a producer. Promises: counts what went through and the longest wait.
//! Does not know: what happens beside it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dassie_amqp::content::Properties;
use dassie_interop::remoting::{Remoting, refusal};
use dassie_interop::wire::{Client, Durability, Heard};
use dassie_rocketmq::header::{SendMessage, ShortNames};
use dassie_rocketmq::{HeaderCodec, RequestCode};

/// The longest that one message may take, with its confirm and its delivery, on a machine that does other things too.
const LONGEST: Duration = Duration::from_secs(5);

pub(crate) struct Bystander {
    end: Arc<AtomicBool>,
    through: Arc<AtomicU64>,
    longest_ms: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Bystander {
    pub(crate) fn start(amqp: SocketAddr, rocketmq: SocketAddr) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let (through, longest_ms) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let work = |one: Box<dyn FnMut() + Send>| {
            let (end, through, longest) = (Arc::clone(&end), Arc::clone(&through), Arc::clone(&longest_ms));
            let mut one = one;
            thread::spawn(move || {
                while !end.load(Ordering::SeqCst) {
                    let begin = Instant::now();
                    one();
                    let took = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
                    longest.fetch_max(took, Ordering::SeqCst);
                    through.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let threads = vec![work(amqp_message(amqp)), work(rocketmq_message(rocketmq))];
        Self { end, through, longest_ms, threads }
    }

    /// It goes on, and nothing took too long.
    pub(crate) fn assert_unharmed(self) {
        let (deadline, before) = (Instant::now() + 4 * LONGEST, self.through.load(Ordering::SeqCst));
        while self.through.load(Ordering::SeqCst) < before + 10 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let more = self.through.load(Ordering::SeqCst) - before;
        self.end.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("the bystander is well");
        }
        assert!(more >= 10, "hardly anything goes through");
        let longest = Duration::from_millis(self.longest_ms.load(Ordering::SeqCst));
        assert!(longest < LONGEST, "the bystander waited {longest:?}");
    }
}

/// A confirmed message through a queue.
fn amqp_message(server: SocketAddr) -> Box<dyn FnMut() + Send> {
    let mut client = Client::connect(server).expect("it accepts");
    client.declare_queue("bystander", Durability::Durable).expect("it declares");
    client.confirm().expect("it confirms");
    client.consume("bystander", None).expect("it consumes");
    Box::new(move || {
        client.publish("", "bystander", Properties::EMPTY, b"well");
        client.flush().expect("it reads");
        let deadline = Instant::now() + 2 * LONGEST;
        let (mut confirmed, mut delivered) = (false, false);
        while !(confirmed && delivered) {
            assert!(Instant::now() < deadline, "confirmed: {confirmed}, delivered: {delivered}");
            client.receive(Duration::from_millis(100)).expect("it writes");
            while let Some(heard) = client.hear().expect("it follows the protocol") {
                match heard {
                    Heard::Confirmed { .. } => confirmed = true,
                    Heard::Delivered(message) => delivered = &*message.body == b"well",
                    other => panic!("{other:?}"),
                }
            }
        }
    })
}

/// An answered send.
fn rocketmq_message(server: SocketAddr) -> Box<dyn FnMut() + Send> {
    let mut client = Remoting::connect(server, HeaderCodec::Json).expect("it accepts");
    Box::new(move || {
        let send = SendMessage {
            producer_group: "bystanders",
            topic: "bystander",
            default_topic: "TBW102",
            default_topic_queue_nums: 4,
            queue_id: 0,
            properties: Some(""),
            ..SendMessage::default()
        };
        let sent = client.ask(RequestCode::SendMessageV2, &ShortNames(send), b"well", |answer| match answer
            .head
            .code
        {
            0 => Ok(()),
            _ => Err(refusal(answer)),
        });
        sent.expect("it answers");
    })
}
