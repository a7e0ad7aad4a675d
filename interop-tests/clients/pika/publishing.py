"""What a publisher learns of its messages, and that they arrive as they were sent."""

import datetime
import decimal
import random

import pika
from kit import (WAIT_SECONDS, Inbox, Skip, check, equal, get, publish, ready_count, scenario, sequence)


def publish_all_at_once(context, queue, bodies, **options):
    """Publishes without waiting in between; returns what came back in order: ("return", body) or ("ack", tag).

    The blocking connection waits for each confirm, so this takes pika's callback-driven one."""
    events, outstanding = [], set(range(1, len(bodies) + 1))
    failure = []

    def on_confirm(frame):
        method = frame.method
        kind = "ack" if isinstance(method, pika.spec.Basic.Ack) else "nack"
        tags = {tag for tag in outstanding if tag <= method.delivery_tag} if method.multiple else {method.delivery_tag}
        if not tags <= outstanding:
            failure.append(f"confirmed twice: {tags - outstanding}")
        outstanding.difference_update(tags)
        events.extend((kind, tag) for tag in sorted(tags))
        if not outstanding:
            connection.close()

    def on_channel(channel):
        channel.add_on_return_callback(
            lambda _channel, method, properties, body: events.append(("return", method, properties, body)))
        channel.add_on_close_callback(lambda _channel, reason: failure.append(str(reason)) or connection.is_open
                                      and connection.close())
        channel.confirm_delivery(on_confirm, callback=lambda _ok: publish_them(channel))

    def publish_them(channel):
        for body in bodies:
            channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2), **options)

    def out_of_time():
        failure.append(f"{len(outstanding)} confirms missing after {WAIT_SECONDS} s")
        connection.close()

    connection = pika.SelectConnection(
        context.parameters(), on_open_callback=lambda opened: opened.channel(on_open_callback=on_channel),
        on_open_error_callback=lambda _connection, error: failure.append(str(error)) or connection.ioloop.stop(),
        on_close_callback=lambda *_: connection.ioloop.stop())
    connection.ioloop.call_later(WAIT_SECONDS, out_of_time)
    connection.ioloop.start()
    failure = [text for text in failure if "(200" not in text]  # our own close
    check(not failure, "; ".join(failure))
    return events


@scenario("mandatory-return")
def mandatory_return(context):
    missing = context.name("missing")
    events = publish_all_at_once(context, missing, [b"come back", b"you too"], mandatory=True)
    equal([event[0] for event in events], ["return", "ack", "return", "ack"] if events[1][0] == "ack"
          else ["return", "return", "ack", "ack"], "each return before its confirm")
    _, method, properties, body = events[0]
    equal((method.reply_code, method.reply_text, method.exchange, method.routing_key), (312, "NO_ROUTE", "", missing),
          "basic.return")
    equal((body, properties.delivery_mode), (b"come back", 2), "returned message")
    queue, channel = context.name("present"), context.channel()
    channel.queue_declare(queue)
    events = publish_all_at_once(context, queue, [b"routed"], mandatory=True)
    equal(events, [("ack", 1)], "what a routed mandatory message brings")
    # The blocking channel reports the same by an exception.
    channel.confirm_delivery()
    try:
        channel.basic_publish("", missing, b"back", mandatory=True)
    except pika.exceptions.UnroutableError as error:
        equal([message.body for message in error.messages], [b"back"], "returned bodies")
    else:
        raise AssertionError("an unroutable mandatory message was not returned")


@scenario("confirm-single")
def confirm_single(context):
    queue, channel = context.name("confirm"), context.channel(confirms=True)
    channel.queue_declare(queue, durable=True)
    publish(channel, queue, b"safe", delivery_mode=2)  # raises unless acked
    equal(ready_count(channel, queue), 1, "ready messages after the confirm")
    # Unroutable and not mandatory: dropped, and confirmed.
    publish(channel, context.name("missing"), b"dropped", delivery_mode=2)


def confirm_many(context, count):
    queue, channel = context.name("confirm"), context.channel()
    channel.queue_declare(queue, durable=True)
    bodies = sequence(count)
    events = publish_all_at_once(context, queue, bodies)
    equal({event[0] for event in events}, {"ack"}, "kinds of confirm")
    equal(sorted(event[1] for event in events), list(range(1, count + 1)), "confirmed tags")
    equal(Inbox(channel, queue, auto_ack=True).wait(count)[-1].body, bodies[-1], "last body")


@scenario("confirm-batch")
def confirm_batch(context):
    confirm_many(context, 100)


@scenario("confirm-in-flight")
def confirm_in_flight(context):
    confirm_many(context, 1000)


@scenario("immediate")
def immediate(_context):
    raise Skip("pika has no immediate flag")


@scenario("bodies")
def bodies(context):
    queue, channel = context.name("bodies"), context.channel(confirms=True)
    channel.queue_declare(queue, durable=True)
    frame = 131072 - 8  # the largest body frame under the default limit
    numbers = random.Random(1)
    for size in (0, 1, frame - 1, frame, frame + 1, 2 * frame, 1 << 20, 5 << 20):
        body = numbers.randbytes(size)
        publish(channel, queue, body, delivery_mode=2)
        check(get(channel, queue).body == body, f"a body of {size} bytes came back different")
        inbox = Inbox(channel, queue, auto_ack=True)
        publish(channel, queue, body)
        check(inbox.wait(1)[0].body == body, f"a body of {size} bytes was delivered different")
        channel.basic_cancel(inbox.consumer_tag)


@scenario("properties")
def properties(context):
    queue, channel = context.name("properties"), context.channel(confirms=True)
    channel.queue_declare(queue)
    full = dict(content_type="text/plain", content_encoding="utf-8", headers={"key": "value"}, delivery_mode=2,
                priority=7, correlation_id="correlation", reply_to="reply.to", message_id="message-ü",
                timestamp=1700000000, type="kind", user_id="guest", app_id="interop", cluster_id="cluster")
    # One at a time as well: an absent property must stay absent.
    for values in [full, {}] + [{key: value} for key, value in full.items()]:
        same_properties(channel, queue, values)


def same_properties(channel, queue, values):
    channel.basic_publish("", queue, b"", pika.BasicProperties(**values))
    got = get(channel, queue).properties
    equal({key: value for key, value in vars(got).items() if value is not None}, values, "properties")


@scenario("property-expiration")
def property_expiration(context):
    queue, channel = context.name("expiration"), context.channel(confirms=True)
    channel.queue_declare(queue)
    same_properties(channel, queue, dict(expiration="600000", delivery_mode=2))


@scenario("header-types")
def header_types(context):
    queue, channel = context.name("headers"), context.channel(confirms=True)
    channel.queue_declare(queue)
    # pika sends an int as a 32 bit one where it fits, and marks what it decoded from 64 bit as long.
    simple = {
        "text": "ünïcode", "empty": "", "bytes": b"\x00\xff", "true": True, "false": False, "int": -(2**31),
        "long": pika.compat.long(2**62), "decimal": decimal.Decimal("-12.345"),
        "timestamp": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.timezone.utc), "void": None,
    }
    headers = {**simple, "table": {**simple, "inner": {"deep": [1, {"x": "y"}]}, "none": {}},
               "array": [*simple.values(), [], {}, "a" * 20000]}
    channel.basic_publish("", queue, b"", pika.BasicProperties(headers=headers))
    got = get(channel, queue).properties.headers
    for key, value in headers.items():
        equal((type(got.get(key)).__name__, got.get(key)), (type(value).__name__, value), f"header {key}")
    equal(list(got), list(headers), "order of the headers")
