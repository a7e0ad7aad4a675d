"""librocketmq, Apache's C++ client, through the Python package that brings it (`rocketmq`, x86-64 only).

It is one more remoting implementation of its own: headers with numbers where Java writes texts, locks and heartbeats in its own spelling.
What its C interface has no call for is skipped. See ../README.md for the environment and the output.
"""

import os
import sys
import threading
import time
import traceback
import uuid

NAME_SERVER = os.environ["INTEROP_NAME_SERVER"]
SECONDS = 60
SCENARIOS = {}
SEED = "seed"


class Skip(Exception):
    """The scenario can not run here; the text says why."""


def scenario(name):
    def register(function):
        SCENARIOS[name] = function
        return function
    return register


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def equal(actual, expected, what):
    check(actual == expected, f"{what}: expected {expected!r:.200}, got {actual!r:.200}")


def unique(kind):
    return f"interop-{kind}-{uuid.uuid4().hex[:8]}"


def wait_until(condition, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < deadline, f"waited {seconds} s for {what()}")
        time.sleep(0.01)


class Clients:
    """Closes what a scenario opened."""

    def __init__(self):
        self.open = []

    def producer(self, credentials=None, **options):
        from rocketmq.client import Producer

        producer = Producer(unique("producers"), timeout=10_000, **options)
        producer.set_namesrv_addr(NAME_SERVER)
        if credentials:
            producer.set_session_credentials(*credentials, "")
        producer.start()
        self.open.append(producer)
        return producer

    def consume(self, topic, expression="*", orderly=False, listen=None, group=None):
        from rocketmq.client import PushConsumer

        inbox = Inbox(listen)
        consumer = PushConsumer(group or unique("group"), orderly=orderly)
        consumer.set_namesrv_addr(NAME_SERVER)
        consumer.set_instance_name(unique("instance"))
        consumer.subscribe(topic, inbox.take, expression)
        consumer.start()
        self.open.append(consumer)
        return inbox

    def close(self):
        for client in reversed(self.open):
            client.shutdown()


class Inbox:
    def __init__(self, listen=None):
        self.lock, self.messages, self.listen = threading.Lock(), [], listen

    def take(self, message):
        # A received message is only good inside the callback.
        seen = {
            "body": bytes(message.body), "tags": text(message.tags), "keys": text(message.keys), "id": text(message.id),
            "colour": text(message.get_property("colour")), "queue": message.queue_id, "offset": message.queue_offset,
            "attempt": message.reconsume_times, "topic": text(message.topic), "time": time.monotonic(),
        }
        if seen["tags"] == SEED:
            return
        with self.lock:
            self.messages.append(seen)
        if self.listen:
            self.listen(seen)

    def bodies(self):
        with self.lock:
            return [message["body"] for message in self.messages]

    def await_exactly(self, expected, seconds=30):
        wait_until(lambda: len(self.bodies()) >= len(expected), lambda: f"{len(expected)} messages, have {self.bodies()!r:.200}", seconds)
        equal(sorted(self.bodies()), sorted(expected), "bodies")
        return self.messages


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def message(topic, body, tags="", keys="", **properties):
    from rocketmq.client import Message

    made = Message(topic)
    made.set_body(body)
    if tags:
        made.set_tags(tags)
    if keys:
        made.set_keys(keys)
    for name, value in properties.items():
        made.set_property(name, value)
    return made


def send(producer, *arguments, **options):
    result = producer.send_sync(message(*arguments, **options))
    equal(int(result.status), 0, "send status")
    return result


def new_topic(producer, kind):
    topic = unique(kind)
    send(producer, topic, "made", tags=SEED)
    return topic


@scenario("send-sync")
def send_sync(clients):
    producer = clients.producer()
    topic = new_topic(producer, "sync")
    result = send(producer, topic, "Hello, rock!", tags="tag", keys="key1 key2", colour="rot ü")
    inbox = clients.consume(topic)
    got = inbox.await_exactly([b"Hello, rock!"])[0]
    equal((got["tags"], got["keys"], got["colour"], got["topic"], got["id"]), ("tag", "key1 key2", "rot ü", topic, result.msg_id), "message")
    equal(got["offset"], result.offset, "offset")


@scenario("send-oneway")
def send_oneway(clients):
    producer = clients.producer()
    topic = new_topic(producer, "oneway")
    for number in range(20):
        producer.send_oneway(message(topic, f"m{number}"))
    clients.consume(topic).await_exactly([b"m%d" % number for number in range(20)])


@scenario("ordered-by-selector")
def ordered_by_selector(clients):
    producer = clients.producer()
    topic = new_topic(producer, "selected")
    for number in range(30):
        producer.send_orderly(message(topic, f"o{number}"), number % 3)
    got = clients.consume(topic, orderly=True).await_exactly([b"o%d" % number for number in range(30)])
    for key in range(3):
        own = [one for one in got if int(one["body"][1:]) % 3 == key]
        equal(len({one["queue"] for one in own}), 1, "queues of a key")
        numbers = [int(one["body"][1:]) for one in own]
        equal(numbers, sorted(numbers), "order of a key")


@scenario("push-orderly")
def push_orderly(clients):
    producer = clients.producer()
    topic = new_topic(producer, "orderly")
    inboxes = [clients.consume(topic, orderly=True, group=group) for group in [unique("group")] for _ in range(2)]
    for number in range(80):
        producer.send_orderly(message(topic, f"{number}"), number % 4)
    everything = lambda: [one for inbox in inboxes for one in inbox.messages]
    wait_until(lambda: len({one["body"] for one in everything()}) == 80, lambda: f"80 messages, have {len(everything())}", 50)
    for key in range(4):
        numbers = [int(one["body"]) for one in sorted(everything(), key=lambda one: one["time"]) if int(one["body"]) % 4 == key]
        first = list(dict.fromkeys(numbers))
        equal(first, sorted(first), "order of a key")


@scenario("compressed-bodies")
def compressed_bodies(clients):
    producer = clients.producer(compress_level=5)
    topic = new_topic(producer, "compressed")
    body = "rock " * 20_000
    send(producer, topic, body)
    clients.consume(topic).await_exactly([body.encode()])


@scenario("delay-level")
def delay_level(clients):
    producer = clients.producer()
    topic = new_topic(producer, "delayed")
    inbox = clients.consume(topic)
    send(producer, topic, "now")
    inbox.await_exactly([b"now"])
    late = message(topic, "later")
    late.set_delay_time_level(1)
    begin = time.monotonic()
    producer.send_sync(late)
    inbox.await_exactly([b"now", b"later"])
    took, due = inbox.messages[1]["time"] - begin, float(os.environ.get("INTEROP_DELAY_SECONDS", "1").split()[0])
    check(due - 0.1 <= took, f"it came after {took:.2f} s of {due}")


@scenario("auto-created-topic")
def auto_created_topic(clients):
    new_topic(clients.producer(), "auto")


@scenario("push-clustering")
def push_clustering(clients):
    producer = clients.producer()
    topic = new_topic(producer, "clustering")
    inbox = clients.consume(topic)
    bodies = [f"m{number}" for number in range(100)]
    for body in bodies:
        send(producer, topic, body)
    inbox.await_exactly([body.encode() for body in bodies])


@scenario("push-tag-filter")
def push_tag_filter(clients):
    producer = clients.producer()
    topic = new_topic(producer, "tags")
    inbox = clients.consume(topic, "A || B")
    for tag in "ABCABC":
        send(producer, topic, f"of {tag}", tags=tag)
    inbox.await_exactly([b"of A", b"of A", b"of B", b"of B"])


@scenario("retry")
def retry(clients):
    producer = clients.producer()
    topic = new_topic(producer, "retry")

    def listen(seen):
        if seen["attempt"] == 0:
            raise RuntimeError("not now")

    inbox = clients.consume(topic, listen=listen)
    send(producer, topic, "stubborn")
    wait_until(lambda: len(inbox.messages) >= 2, lambda: f"two attempts, have {inbox.messages}", 50)
    equal([(one["body"], one["attempt"]) for one in inbox.messages[:2]], [(b"stubborn", 0), (b"stubborn", 1)], "attempts")


@scenario("signed-requests")
def signed_requests(clients):
    if not os.environ.get("INTEROP_ACCOUNTS"):
        raise Skip("the broker does not know the accounts (INTEROP_ACCOUNTS is not set)")
    topic = unique("signed")
    send(clients.producer(("signer", "a secret of the signer")), topic, "mine")
    try:
        send(clients.producer(("signer", "another secret")), topic, "refused")
    except Exception as error:  # the package has a class of its own for each call
        check("SyncFailed" in type(error).__name__, f"no refusal: {error!r}")
    else:
        raise AssertionError("a wrong signature was taken")


def run(name):
    outcome = []

    def play():
        clients = Clients()
        try:
            SCENARIOS[name](clients)
            outcome.append(f"ok {name}")
        except Skip as reason:
            outcome.append(f"skip {name}: {reason}")
        except BaseException as error:
            traceback.print_exc()
            outcome.append(f"FAIL {name}: {type(error).__name__}: {' '.join(str(error).split())[:400]}")
        finally:
            clients.close()

    if os.environ.get("INTEROP_TLS_CA"):
        return f"skip {name}: this client has no TLS"
    if name == "send-batch":
        return f"skip {name}: this client's batches arrive as one empty message, at Apache's broker, too"
    if name not in SCENARIOS:
        return f"skip {name}: the C interface has no call for it, or the Java clients prove it"
    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return outcome[0] if outcome else f"FAIL {name}: not done after {SECONDS} s"


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    listed = [line.split()[0] for line in open(os.path.join(here, "../scenarios/rocketmq")) if line.strip() and not line.startswith("#")]
    names = os.environ.get("INTEROP_ONLY")
    failed = False
    for name in names.split(",") if names else listed:
        line = run(name)
        print(line, flush=True)
        failed |= line.startswith("FAIL")
    # Its threads do not end by themselves after a failure.
    os._exit(int(failed))


if __name__ == "__main__":
    main()
