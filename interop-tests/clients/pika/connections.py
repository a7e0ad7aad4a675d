"""Handshake, refusals at login, heartbeats, channels and what is left of a connection that was cut."""

import pika
from kit import (RESTART_SECONDS, Inbox, Proxy, channel_refused, check, drain, equal, get, publish, scenario,
                 sequence, wait_ready, wait_until)

CORE_CAPABILITIES = ("publisher_confirms", "exchange_exchange_bindings", "basic.nack", "consumer_cancel_notify",
                     "per_consumer_qos", "authentication_failure_close")


@scenario("handshake")
def handshake(context):
    seen = []

    def on_open(connection):
        limits = connection.params
        seen.append((connection.server_properties, connection.server_capabilities,
                     (limits.channel_max, limits.frame_max, limits.heartbeat)))
        connection.close()

    connection = pika.SelectConnection(
        context.parameters(channel_max=100, frame_max=8192, heartbeat=7), on_open_callback=on_open,
        on_open_error_callback=lambda connection, error: connection.ioloop.stop(),
        on_close_callback=lambda connection, reason: connection.ioloop.stop())
    connection.ioloop.start()
    check(seen, "the connection did not open")
    [(server, capabilities, limits)] = seen
    for key in ("product", "version", "platform"):
        check(isinstance(server.get(key), str) and server[key], f"server property {key} is {server.get(key)!r}")
    for capability in CORE_CAPABILITIES:
        equal(capabilities.get(capability), True, f"capability {capability}")
    equal(limits, (100, 8192, 7), "negotiated limits")


@scenario("wrong-password")
def wrong_password(context):
    try:
        context.connect(credentials=pika.PlainCredentials("guest", "wrong"))
    except pika.exceptions.ProbableAuthenticationError as error:
        text = str(error)
        check("(403)" in text and "ACCESS_REFUSED" in text and "Login was refused" in text, f"unexpected text {text}")
    else:
        raise AssertionError("a wrong password was accepted")


@scenario("unknown-vhost")
def unknown_vhost(context):
    try:
        context.connect(virtual_host="no-such-vhost")
    except pika.exceptions.ProbableAccessDeniedError as error:
        text = str(error)
        check("(530)" in text and "NOT_ALLOWED" in text and "no-such-vhost" in text, f"unexpected text {text}")
    else:
        raise AssertionError("an unknown vhost was accepted")


@scenario("heartbeat-idle")
def heartbeat_idle(context):
    connection = context.connect(heartbeat=1)
    # The time is the subject here. Either side gives up after two silent intervals.
    connection.process_data_events(time_limit=5)
    check(connection.is_open, "an idle connection was closed")
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    publish(channel, queue, b"still here")
    equal(drain(channel, queue), [b"still here"], "queue after the idle time")


@scenario("channel-lifecycle")
def channel_lifecycle(context):
    connection = context.connect()
    channels = [connection.channel() for _ in range(50)]
    equal(len({channel.channel_number for channel in channels}), 50, "different channel numbers")
    queue = channels[0].queue_declare("", exclusive=True).method.queue
    for number, channel in enumerate(channels):
        publish(channel, queue, b"%d" % number)
    for channel in channels[1:]:
        channel.close()
    # Every closed channel's publishes were processed before its close was answered.
    equal(sorted(drain(channels[0], queue), key=int), [b"%d" % n for n in range(50)], "one message of each channel")
    again = connection.channel(channel_number=channels[7].channel_number)
    publish(again, queue, b"again")
    again.close()
    equal(drain(channels[0], queue), [b"again"], "message by a reused channel number")


@scenario("channel-error-isolation")
def channel_error_isolation(context):
    queue, connection = context.name("isolation"), context.connect()
    healthy, failing = connection.channel(), connection.channel()
    healthy.queue_declare(queue)
    Inbox(failing, queue)
    equal(healthy.queue_declare(queue, passive=True).method.consumer_count, 1, "consumers before the error")
    with channel_refused(404):
        failing.queue_declare(context.name("missing"), passive=True)
    check(failing.is_closed and healthy.is_open and connection.is_open, "only the failing channel is closed")
    wait_until(lambda: healthy.queue_declare(queue, passive=True).method.consumer_count == 0,
               "the closed channel's consumer to go", connection)
    publish(healthy, queue, b"fine")
    fresh = connection.channel(channel_number=failing.channel_number)
    equal(get(fresh, queue).body, b"fine", "message read on the same channel number")


@scenario("delivery-after-lost-connection")
def delivery_after_lost_connection(context):
    queue, watcher = context.name("lost"), context.channel()
    watcher.queue_declare(queue)
    publish(watcher, queue, *sequence(5))
    proxy = Proxy(context.address)
    doomed = context.connect(host="127.0.0.1", port=proxy.port).channel()
    doomed.basic_qos(prefetch_count=3)
    held = Inbox(doomed, queue)
    held.wait(3)
    doomed.basic_ack(held.messages[0].tag)
    held.wait(4)  # the ack has arrived: a fourth message came for it
    proxy.cut()
    wait_ready(watcher, queue, 4)
    back = Inbox(watcher, queue, auto_ack=True).wait(4)
    equal([(message.body, message.redelivered) for message in back],
          [(b"m1", True), (b"m2", True), (b"m3", True), (b"m4", False)], "what came back")


@scenario("connection-blocked", seconds=RESTART_SECONDS)
def connection_blocked(context):
    context.needs_restart()
    queue, seen = context.name("queue"), []
    publisher = context.connect(blocked_connection_timeout=60)
    publisher.add_on_connection_blocked_callback(lambda _, frame: seen.append(("blocked", frame.method.reason)))
    publisher.add_on_connection_unblocked_callback(lambda _, frame: seen.append(("unblocked", None)))
    channel = publisher.channel()
    channel.queue_declare(queue)
    publish(channel, queue, b"before")
    channel.queue_declare(queue, passive=True)  # it is there when this is answered
    other = context.channel()
    context.hook("alarm")
    try:
        check(not seen, "a connection that did not publish under the alarm was blocked")
        publish(channel, queue, b"under the alarm")
        wait_until(lambda: publisher.process_data_events(0.1) or seen, "connection.blocked")
        equal(seen, [("blocked", "low on memory")], "events under the alarm")
        held = get(other, queue, auto_ack=False)
        equal(held.body, b"before", "a get under the alarm")
        other.basic_ack(held.tag)
        equal(other.queue_declare(queue, passive=True).method.message_count, 0, "messages while publishers wait")
        context.channel().close()
    finally:
        context.hook("calm")
    wait_until(lambda: publisher.process_data_events(0.1) or len(seen) > 1, "connection.unblocked")
    equal(seen[1:], [("unblocked", None)], "events after the alarm")
    channel.queue_declare(queue, passive=True)
    equal(drain(channel, queue), [b"under the alarm"], "the queue after the alarm")
