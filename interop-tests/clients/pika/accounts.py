"""pika and the accounts of ../definitions.json: who may come in, and do what."""

import contextlib
import os
import struct

import kit
import pika
from kit import Skip, channel_refused, check, drain, equal, get, publish, scenario

PASSWORDS = {"guest": "guest", "alice": "al1ce secret", "bob": "bøb", "nobody": "nobody"}
ACCESS = "ACCESS_REFUSED - access to {} in vhost '/' refused for user 'alice'"


class AmqPlain(pika.PlainCredentials):
    """RabbitMQ's older mechanism: the login as a field table without its length."""

    TYPE = "AMQPLAIN"

    def response_for(self, start):
        if self.TYPE.encode() not in start.mechanisms.split():
            return None, None
        fields = {"LOGIN": self.username, "PASSWORD": self.password}
        return self.TYPE, b"".join(
            struct.pack(">B", len(key)) + key.encode() + b"S" + struct.pack(">I", len(value.encode())) + value.encode()
            for key, value in fields.items())


pika.credentials.VALID_TYPES.append(AmqPlain)


def login(context, user, vhost="/", password=None, mechanism=pika.PlainCredentials):
    password = PASSWORDS[user] if password is None else password
    return context.connect(virtual_host=vhost, credentials=mechanism(user, password))


def alice(context):
    channel = login(context, "alice").channel()
    channel.confirm_delivery()
    return channel


@contextlib.contextmanager
def login_refused(error, text):
    try:
        yield
    except error as refusal:
        check(text in str(refusal), f"'{text}' is not in '{refusal}'")
    else:
        raise AssertionError(f"expected '{text}', but nothing was refused")


def attempt(context, what, *operations):
    """Each, on a channel of alice's, must be refused with her name and that of `what`."""
    for operation in operations:
        with channel_refused(403, ACCESS.format(what)):
            operation(alice(context))


def foreign(context):
    """A queue and an exchange that alice has no right to, and the same that are hers."""
    channel = context.channel()
    names = [context.name("foreign"), context.name("alice.own")]
    for name in names:
        channel.queue_declare(name)
        channel.exchange_declare(name, "fanout")
    return names


@scenario("login")
def logins(context):
    for mechanism in (pika.PlainCredentials, AmqPlain):
        for user, vhost in (("guest", "/"), ("guest", "staging"), ("alice", "/"), ("bob", "staging")):
            with login(context, user, vhost, mechanism=mechanism) as connection:
                connection.channel()


@scenario("login-refused")
def logins_refused(context):
    for mechanism in (pika.PlainCredentials, AmqPlain):
        text = f"ACCESS_REFUSED - Login was refused using authentication mechanism {mechanism.TYPE}."
        for user, password in (("alice", "wrong"), ("alice", ""), ("alice", "al1ce secret "), ("Alice", "al1ce secret"),
                               ("zed", "zed"), ("", "")):
            with login_refused(pika.exceptions.ProbableAuthenticationError, text):
                login(context, user, password=password, mechanism=mechanism)


@scenario("vhost-refused")
def vhost_refused(context):
    for user, vhost, text in (
        ("alice", "nope", "NOT_ALLOWED - vhost nope not found"),
        ("alice", "staging", "NOT_ALLOWED - access to vhost 'staging' refused for user 'alice'"),
        ("bob", "/", "NOT_ALLOWED - access to vhost '/' refused for user 'bob'"),
        ("nobody", "/", "NOT_ALLOWED - access to vhost '/' refused for user 'nobody'"),
    ):
        with login_refused(pika.exceptions.ProbableAccessDeniedError, text):
            login(context, user, vhost)


@scenario("connection-limit")
def connection_limit(context):
    def second():
        with login_refused(pika.exceptions.ProbableAccessDeniedError,
                           "NOT_ALLOWED - connection refused for user 'bob': user connection limit (1) is reached"):
            login(context, "bob", "staging")

    first = login(context, "bob", "staging")
    second()
    first.close()

    def free():
        with contextlib.suppress(pika.exceptions.AMQPConnectionError):
            return login(context, "bob", "staging")

    kit.wait_until(free, "the limit to let another in")
    second()


@scenario("configure")
def configure(context):
    other, own = foreign(context)
    attempt(context, f"queue '{other}'", lambda c: c.queue_declare(other), lambda c: c.queue_delete(other))
    attempt(context, f"exchange '{other}'", lambda c: c.exchange_declare(other, "fanout"), lambda c: c.exchange_delete(other))
    missing = context.name("missing")
    attempt(context, f"queue '{missing}'", lambda c: c.queue_delete(missing))
    with channel_refused(403, "ACCESS_REFUSED - access to queue 'amq.gen-", "refused for user 'alice'"):
        alice(context).queue_declare("", exclusive=True)
    channel = alice(context)
    channel.queue_declare(other, passive=True)
    channel.exchange_declare(other, passive=True)
    channel.queue_declare(own)
    channel.exchange_declare(own, "fanout")
    channel.queue_delete(own)
    channel.exchange_delete(own)


@scenario("write")
def write(context):
    other, own = foreign(context)
    missing = context.name("missing")
    attempt(context, f"exchange '{other}'", lambda c: publish(c, "key", b"", exchange=other),
            lambda c: c.exchange_bind(other, own))
    attempt(context, f"exchange '{missing}'", lambda c: publish(c, "key", b"", exchange=missing))
    attempt(context, f"queue '{other}'", lambda c: c.queue_bind(other, own, "key"), lambda c: c.queue_unbind(other, own, "key"))
    channel = alice(context)
    channel.queue_bind(own, own)
    publish(channel, "", b"to the exchange", exchange=own)
    publish(channel, own, b"to the queue")
    publish(channel, other, b"the default exchange asks for itself only")
    equal(drain(channel, own), [b"to the exchange", b"to the queue"], "own queue")


@scenario("read")
def read(context):
    other, own = foreign(context)
    attempt(context, f"queue '{other}'", lambda c: get(c, other), lambda c: c.basic_consume(other, lambda *_: None),
            lambda c: c.queue_purge(other))
    attempt(context, f"exchange '{other}'", lambda c: c.queue_bind(own, other, "key"), lambda c: c.exchange_bind(own, other))
    channel = alice(context)
    publish(channel, own, b"one", b"two")
    equal(get(channel, own).body, b"one", "own queue")
    kit.Inbox(channel, own).wait(1)
    channel.queue_purge(own)


@scenario("topic-permission")
def topic_permission(context):
    _, own = foreign(context)
    attempt(context, "topic 'x.k' in exchange 'amq.topic'", lambda c: publish(c, "x.k", b"", exchange="amq.topic"),
            lambda c: c.queue_bind(own, "amq.topic", "x.k"))
    attempt(context, "topic 'r.k' in exchange 'amq.topic'", lambda c: publish(c, "r.k", b"", exchange="amq.topic"))
    attempt(context, "topic 'w.k' in exchange 'amq.topic'", lambda c: c.queue_bind(own, "amq.topic", "w.k"))
    channel = alice(context)
    channel.queue_bind(own, "amq.topic", "r." + own)
    publish(channel, "w." + own, b"nobody listens", exchange="amq.topic")
    publish(context.channel(confirms=True), "r." + own, b"for alice", exchange="amq.topic")
    equal(drain(channel, own), [b"for alice"], "own queue")


@scenario("user-id")
def user_id(context):
    _, own = foreign(context)
    with channel_refused(406, "PRECONDITION_FAILED - user_id property set to 'guest' but authenticated user was 'alice'"):
        publish(alice(context), own, b"", user_id="guest")
    channel = alice(context)
    publish(channel, own, b"", user_id="alice")
    equal(get(channel, own).properties.user_id, "alice", "user id")


@scenario("defined-objects")
def defined_objects(context):
    channel = login(context, "guest", "staging").channel()
    channel.confirm_delivery()
    channel.queue_declare("interop.defined", durable=True)
    channel.exchange_declare("interop.defined", "fanout", durable=True)
    publish(channel, "", b"bound", exchange="interop.defined")
    equal(drain(channel, "interop.defined"), [b"bound"], "the queue")


@scenario("refused-stays-refused")
def refused_stays_refused(context):
    other, own = foreign(context)
    context.channel().queue_bind(other, other)
    channel = alice(context)
    connection = channel.connection
    with channel_refused(403, ACCESS.format(f"exchange '{other}'")):
        publish(channel, "", b"sneaked in", exchange=other)
    channel = connection.channel()
    publish(channel, own, b"fine")
    equal(get(channel, own).body, b"fine", "the same connection's next channel")
    equal(drain(context.channel(), other), [], "what the refused publish left")


if __name__ == "__main__":
    if not os.environ.get("INTEROP_ACCOUNTS"):
        for known, (_, seconds) in list(kit.SCENARIOS.items()):
            def unknown(_context):
                raise Skip("the broker does not know the accounts (INTEROP_ACCOUNTS is not set)")
            kit.SCENARIOS[known] = (unknown, seconds)
    kit.main()
