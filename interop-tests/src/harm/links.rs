//! The network between nodes and clients, in our hands: connections pass through here, and can be held up, slowed down and cut.
//!
//! Owns: a listener for each pair of nodes ([`Links`]), and one for each protocol of the clients ([`Door`]). Promises: what is held up is
//! not lost and not closed, as packets that are dropped for a while: it goes on when the weather clears; directions are independent;
//! threads end with their owner. Does not know: what is said, why.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::sim::dice::mix;

/// How often a thread looks whether something has changed.
const LOOK: Duration = Duration::from_millis(20);
/// Nodes of a cluster under test.
pub const NODES: usize = 3;
/// Nothing passes.
const HELD: u64 = u64::MAX;
/// Three of ten packets are lost: the stream waits until each of them was sent once more.
const LOSSY: u64 = HELD - 1;
/// When a packet is sent once more, for the first time.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a client waits for somebody to lead before its connection is closed.
const NOBODY: Duration = Duration::from_secs(1);

/// What becomes of bytes from one node to another: passed on after so many microseconds, or held.
#[derive(Debug, Default)]
struct Weather([[AtomicU64; NODES]; NODES]);

/// Connections between the nodes.
#[derive(Debug)]
pub struct Links {
    weather: Arc<Weather>,
    /// Where node `from` reaches node `to`.
    doors: Vec<(usize, usize, SocketAddr)>,
    ended: Arc<AtomicBool>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

impl Links {
    /// Links between nodes that listen at `nodes`.
    ///
    /// # Errors
    /// There is no free port.
    pub fn new(nodes: [SocketAddr; NODES]) -> Result<Self, String> {
        let (weather, ended) = (Arc::<Weather>::default(), Arc::<AtomicBool>::default());
        let mut doors = Vec::new();
        for (from, to) in pairs() {
            let (listener, address) = listen()?;
            doors.push((from, to, address));
            let (weather, ended) = (Arc::clone(&weather), Arc::clone(&ended));
            thread::spawn(move || {
                accept(&listener, &ended, |near| {
                    // Who is down refuses at once.
                    let Ok(far) = TcpStream::connect(nodes[to]) else { return };
                    let (weather, ended) = (Arc::clone(&weather), Arc::clone(&ended));
                    let packets = AtomicU64::new((from * NODES + to) as u64);
                    let now = move |forth| {
                        let (a, b) = if forth { (from, to) } else { (to, from) };
                        match weather.0[a][b].load(Ordering::SeqCst) {
                            _ if ended.load(Ordering::SeqCst) => Pass::Cut,
                            HELD => Pass::Held,
                            LOSSY => Pass::After(lost(&packets)),
                            micros => Pass::After(Duration::from_micros(micros)),
                        }
                    };
                    thread::spawn(move || join(near, far, now));
                });
            });
        }
        Ok(Self { weather, doors, ended })
    }

    /// Where `from` reaches `to`.
    ///
    /// # Panics
    /// When one of them does not exist.
    #[must_use]
    pub fn way(&self, from: usize, to: usize) -> SocketAddr {
        let found = self.doors.iter().find(|(a, b, _)| (*a, *b) == (from, to));
        found.map(|(.., address)| *address).expect("a pair of nodes")
    }

    /// Nothing passes from one to the other.
    pub fn hold(&self, from: usize, to: usize) {
        self.weather.0[from][to].store(HELD, Ordering::SeqCst);
    }

    /// All that passes from one to the other takes longer.
    pub fn slow(&self, from: usize, to: usize, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(LOSSY - 1);
        self.weather.0[from][to].store(micros, Ordering::SeqCst);
    }

    /// Three of ten packets from one to the other are lost.
    pub fn lose(&self, from: usize, to: usize) {
        self.weather.0[from][to].store(LOSSY, Ordering::SeqCst);
    }

    /// Everything passes again.
    pub fn clear(&self) {
        for (from, to) in pairs() {
            self.weather.0[from][to].store(0, Ordering::SeqCst);
        }
    }
}

/// How long what was sent takes when three of ten packets are lost, and each is sent again after twice the time.
fn lost(packets: &AtomicU64) -> Duration {
    let mut wait = Duration::ZERO;
    while wait < 7 * AGAIN && mix(packets.fetch_add(1, Ordering::Relaxed)) % 10 < 3 {
        wait = 2 * wait + AGAIN;
    }
    wait
}

/// All ordered pairs of nodes.
pub fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..NODES).flat_map(|from| (0..NODES).map(move |to| (from, to))).filter(|(from, to)| from != to)
}

/// Where clients connect: it leads them to one of the nodes.
#[derive(Debug)]
pub struct Door {
    /// Where it is.
    pub address: SocketAddr,
}

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Nothing: its clients keep their connections, and what they hold.
    None,
    /// It stands still, or is out of the others' reach: its clients keep their connections.
    Stands,
    /// It ends.
    Ends,
}

/// Whom doors lead to, and what became of their connections.
#[derive(Debug)]
pub struct Desk {
    /// The node that leads; [`NODES`]: nobody is known to.
    pub leader: AtomicUsize,
    /// Clients are led to all nodes in turn; otherwise to the leader alone, and away from who leads no more.
    pub through_all: bool,
    /// What is done to each of the nodes, as [`Harm`]s.
    harmed: [AtomicUsize; NODES],
    /// Connections made.
    pub made: AtomicUsize,
    /// Connections that ended though no client ended them: to which node, and what was done to it then.
    ended_by: Mutex<Vec<(usize, Harm)>>,
    /// Where connections that live come from, and which node they lead to.
    lives: Mutex<HashMap<u16, usize>>,
    turn: AtomicUsize,
    ended: AtomicBool,
}

impl Desk {
    /// Nobody leads yet.
    #[must_use]
    pub fn new(through_all: bool) -> Arc<Self> {
        Arc::new(Self {
            leader: AtomicUsize::new(NODES),
            through_all,
            harmed: Default::default(),
            made: AtomicUsize::new(0),
            ended_by: Mutex::default(),
            lives: Mutex::default(),
            turn: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// No door opens any more.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Notes what is done to a node.
    pub fn harm(&self, node: usize, harm: Harm) {
        self.harmed[node].store(harm as usize, Ordering::SeqCst);
    }

    fn harm_of(&self, node: usize) -> Harm {
        match self.harmed[node].load(Ordering::SeqCst) {
            0 => Harm::None,
            1 => Harm::Stands,
            _ => Harm::Ends,
        }
    }

    /// Ports that connections come from which live and lead to a harmed node.
    ///
    /// # Panics
    /// Never: nobody panics with the lock.
    #[must_use]
    pub fn harmed_ports(&self) -> Vec<u16> {
        let lives = self.lives.lock().expect("no thread panics here");
        lives.iter().filter(|(_, node)| self.harm_of(**node) != Harm::None).map(|(port, _)| *port).collect()
    }

    /// How many connections ended since the last call, without a reason. `replaced`: nodes that started again with a copy of a store,
    /// as they may when they were out of reach.
    ///
    /// # Panics
    /// Never: nobody panics with the lock.
    #[must_use]
    pub fn lost(&self, replaced: &[usize]) -> usize {
        let ended = std::mem::take(&mut *self.ended_by.lock().expect("no thread panics here"));
        let without = |(node, harm): &&(usize, Harm)| match harm {
            Harm::None => true,
            Harm::Stands => !replaced.contains(node),
            Harm::Ends => false,
        };
        ended.iter().filter(without).count()
    }

    fn choose(&self) -> Option<usize> {
        let deadline = Instant::now() + NOBODY;
        while Instant::now() < deadline {
            if self.through_all {
                let turn = self.turn.fetch_add(1, Ordering::SeqCst) % NODES;
                if self.harm_of(turn) == Harm::None {
                    return Some(turn);
                }
            } else if let leader @ 0..NODES = self.leader.load(Ordering::SeqCst) {
                return Some(leader);
            }
            thread::sleep(LOOK);
        }
        None
    }
}

impl Door {
    /// A door to nodes that listen at `nodes`.
    ///
    /// # Errors
    /// There is no free port.
    pub fn new(nodes: [SocketAddr; NODES], desk: &Arc<Desk>) -> Result<Self, String> {
        let (listener, address) = listen()?;
        let desk = Arc::clone(desk);
        thread::spawn(move || {
            accept(&listener, &desk.ended, |near| {
                let desk = Arc::clone(&desk);
                // Choosing may wait.
                thread::spawn(move || {
                    let Some(node) = desk.choose() else { return };
                    let Ok(far) = TcpStream::connect(nodes[node]) else { return };
                    desk.made.fetch_add(1, Ordering::SeqCst);
                    let port = near.peer_addr().map_or(0, |address| address.port());
                    desk.lives.lock().expect("no thread panics here").insert(port, node);
                    let told = Arc::clone(&desk);
                    let ending = join(near, far, move |_| {
                        let away = !told.through_all && told.leader.load(Ordering::SeqCst) != node;
                        let away = away && told.leader.load(Ordering::SeqCst) != NODES;
                        if away || told.ended.load(Ordering::SeqCst) {
                            Pass::Cut
                        } else {
                            Pass::After(Duration::ZERO)
                        }
                    });
                    let led_away = !desk.through_all && desk.leader.load(Ordering::SeqCst) != node;
                    desk.lives.lock().expect("no thread panics here").remove(&port);
                    if ending == Ending::Far && !led_away && !desk.ended.load(Ordering::SeqCst) {
                        let harm = desk.harm_of(node);
                        desk.ended_by.lock().expect("no thread panics here").push((node, harm));
                    }
                });
            });
        });
        Ok(Self { address })
    }
}

fn listen() -> Result<(TcpListener, SocketAddr), String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    Ok((listener, address))
}

fn accept(listener: &TcpListener, ended: &AtomicBool, mut take: impl FnMut(TcpStream)) {
    while !ended.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => take(stream),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

enum Pass {
    After(Duration),
    Held,
    Cut,
}

/// Who ended a connection first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Near,
    Far,
}

/// Passes bytes both ways until one end closes, or it is cut. `weather` is asked for each direction (true: from near to far). For
/// links nobody waits for the answer, so both directions have threads.
fn join(near: TcpStream, far: TcpStream, weather: impl Fn(bool) -> Pass + Send + Sync + 'static) -> Ending {
    for stream in [&near, &far] {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_read_timeout(Some(LOOK));
    }
    let weather = Arc::new(weather);
    // 0: lives; 1: near ended it; 2: far did.
    let ending = Arc::new(AtomicUsize::new(0));
    let goodbye = AtomicBool::new(false);
    let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { return Ending::Near };
    let (other, told) = (Arc::clone(&weather), Arc::clone(&ending));
    let back = thread::spawn(move || pump(far_too, near_too, &told, 2, || other(false), |_| ()));
    // Who says goodbye ends the connection, whoever closes it first.
    let heard = |bytes: &[u8]| {
        let end = &bytes[bytes.len().saturating_sub(64)..];
        if end.windows(4).any(|w| w == [0, 10, 0, 50] || w == [0, 10, 0, 51]) {
            goodbye.store(true, Ordering::SeqCst);
        }
    };
    pump(near, far, &ending, 1, || weather(true), heard);
    let _ = back.join();
    if ending.load(Ordering::SeqCst) == 2 && !goodbye.into_inner() { Ending::Far } else { Ending::Near }
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    ending: &AtomicUsize,
    who: usize,
    weather: impl Fn() -> Pass,
    heard: impl Fn(&[u8]),
) {
    let mut buffer = vec![0; 64 << 10];
    while ending.load(Ordering::SeqCst) == 0 {
        let read = from.read(&mut buffer);
        let bytes = match read {
            Ok(0) => None,
            Ok(n) => Some(n),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if matches!(weather(), Pass::Cut) {
                    break;
                }
                continue;
            }
            Err(_) => None,
        };
        // An end is told like anything else: not while nothing passes.
        let wait = loop {
            match weather() {
                Pass::After(wait) => break Some(wait),
                Pass::Held => thread::sleep(Duration::from_millis(2)),
                Pass::Cut => break None,
            }
        };
        let (Some(wait), Some(n)) = (wait, bytes) else { break };
        heard(&buffer[..n]);
        thread::sleep(wait);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    ending.compare_exchange(0, who, Ordering::SeqCst, Ordering::SeqCst).ok();
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_comes_when_the_weather_clears_and_the_other_direction_does_not_wait() {
        let servers: Vec<TcpListener> =
            (0..NODES).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.local_addr().unwrap()).collect();
        let links = Links::new(addresses.try_into().unwrap()).unwrap();
        let mut client = TcpStream::connect(links.way(0, 1)).unwrap();
        let (mut server, _) = servers[1].accept().unwrap();
        client.write_all(b"one").unwrap();
        let mut three = [0; 3];
        server.read_exact(&mut three).unwrap();
        links.hold(0, 1);
        client.write_all(b"two").unwrap();
        server.write_all(b"old").unwrap();
        client.read_exact(&mut three).unwrap();
        assert_eq!(&three, b"old");
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(server.read(&mut three).is_err(), "nothing passes");
        links.clear();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        server.read_exact(&mut three).unwrap();
        assert_eq!(&three, b"two");
    }
}
