//! What every lapin scenario needs: the registry, connections, waiting, and expected refusals.
//!
//! A scenario is an async function of a [`Context`]; it passes by returning, fails by panicking (unwrap and assert are
//! its checks) and skips by [`skip`]. Names it takes from the context are unique and deleted afterwards, so that
//! scenarios can share one long-lived broker.

use futures_lite::StreamExt;
use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::*;
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use std::future::Future;
use std::pin::Pin;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// Long enough for a restart of the broker and for what is waited for within a scenario.
const SCENARIO: Duration = Duration::from_secs(180);
const WAIT: Duration = Duration::from_secs(10);

type Body = Box<dyn Fn(Context) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

pub struct Scenario {
    name: &'static str,
    body: Body,
}

pub fn scenario<F, R>(name: &'static str, body: F) -> Scenario
where
    F: Fn(Context) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    Scenario { name, body: Box::new(move |context| Box::pin(body(context))) }
}

struct Skip(&'static str);

/// Ends the scenario as one that can not run here.
pub fn skip(reason: &'static str) -> ! {
    std::panic::resume_unwind(Box::new(Skip(reason)))
}

/// Runs the scenarios named in INTEROP_ONLY (all when it is not set) and prints a line for each.
pub async fn run(scenarios: Vec<Scenario>) -> ExitCode {
    let only = std::env::var("INTEROP_ONLY").unwrap_or_default();
    let wanted: Vec<&str> = match only.as_str() {
        "" => scenarios.iter().map(|scenario| scenario.name).collect(),
        names => names.split(',').collect(),
    };
    let mut all_well = true;
    for name in wanted {
        let line = match scenarios.iter().find(|scenario| scenario.name == name) {
            Some(scenario) => run_one(scenario).await,
            None => format!("FAIL {name}: this client has no such scenario"),
        };
        all_well &= !line.starts_with("FAIL");
        println!("{line}");
    }
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run_one(scenario: &Scenario) -> String {
    let name = scenario.name;
    let context = Context::default();
    let task = tokio::spawn((scenario.body)(context.clone()));
    let abort = task.abort_handle();
    let outcome = tokio::time::timeout(SCENARIO, task).await;
    abort.abort();
    let clean_up = tokio::spawn(async move { context.clean_up().await }).await;
    match outcome {
        Err(_) => format!("FAIL {name}: not done after {} s", SCENARIO.as_secs()),
        Ok(Err(error)) => {
            let panic = error.into_panic();
            match panic.downcast_ref::<Skip>() {
                Some(Skip(reason)) => format!("skip {name}: {reason}"),
                None => format!("FAIL {name}: {}", panic_text(&*panic)),
            }
        }
        Ok(Ok(())) => match clean_up {
            Err(error) => format!("FAIL {name}: cleaning up: {}", panic_text(&*error.into_panic())),
            Ok(()) => format!("ok {name}"),
        },
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panic").split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect()
}

/// One scenario's view of the broker.
#[derive(Clone, Default)]
pub struct Context {
    names: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
}

pub fn address() -> String {
    std::env::var("INTEROP_AMQP").expect("INTEROP_AMQP must be host:port")
}

pub async fn open(address: &str, login: &str, vhost: &str, query: &str) -> lapin::Result<Connection> {
    let Ok(authority) = std::env::var("INTEROP_TLS_CA") else {
        let uri = format!("amqp://{login}@{address}/{vhost}?{query}");
        return Connection::connect(&uri, ConnectionProperties::default()).await;
    };
    let pem = std::fs::read_to_string(authority).expect("the authority's PEM file");
    let tls = OwnedTLSConfig { identity: None, cert_chain: Some(pem) };
    let uri = format!("amqps://{login}@{address}/{vhost}?{query}");
    let runtime = lapin::runtime::default_runtime()?;
    Connection::connect_with_config(&uri, ConnectionProperties::default(), tls, runtime).await
}

impl Context {
    /// A name nobody else uses. A queue and an exchange of that name are deleted after the scenario.
    pub fn name(&self, kind: &str) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() & 0xff_ffff_ffff;
        let name = format!("interop.{kind}.{now:x}.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.names.lock().unwrap().push(name.clone());
        name
    }

    pub fn keep(&self, connection: Connection) -> Arc<Connection> {
        let connection = Arc::new(connection);
        self.connections.lock().unwrap().push(connection.clone());
        connection
    }

    pub async fn connect(&self) -> Arc<Connection> {
        self.keep(open(&address(), "guest:guest", "%2f", "").await.unwrap())
    }

    /// A channel on a connection of its own.
    pub async fn channel(&self) -> Channel {
        self.connect().await.create_channel().await.unwrap()
    }

    pub async fn confirming(&self) -> Channel {
        let channel = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        channel
    }

    /// A queue with a unique name, neither durable nor exclusive nor auto-delete.
    pub async fn queue(&self, channel: &Channel, kind: &str) -> String {
        let queue = self.name(kind);
        declare(channel, &queue, QueueDeclareOptions::default()).await.unwrap();
        queue
    }

    pub async fn exchange(&self, channel: &Channel, kind: ExchangeKind) -> String {
        let exchange = self.name("exchange");
        declare_exchange(channel, &exchange, kind, ExchangeDeclareOptions::default()).await.unwrap();
        exchange
    }

    pub async fn queue_exists(&self, queue: &str) -> bool {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        exists(declare(&self.channel().await, queue, passive).await)
    }

    pub async fn exchange_exists(&self, exchange: &str) -> bool {
        let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
        exists(declare_exchange(&self.channel().await, exchange, ExchangeKind::Direct, passive).await)
    }

    pub async fn wait_gone(&self, queue: &str) {
        let deadline = Instant::now() + WAIT;
        while self.queue_exists(queue).await {
            assert!(Instant::now() < deadline, "waited for {queue} to go");
        }
    }

    async fn clean_up(&self) {
        let connections = std::mem::take(&mut *self.connections.lock().unwrap());
        for connection in connections {
            let _ = connection.close(200, "done".into()).await; // some scenarios have lost theirs
        }
        let names = std::mem::take(&mut *self.names.lock().unwrap());
        if !names.is_empty() {
            let connection = open(&address(), "guest:guest", "%2f", "").await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            for name in names {
                channel.queue_delete(short(&name), QueueDeleteOptions::default()).await.unwrap();
                channel.exchange_delete(short(&name), ExchangeDeleteOptions::default()).await.unwrap();
            }
            connection.close(200, "done".into()).await.unwrap();
        }
    }
}

fn exists<T>(passive: lapin::Result<T>) -> bool {
    match passive {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(close_of(&error).0, 404, "reply code");
            false
        }
    }
}

/// Restarts the broker by `term` or `kill`; it is ready again on return.
pub async fn restart(how: &str) {
    let hook = std::env::var("DASSIE_RESTART").unwrap();
    let done = tokio::process::Command::new("sh")
        .arg("-c")
        .arg(format!("{hook} {how}"))
        .stdin(Stdio::null())
        .output()
        .await;
    let done = done.unwrap();
    assert!(done.status.success(), "restart hook: {}", String::from_utf8_lossy(&done.stderr));
}

pub fn needs_restart() {
    if std::env::var("DASSIE_RESTART").unwrap_or_default().is_empty() {
        skip("no restart hook (DASSIE_RESTART is not set)");
    }
}

pub fn short(text: &str) -> ShortString {
    text.into()
}

/// A header or argument table.
pub fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

pub fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

pub async fn declare(
    channel: &Channel,
    queue: &str,
    options: QueueDeclareOptions,
) -> lapin::Result<lapin::Queue> {
    channel.queue_declare(short(queue), options, FieldTable::default()).await
}

pub async fn declare_exchange(
    channel: &Channel,
    name: &str,
    kind: ExchangeKind,
    options: ExchangeDeclareOptions,
) -> lapin::Result<()> {
    channel.exchange_declare(short(name), kind, options, FieldTable::default()).await
}

/// A server-named exclusive queue.
pub async fn private_queue(channel: &Channel) -> String {
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    declare(channel, "", exclusive).await.unwrap().name().to_string()
}

pub async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> lapin::Result<()> {
    channel
        .queue_bind(
            short(queue),
            short(exchange),
            short(key),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
}

pub async fn unbind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> lapin::Result<()> {
    channel.queue_unbind(short(queue), short(exchange), short(key), FieldTable::default()).await
}

pub async fn bind_exchange(channel: &Channel, to: &str, from: &str, key: &str) -> lapin::Result<()> {
    channel
        .exchange_bind(
            short(to),
            short(from),
            short(key),
            ExchangeBindOptions::default(),
            FieldTable::default(),
        )
        .await
}

pub async fn unbind_exchange(channel: &Channel, to: &str, from: &str, key: &str) -> lapin::Result<()> {
    channel
        .exchange_unbind(
            short(to),
            short(from),
            short(key),
            ExchangeUnbindOptions::default(),
            FieldTable::default(),
        )
        .await
}

/// m0, m1, …
pub fn sequence(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("m{number}")).collect()
}

pub fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

/// Publishes; on a confirming channel waits until each is acked.
pub async fn publish_with<B: AsRef<[u8]>>(
    channel: &Channel,
    exchange: &str,
    key: &str,
    properties: &BasicProperties,
    bodies: &[B],
) {
    let mut confirms = Vec::new();
    for body in bodies {
        let options = BasicPublishOptions::default();
        confirms.push(
            channel
                .basic_publish(short(exchange), short(key), options, body.as_ref(), properties.clone())
                .await
                .unwrap(),
        );
    }
    for confirm in confirms {
        assert!(!confirm.await.unwrap().is_nack(), "a publish was nacked");
    }
}

pub async fn publish<B: AsRef<[u8]>>(channel: &Channel, exchange: &str, key: &str, bodies: &[B]) {
    publish_with(channel, exchange, key, &BasicProperties::default(), bodies).await;
}

/// basic.get without an ack.
pub async fn take(channel: &Channel, queue: &str) -> BasicGetMessage {
    let message = channel.basic_get(short(queue), BasicGetOptions::default()).await.unwrap();
    message.unwrap_or_else(|| panic!("{queue} is empty"))
}

/// basic.get with automatic acknowledgement.
pub async fn get(channel: &Channel, queue: &str) -> Option<BasicGetMessage> {
    channel.basic_get(short(queue), BasicGetOptions { no_ack: true }).await.unwrap()
}

/// Body and redelivered flag.
pub fn outline(delivery: &Delivery) -> (String, bool) {
    (String::from_utf8(delivery.data.clone()).unwrap(), delivery.redelivered)
}

/// The bodies of everything ready, removed.
pub async fn drain(channel: &Channel, queue: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    while let Some(message) = get(channel, queue).await {
        bodies.push(outline(&message.delivery).0);
    }
    bodies
}

/// Ready messages and consumers.
pub async fn counts(channel: &Channel, queue: &str) -> (u32, u32) {
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = declare(channel, queue, passive).await.unwrap();
    (queue.message_count(), queue.consumer_count())
}

/// Requeues and ends of consumers are not answered: this is how they are seen.
pub async fn wait_counts(channel: &Channel, queue: &str, ready: u32, consumers: u32) {
    let deadline = Instant::now() + WAIT;
    loop {
        let now = counts(channel, queue).await;
        if now == (ready, consumers) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "waited for {ready} ready messages and {consumers} consumers, have {now:?}"
        );
    }
}

pub async fn ack(channel: &Channel, tag: u64, multiple: bool) {
    channel.basic_ack(tag, BasicAckOptions { multiple }).await.unwrap();
}

/// Waits for a condition that other tasks bring about.
pub async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {} s for {what}", WAIT.as_secs());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[derive(Clone, Debug)]
pub struct Message {
    pub tag: u64,
    pub exchange: String,
    pub routing_key: String,
    pub redelivered: bool,
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

impl Message {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn outline(&self) -> (String, bool) {
        (self.text(), self.redelivered)
    }
}

#[derive(Default)]
struct Received {
    messages: Vec<Message>,
    /// How the consumer ended: cancelled by the broker (None) or with its channel's error.
    end: Option<Option<lapin::Error>>,
}

/// A consumer and what it has received so far.
#[derive(Clone)]
pub struct Inbox {
    pub channel: Channel,
    pub consumer_tag: ShortString,
    received: Arc<Mutex<Received>>,
}

impl Inbox {
    pub async fn open(channel: &Channel, queue: &str, options: BasicConsumeOptions) -> lapin::Result<Inbox> {
        let mut consumer =
            channel.basic_consume(short(queue), short(""), options, FieldTable::default()).await?;
        let received = Arc::new(Mutex::new(Received::default()));
        let inbox =
            Inbox { channel: channel.clone(), consumer_tag: consumer.tag(), received: received.clone() };
        tokio::spawn(async move {
            let mut end = None;
            while let Some(next) = consumer.next().await {
                match next {
                    Ok(delivery) => received.lock().unwrap().messages.push(Message {
                        tag: delivery.delivery_tag,
                        exchange: delivery.exchange.to_string(),
                        routing_key: delivery.routing_key.to_string(),
                        redelivered: delivery.redelivered,
                        properties: delivery.properties,
                        body: delivery.data,
                    }),
                    Err(error) => end = end.or(Some(error)),
                }
            }
            received.lock().unwrap().end = Some(end);
        });
        Ok(inbox)
    }

    pub async fn consume(channel: &Channel, queue: &str) -> Inbox {
        Inbox::open(channel, queue, BasicConsumeOptions::default()).await.unwrap()
    }

    pub async fn auto_ack(channel: &Channel, queue: &str) -> Inbox {
        Inbox::open(channel, queue, BasicConsumeOptions { no_ack: true, ..Default::default() }).await.unwrap()
    }

    /// A consumer of nothing, which lives to see why its channel is closed: what is refused without having been asked
    /// for an answer (a publish, an ack) is told to consumers only.
    pub async fn witness(channel: &Channel) -> Inbox {
        let queue = private_queue(channel).await;
        Inbox::auto_ack(channel, &queue).await
    }

    pub async fn sees_refusal(&self, code: u16, fragments: &[&str]) {
        wait_until("the channel to be closed", || self.ended()).await;
        let end = self.received.lock().unwrap().end.clone().flatten();
        refused::<()>(Err(end.expect("the consumer ended without an error")), code, fragments);
    }

    pub fn ended(&self) -> bool {
        self.received.lock().unwrap().end.is_some()
    }

    pub fn messages(&self) -> Vec<Message> {
        self.received.lock().unwrap().messages.clone()
    }

    pub fn len(&self) -> usize {
        self.received.lock().unwrap().messages.len()
    }

    pub fn texts(&self) -> Vec<String> {
        self.messages().iter().map(Message::text).collect()
    }

    pub fn outlines(&self) -> Vec<(String, bool)> {
        self.messages().iter().map(Message::outline).collect()
    }

    /// Waits for `count` messages in all and returns them.
    pub async fn wait(&self, count: usize) -> Vec<Message> {
        wait_until(&format!("{count} messages"), || self.len() >= count).await;
        assert_eq!(self.len(), count, "number of messages received: {:?}", self.texts());
        self.messages()
    }

    pub async fn cancel(&self) {
        self.channel.basic_cancel(self.consumer_tag.clone(), BasicCancelOptions::default()).await.unwrap();
    }
}

/// The code and text with which the broker closed the channel or connection.
fn close_of(error: &lapin::Error) -> (u16, String) {
    match error.kind() {
        ErrorKind::ProtocolError(close) => (close.get_id(), close.get_message().to_string()),
        other => panic!("no close from the broker: {other:?}"),
    }
}

#[track_caller]
pub fn refused<T>(result: lapin::Result<T>, code: u16, fragments: &[&str]) {
    let Err(error) = result else { panic!("expected {code} {fragments:?}, but nothing was refused") };
    let (actual, text) = close_of(&error);
    assert_eq!(actual, code, "reply code ({text})");
    for fragment in fragments {
        assert!(text.contains(fragment), "'{fragment}' is not in the reply text '{text}'");
    }
}

/// Forwards one connection to the broker, so that it can be cut as a failing network or a killed client would.
pub struct Proxy {
    pub address: String,
    forwarding: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy_address = listener.local_addr().unwrap().to_string();
        let forwarding = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(address()).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            let _ = client.shutdown().await;
        });
        Proxy { address: proxy_address, forwarding }
    }

    /// Dropping both sockets closes them, whatever is still under way.
    pub fn cut(&self) {
        self.forwarding.abort();
    }
}
