"""What survives a restart of the broker."""

import time

import pika
from kit import (RESTART_SECONDS, Inbox, channel_refused, check, drain, equal, get, publish, scenario, sequence,
                 wait_until)

BODIES = sequence(20)
SETTLED = BODIES[:5] + BODIES[6:7]
UNACKED = BODIES[5]
KEPT = [body for body in BODIES if body not in SETTLED]


def restart(context, how):
    context.needs_restart()
    exchange, gone = context.name("exchange"), context.name("transient")
    queues = {kind: context.name(kind) for kind in ("classic", "quorum")}
    channel = context.channel(confirms=True)
    channel.exchange_declare(exchange, "topic", durable=True)
    channel.exchange_declare(gone, "topic")
    channel.queue_declare(gone)
    for kind, queue in queues.items():
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
        channel.queue_bind(queue, exchange, "orders.#")
    publish(channel, "orders.new", *BODIES, exchange=exchange, delivery_mode=2, headers={"key": "value"})
    for queue in queues.values():
        channel = context.channel()
        held = [get(channel, queue, auto_ack=False) for _ in range(7)]
        channel.basic_ack(held[4].tag, multiple=True)
        channel.basic_ack(held[6].tag)
        channel.queue_declare(queue, passive=True)  # the broker has read the acks when it answers
    context.restart(how)

    for kind, queue in queues.items():
        back = consume_all(context, queue)
        for message in back:
            # A quorum queue adds x-delivery-count to what it delivers again.
            properties = message.properties
            equal((properties.delivery_mode, properties.headers.get("key")), (2, "value"), "properties")
        if how == "kill":
            # Nobody promised that an ack is on disk the moment it was sent. What comes back of those must say so.
            settled = [message for message in back if message.body in SETTLED]
            equal([message.redelivered for message in settled], [True] * len(settled), "flags of settled messages")
            back = [message for message in back if message not in settled]
        else:
            flags = {message.body: message.redelivered for message in back}
            equal(flags, {body: body == UNACKED for body in KEPT}, f"redelivered flags of the {kind} queue")
        bodies = [message.body for message in back]
        if kind == "quorum":  # RabbitMQ before 4.0 puts the unacked one behind the others
            bodies.sort(key=BODIES.index)
        equal(bodies, KEPT, f"{kind} queue after the restart")
    # Exchange, queues and bindings still work together.
    channel = context.channel(confirms=True)
    publish(channel, "orders.again", b"again", exchange=exchange, delivery_mode=2)
    for queue in queues.values():
        equal(drain(channel, queue), [b"again"], f"{queue} after a new publish")
    with channel_refused(404):
        context.channel().queue_declare(gone, passive=True)
    with channel_refused(404):
        context.channel().exchange_declare(gone, passive=True)


def consume_all(context, queue):
    """Everything in the queue. A quorum queue may still be without a leader and refuse its first consumers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            inbox = Inbox(context.channel(), queue)
            break
        except pika.exceptions.ConnectionClosedByBroker as closed:
            equal(closed.reply_code, 541, "reply code")
            check(time.monotonic() < deadline, "the queue takes no consumer 30 s after the restart")
    channel = inbox.channel
    wait_until(lambda: BODIES[-1] in inbox.bodies, "the last message", channel.connection)
    wait_until(lambda: channel.queue_declare(queue, passive=True).method.message_count == 0
               and set(KEPT) <= set(inbox.bodies), f"the rest of {queue} (have {inbox.bodies})", channel.connection)
    channel.basic_ack(0, multiple=True)
    channel.connection.close()
    return inbox.messages


@scenario("restart-graceful", seconds=RESTART_SECONDS)
def restart_graceful(context):
    restart(context, "term")


@scenario("restart-kill", seconds=RESTART_SECONDS)
def restart_kill(context):
    restart(context, "kill")
