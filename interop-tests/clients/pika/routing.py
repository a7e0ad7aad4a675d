"""The four exchange types and bindings between exchanges."""

import pika
from kit import drain, equal, publish, scenario, table


def queues(context, channel, *kinds):
    names = [context.name(kind) for kind in kinds]
    for name in names:
        channel.queue_declare(name)
    return names


@scenario("exchange-direct")
def exchange_direct(context):
    exchange, channel = context.name("direct"), context.channel(confirms=True)
    channel.exchange_declare(exchange, "direct")
    first, second = queues(context, channel, "first", "second")
    channel.queue_bind(first, exchange, "both")
    channel.queue_bind(second, exchange, "both")
    channel.queue_bind(second, exchange, "one")
    for key in ("both", "one", "none", "BOTH", ""):
        publish(channel, key, key.encode(), exchange=exchange)
    equal(drain(channel, first), [b"both"], "first queue")
    equal(drain(channel, second), [b"both", b"one"], "second queue")


@scenario("exchange-fanout")
def exchange_fanout(context):
    exchange, channel = context.name("fanout"), context.channel(confirms=True)
    channel.exchange_declare(exchange, "fanout")
    bound = queues(context, channel, "first", "second", "third")
    for queue in bound:
        channel.queue_bind(queue, exchange, "ignored")
    publish(channel, "ignored", b"1", exchange=exchange)
    publish(channel, "", b"2", exchange=exchange)
    for queue in bound:
        equal(drain(channel, queue), [b"1", b"2"], queue)


@scenario("exchange-topic")
def exchange_topic(context):
    exchange, channel = context.name("topic"), context.channel(confirms=True)
    rows = table("topic")
    channel.exchange_declare(exchange, "topic")
    by_pattern = {}
    for pattern in rows.pop("patterns"):
        [by_pattern[pattern]] = queues(context, channel, "pattern")
        channel.queue_bind(by_pattern[pattern], exchange, pattern)
    for key in rows:
        publish(channel, key, key.encode(), exchange=exchange)
    for pattern, queue in by_pattern.items():
        expected = [key.encode() for key, matching in rows.items() if pattern in matching]
        equal(drain(channel, queue), expected, f"keys that match '{pattern}'")


@scenario("exchange-headers")
def exchange_headers(context):
    exchange, channel = context.name("headers"), context.channel(confirms=True)
    channel.exchange_declare(exchange, "headers")
    all_of, any_of, default, present = queues(context, channel, "all", "any", "default", "present")
    channel.queue_bind(all_of, exchange, "", {"x-match": "all", "colour": "red", "size": 5})
    channel.queue_bind(any_of, exchange, "", {"x-match": "any", "colour": "red", "size": 5})
    channel.queue_bind(default, exchange, "", {"colour": "red", "size": 5})
    channel.queue_bind(present, exchange, "", {"x-match": "all", "colour": None})  # void: any value will do
    messages = {
        b"both": {"colour": "red", "size": 5, "other": True},
        b"colour": {"colour": "red"},
        b"wrong size": {"colour": "red", "size": 6},
        b"text size": {"size": "5"},
        b"blue": {"colour": "blue"},
        b"nothing": {},
    }
    for body, headers in messages.items():
        channel.basic_publish(exchange, "ignored", body, pika.BasicProperties(headers=headers))
    channel.basic_publish(exchange, "ignored", b"no headers at all", pika.BasicProperties())
    equal(drain(channel, all_of), [b"both"], "x-match all")
    equal(drain(channel, default), [b"both"], "no x-match means all")
    equal(drain(channel, any_of), [b"both", b"colour", b"wrong size"], "x-match any")
    equal(drain(channel, present), [b"both", b"colour", b"wrong size", b"blue"], "a header that only must be present")


@scenario("exchange-to-exchange")
def exchange_to_exchange(context):
    channel = context.channel(confirms=True)
    source, middle = context.name("source"), context.name("middle")
    channel.exchange_declare(source, "topic")
    channel.exchange_declare(middle, "direct")
    [queue] = queues(context, channel, "queue")
    channel.exchange_bind(middle, source, "orders.#")
    channel.queue_bind(queue, middle, "orders.new")
    for key in ("orders.new", "orders.old", "bills.new"):
        publish(channel, key, key.encode(), exchange=source)
    equal(drain(channel, queue), [b"orders.new"], "the key must pass both exchanges")
    # A second way to the same queue and a cycle back: still one copy.
    channel.queue_bind(queue, source, "#")
    channel.exchange_bind(source, middle, "orders.new")
    publish(channel, "orders.new", b"once", exchange=source)
    equal(drain(channel, queue), [b"once"], "two ways and a cycle")
    channel.queue_unbind(queue, source, "#")
    channel.exchange_unbind(middle, source, "orders.#")
    publish(channel, "orders.new", b"unrouted", exchange=source)
    publish(channel, "orders.new", b"direct", exchange=middle)
    equal(drain(channel, queue), [b"direct"], "after the unbind")


@scenario("unbind")
def unbind(context):
    exchange, channel = context.name("direct"), context.channel(confirms=True)
    channel.exchange_declare(exchange, "direct")
    [queue] = queues(context, channel, "queue")
    for key in ("stays", "goes", "goes"):
        channel.queue_bind(queue, exchange, key)
    publish(channel, "goes", b"before", exchange=exchange)
    channel.queue_unbind(queue, exchange, "goes")
    publish(channel, "goes", b"after", exchange=exchange)
    publish(channel, "stays", b"stays", exchange=exchange)
    equal(drain(channel, queue), [b"before", b"stays"], "queue")
    channel.queue_unbind(queue, exchange, "never bound")
