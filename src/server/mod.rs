//! Sockets: what every listener shares.
//!
//! Owns: binding, accepting, the bound on connections, and the word that everything ends ([`Stop`]).
//! Promises: a port that can not be had is one line naming it; a connection task's panic ends that connection alone; no file
//! descriptor left means a pause, not an end.
//! Does not know: protocols. No broker state lives below here.

mod across;
mod across_back;
pub mod amqp;
mod brake;
mod death;
pub mod health;
pub mod http;
mod input;
pub mod registry;
pub mod rocketmq;
pub mod semantics;
mod spare;
mod steps;
pub mod tls;
mod transport;

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::config::{Address, LOOPBACK};
use crate::limits;
use crate::metrics::Metrics;

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[error("can not listen on {address} ({key}): {cause}")]
pub struct BindError {
    /// The configuration key, e.g. `amqp.listen`.
    pub key: &'static str,
    /// As configured.
    pub address: Address,
    /// The system's words.
    pub cause: io::Error,
}

/// Listens on all of `addresses`, which the configuration calls `key`. Of several addresses behind a name the first that works is
/// taken; `localhost` are both loopback addresses, as far as the machine has them.
///
/// # Errors
/// [`BindError`]: a name is unknown, a port is busy or not allowed.
pub async fn bind(addresses: &[Address], key: &'static str) -> Result<Vec<TcpListener>, BindError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let fail = |cause| BindError { key, address: address.clone(), cause };
        if address.host == LOOPBACK {
            let first = bind_one((Ipv4Addr::LOCALHOST, address.port).into()).map_err(fail)?;
            // Clients that look `localhost` up mostly try ::1 first; they meet the same port there.
            let port = first.local_addr().map_err(fail)?.port();
            listeners.push(first);
            match bind_one((Ipv6Addr::LOCALHOST, port).into()) {
                Ok(second) => listeners.push(second),
                // The system chose the port: nobody was promised it on the other side too.
                Err(_) if address.port == 0 => {}
                Err(error) if has_no_such_address(&error) => {}
                Err(error) => return Err(fail(error)),
            }
            continue;
        }
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let mut bound = None;
        for candidate in lookup_host((&*address.host, address.port)).await.map_err(fail)? {
            match bind_one(candidate) {
                Ok(listener) => bound = Some(listener),
                Err(error) => last = error,
            }
            if bound.is_some() {
                break;
            }
        }
        listeners.push(bound.ok_or_else(|| fail(last))?);
    }
    Ok(listeners)
}

/// The machine has no IPv6, or not on the loopback interface.
fn has_no_such_address(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without it a restart would wait a minute for the old connections' TIME_WAIT. It does not let two processes share a port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::ACCEPT_BACKLOG)
}

/// A listener of a message protocol.
#[derive(Debug)]
pub struct Door {
    /// Bound.
    pub listener: TcpListener,
    /// What the configuration calls it.
    pub key: &'static str,
    /// Connections at once.
    pub most: usize,
    /// Who may come through it.
    pub entrance: tls::Entrance,
}

/// Accepts until `stop`, runs `connection` in a task for each, then waits until all tasks have ended: they have a `Stop` of
/// their own. More than `most` at once: the newest is closed at once.
pub async fn serve<Connect, Task>(
    listener: TcpListener,
    key: &'static str,
    most: usize,
    stop: Stop,
    metrics: Arc<Metrics>,
    connection: Connect,
) where
    Connect: Fn(TcpStream, SocketAddr) -> Task,
    Task: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut full = false;
    loop {
        tokio::select! {
            () = stop.requested() => break,
            Some(ended) = connections.join_next() => report(key, &metrics, ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < most => {
                    full = false;
                    // Frames are written whole; waiting for more to send would only add latency.
                    let _ = stream.set_nodelay(true);
                    connections.spawn(connection(stream, peer));
                }
                Ok((_, peer)) => {
                    if !full {
                        tracing::warn!("{key} has {most} connections, the most it takes: closing {peer} and others");
                    }
                    full = true;
                }
                Err(error) => pause(key, &error).await,
            },
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        report(key, &metrics, ended);
    }
}

/// A peer that left while it waited costs nothing. Anything else (no file descriptors, no memory) stays true for a while, and
/// the waiting connection stays in the backlog: without a pause this would be a loop at full speed.
async fn pause(key: &str, error: &io::Error) {
    let peer_left =
        [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if !peer_left.contains(&error.kind()) {
        tracing::warn!("{key} can not accept a connection now: {error}");
        tokio::time::sleep(Duration::from_millis(limits::ACCEPT_PAUSE_MS)).await;
    }
}

fn report(key: &str, metrics: &Metrics, ended: Result<(), JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        metrics.connection_panics.inc();
        tracing::error!("a connection of {key} was closed by a defect of the broker (see the panic above)");
    }
}

/// Tells everybody to end. Dropping it tells them too.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Knows when to end. Clone it for every task.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stopper {
    /// The pair.
    #[must_use]
    pub fn new() -> (Self, Stop) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Stop(receiver))
    }

    /// End.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Waits until it is time to end. Cancel safe.
    pub async fn requested(&self) {
        // An error means that the sender is gone, which says the same.
        let _ = self.0.clone().wait_for(|stop| *stop).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn local(port: u16) -> [Address; 1] {
        [Address { host: "127.0.0.1".into(), port }]
    }

    async fn one(key: &'static str) -> TcpListener {
        bind(&local(0), key).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn localhost_is_both_loopbacks_on_one_port_as_far_as_the_machine_has_them() {
        let both = bind(&[Address { host: LOOPBACK.into(), port: 0 }], "test").await.unwrap();
        let addresses: Vec<SocketAddr> = both.iter().map(|l| l.local_addr().unwrap()).collect();
        assert_eq!(addresses[0].ip(), Ipv4Addr::LOCALHOST);
        if TcpListener::bind("[::1]:0").await.is_ok() {
            assert_eq!(addresses[1].ip(), Ipv6Addr::LOCALHOST);
            assert_eq!(addresses[1].port(), addresses[0].port());
        }
    }

    #[tokio::test]
    async fn a_busy_port_is_named_with_its_key() {
        let first = one("amqp.listen").await;
        let port = first.local_addr().unwrap().port();
        let error = bind(&local(port), "amqp.listen").await.unwrap_err().to_string();
        assert!(error.starts_with(&format!(
            "can not listen on 127.0.0.1:{port} (amqp.listen): Address already in use"
        )));
    }

    #[tokio::test]
    async fn a_panic_ends_its_connection_and_nothing_else() {
        let metrics = Metrics::new();
        let listener = one("test").await;
        let address = listener.local_addr().unwrap();
        let (stopper, stop) = Stopper::new();
        let server = tokio::spawn(serve(
            listener,
            "test",
            8,
            stop,
            Arc::clone(&metrics),
            |mut stream: TcpStream, _| async move {
                let wish = stream.read_u8().await.unwrap();
                assert_ne!(wish, b'p', "asked to panic");
                stream.write_u8(wish).await.unwrap();
            },
        ));
        let mut bad = TcpStream::connect(address).await.unwrap();
        bad.write_u8(b'p').await.unwrap();
        assert!(bad.read_u8().await.is_err());
        let mut good = TcpStream::connect(address).await.unwrap();
        good.write_u8(b'x').await.unwrap();
        assert_eq!(good.read_u8().await.unwrap(), b'x');
        stopper.stop();
        server.await.unwrap();
        assert_eq!(metrics.connection_panics.get(), 1);
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_the_others_stay() {
        let listener = one("test").await;
        let address = listener.local_addr().unwrap();
        let (stopper, stop) = Stopper::new();
        let server = tokio::spawn(serve(
            listener,
            "test",
            1,
            stop,
            Metrics::new(),
            |mut stream: TcpStream, _| async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            },
        ));
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_u8(1).await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), 1);
        let mut second = TcpStream::connect(address).await.unwrap();
        assert!(second.read_u8().await.is_err());
        first.write_u8(2).await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), 2);
        drop(first);
        stopper.stop();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_dropped_stopper_stops_too() {
        let (stopper, stop) = Stopper::new();
        drop(stopper);
        stop.requested().await;
    }
}
