// librabbitmq (C) against an AMQP broker: see ../README.md for the environment it reads and the lines it prints.
//
// The library is a thin layer over the wire: one connection a thread, no callbacks, no recovery. A scenario here uses
// connections with one channel each. Whatever fails jumps back to the loop over the scenarios.

#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 32, CHANNEL = 1, WAIT = 10, SCENARIO_SECONDS = 60 };

typedef amqp_connection_state_t conn;

static jmp_buf failed;
static char reason[1024];
static conn connections[MOST];
static int connection_count;
static char names[MOST][64];
static int name_count;
static char host[64];
static int port;

static void fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(reason, sizeof reason, format, values);
  va_end(values);
  longjmp(failed, 1);
}

#define CHECK(condition, ...) \
  do {                        \
    if (!(condition)) fail(__VA_ARGS__); \
  } while (0)

static amqp_bytes_t text(const char *value) { return amqp_cstring_bytes(value); }

static bool same(amqp_bytes_t bytes, const char *value) {
  return bytes.len == strlen(value) && memcmp(bytes.bytes, value, bytes.len) == 0;
}

static void equal_text(const char *what, amqp_bytes_t actual, const char *expected) {
  CHECK(same(actual, expected), "%s: expected '%s', got '%.*s'", what, expected, (int)actual.len, (char *)actual.bytes);
}

static void equal(const char *what, int64_t actual, int64_t expected) {
  CHECK(actual == expected, "%s: expected %" PRId64 ", got %" PRId64, what, expected, actual);
}

// A name nobody else uses. A queue and an exchange of that name are deleted after the scenario.
static const char *name(const char *kind) {
  CHECK(name_count < MOST, "too many names");
  snprintf(names[name_count], sizeof names[0], "interop.c.%s.%x.%d.%d", kind, (unsigned)time(NULL), (int)getpid(), rand());
  return names[name_count++];
}

// --- connections

static void close_reply(amqp_rpc_reply_t reply, int *code, amqp_bytes_t *words) {
  *code = 0;
  if (reply.reply_type != AMQP_RESPONSE_SERVER_EXCEPTION) return;
  if (reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD) {
    amqp_channel_close_t *close = reply.reply.decoded;
    *code = close->reply_code, *words = close->reply_text;
  } else if (reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD) {
    amqp_connection_close_t *close = reply.reply.decoded;
    *code = close->reply_code, *words = close->reply_text;
  }
}

static void must(const char *what, amqp_rpc_reply_t reply) {
  int code;
  amqp_bytes_t words = amqp_empty_bytes;
  close_reply(reply, &code, &words);
  if (code) fail("%s: %d %.*s", what, code, (int)words.len, (char *)words.bytes);
  CHECK(reply.reply_type == AMQP_RESPONSE_NORMAL, "%s: %s", what,
        reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION ? amqp_error_string2(reply.library_error) : "no answer");
}

static void refused(amqp_rpc_reply_t reply, int code, const char *format, ...) {
  char expected[300];
  va_list values;
  va_start(values, format);
  vsnprintf(expected, sizeof expected, format, values);
  va_end(values);
  int actual;
  amqp_bytes_t words = amqp_empty_bytes;
  close_reply(reply, &actual, &words);
  CHECK(actual == code && memmem(words.bytes, words.len, expected, strlen(expected)), "expected %d %s, got %d %.*s", code,
        expected, actual, (int)words.len, (char *)words.bytes);
}

static void sent(int status) { CHECK(status == AMQP_STATUS_OK, "sending: %s", amqp_error_string2(status)); }

static amqp_rpc_reply_t try_login(const char *vhost, int channels, int frame, int heartbeat, const char *password, conn *opened) {
  CHECK(connection_count < MOST, "too many connections");
  conn state = connections[connection_count++] = *opened = amqp_new_connection();
  const char *authority = getenv("INTEROP_TLS_CA");
  amqp_socket_t *socket = authority ? amqp_ssl_socket_new(state) : amqp_tcp_socket_new(state);
  if (authority) {
    sent(amqp_ssl_socket_set_cacert(socket, authority));
    amqp_ssl_socket_set_verify_peer(socket, 1);
    amqp_ssl_socket_set_verify_hostname(socket, 1);
  }
  struct timeval limit = {WAIT, 0};
  // The library compares the certificate with host names only, never with addresses.
  sent(amqp_socket_open_noblock(socket, authority ? "localhost" : host, port, &limit));
  amqp_set_handshake_timeout(state, &limit);
  amqp_set_rpc_timeout(state, &limit);
  // Without this the broker never tells of a consumer's end.
  amqp_table_entry_t notify = {text("consumer_cancel_notify"), {AMQP_FIELD_KIND_BOOLEAN, {.boolean = 1}}};
  amqp_table_entry_t capabilities = {text("capabilities"), {AMQP_FIELD_KIND_TABLE, {.table = {1, &notify}}}};
  amqp_table_t more = {1, &capabilities};
  return amqp_login_with_properties(state, vhost, channels, frame, heartbeat, &more, AMQP_SASL_METHOD_PLAIN, "guest", password);
}

static conn connection(void) {
  conn state;
  must("login", try_login("/", 0, 131072, 0, "guest", &state));
  amqp_channel_open(state, CHANNEL);
  must("channel.open", amqp_get_rpc_reply(state));
  return state;
}

static conn confirming(void) {
  conn state = connection();
  amqp_confirm_select(state, CHANNEL);
  must("confirm.select", amqp_get_rpc_reply(state));
  return state;
}

static void close_channel(conn state) { must("channel.close", amqp_channel_close(state, CHANNEL, AMQP_REPLY_SUCCESS)); }

// --- what the scenarios do all the time

enum { TRANSIENT = 0, DURABLE = 1, PASSIVE = 2, EXCLUSIVE = 4, AUTO_DELETE = 8 };

static amqp_queue_declare_ok_t *try_declare(conn state, const char *queue, int flags) {
  return amqp_queue_declare(state, CHANNEL, text(queue), !!(flags & PASSIVE), !!(flags & DURABLE), !!(flags & EXCLUSIVE),
                            !!(flags & AUTO_DELETE), amqp_empty_table);
}

static amqp_queue_declare_ok_t *declare(conn state, const char *queue, int flags) {
  amqp_queue_declare_ok_t *ok = try_declare(state, queue, flags);
  must("queue.declare", amqp_get_rpc_reply(state));
  return ok;
}

static int ready(conn state, const char *queue) { return (int)declare(state, queue, PASSIVE)->message_count; }

static void wait_ready(conn state, const char *queue, int count) {
  for (time_t end = time(NULL) + WAIT; ready(state, queue) != count; usleep(5000)) {
    CHECK(time(NULL) < end, "waited %d s for %d ready messages", WAIT, count);
  }
}

static void declare_exchange(conn state, const char *exchange, const char *type) {
  amqp_exchange_declare(state, CHANNEL, text(exchange), text(type), 0, 0, 0, 0, amqp_empty_table);
  must("exchange.declare", amqp_get_rpc_reply(state));
}

static void bind(conn state, const char *queue, const char *exchange, const char *key, amqp_table_t arguments) {
  amqp_queue_bind(state, CHANNEL, text(queue), text(exchange), text(key), arguments);
  must("queue.bind", amqp_get_rpc_reply(state));
}

static void publish_to(conn state, const char *exchange, const char *key, const char *body, amqp_basic_properties_t *properties) {
  sent(amqp_basic_publish(state, CHANNEL, text(exchange), text(key), 0, 0, properties, text(body)));
}

static void publish(conn state, const char *queue, const char *body) { publish_to(state, "", queue, body, NULL); }

// A queue with m0, m1, …
static const char *filled(conn state, int count) {
  const char *queue = name("queue");
  declare(state, queue, TRANSIENT);
  for (int i = 0; i < count; i++) {
    char body[16];
    snprintf(body, sizeof body, "m%d", i);
    publish(state, queue, body);
  }
  wait_ready(state, queue, count);
  return queue;
}

// Waits for a method and copies its frame; what else arrives fails.
static amqp_frame_t expect(conn state, amqp_method_number_t method) {
  amqp_frame_t frame;
  struct timeval limit = {WAIT, 0};
  sent(amqp_simple_wait_frame_noblock(state, &frame, &limit));
  CHECK(frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == method, "expected %s, got %s",
        amqp_method_name(method), frame.frame_type == AMQP_FRAME_METHOD ? amqp_method_name(frame.payload.method.id) : "another frame");
  return frame;
}

// Waits for the confirms of these tags, in any order, each once. A multiple one stands for all before it.
static void confirmed(conn state, uint64_t from, uint64_t to) {
  bool seen[1000] = {false};
  for (uint64_t open = to - from + 1; open > 0;) {
    amqp_frame_t frame = expect(state, AMQP_BASIC_ACK_METHOD);
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    uint64_t tag = ack->delivery_tag;
    CHECK(tag >= from && tag <= to && !seen[tag - from], "confirm of %" PRIu64 ", which is not open", tag);
    for (uint64_t each = ack->multiple ? from : tag; each <= tag; each++) {
      if (!seen[each - from]) open--;
      seen[each - from] = true;
    }
    amqp_maybe_release_buffers(state);
  }
}

static void consume(conn state, const char *queue, bool no_ack) {
  amqp_basic_consume(state, CHANNEL, text(queue), amqp_empty_bytes, 0, no_ack, 0, amqp_empty_table);
  must("basic.consume", amqp_get_rpc_reply(state));
}

// The next delivery must be this one.
static uint64_t delivered(conn state, const char *body, bool redelivered) {
  amqp_envelope_t envelope;
  struct timeval limit = {WAIT, 0};
  amqp_maybe_release_buffers(state);
  must("waiting for a delivery", amqp_consume_message(state, &envelope, &limit, 0));
  equal_text("body", envelope.message.body, body);
  equal("redelivered", envelope.redelivered, redelivered);
  uint64_t tag = envelope.delivery_tag;
  amqp_destroy_envelope(&envelope);
  return tag;
}

static void nothing_delivered(conn state) {
  amqp_frame_t frame;
  struct timeval limit = {0, 100000};
  equal("waiting for nothing", amqp_simple_wait_frame_noblock(state, &frame, &limit), AMQP_STATUS_TIMEOUT);
}

// basic.get into `message`; the tag, 0 when the queue is empty.
static uint64_t get(conn state, const char *queue, bool no_ack, amqp_message_t *message) {
  amqp_maybe_release_buffers(state);
  amqp_rpc_reply_t reply = amqp_basic_get(state, CHANNEL, text(queue), no_ack);
  must("basic.get", reply);
  if (reply.reply.id == AMQP_BASIC_GET_EMPTY_METHOD) return 0;
  uint64_t tag = ((amqp_basic_get_ok_t *)reply.reply.decoded)->delivery_tag;
  must("reading a message", amqp_read_message(state, CHANNEL, message, 0));
  return tag;
}

static uint64_t got(conn state, const char *queue, bool no_ack, const char *body) {
  amqp_message_t message;
  uint64_t tag = get(state, queue, no_ack, &message);
  CHECK(tag, "the queue is empty, '%s' was expected", body);
  equal_text("body", message.body, body);
  amqp_destroy_message(&message);
  return tag;
}

// Exactly these bodies, separated by blanks, are ready.
static void drained(conn state, const char *queue, const char *bodies) {
  char list[300], *rest = list;
  snprintf(list, sizeof list, "%s", bodies);
  for (char *body; (body = strsep(&rest, " "));) {
    if (*body) got(state, queue, true, body);
  }
  amqp_message_t message;
  CHECK(!get(state, queue, true, &message), "more than '%s' in the queue", bodies);
}

// --- scenarios

static void tutorial_hello(void) {
  conn sender = connection(), receiver = connection();
  const char *queue = name("hello");
  declare(sender, queue, TRANSIENT);
  declare(receiver, queue, TRANSIENT);
  publish(sender, queue, "Hello, rock!");
  consume(receiver, queue, true);
  delivered(receiver, "Hello, rock!", false);
  drained(sender, queue, "");
}

static void tutorial_rpc(void) {
  conn server = connection(), client = connection();
  const char *requests = name("rpc");
  declare(server, requests, TRANSIENT);
  char replies[128];
  amqp_bytes_t made = declare(client, "", EXCLUSIVE)->queue;
  snprintf(replies, sizeof replies, "%.*s", (int)made.len, (char *)made.bytes);
  consume(client, replies, true);
  amqp_basic_properties_t ask = {._flags = AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG,
                                 .reply_to = text(replies), .correlation_id = text("call-1")};
  publish_to(client, "", requests, "21", &ask);
  consume(server, requests, true);
  amqp_envelope_t request;
  struct timeval limit = {WAIT, 0};
  must("the request", amqp_consume_message(server, &request, &limit, 0));
  equal_text("reply-to", request.message.properties.reply_to, replies);
  amqp_basic_properties_t answer = {._flags = AMQP_BASIC_CORRELATION_ID_FLAG,
                                    .correlation_id = request.message.properties.correlation_id};
  publish_to(server, "", replies, "42", &answer);
  amqp_destroy_envelope(&request);
  amqp_envelope_t reply;
  must("the reply", amqp_consume_message(client, &reply, &limit, 0));
  equal_text("reply", reply.message.body, "42");
  equal_text("correlation id", reply.message.properties.correlation_id, "call-1");
  amqp_destroy_envelope(&reply);
}

static amqp_table_entry_t *entry_of(amqp_table_t *table, const char *key) {
  for (int i = 0; i < table->num_entries; i++) {
    if (same(table->entries[i].key, key)) return &table->entries[i];
  }
  return NULL;
}

static void handshake(void) {
  conn state;
  must("login", try_login("/", 100, 8192, 7, "guest", &state));
  equal("channel-max", amqp_get_channel_max(state), 100);
  equal("frame-max", amqp_get_frame_max(state), 8192);
  equal("heartbeat", amqp_get_heartbeat(state), 7);
  amqp_table_t *server = amqp_get_server_properties(state);
  const char *keys[] = {"product", "version", "platform"};
  for (int i = 0; i < 3; i++) CHECK(entry_of(server, keys[i]), "no server property %s", keys[i]);
  amqp_table_entry_t *capabilities = entry_of(server, "capabilities");
  const char *wanted[] = {"publisher_confirms", "exchange_exchange_bindings", "basic.nack", "consumer_cancel_notify",
                          "per_consumer_qos", "authentication_failure_close"};
  for (int i = 0; i < 6; i++) {
    amqp_table_entry_t *entry = capabilities ? entry_of(&capabilities->value.value.table, wanted[i]) : NULL;
    CHECK(entry && entry->value.value.boolean, "no capability %s", wanted[i]);
  }
}

static void wrong_password(void) {
  conn state;
  refused(try_login("/", 0, 131072, 0, "wrong", &state), 403, "ACCESS_REFUSED - Login was refused");
}

static void unknown_vhost(void) {
  conn state;
  refused(try_login("no-such-vhost", 0, 131072, 0, "guest", &state), 530, "NOT_ALLOWED - vhost no-such-vhost not found");
}

static void heartbeat_idle(void) {
  conn state;
  must("login", try_login("/", 0, 131072, 1, "guest", &state));
  amqp_channel_open(state, CHANNEL);
  must("channel.open", amqp_get_rpc_reply(state));
  // The time is the subject here: either side gives up after two silent intervals. The library beats while it waits.
  amqp_frame_t frame;
  struct timeval idle = {5, 0};
  equal("the idle time", amqp_simple_wait_frame_noblock(state, &frame, &idle), AMQP_STATUS_TIMEOUT);
  const char *queue = filled(state, 1);
  drained(state, queue, "m0");
}

static void channel_error_isolation(void) {
  conn state = connection();
  amqp_channel_open(state, 2);
  must("channel.open", amqp_get_rpc_reply(state));
  const char *missing = name("missing");
  amqp_queue_declare(state, 2, text(missing), 1, 0, 0, 0, amqp_empty_table);
  refused(amqp_get_rpc_reply(state), 404, "NOT_FOUND - no queue '%s' in vhost '/'", missing);
  amqp_channel_close_ok_t ok;
  sent(amqp_send_method(state, 2, AMQP_CHANNEL_CLOSE_OK_METHOD, &ok));
  drained(state, filled(state, 1), "m0");
  amqp_channel_open(state, 2);
  must("the same channel again", amqp_get_rpc_reply(state));
}

static void queue_declare(void) {
  conn state = connection();
  const char *queue = name("declare");
  equal("messages", declare(state, queue, DURABLE)->message_count, 0);
  publish(state, queue, "one");
  wait_ready(state, queue, 1);
  equal("messages when declared again", declare(state, queue, DURABLE)->message_count, 1);
  conn other = connection();
  consume(other, queue, false);
  delivered(other, "one", false);
  amqp_queue_declare_ok_t *ok = declare(state, queue, PASSIVE);
  equal("messages with a consumer that holds all", ok->message_count, 0);
  equal("consumers", ok->consumer_count, 1);
}

static void queue_declare_mismatch(void) {
  const char *queue = name("mismatch");
  declare(connection(), queue, DURABLE);
  conn state = connection();
  try_declare(state, queue, TRANSIENT);
  refused(amqp_get_rpc_reply(state), 406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue '%s' in vhost '/'", queue);
  state = connection();
  try_declare(state, queue, DURABLE | EXCLUSIVE);
  refused(amqp_get_rpc_reply(state), 405, "RESOURCE_LOCKED");
}

static void not_found(void) {
  const char *missing = name("missing");
  conn state = connection();
  try_declare(state, missing, PASSIVE);
  refused(amqp_get_rpc_reply(state), 404, "NOT_FOUND - no queue '%s' in vhost '/'", missing);
  state = connection();
  refused(amqp_basic_get(state, CHANNEL, text(missing), 1), 404, "NOT_FOUND - no queue '%s' in vhost '/'", missing);
  state = connection();
  amqp_basic_consume(state, CHANNEL, text(missing), amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
  refused(amqp_get_rpc_reply(state), 404, "NOT_FOUND - no queue '%s' in vhost '/'", missing);
  state = connection();
  amqp_queue_bind(state, CHANNEL, text(missing), text("amq.direct"), text("key"), amqp_empty_table);
  refused(amqp_get_rpc_reply(state), 404, "NOT_FOUND - no queue '%s' in vhost '/'", missing);
  // A publish is not answered: the refusal comes with whatever is asked next.
  state = connection();
  publish_to(state, missing, "key", "lost", NULL);
  try_declare(state, "", EXCLUSIVE);
  refused(amqp_get_rpc_reply(state), 404, "NOT_FOUND - no exchange '%s' in vhost '/'", missing);
}

static void exclusive_queue(void) {
  const char *queue = name("exclusive");
  conn owner = connection(), other = connection();
  declare(owner, queue, EXCLUSIVE);
  try_declare(other, queue, PASSIVE);
  refused(amqp_get_rpc_reply(other), 405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '%s'", queue);
  must("closing the owner", amqp_connection_close(owner, AMQP_REPLY_SUCCESS));
  declare(connection(), queue, TRANSIENT);
}

static void server_named_queue(void) {
  amqp_bytes_t made = declare(connection(), "", EXCLUSIVE)->queue;
  CHECK(made.len > 8 && memcmp(made.bytes, "amq.gen-", 8) == 0, "the name %.*s", (int)made.len, (char *)made.bytes);
}

static void exchange_direct(void) {
  conn state = confirming();
  const char *exchange = name("direct"), *first = name("first"), *second = name("second");
  declare_exchange(state, exchange, "direct");
  declare(state, first, TRANSIENT);
  declare(state, second, TRANSIENT);
  bind(state, first, exchange, "both", amqp_empty_table);
  bind(state, second, exchange, "both", amqp_empty_table);
  bind(state, second, exchange, "one", amqp_empty_table);
  const char *keys[] = {"both", "one", "none", "BOTH"};
  for (int i = 0; i < 4; i++) publish_to(state, exchange, keys[i], keys[i], NULL);
  confirmed(state, 1, 4);
  drained(state, first, "both");
  drained(state, second, "both one");
}

static void exchange_headers(void) {
  conn state = confirming();
  const char *exchange = name("headers"), *queue = name("all");
  declare_exchange(state, exchange, "headers");
  declare(state, queue, TRANSIENT);
  amqp_table_entry_t entries[] = {
      {text("x-match"), {AMQP_FIELD_KIND_UTF8, {.bytes = text("all")}}},
      {text("colour"), {AMQP_FIELD_KIND_UTF8, {.bytes = text("red")}}},
      {text("size"), {AMQP_FIELD_KIND_I32, {.i32 = 5}}},
  };
  amqp_table_t all = {3, entries};
  bind(state, queue, exchange, "", all);
  amqp_basic_properties_t both = {._flags = AMQP_BASIC_HEADERS_FLAG, .headers = {2, entries + 1}};
  amqp_basic_properties_t colour = {._flags = AMQP_BASIC_HEADERS_FLAG, .headers = {1, entries + 1}};
  publish_to(state, exchange, "", "both", &both);
  publish_to(state, exchange, "", "colour", &colour);
  publish_to(state, exchange, "", "none", NULL);
  confirmed(state, 1, 3);
  drained(state, queue, "both");
}

static void exchange_to_exchange(void) {
  conn state = confirming();
  const char *source = name("source"), *middle = name("middle"), *queue = name("queue");
  declare_exchange(state, source, "topic");
  declare_exchange(state, middle, "direct");
  declare(state, queue, TRANSIENT);
  amqp_exchange_bind(state, CHANNEL, text(middle), text(source), text("orders.#"), amqp_empty_table);
  must("exchange.bind", amqp_get_rpc_reply(state));
  bind(state, queue, middle, "orders.new", amqp_empty_table);
  const char *keys[] = {"orders.new", "orders.old", "bills.new"};
  for (int i = 0; i < 3; i++) publish_to(state, source, keys[i], keys[i], NULL);
  confirmed(state, 1, 3);
  drained(state, queue, "orders.new");
  amqp_exchange_unbind(state, CHANNEL, text(middle), text(source), text("orders.#"), amqp_empty_table);
  must("exchange.unbind", amqp_get_rpc_reply(state));
  publish_to(state, source, "orders.new", "unrouted", NULL);
  confirmed(state, 4, 4);
  drained(state, queue, "");
}

static void mandatory_return(void) {
  conn state = confirming();
  const char *missing = name("missing");
  amqp_basic_properties_t lasting = {._flags = AMQP_BASIC_DELIVERY_MODE_FLAG, .delivery_mode = 2};
  sent(amqp_basic_publish(state, CHANNEL, text(""), text(missing), 1, 0, &lasting, text("come back")));
  amqp_frame_t frame = expect(state, AMQP_BASIC_RETURN_METHOD);
  amqp_basic_return_t *back = frame.payload.method.decoded;
  equal("reply code", back->reply_code, 312);
  equal_text("reply text", back->reply_text, "NO_ROUTE");
  equal_text("routing key", back->routing_key, missing);
  amqp_message_t message;
  must("the returned message", amqp_read_message(state, CHANNEL, &message, 0));
  equal_text("body", message.body, "come back");
  equal("delivery mode", message.properties.delivery_mode, 2);
  amqp_destroy_message(&message);
  confirmed(state, 1, 1); // behind its return
}

static void confirm_many(int count) {
  conn state = confirming();
  const char *queue = name("confirm");
  declare(state, queue, DURABLE);
  amqp_basic_properties_t lasting = {._flags = AMQP_BASIC_DELIVERY_MODE_FLAG, .delivery_mode = 2};
  for (int i = 0; i < count; i++) publish_to(state, "", queue, "safe", &lasting);
  confirmed(state, 1, count);
  equal("ready messages after the confirms", ready(state, queue), count);
}

static void confirm_single(void) { confirm_many(1); }
static void confirm_batch(void) { confirm_many(100); }
static void confirm_in_flight(void) { confirm_many(1000); }

static void bodies(void) {
  conn state = connection();
  const char *queue = name("bodies");
  declare(state, queue, DURABLE);
  const size_t frame = 131072 - 8; // the largest body frame under the default limit
  const size_t sizes[] = {0, 1, frame - 1, frame, frame + 1, 2 * frame, 1 << 20, 5 << 20};
  char *body = malloc(5 << 20);
  for (size_t i = 0; i < 5 << 20; i++) body[i] = (char)rand();
  for (int i = 0; i < 8; i++) {
    amqp_bytes_t bytes = {sizes[i], body};
    sent(amqp_basic_publish(state, CHANNEL, text(""), text(queue), 0, 0, NULL, bytes));
    amqp_message_t message;
    CHECK(get(state, queue, true, &message), "a body of %zu bytes is not there", sizes[i]);
    CHECK(message.body.len == sizes[i] && memcmp(message.body.bytes, body, sizes[i]) == 0, "a body of %zu bytes came back different", sizes[i]);
    amqp_destroy_message(&message);
  }
  free(body);
}

static void properties(void) {
  conn state = connection();
  const char *queue = name("properties");
  declare(state, queue, TRANSIENT);
  amqp_basic_properties_t full = {
      ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_CONTENT_ENCODING_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                AMQP_BASIC_PRIORITY_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG | AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG |
                AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG | AMQP_BASIC_USER_ID_FLAG | AMQP_BASIC_APP_ID_FLAG |
                AMQP_BASIC_CLUSTER_ID_FLAG,
      .content_type = text("text/plain"), .content_encoding = text("utf-8"), .delivery_mode = 2, .priority = 7,
      .correlation_id = text("correlation"), .reply_to = text("reply.to"), .message_id = text("message-ü"),
      .timestamp = 1700000000, .type = text("kind"), .user_id = text("guest"), .app_id = text("interop"),
      .cluster_id = text("cluster")};
  publish_to(state, "", queue, "", &full);
  amqp_message_t message;
  CHECK(get(state, queue, true, &message), "the message is there");
  amqp_basic_properties_t *back = &message.properties;
  equal("which are present", back->_flags, full._flags);
  equal_text("content type", back->content_type, "text/plain");
  equal_text("content encoding", back->content_encoding, "utf-8");
  equal_text("correlation id", back->correlation_id, "correlation");
  equal_text("reply to", back->reply_to, "reply.to");
  equal_text("message id", back->message_id, "message-ü");
  equal_text("type", back->type, "kind");
  equal_text("user id", back->user_id, "guest");
  equal_text("app id", back->app_id, "interop");
  equal_text("cluster id", back->cluster_id, "cluster");
  equal("delivery mode", back->delivery_mode, 2);
  equal("priority", back->priority, 7);
  equal("timestamp", (int64_t)back->timestamp, 1700000000);
  amqp_destroy_message(&message);
}

static void get_one(void) {
  conn state = connection(), watcher = connection();
  const char *queue = filled(state, 2);
  got(state, queue, false, "m0");
  got(state, queue, true, "m1");
  close_channel(state); // the first was not acknowledged, the second needed no ack
  wait_ready(watcher, queue, 1);
  drained(watcher, queue, "m0");
}

static void ack_multiple(void) {
  conn state = connection(), watcher = connection();
  const char *queue = filled(watcher, 5);
  consume(state, queue, false);
  const char *expected[] = {"m0", "m1", "m2", "m3", "m4"};
  for (int i = 0; i < 5; i++) equal("delivery tag", (int64_t)delivered(state, expected[i], false), i + 1);
  sent(amqp_basic_ack(state, CHANNEL, 3, 1));
  close_channel(state);
  wait_ready(watcher, queue, 2);
  consume(watcher, queue, true);
  delivered(watcher, "m3", true);
  delivered(watcher, "m4", true);
}

static void nack_requeue(void) {
  conn state = connection();
  const char *queue = filled(state, 5);
  got(state, queue, false, "m0");
  got(state, queue, false, "m1");
  uint64_t second = got(state, queue, false, "m2");
  uint64_t last = got(state, queue, false, "m3");
  sent(amqp_basic_nack(state, CHANNEL, second, 1, 1));
  sent(amqp_basic_reject(state, CHANNEL, last, 1));
  wait_ready(state, queue, 5);
  drained(state, queue, "m0 m1 m2 m3 m4");
}

static void reject_discard(void) {
  conn state = connection();
  const char *queue = filled(state, 3);
  sent(amqp_basic_reject(state, CHANNEL, got(state, queue, false, "m0"), 0));
  sent(amqp_basic_nack(state, CHANNEL, got(state, queue, false, "m1"), 0, 0));
  drained(state, queue, "m2");
}

static void unknown_delivery_tag(void) {
  conn state = connection();
  sent(amqp_basic_ack(state, CHANNEL, 77, 0));
  try_declare(state, "", EXCLUSIVE); // the refusal comes with whatever is asked next
  refused(amqp_get_rpc_reply(state), 406, "PRECONDITION_FAILED - unknown delivery tag 77");
}

static void recover(void) {
  conn state = connection(), watcher = connection();
  const char *queue = filled(watcher, 2);
  consume(state, queue, false);
  delivered(state, "m0", false);
  delivered(state, "m1", false);
  amqp_basic_recover(state, CHANNEL, 1);
  must("basic.recover", amqp_get_rpc_reply(state));
  delivered(state, "m0", true);
  delivered(state, "m1", true);
}

static void qos_per_consumer(void) {
  conn state = connection(), watcher = connection();
  const char *queue = filled(watcher, 4);
  amqp_basic_qos(state, CHANNEL, 0, 2, 0);
  must("basic.qos", amqp_get_rpc_reply(state));
  consume(state, queue, false);
  uint64_t first = delivered(state, "m0", false);
  delivered(state, "m1", false);
  nothing_delivered(state);
  equal("ready", ready(watcher, queue), 2);
  sent(amqp_basic_ack(state, CHANNEL, first, 0));
  delivered(state, "m2", false);
  nothing_delivered(state);
}

static void purge_and_delete(void) {
  conn state = connection();
  const char *queue = filled(state, 3);
  got(state, queue, false, "m0");
  equal("purged: ready ones only", amqp_queue_purge(state, CHANNEL, text(queue))->message_count, 2);
  publish(state, queue, "one");
  wait_ready(state, queue, 1);
  conn other = connection();
  amqp_queue_delete(other, CHANNEL, text(queue), 0, 1);
  refused(amqp_get_rpc_reply(other), 406, "PRECONDITION_FAILED - queue '%s' in vhost '/' not empty", queue);
  equal("messages deleted with the queue", amqp_queue_delete(state, CHANNEL, text(queue), 0, 0)->message_count, 1);
  equal("deleting a missing queue", amqp_queue_delete(state, CHANNEL, text(queue), 0, 0)->message_count, 0);
}

static void cancel_notify(void) {
  conn state = connection(), watcher = connection();
  const char *queue = filled(watcher, 0);
  consume(state, queue, true);
  amqp_queue_delete(watcher, CHANNEL, text(queue), 0, 0);
  expect(state, AMQP_BASIC_CANCEL_METHOD);
  declare(state, "", EXCLUSIVE); // the channel stays open
}

static void consumer_exclusive(void) {
  conn state = connection(), other = connection();
  const char *queue = filled(state, 0);
  amqp_basic_consume(state, CHANNEL, text(queue), amqp_empty_bytes, 0, 1, 1, amqp_empty_table);
  must("basic.consume", amqp_get_rpc_reply(state));
  amqp_basic_consume(other, CHANNEL, text(queue), amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
  refused(amqp_get_rpc_reply(other), 403, "ACCESS_REFUSED - queue '%s' in vhost '/' in exclusive use", queue);
}

static void tx_commit(void) {
  conn state = connection(), watcher = connection();
  const char *queue = filled(watcher, 0);
  amqp_tx_select(state, CHANNEL);
  must("tx.select", amqp_get_rpc_reply(state));
  publish(state, queue, "one");
  publish(state, queue, "two");
  equal("ready before the commit", ready(watcher, queue), 0);
  amqp_tx_commit(state, CHANNEL);
  must("tx.commit", amqp_get_rpc_reply(state));
  drained(watcher, queue, "one two");
}

static void tx_rollback(void) {
  conn state = connection(), watcher = connection();
  const char *queue = filled(watcher, 0);
  amqp_tx_select(state, CHANNEL);
  must("tx.select", amqp_get_rpc_reply(state));
  publish(state, queue, "never");
  amqp_tx_rollback(state, CHANNEL);
  must("tx.rollback", amqp_get_rpc_reply(state));
  amqp_tx_commit(state, CHANNEL);
  must("tx.commit", amqp_get_rpc_reply(state));
  drained(watcher, queue, "");
}

static const struct {
  const char *name;
  void (*run)(void);
} scenarios[] = {
    {"tutorial-hello", tutorial_hello},
    {"tutorial-rpc", tutorial_rpc},
    {"handshake", handshake},
    {"wrong-password", wrong_password},
    {"unknown-vhost", unknown_vhost},
    {"heartbeat-idle", heartbeat_idle},
    {"channel-error-isolation", channel_error_isolation},
    {"queue-declare", queue_declare},
    {"queue-declare-mismatch", queue_declare_mismatch},
    {"not-found", not_found},
    {"exclusive-queue", exclusive_queue},
    {"server-named-queue", server_named_queue},
    {"exchange-direct", exchange_direct},
    {"exchange-headers", exchange_headers},
    {"exchange-to-exchange", exchange_to_exchange},
    {"mandatory-return", mandatory_return},
    {"confirm-single", confirm_single},
    {"confirm-batch", confirm_batch},
    {"confirm-in-flight", confirm_in_flight},
    {"bodies", bodies},
    {"properties", properties},
    {"get", get_one},
    {"ack-multiple", ack_multiple},
    {"nack-requeue", nack_requeue},
    {"reject-discard", reject_discard},
    {"unknown-delivery-tag", unknown_delivery_tag},
    {"recover", recover},
    {"qos-per-consumer", qos_per_consumer},
    {"purge-and-delete", purge_and_delete},
    {"cancel-notify", cancel_notify},
    {"consumer-exclusive", consumer_exclusive},
    {"tx-commit", tx_commit},
    {"tx-rollback", tx_rollback},
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

static void clean_up(void) {
  for (int i = 0; i < connection_count; i++) {
    amqp_connection_close(connections[i], AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connections[i]);
  }
  connection_count = 0;
  if (name_count == 0) return;
  conn state = connection();
  for (int i = 0; i < name_count; i++) {
    amqp_queue_delete(state, CHANNEL, text(names[i]), 0, 0);
    must("cleaning up", amqp_get_rpc_reply(state));
    amqp_exchange_delete(state, CHANNEL, text(names[i]), 0);
    must("cleaning up", amqp_get_rpc_reply(state));
  }
  name_count = 0;
  clean_up();
}

// Prints the scenario's line; false when it failed.
static bool run_one(const char *wanted) {
  int found = 0;
  while (found < SCENARIOS && strcmp(scenarios[found].name, wanted) != 0) found++;
  if (found == SCENARIOS) {
    printf("skip %s: not part of this smaller program\n", wanted);
    return true;
  }
  volatile bool well = true;
  alarm(SCENARIO_SECONDS); // a scenario that hangs ends the program: the runner names those without a line
  if (setjmp(failed) == 0) {
    scenarios[found].run();
  } else {
    well = false;
    printf("FAIL %s: %s\n", wanted, reason);
  }
  if (setjmp(failed) == 0) {
    clean_up();
  } else {
    connection_count = name_count = 0;
    if (well) printf("FAIL %s: cleaning up: %s\n", wanted, reason);
    well = false;
  }
  alarm(0);
  if (well) printf("ok %s\n", wanted);
  return well;
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  srand((unsigned)(time(NULL) ^ getpid()));
  if (sscanf(getenv("INTEROP_AMQP") ? getenv("INTEROP_AMQP") : "", "%63[^:]:%d", host, &port) != 2) {
    fputs("INTEROP_AMQP is not HOST:PORT\n", stderr);
    return 2;
  }
  bool well = true;
  const char *only = getenv("INTEROP_ONLY");
  if (!only || !*only) {
    for (int i = 0; i < SCENARIOS; i++) well &= run_one(scenarios[i].name);
    return well ? 0 : 1;
  }
  char *list = strdup(only), *rest = list;
  for (char *wanted; (wanted = strsep(&rest, ","));) well &= run_one(wanted);
  free(list);
  return well ? 0 : 1;
}
