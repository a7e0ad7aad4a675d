"""Declaring, comparing, refusing and removing queues and exchanges."""

import pika
from kit import (Inbox, channel_refused, check, drain, equal, get, publish, scenario, wait_ready, wait_until)


def exists(context, queue):
    try:
        with context.connect() as connection:
            connection.channel().queue_declare(queue, passive=True)
        return True
    except pika.exceptions.ChannelClosedByBroker as closed:
        equal(closed.reply_code, 404, "reply code")
        return False


def exchange_exists(context, exchange):
    try:
        with context.connect() as connection:
            connection.channel().exchange_declare(exchange, passive=True)
        return True
    except pika.exceptions.ChannelClosedByBroker as closed:
        equal(closed.reply_code, 404, "reply code")
        return False


@scenario("queue-declare")
def queue_declare(context):
    queue, channel = context.name("declare"), context.channel(confirms=True)

    def counts(**options):
        method = channel.queue_declare(queue, **options).method
        equal(method.queue, queue, "name in declare-ok")
        return method.message_count, method.consumer_count

    equal(counts(durable=True), (0, 0), "counts of a new queue")
    publish(channel, queue, b"one", b"two")
    equal(counts(durable=True), (2, 0), "counts when declared again")
    Inbox(channel, queue).wait(2)
    equal(counts(passive=True), (0, 1), "counts with a consumer that holds all: only ready ones count")


@scenario("queue-declare-mismatch")
def queue_declare_mismatch(context):
    queue = context.name("mismatch")
    context.channel().queue_declare(queue, durable=True)
    for argument, options in (("durable", dict(durable=False)), ("auto_delete", dict(durable=True, auto_delete=True))):
        with channel_refused(406, "PRECONDITION_FAILED", f"inequivalent arg '{argument}' for queue '{queue}' in vhost '/'"):
            context.channel().queue_declare(queue, **options)
    with channel_refused(405, "RESOURCE_LOCKED", queue):
        context.channel().queue_declare(queue, durable=True, exclusive=True)
    check(exists(context, queue), "the queue is untouched")


@scenario("queue-types")
def queue_types(context):
    def declare(queue, kind, **options):
        return context.channel(confirms=True), queue, dict(durable=True, arguments={"x-queue-type": kind}, **options)

    for kind, other in (("classic", "quorum"), ("quorum", "classic")):
        channel, queue, options = declare(context.name(kind), kind)
        channel.queue_declare(queue, **options)
        channel.queue_declare(queue, **options)
        publish(channel, queue, b"one", b"two", delivery_mode=2)
        first = get(channel, queue, auto_ack=False)
        channel.basic_nack(first.tag, requeue=True)
        wait_ready(channel, queue, 2)
        both = [get(channel, queue), get(channel, queue)]
        # A quorum queue may put it behind the others (RabbitMQ before 4.0 does).
        equal(sorted((message.body, message.redelivered) for message in both), [(b"one", True), (b"two", False)],
              f"messages of a {kind} queue after a requeue")
        with channel_refused(406, "inequivalent arg 'x-queue-type'", f"'{queue}'"):
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": other})
    with channel_refused(406, "PRECONDITION_FAILED", "x-queue-type"):
        channel, queue, options = declare(context.name("nonsense"), "nonsense")
        channel.queue_declare(queue, **options)
    with channel_refused(406, "PRECONDITION_FAILED", "non-durable"):
        channel, queue, options = declare(context.name("transient-quorum"), "quorum")
        channel.queue_declare(queue, **{**options, "durable": False})


@scenario("not-found")
def not_found(context):
    missing = context.name("missing")
    present = context.channel().queue_declare(context.name("present")).method.queue
    no_queue = f"no queue '{missing}' in vhost '/'"
    no_exchange = f"no exchange '{missing}' in vhost '/'"
    attempts = [
        (no_queue, lambda channel: channel.queue_declare(missing, passive=True)),
        (no_queue, lambda channel: channel.basic_consume(missing, lambda *_: None)),
        (no_queue, lambda channel: channel.basic_get(missing)),
        (no_queue, lambda channel: channel.queue_purge(missing)),
        (no_queue, lambda channel: channel.queue_bind(missing, "amq.direct", "key")),
        (no_exchange, lambda channel: channel.exchange_declare(missing, passive=True)),
        (no_exchange, lambda channel: channel.queue_bind(present, missing, "key")),
        (no_exchange, lambda channel: channel.exchange_bind("amq.fanout", missing)),
    ]
    for text, attempt in attempts:
        with channel_refused(404, "NOT_FOUND", text):
            attempt(context.channel())
    # A publish is not answered: the refusal comes with whatever is asked next.
    channel = context.channel()
    with channel_refused(404, "NOT_FOUND", no_exchange):
        publish(channel, "key", b"lost", exchange=missing)
        channel.queue_declare(present, passive=True)


@scenario("exclusive-queue")
def exclusive_queue(context):
    queue = context.name("exclusive")
    owner = context.channel()
    owner.queue_declare(queue, exclusive=True)
    publish(owner, queue, b"mine")
    attempts = [
        lambda channel: channel.queue_declare(queue, passive=True),
        lambda channel: channel.queue_declare(queue),
        lambda channel: channel.queue_declare(queue, exclusive=True),
        lambda channel: channel.basic_consume(queue, lambda *_: None),
        lambda channel: channel.basic_get(queue),
        lambda channel: channel.queue_bind(queue, "amq.direct", "key"),
        lambda channel: channel.queue_purge(queue),
        lambda channel: channel.queue_delete(queue),
    ]
    for attempt in attempts:
        with channel_refused(405, "RESOURCE_LOCKED", f"exclusive access to locked queue '{queue}'"):
            attempt(context.channel())
    # Another channel of the owner's connection may use it.
    equal(drain(owner.connection.channel(), queue), [b"mine"], "queue of the owner")
    owner.connection.close()
    wait_until(lambda: not exists(context, queue), "the queue to go with its owner")
    equal(context.channel().queue_declare(queue, exclusive=True).method.message_count, 0, "messages of its successor")


@scenario("server-named-queue")
def server_named_queue(context):
    channel = context.channel()
    names = [channel.queue_declare("", exclusive=True).method.queue for _ in range(3)]
    check(all(name.startswith("amq.gen-") for name in names), f"names {names} begin with amq.gen-")
    equal(len(set(names)), 3, "different names")
    channel.queue_bind("", "amq.direct", names[2] + ".key")
    publish(channel, names[2] + ".key", b"to the last", exchange="amq.direct")
    equal(get(channel, "").body, b"to the last", "message read by the empty name")
    # Empty queue name and empty key together: the queue's own name is the key.
    channel.queue_bind("", "amq.direct", "")
    publish(channel, names[2], b"by its name", exchange="amq.direct")
    equal(drain(channel, names[2]), [b"by its name"], "message by the queue's name as key")
    with channel_refused(404, "NOT_FOUND"):
        context.channel().queue_bind("", "amq.direct", "key")


@scenario("auto-delete-queue")
def auto_delete_queue(context):
    queue, channel = context.name("auto-delete"), context.channel()
    channel.queue_declare(queue, auto_delete=True)
    publish(channel, queue, b"one")
    equal(get(channel, queue).body, b"one", "basic.get before the first consumer")
    check(exists(context, queue), "the queue stays before its first consumer")
    first, second = Inbox(channel, queue), Inbox(channel, queue)
    channel.basic_cancel(first.consumer_tag)
    check(exists(context, queue), "the queue stays while one consumer is left")
    channel.basic_cancel(second.consumer_tag)
    wait_until(lambda: not exists(context, queue), "the queue to go with its last consumer")


@scenario("auto-delete-exchange")
def auto_delete_exchange(context):
    source, target, queue = context.name("source"), context.name("target"), context.name("queue")
    channel = context.channel()
    channel.exchange_declare(source, "fanout", auto_delete=True)
    channel.exchange_declare(target, "fanout")
    channel.queue_declare(queue)
    channel.exchange_bind(target, source)
    channel.queue_bind(queue, source)
    channel.queue_unbind(queue, source)
    check(exchange_exists(context, source), "the exchange stays while something is bound to it")
    channel.exchange_unbind(target, source)
    check(not exchange_exists(context, source), "the exchange goes with its last binding")
    check(exchange_exists(context, target), "the other exchange stays")


@scenario("reserved-names")
def reserved_names(context):
    with channel_refused(403, "ACCESS_REFUSED", "amq.", "reserved prefix"):
        context.channel().queue_declare("amq.interop")
    with channel_refused(403, "ACCESS_REFUSED", "amq.", "reserved prefix"):
        context.channel().exchange_declare("amq.interop", "direct")
    with channel_refused(404):
        context.channel().queue_declare("amq.interop", passive=True)
    channel = context.channel()
    for exchange, kind in (("amq.direct", "direct"), ("amq.fanout", "fanout"), ("amq.topic", "topic"),
                           ("amq.headers", "headers"), ("amq.match", "headers")):
        channel.exchange_declare(exchange, passive=True)
        channel.exchange_declare(exchange, kind, durable=True)
    with channel_refused(403, "ACCESS_REFUSED", "amq.direct"):
        channel.exchange_delete("amq.direct")


@scenario("default-exchange")
def default_exchange(context):
    queue = context.channel().queue_declare(context.name("default")).method.queue
    attempts = [
        lambda channel: channel.queue_bind(queue, "", "key"),
        lambda channel: channel.queue_unbind(queue, "", queue),
        lambda channel: channel.exchange_bind("amq.fanout", ""),
        lambda channel: channel.exchange_bind("", "amq.fanout"),
        lambda channel: channel.exchange_delete(""),
    ]
    for attempt in attempts:
        with channel_refused(403, "ACCESS_REFUSED", "operation not permitted on the default exchange"):
            attempt(context.channel())
    channel = context.channel(confirms=True)
    publish(channel, queue, b"still routed")
    equal(drain(channel, queue), [b"still routed"], "queue after the refusals")


@scenario("exchange-declare")
def exchange_declare(context):
    exchange, queue, channel = context.name("exchange"), context.name("queue"), context.channel()
    channel.exchange_declare(exchange, "direct", durable=True)
    channel.exchange_declare(exchange, "direct", durable=True)
    channel.exchange_declare(exchange, passive=True)
    for argument, kind, options in (("type", "topic", dict(durable=True)), ("durable", "direct", dict(durable=False)),
                                    ("auto_delete", "direct", dict(durable=True, auto_delete=True)),
                                    ("internal", "direct", dict(durable=True, internal=True))):
        with channel_refused(406, "PRECONDITION_FAILED",
                             f"inequivalent arg '{argument}' for exchange '{exchange}' in vhost '/'"):
            context.channel().exchange_declare(exchange, kind, **options)
    channel.queue_declare(queue)
    channel.queue_bind(queue, exchange, "key")
    with channel_refused(406, "PRECONDITION_FAILED", f"exchange '{exchange}' in vhost '/' in use"):
        context.channel().exchange_delete(exchange, if_unused=True)
    channel.queue_unbind(queue, exchange, "key")
    channel.exchange_delete(exchange, if_unused=True)
    check(not exchange_exists(context, exchange), "the exchange is gone")
    channel.exchange_delete(exchange)


@scenario("internal-exchange")
def internal_exchange(context):
    front, internal, queue = context.name("front"), context.name("internal"), context.name("queue")
    channel = context.channel(confirms=True)
    channel.exchange_declare(front, "fanout")
    channel.exchange_declare(internal, "fanout", internal=True)
    channel.queue_declare(queue)
    channel.exchange_bind(internal, front)
    channel.queue_bind(queue, internal)
    publish(channel, "", b"through", exchange=front)
    with channel_refused(403, "ACCESS_REFUSED", f"internal exchange '{internal}'"):
        publish(context.channel(confirms=True), "", b"directly", exchange=internal)
    equal(drain(channel, queue), [b"through"], "queue behind the internal exchange")
