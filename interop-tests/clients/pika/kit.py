"""What every pika scenario needs: the registry, connections with deadlines, waiting, and expected refusals.

A scenario is a function that takes a Context; it passes by returning, fails by raising, skips by raising Skip. Names it
takes from the context are unique and deleted afterwards, so that scenarios can share one long-lived broker.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import uuid

import pika

SCENARIO_SECONDS = 60
RESTART_SECONDS = 180
WAIT_SECONDS = 10
CLEAN_UP_SECONDS = 20

SCENARIOS = {}


class Skip(Exception):
    """The scenario can not run here; the text says why."""


def scenario(name, seconds=SCENARIO_SECONDS):
    def register(function):
        SCENARIOS[name] = (function, seconds)
        return function
    return register


def check(condition, text):
    # assert would vanish under -O, and its message is optional.
    if not condition:
        raise AssertionError(text)


def equal(actual, expected, what):
    check(actual == expected, f"{what}: expected {_short(expected)}, got {_short(actual)}")


def _short(value):
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"


@dataclasses.dataclass
class Message:
    """A delivery, a get-ok or a returned message."""

    method: object
    properties: pika.BasicProperties
    body: bytes

    @property
    def tag(self):
        return self.method.delivery_tag

    @property
    def redelivered(self):
        return self.method.redelivered


class Inbox:
    """A consumer and what it has received so far."""

    def __init__(self, channel, queue, auto_ack=False, **options):
        self.channel, self.messages = channel, []
        self.consumer_tag = channel.basic_consume(queue, self._receive, auto_ack=auto_ack, **options)

    def _receive(self, _channel, method, properties, body):
        self.messages.append(Message(method, properties, body))

    @property
    def bodies(self):
        return [message.body for message in self.messages]

    def wait(self, count):
        """Waits for `count` messages in all and returns them."""
        wait_until(lambda: len(self.messages) >= count, f"{count} messages (have {_short(self.bodies)})",
                   self.channel.connection)
        equal(len(self.messages), count, "number of messages received")
        return self.messages


def wait_until(condition, what, *connections):
    """Lets the connections work until the condition holds. pika's blocking connections only move when called."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        check(time.monotonic() < deadline, f"waited {WAIT_SECONDS} s for {what}")
        for connection in connections:
            connection.process_data_events(time_limit=0.02)


def ready_count(channel, queue):
    return channel.queue_declare(queue, passive=True).method.message_count


def wait_ready(channel, queue, count):
    """Waits until the queue has `count` ready messages: requeues are not answered, so they are only seen so."""
    wait_until(lambda: ready_count(channel, queue) == count, f"{count} ready messages in {queue}", channel.connection)


def publish(channel, queue, *bodies, exchange="", **properties):
    for body in bodies:
        channel.basic_publish(exchange, queue, body, pika.BasicProperties(**properties))


def get(channel, queue, auto_ack=True):
    """basic.get; None when the queue is empty."""
    method, properties, body = channel.basic_get(queue, auto_ack=auto_ack)
    return Message(method, properties, body) if method else None


def drain(channel, queue):
    """The bodies of everything ready, removed."""
    bodies = []
    while message := get(channel, queue):
        bodies.append(message.body)
    return bodies


def sequence(count, prefix="m"):
    return [b"%s%d" % (prefix.encode(), number) for number in range(count)]


@contextlib.contextmanager
def refused(error, code, *fragments):
    """The block must raise `error` (a channel or connection close from the broker) with this code and text."""
    try:
        yield
    except error as closed:
        equal(closed.reply_code, code, f"reply code ({closed.reply_text})")
        for fragment in fragments:
            check(fragment in closed.reply_text, f"'{fragment}' is not in the reply text '{closed.reply_text}'")
    else:
        raise AssertionError(f"expected {code} {' '.join(fragments)}, but nothing was refused")


def channel_refused(code, *fragments):
    return refused(pika.exceptions.ChannelClosedByBroker, code, *fragments)


def connection_refused(code, *fragments):
    return refused(pika.exceptions.ConnectionClosedByBroker, code, *fragments)


class Proxy:
    """Forwards one connection, so that it can be cut as a failing network or a killed client would."""

    def __init__(self, target):
        self.target, self.sockets = target, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        client, _ = self.listener.accept()
        server = socket.create_connection(self.target)
        self.sockets = [client, server]
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def cut(self):
        for end in (self.listener, *self.sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Context:
    def __init__(self):
        host, _, port = os.environ["INTEROP_AMQP"].rpartition(":")
        self.address = (host, int(port))
        self._names, self._connections = [], []

    def name(self, kind):
        """A name nobody else uses. A queue and an exchange of that name are deleted after the scenario."""
        name = f"interop.{kind}.{uuid.uuid4().hex[:8]}"
        self._names.append(name)
        return name

    def parameters(self, **overrides):
        options = dict(host=self.address[0], port=self.address[1], socket_timeout=5, stack_timeout=10,
                       blocked_connection_timeout=30)
        if authority := os.environ.get("INTEROP_TLS_CA"):
            options["ssl_options"] = pika.SSLOptions(ssl.create_default_context(cafile=authority), self.address[0])
        return pika.ConnectionParameters(**{**options, **overrides})

    def connect(self, **overrides):
        connection = pika.BlockingConnection(self.parameters(**overrides))
        self._connections.append(connection)
        return connection

    def channel(self, confirms=False):
        """A channel on a connection of its own."""
        channel = self.connect().channel()
        if confirms:
            channel.confirm_delivery()
        return channel

    def restart(self, how):
        """Restarts the broker by `term` or `kill` and returns when it is ready again."""
        self.hook(how)
        for connection in self._connections:
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.process_data_events()
        self._connections.clear()

    @staticmethod
    def hook(word):
        done = subprocess.run(f"{os.environ['DASSIE_RESTART']} {word}", shell=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        check(done.returncode == 0, f"hook {word}: {done.stdout.strip()}")

    @staticmethod
    def needs_restart():
        if not os.environ.get("DASSIE_RESTART"):
            raise Skip("no restart hook (DASSIE_RESTART is not set)")

    def clean_up(self):
        for connection in self._connections:
            with contextlib.suppress(pika.exceptions.AMQPError):
                if connection.is_open:
                    connection.close()
        if self._names:
            with pika.BlockingConnection(self.parameters()) as connection:
                channel = connection.channel()
                for name in self._names:
                    channel.queue_delete(name)
                    channel.exchange_delete(name)


def table(name):
    """A table shared with the other clients: lines `key: value value`, `""` for an empty word."""
    file = pathlib.Path(os.environ["INTEROP_TABLES"]) / name
    rows = [line.split(":") for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {_word(key.strip()): [_word(word) for word in words.split()] for key, words in rows}


def _word(text):
    return "" if text == '""' else text


def _on_alarm(*_):
    raise TimeoutError("the scenario's time is up")


def _run(name):
    function, seconds = SCENARIOS[name]
    context = Context()
    try:
        with _deadline(seconds):
            function(context)
        failure = None
    except Skip as reason:
        return f"skip {name}: {reason}", True
    except Exception as error:  # a scenario fails by any exception
        failure = _told(error)
    try:
        with _deadline(CLEAN_UP_SECONDS):
            context.clean_up()
    except Exception as error:
        failure = failure or f"cleaning up: {_told(error)}"
    return (f"FAIL {name}: {failure}", False) if failure else (f"ok {name}", True)


def _told(error):
    traceback.print_exception(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextlib.contextmanager
def _deadline(seconds):
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main():
    signal.signal(signal.SIGALRM, _on_alarm)
    wanted = os.environ.get("INTEROP_ONLY") or ",".join(SCENARIOS)
    all_well = True
    for name in wanted.split(","):
        if name not in SCENARIOS:
            line, well = f"FAIL {name}: this client has no such scenario", False
        else:
            line, well = _run(name)
        print(line, flush=True)
        all_well &= well
    sys.exit(0 if all_well else 1)
