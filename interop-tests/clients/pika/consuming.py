"""Getting, acknowledging, refusing, recovering, prefetch, purge and the end of consumers."""

from kit import (Inbox, Skip, channel_refused, check, equal, get, publish, ready_count, scenario, sequence,
                 wait_ready, wait_until)


def filled(context, count, **options):
    """A channel and a queue with m0, m1, …"""
    queue, channel = context.name("queue"), context.channel(confirms=True)
    channel.queue_declare(queue, **options)
    publish(channel, queue, *sequence(count))
    return channel, queue


def outline(messages):
    return [(message.body.decode(), message.redelivered) for message in messages]


@scenario("get")
def get_(context):
    channel, queue = filled(context, 3)
    first = get(channel, queue, auto_ack=False)
    equal((first.body, first.method.message_count, first.method.exchange, first.method.routing_key, first.redelivered),
          (b"m0", 2, "", queue, False), "get-ok")
    equal(get(channel, queue, auto_ack=True).method.message_count, 1, "messages left")
    channel.close()  # the first was not acknowledged, the second needed no ack
    channel = context.channel()
    wait_ready(channel, queue, 2)
    equal(outline([get(channel, queue), get(channel, queue)]), [("m0", True), ("m2", False)], "after the channel closed")
    equal(get(channel, queue), None, "get on an empty queue")


@scenario("ack-multiple")
def ack_multiple(context):
    channel, queue = filled(context, 10)
    consumer = context.channel()
    inbox = Inbox(consumer, queue)
    tags = [message.tag for message in inbox.wait(10)]
    equal(tags, list(range(1, 11)), "delivery tags")
    consumer.basic_ack(tags[1])
    consumer.basic_ack(tags[4], multiple=True)
    consumer.close()
    wait_ready(channel, queue, 5)
    second = context.channel()
    back = Inbox(second, queue).wait(5)
    equal(outline(back), [(f"m{n}", True) for n in range(5, 10)], "what the multiple ack left")
    second.basic_ack(0, multiple=True)
    second.close()
    equal(ready_count(channel, queue), 0, "ready messages after an ack of all")


@scenario("nack-requeue")
def nack_requeue(context):
    channel, queue = filled(context, 6)
    held = [get(channel, queue, auto_ack=False) for _ in range(4)]
    channel.basic_ack(held[0].tag)
    channel.basic_nack(held[2].tag, multiple=True, requeue=True)
    channel.basic_reject(held[3].tag, requeue=True)
    wait_ready(channel, queue, 5)
    equal(outline(Inbox(channel, queue).wait(5)),
          [("m1", True), ("m2", True), ("m3", True), ("m4", False), ("m5", False)], "order and flags")


@scenario("reject-discard")
def reject_discard(context):
    channel, queue = filled(context, 6)
    held = [get(channel, queue, auto_ack=False) for _ in range(5)]
    channel.basic_reject(held[1].tag, requeue=False)
    channel.basic_nack(held[0].tag, requeue=False)
    channel.basic_nack(held[3].tag, multiple=True, requeue=False)
    channel.close()
    watcher = context.channel()
    wait_ready(watcher, queue, 2)
    equal(outline([get(watcher, queue), get(watcher, queue)]), [("m4", True), ("m5", False)], "what was not discarded")


@scenario("unknown-delivery-tag")
def unknown_delivery_tag(context):
    channel, queue = filled(context, 1)
    message = get(channel, queue, auto_ack=False)
    channel.basic_ack(message.tag)
    answers = [lambda channel, tag: channel.basic_ack(tag), lambda channel, tag: channel.basic_nack(tag),
               lambda channel, tag: channel.basic_reject(tag)]
    for answer in answers:
        with channel_refused(406, "PRECONDITION_FAILED", "unknown delivery tag 77"):
            broken = context.channel()
            answer(broken, 77)  # not answered itself: the refusal comes with whatever is asked next
            broken.queue_declare(queue, passive=True)
    with channel_refused(406, "PRECONDITION_FAILED", f"unknown delivery tag {message.tag}"):
        channel.basic_ack(message.tag)
        channel.queue_declare(queue, passive=True)


@scenario("recover")
def recover(context):
    channel, queue = filled(context, 4)
    inbox = Inbox(channel, queue)
    inbox.wait(4)
    channel.basic_ack(inbox.messages[1].tag)
    channel.basic_recover(requeue=True)
    equal(outline(inbox.wait(7)[4:]), [("m0", True), ("m2", True), ("m3", True)], "recovered")


@scenario("qos-per-consumer")
def qos_per_consumer(context):
    watcher, queue = filled(context, 20)
    channel = context.channel()
    channel.basic_qos(prefetch_count=3)
    three = Inbox(channel, queue)
    channel.basic_qos(prefetch_count=5)
    five = Inbox(channel, queue)
    connection = channel.connection
    wait_until(lambda: len(three.messages) + len(five.messages) >= 8, "3 + 5 messages", connection)
    equal((len(three.messages), len(five.messages), ready_count(watcher, queue)), (3, 5, 12), "held, held, ready")
    channel.basic_ack(three.messages[0].tag)
    wait_until(lambda: len(three.messages) == 4, "one more for one ack", connection)
    equal((len(five.messages), ready_count(watcher, queue)), (5, 11), "the other consumer's and the ready ones")
    channel.basic_ack(0, multiple=True)
    wait_until(lambda: len(three.messages) + len(five.messages) == 17, "a full window each", connection)


@scenario("qos-global")
def qos_global(context):
    watcher, queue = filled(context, 10)
    channel = context.channel()
    channel.basic_qos(prefetch_count=4, global_qos=True)
    inboxes = [Inbox(channel, queue), Inbox(channel, queue)]

    def received():
        return sum(len(inbox.messages) for inbox in inboxes)

    wait_until(lambda: received() >= 4, "4 messages", channel.connection)
    equal((ready_count(watcher, queue), received()), (6, 4), "ready and held")
    tags = sorted(message.tag for inbox in inboxes for message in inbox.messages)
    channel.basic_ack(tags[1], multiple=True)
    wait_until(lambda: received() >= 6, "two more for two acks", channel.connection)
    equal((ready_count(watcher, queue), received()), (4, 6), "ready and received")


@scenario("purge-and-delete")
def purge_and_delete(context):
    channel, queue = filled(context, 5)
    get(channel, queue, auto_ack=False)
    equal(channel.queue_purge(queue).method.message_count, 4, "purged: ready ones only")
    equal(channel.queue_purge(queue).method.message_count, 0, "purged again")
    publish(channel, queue, b"one", b"two")
    with channel_refused(406, "PRECONDITION_FAILED", f"queue '{queue}' in vhost '/' not empty"):
        context.channel().queue_delete(queue, if_empty=True)
    inbox = Inbox(channel, queue, auto_ack=True)
    inbox.wait(2)
    with channel_refused(406, "PRECONDITION_FAILED", f"queue '{queue}' in vhost '/' in use"):
        context.channel().queue_delete(queue, if_unused=True)
    channel.basic_cancel(inbox.consumer_tag)
    publish(channel, queue, b"three")
    equal(channel.queue_delete(queue, if_unused=True).method.message_count, 1, "messages deleted with the queue")
    equal(channel.queue_delete(queue).method.message_count, 0, "deleting a missing queue")
    with channel_refused(404):
        context.channel().queue_declare(queue, passive=True)


@scenario("cancel")
def cancel(context):
    watcher, queue = filled(context, 2)
    channel = context.channel()
    inbox = Inbox(channel, queue)
    inbox.wait(2)
    channel.basic_cancel(inbox.consumer_tag)
    publish(watcher, queue, b"later")
    equal(ready_count(watcher, queue), 1, "ready messages: the later one waits")
    channel.connection.process_data_events(time_limit=0)
    equal(len(inbox.messages), 2, "deliveries after the cancel")
    channel.basic_ack(inbox.messages[0].tag)
    channel.close()
    wait_ready(watcher, queue, 2)
    equal(outline([get(watcher, queue), get(watcher, queue)]), [("m1", True), ("later", False)],
          "the unacked one came back when the channel closed")


@scenario("cancel-notify")
def cancel_notify(context):
    watcher, queue = filled(context, 0)
    channel = context.channel()
    cancelled = []
    channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
    inbox = Inbox(channel, queue)
    watcher.queue_delete(queue)
    wait_until(lambda: cancelled, "basic.cancel", channel.connection)
    equal(cancelled, [inbox.consumer_tag], "cancelled consumers")
    check(channel.is_open, "the channel stays open")


@scenario("consumer-exclusive")
def consumer_exclusive(context):
    channel, queue = filled(context, 0)
    only = Inbox(channel, queue, exclusive=True)
    for exclusive in (False, True):
        with channel_refused(403, "ACCESS_REFUSED", f"queue '{queue}' in vhost '/' in exclusive use"):
            Inbox(context.channel(), queue, exclusive=exclusive)
    channel.basic_cancel(only.consumer_tag)
    Inbox(channel, queue)
    with channel_refused(403, "ACCESS_REFUSED", f"queue '{queue}' in vhost '/' in exclusive use"):
        Inbox(context.channel(), queue, exclusive=True)


@scenario("consumer-duplicate-tag")
def consumer_duplicate_tag(_context):
    raise Skip("pika itself refuses a tag it already uses")
