"""pika and the arguments that change what becomes of messages: dead letters, alternate exchanges, limits, priorities, single
active consumers. See ../README.md for the contract."""

import calendar
import time

import kit
import pika
from kit import Inbox, channel_refused, check, drain, equal, get, publish, ready_count, scenario, wait_ready


def dead_letters(context, channel, durable=True, dead_durable=None, key=None, kind="fanout", **arguments):
    """A queue, the exchange that its dead go to, and the queue behind that: (queue, exchange, dead)."""
    queue, exchange, dead = context.name("work"), context.name("dlx"), context.name("dead")
    channel.exchange_declare(exchange, kind)
    channel.queue_declare(dead, durable=durable if dead_durable is None else dead_durable)
    channel.queue_bind(dead, exchange, key or "#")
    channel.queue_declare(queue, durable=durable,
                          arguments={"x-dead-letter-exchange": exchange, **({"x-dead-letter-routing-key": key} if key else {}),
                                     **{name.replace("_", "-"): value for name, value in arguments.items()}})
    return queue, exchange, dead


def reject(channel, queue):
    message = get(channel, queue, auto_ack=False)
    channel.basic_reject(message.tag, requeue=False)
    return message


def deaths(message):
    """The x-death of a message without the times, which are checked to be recent."""
    entries = [dict(entry) for entry in message.properties.headers["x-death"]]
    for entry in entries:
        at = entry.pop("time")
        check(abs(time.time() - calendar.timegm(at.timetuple())) < 60, f"time of death {at}")
    return entries


def death(queue, reason, exchange, *keys, count=1, **more):
    return {"count": count, "reason": reason, "queue": queue, "exchange": exchange, "routing-keys": list(keys),
            **{name.replace("_", "-"): value for name, value in more.items()}}


def first_death(message):
    headers = message.properties.headers
    return tuple(headers.get(f"x-first-death-{what}") for what in ("reason", "queue", "exchange"))


@scenario("dead-letter-rejected")
def dead_letter_rejected(context):
    for durable in (True, False):
        channel = context.channel(confirms=True)
        queue, exchange, dead = dead_letters(context, channel, durable)
        publish(channel, queue, b"rejected", b"nacked", b"also", headers={"own": 1, "a": "b"}, content_type="text/plain",
                delivery_mode=2, priority=3, message_id="id", timestamp=1_000_000)
        reject(channel, queue)
        wait_ready(channel, dead, 1)
        get(channel, queue, auto_ack=False)
        last = get(channel, queue, auto_ack=False)
        channel.basic_nack(last.tag, multiple=True, requeue=False)
        wait_ready(channel, dead, 3)
        for body in (b"rejected", b"nacked", b"also"):
            message = get(channel, dead)
            equal((message.body, message.method.exchange, message.method.routing_key, message.redelivered),
                  (body, exchange, queue, False), "a dead letter")
            equal(deaths(message), [death(queue, "rejected", "", queue)], "x-death")
            equal(first_death(message), ("rejected", queue, ""), "x-first-death")
            properties = message.properties
            equal((properties.headers["own"], properties.headers["a"], properties.content_type, properties.delivery_mode,
                   properties.priority, properties.message_id, properties.timestamp, properties.expiration),
                  (1, "b", "text/plain", 2, 3, "id", 1_000_000, None), "its own properties")
        equal(ready_count(channel, queue), 0, "left behind")
    # From an exchange of its own, under a new key.
    channel = context.channel(confirms=True)
    queue, exchange, dead = dead_letters(context, channel, key="dead.key", kind="direct")
    source = context.name("source")
    channel.exchange_declare(source, "topic")
    channel.queue_bind(queue, source, "a.*")
    publish(channel, "a.b", b"x", exchange=source)
    reject(channel, queue)
    wait_ready(channel, dead, 1)
    message = get(channel, dead)
    equal((message.method.exchange, message.method.routing_key), (exchange, "dead.key"), "where it was published")
    equal(deaths(message), [death(queue, "rejected", source, "a.b")], "x-death")


@scenario("dead-letter-expired")
def dead_letter_expired(context):
    for durable in (True, False):
        channel = context.channel(confirms=True)
        queue, _, dead = dead_letters(context, channel, durable, x_message_ttl=400)
        publish(channel, queue, b"own time", expiration="100", delivery_mode=2)
        publish(channel, queue, b"the queue's", delivery_mode=2)
        publish(channel, queue, b"longer", expiration="3600000", delivery_mode=2)
        wait_ready(channel, dead, 3)
        for body, expiration in ((b"own time", "100"), (b"the queue's", None), (b"longer", "3600000")):
            message = get(channel, dead)
            equal((message.body, message.properties.expiration), (body, None), "a dead letter")
            more = {"original_expiration": expiration} if expiration else {}
            equal(deaths(message), [death(queue, "expired", "", queue, **more)], "x-death")
            equal(first_death(message), ("expired", queue, ""), "x-first-death")
        # A rejected one loses its expiration too.
        publish(channel, queue, b"rejected", expiration="390", delivery_mode=2)
        reject(channel, queue)
        wait_ready(channel, dead, 1)
        message = get(channel, dead)
        equal(message.properties.expiration, None, "expiration")
        equal(deaths(message), [death(queue, "rejected", "", queue, original_expiration="390")], "x-death")
        # No time: dead at once, unless somebody waits.
        publish(channel, queue, b"at once", expiration="0", delivery_mode=2)
        wait_ready(channel, dead, 1)
        equal(get(channel, dead).body, b"at once", "expiration 0")


@scenario("dead-letter-length")
def dead_letter_length(context):
    for durable in (True, False):
        channel = context.channel(confirms=True)
        queue, _, dead = dead_letters(context, channel, durable, x_max_length=2)
        publish(channel, queue, b"1", b"2", b"3", b"4", b"5", delivery_mode=2)
        wait_ready(channel, dead, 3)
        for body in (b"1", b"2", b"3"):
            message = get(channel, dead)
            equal(message.body, body, "a dead letter")
            equal(deaths(message), [death(queue, "maxlen", "", queue)], "x-death")
        equal(drain(channel, queue), [b"4", b"5"], "what stays")


@scenario("dead-letter-again")
def dead_letter_again(context):
    channel = context.channel(confirms=True)
    work, wait, retry, back = (context.name(kind) for kind in ("work", "wait", "retry", "back"))
    channel.exchange_declare(retry, "direct")
    channel.exchange_declare(back, "direct")
    channel.queue_declare(work, durable=True, arguments={"x-dead-letter-exchange": retry})
    channel.queue_declare(wait, durable=True, arguments={"x-dead-letter-exchange": back, "x-message-ttl": 100})
    channel.queue_bind(wait, retry, "job")
    channel.queue_bind(work, back, "job")
    publish(channel, "job", b"job", exchange=back, delivery_mode=2, headers={"z": 1})
    wait_ready(channel, work, 1)
    for round_ in range(1, 4):
        reject(channel, work)
        wait_ready(channel, work, 1)
        message = get(channel, work, auto_ack=False)
        equal((message.body, message.method.exchange, message.properties.headers["z"]), (b"job", back, 1), "the job")
        equal(deaths(message), [death(wait, "expired", retry, "job", count=round_),
                                death(work, "rejected", back, "job", count=round_)], f"x-death in round {round_}")
        equal(first_death(message), ("rejected", work, back), "x-first-death")
        channel.basic_nack(message.tag, requeue=True)
        wait_ready(channel, work, 1)


@scenario("dead-letter-copies")
def dead_letter_copies(context):
    channel = context.channel(confirms=True)
    queue, exchange, dead = dead_letters(context, channel, kind="direct")
    channel.queue_unbind(dead, exchange, "#")
    copy = context.name("copy")
    channel.queue_bind(dead, exchange, copy)
    publish(channel, queue, b"x", headers={"CC": [copy, "other"]})
    reject(channel, queue)
    wait_ready(channel, dead, 1)
    message = get(channel, dead)
    equal((message.method.routing_key, message.properties.headers["CC"]), (queue, [copy, "other"]), "keys")
    equal(deaths(message), [death(queue, "rejected", "", queue, copy, "other")], "x-death")
    queue, exchange, dead = dead_letters(context, channel, kind="direct", key="new")
    elsewhere = context.name("elsewhere")
    channel.queue_declare(elsewhere)
    channel.queue_bind(elsewhere, exchange, copy)
    publish(channel, queue, b"x", headers={"CC": [copy]})
    reject(channel, queue)
    wait_ready(channel, dead, 1)
    message = get(channel, dead)
    equal(message.method.routing_key, "new", "key")
    check("CC" not in message.properties.headers, "CC stays")
    equal(deaths(message), [death(queue, "rejected", "", queue, copy)], "x-death")
    equal(ready_count(channel, elsewhere), 0, "by a copy's key")


@scenario("dead-letter-circle")
def dead_letter_circle(context):
    channel = context.channel(confirms=True)
    circle = context.name("circle")
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": circle, "x-message-ttl": 500}
    channel.queue_declare(circle, durable=True, arguments=arguments)
    publish(channel, circle, b"goes", b"stays", delivery_mode=2)
    reject(channel, circle)  # to the end of the same queue
    wait_ready(channel, circle, 2)
    message = get(channel, circle, auto_ack=False)
    equal(message.body, b"stays", "the next one")
    wait_ready(channel, circle, 0)  # expired, and was here before: but for a rejection it would go round for ever
    channel.basic_reject(message.tag, requeue=False)
    wait_ready(channel, circle, 1)
    message = get(channel, circle)
    equal((message.body, deaths(message)), (b"stays", [death(circle, "rejected", "", circle)]), "a rejected one")
    # Two queues that send to each other.
    one, other = context.name("one"), context.name("other")
    for queue, to in ((one, other), (other, one)):
        channel.queue_declare(queue, durable=True, arguments={
            "x-dead-letter-exchange": "", "x-dead-letter-routing-key": to, "x-message-ttl": 100})
    publish(channel, one, b"round", delivery_mode=2)
    time.sleep(1)  # the time that passes is the subject
    equal((ready_count(channel, one), ready_count(channel, other)), (0, 0), "after a round")


@scenario("dead-letter-nowhere")
def dead_letter_nowhere(context):
    channel = context.channel(confirms=True)
    empty, missing = context.name("empty"), context.name("missing")
    channel.exchange_declare(empty, "direct")
    for exchange in (empty, missing):
        queue = context.name("work")
        channel.queue_declare(queue, durable=True, arguments={"x-dead-letter-exchange": exchange})
        publish(channel, queue, b"1", b"2", delivery_mode=2)
        reject(channel, queue)
        equal(get(channel, queue).body, b"2", "the next one")
        equal(ready_count(channel, queue), 0, "left behind")
    # An exchange may come later, and lead on to others.
    channel.exchange_declare(missing, "fanout")
    further, dead, twin = context.name("further"), context.name("dead"), context.name("twin")
    channel.exchange_declare(further, "fanout", internal=True)
    channel.exchange_bind(further, missing)
    for name in (dead, twin):
        channel.queue_declare(name, durable=True)
        channel.queue_bind(name, further)
    publish(channel, queue, b"3", delivery_mode=2)
    reject(channel, queue)
    for name in (dead, twin):
        wait_ready(channel, name, 1)
        message = get(channel, name)
        equal((message.body, message.method.exchange), (b"3", missing), "behind two exchanges")
    # The default exchange, with a queue as routing key.
    queue = context.name("work")
    channel.queue_declare(queue, durable=True, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    publish(channel, queue, b"4", delivery_mode=2)
    reject(channel, queue)
    wait_ready(channel, dead, 1)
    message = get(channel, dead)
    equal((message.body, message.method.exchange, message.method.routing_key), (b"4", "", dead), "the default exchange")


@scenario("dead-letter-forged")
def dead_letter_forged(context):
    channel = context.channel(confirms=True)
    queue, _, dead = dead_letters(context, channel)
    forged = {"count": 5, "reason": "rejected", "queue": queue, "exchange": "e", "routing-keys": ["k"]}
    other = {"reason": "expired", "queue": "elsewhere"}
    publish(channel, queue, b"x", headers={"x-death": [other, forged]})
    reject(channel, queue)
    wait_ready(channel, dead, 1)
    message = get(channel, dead)
    ours, rest = message.properties.headers["x-death"][0], message.properties.headers["x-death"][1:]
    equal(ours["reason"], "rejected", "the last death first")
    equal(len(rest), 1, "the others behind it")
    equal((rest[0]["queue"], rest[0]["reason"]), ("elsewhere", "expired"), "another queue's")
    publish(channel, queue, b"x", headers={"x-death": "no list"})
    reject(channel, queue)
    wait_ready(channel, dead, 1)
    message = get(channel, dead)
    equal(deaths(message), [death(queue, "rejected", "", queue)], "written anew")


@scenario("dead-letter-arguments")
def dead_letter_arguments(context):
    queue = context.name("work")
    for arguments, why in (({"x-dead-letter-exchange": 1}, "x-dead-letter-exchange"),
                           ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": 1}, "{unacceptable_type,"),
                           ({"x-dead-letter-routing-key": "k"}, "routing_key_but_no_dlx_defined")):
        with channel_refused(406, why):
            context.channel().queue_declare(queue, arguments=arguments)
    channel = context.channel()
    channel.queue_declare(queue, arguments={"x-dead-letter-exchange": "dlx", "x-dead-letter-routing-key": "k"})
    channel.queue_declare(queue, arguments={"x-dead-letter-exchange": "dlx", "x-dead-letter-routing-key": "k"})
    with channel_refused(406, "inequivalent arg 'x-dead-letter-exchange'", "received 'other' but current is 'dlx'"):
        channel.queue_declare(queue, arguments={"x-dead-letter-exchange": "other", "x-dead-letter-routing-key": "k"})
    with channel_refused(406, "inequivalent arg 'x-dead-letter-routing-key'"):
        context.channel().queue_declare(queue, arguments={"x-dead-letter-exchange": "dlx"})


@scenario("dead-letter-tx")
def dead_letter_tx(context):
    for durable in (True, False):
        channel, other = context.channel(), context.channel()
        queue, _, dead = dead_letters(context, channel, durable)
        publish(channel, queue, b"x", delivery_mode=2)
        wait_ready(other, queue, 1)
        channel.tx_select()
        reject(channel, queue)
        equal((ready_count(other, queue), ready_count(other, dead)), (0, 0), "before the commit")
        channel.tx_commit()
        wait_ready(other, dead, 1)
        equal(deaths(get(other, dead)), [death(queue, "rejected", "", queue)], "x-death")


@scenario("dead-letter-quorum")
def dead_letter_quorum(context):
    channel = context.channel(confirms=True)
    queue, _, dead = dead_letters(context, channel, x_queue_type="quorum")
    publish(channel, queue, b"1", b"2", delivery_mode=2)
    wait_ready(channel, queue, 2)
    inbox = Inbox(channel, queue)
    inbox.wait(2)
    channel.basic_reject(inbox.messages[0].tag, requeue=False)
    wait_ready(channel, dead, 1)
    message = get(channel, dead)
    equal((message.body, deaths(message)), (b"1", [death(queue, "rejected", "", queue)]), "a dead letter")
    channel.basic_reject(inbox.messages[1].tag, requeue=True)
    again = inbox.wait(3)[-1]
    channel.basic_reject(again.tag, requeue=False)
    wait_ready(channel, dead, 1)
    message = get(channel, dead)
    equal((message.body, deaths(message)), (b"2", [death(queue, "rejected", "", queue)]), "delivered twice before")


@scenario("dead-letter-large")
def dead_letter_large(context):
    for durable, dead_durable in ((True, True), (True, False), (False, True)):
        channel = context.channel(confirms=True)
        queue, _, dead = dead_letters(context, channel, durable, dead_durable)
        for size in (0, 5_000, 200_000, 3_000_000):
            body = bytes(number % 251 for number in range(size))
            publish(channel, queue, body, delivery_mode=2)
            reject(channel, queue)
            wait_ready(channel, dead, 1)
            message = get(channel, dead)
            check(message.body == body, f"a body of {size} bytes")
            equal(len(message.properties.headers["x-death"]), 1, "deaths")


@scenario("dead-letter-restart", seconds=kit.RESTART_SECONDS)
def dead_letter_restart(context):
    context.needs_restart()
    channel = context.channel(confirms=True)
    queue, exchange, dead = context.name("work"), context.name("dlx"), context.name("dead")
    channel.exchange_declare(exchange, "fanout", durable=True)
    channel.queue_declare(dead, durable=True)
    channel.queue_bind(dead, exchange)
    channel.queue_declare(queue, durable=True, arguments={"x-dead-letter-exchange": exchange, "x-max-length": 1})
    publish(channel, queue, *(b"%d" % number for number in range(20)), delivery_mode=2)
    wait_ready(channel, dead, 19)
    context.restart("kill")
    channel = context.channel(confirms=True)
    publish(channel, queue, b"20", delivery_mode=2)
    wait_ready(channel, dead, 20)
    for number in range(20):
        message = get(channel, dead)
        equal((message.body, deaths(message)), (b"%d" % number, [death(queue, "maxlen", "", queue)]), "a dead letter")
    equal(drain(channel, queue), [b"20"], "what stays")


def returned(channel, exchange, key):
    """Does a mandatory message come back?"""
    try:
        channel.basic_publish(exchange, key, b"x", mandatory=True)
    except pika.exceptions.UnroutableError:
        return True
    return False


@scenario("alternate-exchange")
def alternate_exchange(context):
    channel = context.channel(confirms=True)
    source, alternate, own, other = (context.name(kind) for kind in ("source", "alternate", "own", "other"))
    for queue in (own, other):
        channel.queue_declare(queue, durable=True)
    channel.exchange_declare(source, "topic", arguments={"alternate-exchange": alternate})
    check(returned(channel, source, "a.b"), "no alternate exchange yet")
    channel.exchange_declare(alternate, "fanout")
    check(returned(channel, source, "a.b"), "an alternate exchange without a queue")
    channel.queue_bind(other, alternate)
    check(not returned(channel, source, "a.b"), "routed by the alternate exchange")
    equal(drain(channel, other), [b"x"], "behind the alternate exchange")
    channel.queue_bind(own, source, "a.*")
    check(not returned(channel, source, "a.b"), "routed by a binding")
    equal((drain(channel, own), drain(channel, other)), ([b"x"], []), "with a binding of its own")
    # As it was published.
    publish(channel, "c", b"plain", exchange=source, headers={"h": 1})
    message = get(channel, other)
    equal((message.body, message.method.exchange, message.method.routing_key, message.properties.headers),
          (b"plain", source, "c", {"h": 1}), "the message")
    # Circles.
    one, two = context.name("one"), context.name("two")
    for name, to in ((one, two), (two, one)):
        channel.exchange_declare(name, "direct", arguments={"alternate-exchange": to})
    check(returned(channel, one, "k"), "a circle that leads nowhere")
    channel.queue_bind(own, one, "k")
    check(not returned(channel, two, "k"), "a circle with a way out")
    equal(drain(channel, own), [b"x"], "the way out")
    # In transactions, too.
    channel = context.channel()
    channel.tx_select()
    publish(channel, "c", b"committed", exchange=source)
    channel.tx_commit()
    equal(drain(channel, other), [b"committed"], "a transaction")


@scenario("alternate-arguments")
def alternate_arguments(context):
    name = context.name("exchange")
    with channel_refused(406, "for arg 'alternate-exchange' in exchange"):
        context.channel().exchange_declare(name, "direct", arguments={"alternate-exchange": 1})
    channel = context.channel()
    channel.exchange_declare(name, "direct", arguments={"alternate-exchange": "one"})
    channel.exchange_declare(name, "direct", arguments={"alternate-exchange": "one"})
    with channel_refused(406, "inequivalent arg 'alternate-exchange'", "received 'two' but current is 'one'"):
        channel.exchange_declare(name, "direct", arguments={"alternate-exchange": "two"})
    with channel_refused(406, "received none but current is the value 'one' of type 'longstr'"):
        context.channel().exchange_declare(name, "direct")


def nacked(channel, queue, *bodies, exchange=""):
    """Whether each publish was refused, by basic.nack."""
    refused_ones = []
    for body in bodies:
        try:
            channel.basic_publish(exchange, queue, body, pika.BasicProperties(delivery_mode=2))
            refused_ones.append(False)
        except pika.exceptions.NackError:
            refused_ones.append(True)
    return refused_ones


@scenario("length-bytes")
def length_bytes(context):
    for durable in (True, False):
        channel = context.channel(confirms=True)
        queue, _, dead = dead_letters(context, channel, durable, x_max_length_bytes=10)
        publish(channel, queue, b"aaaa", b"bbb", b"ccc", delivery_mode=2)  # bodies count, nothing else does
        equal(ready_count(channel, queue), 3, "what fits")
        publish(channel, queue, b"dd", delivery_mode=2)
        wait_ready(channel, dead, 1)
        equal(get(channel, dead).body, b"aaaa", "the oldest")
        held = get(channel, queue, auto_ack=False)
        publish(channel, queue, b"eeee", delivery_mode=2)
        equal(ready_count(channel, queue), 3, "what is held does not count")
        channel.basic_nack(held.tag, requeue=True)
        wait_ready(channel, dead, 1)
        equal(drain(channel, queue), [b"ccc", b"dd", b"eeee"], "after it came back")
        publish(channel, queue, b"larger than all", delivery_mode=2)
        equal(drain(channel, queue), [], "one that never fits")


@scenario("overflow-reject")
def overflow_reject(context):
    for durable in (True, False):
        for arguments in ({"x-max-length": 2}, {"x-max-length-bytes": 2}):
            channel = context.channel(confirms=True)
            queue, other = context.name("full"), context.name("other")
            channel.queue_declare(queue, durable=durable, arguments={**arguments, "x-overflow": "reject-publish"})
            equal(nacked(channel, queue, b"1", b"2", b"3", b"4"), [False, False, True, True], "confirms")
            equal(get(channel, queue).body, b"1", "the oldest stays")
            equal(nacked(channel, queue, b"5", b"6"), [False, True], "confirms")
            # Others get what one turns away.
            exchange = context.name("fanout")
            channel.exchange_declare(exchange, "fanout")
            channel.queue_declare(other, durable=True)
            for name in (queue, other):
                channel.queue_bind(name, exchange)
            equal(nacked(channel, "", b"7", exchange=exchange), [True], "a confirm for both")
            equal(drain(channel, other), [b"7"], "the other queue")
            equal(drain(channel, queue), [b"2", b"5"], "the full one")
    # Nobody who confirms nothing is told, and a transaction fails.
    queue, channel = context.name("full"), context.channel()
    channel.queue_declare(queue, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    publish(channel, queue, b"1", b"2")
    wait_ready(channel, queue, 1)
    equal(drain(channel, queue), [b"1"], "without confirms")
    channel.tx_select()
    publish(channel, queue, b"1", b"2")
    with channel_refused(406):
        channel.tx_commit()
    check(b"2" not in drain(context.channel(), queue), "what was turned away")


@scenario("overflow-dead-letter")
def overflow_dead_letter(context):
    for durable in (True, False):
        channel = context.channel(confirms=True)
        queue, exchange, dead = dead_letters(context, channel, durable, x_max_length=1, x_overflow="reject-publish-dlx")
        equal(nacked(channel, queue, b"1", b"2", b"3"), [False, True, True], "confirms")
        wait_ready(channel, dead, 2)
        for body in (b"2", b"3"):
            message = get(channel, dead)
            equal((message.body, message.method.exchange), (body, exchange), "a dead letter")
            equal(deaths(message), [death(queue, "maxlen", "", queue)], "x-death")
        equal(drain(channel, queue), [b"1"], "what stays")
    # reject-publish alone makes no dead letters.
    queue, _, dead = dead_letters(context, channel, x_max_length=1, x_overflow="reject-publish")
    equal(nacked(channel, queue, b"1", b"2"), [False, True], "confirms")
    equal((drain(channel, queue), drain(channel, dead)), ([b"1"], []), "nothing else")


def with_priorities(channel, queue, *priorities):
    for priority in priorities:
        publish(channel, queue, b"%d" % priority, priority=priority, delivery_mode=2)


@scenario("priorities")
def priorities(context):
    for durable in (True, False):
        channel = context.channel(confirms=True)
        queue = context.name("priority")
        channel.queue_declare(queue, durable=durable, arguments={"x-max-priority": 5})
        with_priorities(channel, queue, 1, 9, 0, 5, 3, 9)
        publish(channel, queue, b"none", delivery_mode=2)
        # Above the highest there is no more order, without one it is 0.
        equal(drain(channel, queue), [b"9", b"5", b"9", b"3", b"1", b"0", b"none"], "the order")
        with_priorities(channel, queue, 1, 3)
        message = get(channel, queue, auto_ack=False)
        equal((message.body, message.properties.priority, message.redelivered), (b"3", 3, False), "the first")
        channel.basic_nack(message.tag, requeue=True)
        wait_ready(channel, queue, 2)
        with_priorities(channel, queue, 3, 4)
        again = [get(channel, queue) for _ in range(4)]
        equal([(message.body, message.redelivered) for message in again],
              [(b"4", False), (b"3", True), (b"3", False), (b"1", False)], "what came back")
        # A consumer gets them so, too.
        with_priorities(channel, queue, 0, 2, 1)
        channel.basic_qos(prefetch_count=10)
        inbox = Inbox(channel, queue)
        inbox.wait(3)
        equal(inbox.bodies, [b"2", b"1", b"0"], "a consumer")
    # The head of such a queue is its highest priority: it goes when there are too many, and it expires.
    queue, _, dead = dead_letters(context, channel, x_max_priority=5, x_max_length=2)
    with_priorities(channel, queue, 5, 1, 3)
    wait_ready(channel, dead, 1)
    equal((get(channel, dead).body, drain(channel, queue)), (b"5", [b"3", b"1"]), "too many")
    queue, _, dead = dead_letters(context, channel, x_max_priority=5, x_message_ttl=200)
    with_priorities(channel, queue, 1, 4)
    wait_ready(channel, dead, 2)


@scenario("priorities-restart", seconds=kit.RESTART_SECONDS)
def priorities_restart(context):
    context.needs_restart()
    channel, queue = context.channel(confirms=True), context.name("priority")
    channel.queue_declare(queue, durable=True, arguments={"x-max-priority": 9, "x-max-length-bytes": 5})
    with_priorities(channel, queue, 2, 7, 4, 9, 0)
    context.restart("kill")
    channel = context.channel(confirms=True)
    with_priorities(channel, queue, 5)  # one byte too many: the head goes
    wait_ready(channel, queue, 5)
    equal(drain(channel, queue), [b"7", b"5", b"4", b"2", b"0"], "the order")


def consumers(context, queue, *wanted):
    """Consumers on channels of one connection: (priority or None, prefetch) each."""
    connection = context.connect()
    inboxes = []
    for priority, prefetch in wanted:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=prefetch)
        options = {} if priority is None else {"arguments": {"x-priority": priority}}
        inboxes.append(Inbox(channel, queue, **options))
    return inboxes


@scenario("consumer-priority")
def consumer_priority(context):
    channel, queue = context.channel(confirms=True), context.name("queue")
    channel.queue_declare(queue, durable=True)
    low, high, usual = consumers(context, queue, (-5, 10), (5, 2), (None, 2))
    publish(channel, queue, *(b"%d" % number for number in range(5)), delivery_mode=2)
    kit.wait_until(lambda: len(low.bodies) == 1, "the last one", low.channel.connection)
    equal((len(high.bodies), len(usual.bodies)), (2, 2), "by priority, as far as they have room")
    high.channel.basic_ack(high.messages[-1].tag, multiple=True)
    publish(channel, queue, b"5", b"6", delivery_mode=2)
    high.wait(4)
    with channel_refused(406, "invalid arg 'x-priority' for queue", "expected integer, got longstr"):
        context.channel().basic_consume(queue, lambda *_: None, arguments={"x-priority": "high"})


@scenario("single-active-consumer")
def single_active_consumer(context):
    for durable in (True, False):
        channel, queue = context.channel(confirms=True), context.name("single")
        channel.queue_declare(queue, durable=durable, arguments={"x-single-active-consumer": True})
        first, second = consumers(context, queue, (None, 2), (None, 10))
        publish(channel, queue, b"1", b"2", b"3", delivery_mode=2)
        first.wait(2)
        equal((second.bodies, ready_count(channel, queue)), ([], 1), "while the first one is there")
        with channel_refused(403, f"queue '{queue}' in vhost '/' in exclusive use"):
            context.channel().basic_consume(queue, lambda *_: None, exclusive=True)
        first.channel.close()
        second.wait(3)
        # RabbitMQ hands 3 out after 1 and 2 came back, Dassie when the first one was cancelled, just before.
        equal(sorted(second.bodies), [b"1", b"2", b"3"], "then the second one gets everything")
    channel, queue = context.channel(), context.name("single")
    channel.queue_declare(queue, durable=True, arguments={"x-single-active-consumer": True, "x-queue-type": "quorum"})
    with channel_refused(405, "basic.get operations are not supported by quorum queues with single active consumer"):
        get(channel, queue)


@scenario("queue-arguments")
def queue_arguments(context):
    queue = context.name("queue")
    right = {"x-max-length-bytes": 10, "x-max-priority": 5, "x-overflow": "reject-publish", "x-single-active-consumer": True}
    context.channel().queue_declare(queue, arguments=right)
    context.channel().queue_declare(queue, arguments=right)
    for name in right:
        with channel_refused(406, f"inequivalent arg '{name}' for queue", "received none but current is the value"):
            context.channel().queue_declare(queue, arguments={key: value for key, value in right.items() if key != name})
    for wrong, why in (({"x-max-length-bytes": -1}, "{value_negative,-1}"), ({"x-max-priority": 256}, "{max_value_exceeded,256}"),
                       ({"x-overflow": "burst"}, "invalid_overflow"), ({"x-single-active-consumer": 1}, "{unacceptable_type,")):
        with channel_refused(406, why):
            context.channel().queue_declare(context.name("wrong"), arguments=wrong)
    with channel_refused(406, "invalid arg 'x-max-priority' for queue", "of queue type rabbit_quorum_queue"):
        context.channel().queue_declare(context.name("quorum"), durable=True,
                                        arguments={"x-queue-type": "quorum", "x-max-priority": 5})


if __name__ == "__main__":
    kit.main()
