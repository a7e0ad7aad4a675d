"""Transactions: what a commit and a rollback do to publishes and acknowledgements."""

from kit import (channel_refused, drain, equal, get, publish, ready_count, scenario, sequence, wait_ready)


@scenario("tx-commit")
def tx_commit(context):
    queue, other = context.name("tx"), context.name("tx")
    channel, observer = context.channel(), context.channel()
    channel.queue_declare(queue, durable=True)
    channel.queue_declare(other)
    channel.tx_select()
    publish(channel, queue, b"one", b"two", delivery_mode=2)
    publish(channel, other, b"three")
    equal((ready_count(observer, queue), ready_count(observer, other)), (0, 0), "ready messages before the commit")
    channel.tx_commit()
    equal((ready_count(observer, queue), ready_count(observer, other)), (2, 1), "ready messages after the commit")
    # An ack counts when it is committed, together with what is published.
    message = get(channel, queue, auto_ack=False)
    equal(message.body, b"one", "body")
    channel.basic_ack(message.tag)
    publish(channel, other, b"four")
    channel.tx_commit()
    channel.close()
    equal(drain(observer, queue), [b"two"], "what was not acknowledged")
    equal(drain(observer, other), [b"three", b"four"], "what was published")


@scenario("tx-rollback")
def tx_rollback(context):
    queue = context.name("tx")
    channel, observer = context.channel(), context.channel()
    channel.queue_declare(queue, durable=True)
    publish(channel, queue, b"one", b"two")
    channel.tx_select()
    first, second = get(channel, queue, auto_ack=False), get(channel, queue, auto_ack=False)
    publish(channel, queue, b"never")
    channel.basic_ack(first.tag)
    channel.basic_reject(second.tag, requeue=True)
    channel.tx_rollback()
    equal(ready_count(observer, queue), 0, "ready messages after the rollback")
    # After a rollback the deliveries are open again under their tags.
    channel.basic_ack(first.tag)
    channel.tx_commit()
    channel.basic_nack(second.tag, requeue=True)
    channel.close()  # nothing of an open transaction happens
    wait_ready(observer, queue, 1)
    message = get(observer, queue)
    equal((message.body, message.redelivered), (b"two", True), "what comes back")


@scenario("tx-large")
def tx_large(context):
    queue, channel = context.name("tx"), context.channel()
    channel.queue_declare(queue, durable=True)
    channel.tx_select()
    bodies = [bytes([number]) * size for number, size in enumerate((1, 3 << 20, 700_000, 0, 900_000, 5))]
    publish(channel, queue, *bodies, delivery_mode=2)
    channel.tx_commit()
    equal([len(body) for body in drain(channel, queue)], [len(body) for body in bodies], "sizes in order")
    publish(channel, queue, *sequence(500), delivery_mode=2)
    channel.tx_commit()
    equal(drain(channel, queue), sequence(500), "bodies in order")


@scenario("tx-mandatory")
def tx_mandatory(context):
    missing, channel = context.name("missing"), context.channel()
    returned = []
    channel.add_on_return_callback(lambda _channel, method, properties, body: returned.append((method, body)))
    channel.tx_select()
    channel.basic_publish("", missing, b"back", mandatory=True)
    equal(ready_count(channel, channel.queue_declare("", exclusive=True).method.queue), 0, "round trip")
    equal(returned, [], "returns before the commit")
    channel.tx_commit()
    channel.connection.process_data_events()
    equal([(method.reply_code, method.routing_key, body) for method, body in returned], [(312, missing, b"back")],
          "returns at the commit")


@scenario("tx-errors")
def tx_errors(context):
    channel = context.channel()
    with channel_refused(406, "channel is not transactional"):
        channel.tx_commit()
    channel = context.channel()
    with channel_refused(406, "channel is not transactional"):
        channel.tx_rollback()
    channel = context.channel(confirms=True)
    with channel_refused(406, "cannot switch from confirm to tx mode"):
        channel.tx_select()
    channel = context.channel()
    channel.tx_select()
    channel.tx_select()  # again is fine
    with channel_refused(406, "cannot switch from tx to confirm mode"):
        channel.confirm_delivery()
    # Known before the commit: an exchange that is not there, a tag that is not open.
    channel = context.channel()
    channel.tx_select()
    with channel_refused(404, "no exchange"):
        publish(channel, "key", b"lost", exchange=context.name("missing"))
        channel.tx_rollback()
    channel = context.channel()
    channel.tx_select()
    with channel_refused(406, "unknown delivery tag 7"):
        channel.basic_ack(7)
        channel.tx_rollback()
