//! Every bound of the product, on one page.
//!
//! Owns: the numbers. Promises: a table, queue, frame or session store that clients can fill has its bound here (house section 5).
//! Does not know: who checks them.

/// A batch is closed when its payload reaches this; a larger body goes first in pieces (D5). Bytes.
pub const BATCH_TARGET: usize = 1024 * 1024;
/// What one verb may write when all of it must stand in one batch (a commit, a batch of RocketMQ messages): it gets a batch of
/// its own when it is larger than [`BATCH_TARGET`]. A batch of the log takes that and [`SECTION_SPARE`]; less where segments are
/// small. Bytes.
pub const SECTION_MAX: usize = 6 * 1024 * 1024;
/// Room in a batch beside a section: heads, and what every batch says. Bytes.
pub const SECTION_SPARE: usize = 64 * 1024;
/// Largest message accepted (AMQP `max_message_size`). Bytes.
pub const MESSAGE_MAX: u64 = 16 * 1024 * 1024;
/// Batches proposed and not yet applied.
pub const BATCHES_IN_FLIGHT: usize = 4;
/// Bytes a connection may have handed to the shard and not yet seen applied before its socket is no longer read.
pub const CONNECTION_CREDIT: usize = 2 * 1024 * 1024;
/// Bytes of publishes that uncommitted transactions of one connection hold.
pub const UNCOMMITTED_MAX: usize = 32 * 1024 * 1024;
/// Bytes of deliveries handed to a connection and not yet written to its socket.
pub const DELIVERY_CREDIT: usize = 1024 * 1024;
/// Bytes of direct replies that a connection may be behind, beside its other deliveries; further ones are dropped.
pub const REPLIES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of message contents that queues without durability may hold together, before they refuse.
pub const MEMORY_QUEUES_MAX: usize = 256 * 1024 * 1024;
/// With more bytes than this the ends of these queues are paged to the disk, where a message counts 48 bytes.
pub const MEMORY_RESIDENT: usize = 32 * 1024 * 1024;
/// A queue with fewer messages is paged only at twice that.
pub const PAGING_DEPTH: u64 = 1024;
/// Unsettled messages of one consumer without a window: about 40 bytes each.
pub const LEASES_MAX: usize = 2_000_000;
/// Bytes of deliveries given to one reader in one go.
pub const DELIVERY_TURN: usize = 256 * 1024;
/// Message queues of one RocketMQ topic.
pub const TOPIC_QUEUES_MAX: u32 = 1024;
/// Messages in one pull answer.
pub const FETCH_MESSAGES_MAX: u32 = 1024;
/// Waiting pulls on one message queue.
pub const FETCH_WAITERS_MAX: usize = 1024;
/// Longest wait of a pull, ms.
pub const FETCH_WAIT_MAX_MS: u32 = 30_000;
/// Remembered routes (exchange, key) of one topology version.
pub const ROUTE_CACHE_MAX: usize = 8192;
/// Sessions kept: one per node incarnation that still matters.
pub const SESSIONS_MAX: usize = 1024;
/// Queues in one shard.
pub const QUEUES_MAX: usize = 1_000_000;
/// Vhosts in one shard.
pub const VHOSTS_MAX: usize = 10_000;
/// Queues that go with a vhost in one batch.
pub const VHOST_DELETE_QUEUES_MAX: usize = 20_000;
/// Bindings in one shard.
pub const BINDINGS_MAX: usize = 2_000_000;
/// Offset commits kept (group × message queue).
pub const GROUP_OFFSETS_MAX: usize = 4_000_000;
/// How long a queue lock of ordered consumption holds, in log time; clients renew it every 20 s. ms.
pub const QUEUE_LOCK_MS: u64 = 60_000;
/// Queues that one request locks.
pub const LOCKED_QUEUES_MAX: usize = 4_096;
/// Settings (named values of adapters) in one shard.
pub const SETTINGS_MAX: usize = 200_000;
/// Name and value of one setting together. Bytes.
pub const SETTING_BYTES_MAX: usize = 32 * 1024;
/// Free disk space is looked at ten times as often while it changes and is no further than this above `disk_free_limit`. Bytes.
pub const DISK_NEAR: u64 = 1024 * 1024 * 1024;
/// How often disk space and memory are looked at, ms.
pub const ALARM_TICK_MS: u64 = 1_000;
/// Longest shard turn before it lets others run, µs.
pub const TURN_MAX_US: u64 = 3_000;

// Sockets and HTTP

/// Connections that wait to be accepted, per listener.
pub const ACCEPT_BACKLOG: u32 = 1024;
/// Pause after a failed accept (no file descriptors), ms.
pub const ACCEPT_PAUSE_MS: u64 = 100;
/// Connections per HTTP listener.
pub const HTTP_CONNECTIONS_MAX: usize = 64;
/// Request line and headers together. Bytes.
pub const HTTP_HEADER_MAX: usize = 16 * 1024;
/// Time for a request to arrive, from the end of the one before it, ms.
pub const HTTP_HEADER_MS: u64 = 10_000;
/// Life of an HTTP connection, ms.
pub const HTTP_CONNECTION_MS: u64 = 120_000;
/// Time for an answer on its way when its connection must end, ms.
pub const HTTP_GOODBYE_MS: u64 = 2_000;
/// Time that connections and the log get to end in when the process was asked to, ms.
pub const SHUTDOWN_MS: u64 = 20_000;
/// Body of an HTTP request. Bytes.
pub const HTTP_BODY_MAX: usize = 24 * 1024 * 1024;
/// Time for an HTTP request's body to arrive, and for the shard or a connection to answer what HTTP asks, ms.
pub const HTTP_WAIT_MS: u64 = 10_000;
/// Rows of a list made at once: what waits in memory for a slow reader, and what the shard is asked in one go.
pub const HTTP_PAGE_ROWS: usize = 256;
/// Questions that wait for one connection.
pub const CONNECTION_ASKS_MAX: usize = 16;
/// Time for a connection to describe its channels, ms.
pub const CONNECTION_ASK_MS: u64 = 1_000;
/// Queues whose figures the shard is asked for in one go.
pub const FIGURES_MAX: usize = 1_024;
/// Client connections per listener of a message protocol.
pub const CONNECTIONS_MAX: usize = 65_536;
/// Refused logins of one address that are told so at once; those after them wait.
pub const LOGIN_FAILURES_FREE: u32 = 8;
/// How long the first of them waits, ms; each further one twice as long.
pub const LOGIN_DELAY_MS: u64 = 100;
/// The longest such wait, ms: less than a handshake may take.
pub const LOGIN_DELAY_MAX_MS: u64 = 500;
/// In this time one refused login of an address is forgotten, ms.
pub const LOGIN_FORGOTTEN_MS: u64 = 2_000;
/// Addresses with refused logins that are remembered.
pub const LOGIN_ADDRESSES_MAX: usize = 4_096;
/// From the first byte of TLS to the end of the handshake, ms.
pub const TLS_HANDSHAKE_MS: u64 = 5_000;
/// Handshakes that are done at once; more wait, within their time. Each costs up to 80 KiB.
pub const TLS_HANDSHAKES_MAX: usize = 512;
/// Remembered sessions that clients may resume.
pub const TLS_SESSIONS_MAX: usize = 4_096;
/// Time that a peer gets to take our last words in TLS, ms.
pub const TLS_GOODBYE_MS: u64 = 1_000;
/// How often the files of `tls.*` are looked at, ms.
pub const TLS_RELOAD_MS: u64 = 5_000;
/// A certificate that ends sooner is warned about, days.
pub const TLS_EXPIRES_SOON_DAYS: i64 = 14;
/// Wait for the first byte where it tells TLS from plaintext, ms: Apache's idle time.
pub const FIRST_BYTE_MS: u64 = 120_000;
/// Delivered-through marks that ride in one batch.
pub const HANDED_PER_BATCH: usize = 1024;
/// Expired messages taken off the head of one queue in one turn.
pub const EXPIRED_PER_TURN: usize = 4096;
/// Queues named by one reference record; a fan-out to more stores the body once per so many.
pub const TARGETS_PER_REFERENCE: usize = 20_000;
/// Ranges in one settlement record.
pub const RANGES_PER_SETTLEMENT: usize = 30_000;
/// Messages moved or asked about in one turn of the shard: what is due waits for nobody, and nobody for it.
pub const STEPS_PER_TURN: usize = 256;
/// Bytes of messages moved in one turn of the shard.
pub const STEP_BYTES_PER_TURN: usize = 1024 * 1024;
/// A moved message's body up to this is copied, so that its old place can go; a larger one stays where it is. Bytes.
pub const MOVED_BODY_COPIED: u32 = 4 * 1024;
/// Delay levels.
pub const DELAY_LEVELS_MAX: usize = 64;
/// While something waits for its time, log time that is not in the log is at most about so long, ms.
pub const LOG_TIME_STEP_MS: u64 = 30_000;

// Users and permissions

/// Largest definitions file. Bytes.
pub const DEFINITIONS_MAX: u64 = 64 * 1024 * 1024;
/// Longest permission pattern. Bytes.
pub const PATTERN_MAX: usize = 4096;
/// Memory of one compiled permission pattern. Bytes.
pub const PATTERN_COMPILED_MAX: usize = 1024 * 1024;
/// Verdicts that one connection remembers for each of the three permissions.
pub const VERDICTS_MAX: usize = 256;
/// Users and virtual hosts whose connections are counted, before those without any are forgotten.
pub const COUNTED_NAMES_SWEEP: usize = 4096;

// Retention

/// How often retention looks at the log, ms; and while it is over its limit.
pub const RETENTION_LOOK_MS: u64 = 10_000;
/// See [`RETENTION_LOOK_MS`].
pub const RETENTION_HURRY_MS: u64 = 1_000;
/// Topic messages trimmed in one turn of the shard.
pub const TRIMS_PER_TURN: u64 = 16_384;
/// A segment goes when nothing has lived there for so long: who was just handed a place in it reads it first. ms.
pub const RETIRE_AFTER_MS: u64 = 3_000;
/// A segment is emptied when at most this much of it lives in queues. Percent of its bytes.
pub const REHOME_SHARE_PERCENT: u64 = 10;
/// And when it is so old, unless room is wanted at once. ms of log time.
pub const REHOME_AGE_MS: u64 = 3_600_000;
/// Entries looked at to find segments of which little lives, in one look.
pub const REHOME_WALK: usize = 65_536;
/// Segments emptied for their age in one look.
pub const REHOME_SEGMENTS: usize = 4;
/// Moved messages that one queue remembers; what does not fit stays where it is.
pub const REHOMED_PER_QUEUE: usize = 65_536;

// Producers' retries

/// Sends that are remembered, so that a producer's retry is known: about 150 bytes each, 10 MiB in all; a checkpoint holds 93 of each.
pub const RECENT_SENDS: usize = 65_536;
/// So long they are remembered, ms of log time.
pub const RECENT_SEND_MS: u64 = 60_000;
/// An answer that left the core so long ago has reached its client, ms. A retry that comes behind it is a message of its own.
pub const SEND_SETTLED_MS: u64 = 200;
/// A send that may be a retry waits so long for the fate of the first attempt, ms.
pub const REPEAT_WAIT_MS: u64 = 1_000;

// Peers

/// Longest message between a front end and the leader: what one client may have handed over at once, many times. Bytes.
pub const FRONT_MESSAGE_MAX: usize = 64 * 1024 * 1024;
/// Longest frame between two nodes: one read of the log for a peer (4 MiB) with room for what stands around it. Bytes.
pub const PEER_FRAME: usize = 8 * 1024 * 1024;
/// Time for a connection between two nodes to be made, TLS and introduction together, ms.
pub const PEER_HANDSHAKE_MS: u64 = 1_000;
/// Strangers that introduce themselves at once; further ones are turned away.
pub const PEER_HANDSHAKES_MAX: usize = 512;
/// Connections from other nodes.
pub const PEER_CONNECTIONS_MAX: usize = 256;
/// What a node says of itself before it is believed. Bytes.
pub const PEER_CARD_MAX: usize = 1024;
/// Requests of one peer that wait for their answers; it is not read meanwhile.
pub const PEER_REQUESTS_MAX: usize = 8;
/// One complaint about peers that are turned away in so long, ms; the next says how many there were.
pub const PEER_COMPLAINT_MS: u64 = 1_000;
/// First wait before a lost connection to a peer is made again, ms; it doubles.
pub const PEER_BACKOFF_MIN_MS: u64 = 20;
/// Longest such wait, ms.
pub const PEER_BACKOFF_MAX_MS: u64 = 1_000;

// Copies to nodes that are far behind

/// Log that is kept below the newest checkpoint for members that lack it. Bytes.
pub const KEEP_LOG: u64 = 1024 * 1024 * 1024;
/// A copy is given up when nothing of it moves for so long, ms.
pub const COPY_PATIENCE_MS: u64 = 30_000;
/// Time for the receiver to verify a copy, ms.
pub const COPY_VERIFY_MS: u64 = 600_000;
/// Time to hear why a peer has closed a copy, ms.
pub const COPY_LAST_WORDS_MS: u64 = 1_000;
/// Wait before a copy that failed, or whose receiver starts again, is offered once more, ms.
pub const COPY_RETRY_MS: u64 = 1_000;
/// So long after a copy the log behind it is kept: its receiver starts again meanwhile. ms.
pub const COPY_HOLD_MS: u64 = 60_000;
/// Offers of copies that wait for the one before them to be given up.
pub const COPIES_WAITING: usize = 4;
