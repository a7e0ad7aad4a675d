"""RabbitMQ's extensions of publishing and consuming: time to live, sender-selected distribution, direct reply-to."""

import time

import pika
from kit import (Inbox, channel_refused, check, drain, equal, get, publish, ready_count, scenario, wait_ready)

REPLIES = "amq.rabbitmq.reply-to"


@scenario("expiration")
def expiration(context):
    for durable in (False, True):
        queue, channel = context.name("ttl"), context.channel(confirms=True)
        channel.queue_declare(queue, durable=durable)
        publish(channel, queue, b"short", expiration="200", delivery_mode=2)
        publish(channel, queue, b"lasting", delivery_mode=2)
        publish(channel, queue, b"behind", expiration="1", delivery_mode=2)
        publish(channel, queue, b"later", expiration="3600000", delivery_mode=2)
        wait_ready(channel, queue, 3)  # the head goes without a consumer, what stands behind a lasting one stays
        message = get(channel, queue)
        equal((message.body, message.properties.expiration), (b"lasting", None), "head")
        message = get(channel, queue)
        equal((message.body, message.properties.expiration), (b"later", "3600000"), "next")
        # A message that expires while a consumer holds it can be acknowledged, but does not come back.
        publish(channel, queue, b"held", expiration="300", delivery_mode=2)
        publish(channel, queue, b"next", delivery_mode=2)
        held = get(channel, queue, auto_ack=False)
        equal(held.body, b"held", "held")
        time.sleep(0.5)  # the time that passes is the subject
        channel.basic_reject(held.tag, requeue=True)
        equal(drain(channel, queue), [b"next"], "after the requeue")


@scenario("expiration-zero")
def expiration_zero(context):
    queue, channel = context.name("ttl"), context.channel(confirms=True)
    channel.queue_declare(queue, durable=True)
    publish(channel, queue, b"lost", expiration="0", delivery_mode=2)
    wait_ready(channel, queue, 0)
    inbox = Inbox(channel, queue, auto_ack=True)
    publish(channel, queue, b"now", expiration="0", delivery_mode=2)
    equal([message.body for message in inbox.wait(1)], [b"now"], "what a waiting consumer gets")


@scenario("expiration-invalid")
def expiration_invalid(context):
    for value, why in (("", "no_integer"), ("ten", "no_integer"), ("-1", "{value_negative,-1}"),
                       ("1.5", '{leftover_string,".5"}'),
                       ("315360000001", "{value_too_large,315360000001}")):
        channel = context.channel(confirms=True)
        with channel_refused(406, f"invalid expiration '{value}': {why}"):
            publish(channel, "anything", b"", expiration=value)


@scenario("queue-times")
def queue_times(context):
    for durable in (False, True):
        queue, channel = context.name("times"), context.channel(confirms=True)
        channel.queue_declare(queue, durable=durable, arguments={"x-message-ttl": 300, "x-expires": 3600000})
        publish(channel, queue, b"the queue's time", delivery_mode=2)
        publish(channel, queue, b"longer", expiration="3600000", delivery_mode=2)
        equal(ready_count(channel, queue), 2, "before their time")
        wait_ready(channel, queue, 0)
        with channel_refused(406, "inequivalent arg 'x-message-ttl'", "received '301' but current is '300'"):
            channel.queue_declare(queue, durable=durable, arguments={"x-message-ttl": 301, "x-expires": 3600000})
        channel, idle = context.channel(), context.name("idle")
        channel.queue_declare(idle, durable=durable, arguments={"x-expires": 300})
        time.sleep(2)  # the time that passes is the subject
        with channel_refused(404, "no queue"):
            channel.queue_declare(idle, passive=True)


@scenario("cc-bcc")
def cc_bcc(context):
    channel = context.channel(confirms=True)
    first, second, third = (context.name("cc") for _ in range(3))
    for queue in (first, second, third):
        channel.queue_declare(queue)
    publish(channel, first, b"all", headers={"CC": [second, first], "BCC": [third], "other": 1})
    for queue in (first, second, third):
        message = get(channel, queue)
        equal((message.body, message.method.routing_key, message.properties.headers),
              (b"all", first, {"CC": [second, first], "other": 1}), "what each gets")
        equal(get(channel, queue), None, "each queue once")
    exchange = context.name("topic")
    channel.exchange_declare(exchange, "topic")
    channel.queue_bind(first, exchange, "a.*")
    publish(channel, "no.match", b"topic", exchange=exchange, headers={"CC": ["a.b", "a.c"]})
    equal(drain(channel, first), [b"topic"], "by a copy's key")
    channel.basic_publish("", context.name("missing"), b"routed by its copy", pika.BasicProperties(headers={"CC": [first]}),
                          mandatory=True)
    equal(drain(channel, first), [b"routed by its copy"], "mandatory")
    for name in ("CC", "BCC"):
        refusing = context.channel(confirms=True)
        with channel_refused(406, f'{{unacceptable_type_in_header,"{name}",longstr}}'):
            publish(refusing, first, b"", headers={name: second})


@scenario("direct-reply-to")
def direct_reply_to(context):
    client, server, queue = context.channel(), context.channel(), context.name("rpc")
    server.queue_declare(queue)
    replies = Inbox(client, REPLIES, auto_ack=True)
    for number in range(3):
        publish(client, queue, b"question", reply_to=REPLIES, correlation_id=str(number))
        wait_ready(server, queue, 1)
        question = get(server, queue)
        reply_to = question.properties.reply_to
        check(reply_to.startswith(REPLIES + "."), f"reply-to {reply_to}")
        equal(server.queue_declare(reply_to, passive=True).method.consumer_count, 1, "consumers seen by the server")
        publish(server, reply_to, b"answer", correlation_id=question.properties.correlation_id)
        message = replies.wait(number + 1)[-1]
        equal((message.body, message.properties.correlation_id, message.method.exchange, message.method.routing_key),
              (b"answer", str(number), "", reply_to), "the reply")
    client.queue_declare(REPLIES, passive=True)
    client.basic_cancel(replies.consumer_tag)
    with channel_refused(404, "no queue"):
        server.queue_declare(reply_to, passive=True)
    publish(context.channel(confirms=True), reply_to, b"nobody hears")


@scenario("direct-reply-to-errors")
def direct_reply_to_errors(context):
    channel = context.channel()
    with channel_refused(406, "reply consumer cannot acknowledge"):
        Inbox(channel, REPLIES)
    channel = context.channel()
    Inbox(channel, REPLIES, auto_ack=True)
    with channel_refused(406, "reply consumer already set"):
        Inbox(channel, REPLIES, auto_ack=True)
    channel = context.channel(confirms=True)
    with channel_refused(406, "fast reply consumer does not exist"):
        publish(channel, "anything", b"", reply_to=REPLIES)
    channel = context.channel()
    with channel_refused(404, "no queue"):
        channel.basic_get(REPLIES)


@scenario("publish-then-count")
def publish_then_count(context):
    # What a channel published it finds there, without waiting for a confirm.
    queue, channel = context.name("own"), context.channel()
    channel.queue_declare(queue, durable=True)
    for _ in range(20):
        publish(channel, queue, b"one", b"two", b"three", delivery_mode=2)
        equal(get(channel, queue).body, b"one", "basic.get")
        equal(ready_count(channel, queue), 2, "passive declare")
        equal(channel.queue_purge(queue).method.message_count, 2, "purge")
        equal(get(channel, queue), None, "after the purge")
