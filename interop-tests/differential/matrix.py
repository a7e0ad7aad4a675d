"""What is asked: every method in every state of a connection and of a channel, and every argument right, wrong and odd.

A case is (name, state, steps); a step is a function from a `Case` to bytes for the wire. Names of things begin with the case's own
prefix, so that cases never meet. Knows nothing of what a broker should answer."""

from frames import BODY, CONTENT_HEADER, HEADER, HEARTBEAT, METHOD, METHODS, Raw, content_header, frame, method, shortstr, table

STATES = [
    "connected", "started", "tuning", "tuned", "open", "channel", "confirm", "tx", "consuming", "header-expected",
    "body-expected", "channel-closed-by-client", "channel-closed-by-server", "connection-closed-by-server",
]

CLIENT = dict(product="differential", capabilities={
    "publisher_confirms": True, "consumer_cancel_notify": True, "basic.nack": True, "connection.blocked": True,
    "authentication_failure_close": True, "exchange_exchange_bindings": True})

# Arguments with which each method a client may send is right. {p} is the case's prefix.
RIGHT = {
    "connection.start-ok": {"client-properties": CLIENT, "mechanism": "PLAIN", "response": "\0guest\0guest", "locale": "en_US"},
    "connection.secure-ok": {"response": "x"},
    "connection.tune-ok": {"channel-max": 2047, "frame-max": 131072, "heartbeat": 0},
    "connection.open": {"virtual-host": "/"},
    "connection.close": {"reply-code": 200, "reply-text": "bye"},
    "connection.close-ok": {},
    "connection.blocked": {"reason": "x"},
    "connection.unblocked": {},
    "connection.update-secret": {"new-secret": "guest", "reason": "x"},
    "channel.open": {},
    "channel.flow": {"active": True},
    "channel.flow-ok": {"active": True},
    "channel.close": {"reply-code": 200, "reply-text": "bye"},
    "channel.close-ok": {},
    "access.request": {"realm": "/data", "active": True},
    "exchange.declare": {"exchange": "{p}new", "type": "direct"},
    "exchange.delete": {"exchange": "{p}x"},
    "exchange.bind": {"destination": "{p}x", "source": "{p}y", "routing-key": "k"},
    "exchange.unbind": {"destination": "{p}x", "source": "{p}y", "routing-key": "k"},
    "queue.declare": {"queue": "{p}new"},
    "queue.bind": {"queue": "{p}q", "exchange": "{p}x", "routing-key": "k"},
    "queue.purge": {"queue": "{p}q"},
    "queue.delete": {"queue": "{p}q"},
    "queue.unbind": {"queue": "{p}q", "exchange": "{p}x", "routing-key": "k"},
    "basic.qos": {"prefetch-count": 5},
    "basic.consume": {"queue": "{p}q", "consumer-tag": "tag"},
    "basic.cancel": {"consumer-tag": "tag"},
    "basic.publish": {"exchange": "{p}x", "routing-key": "k"},
    "basic.get": {"queue": "{p}q"},
    "basic.ack": {"delivery-tag": 1},
    "basic.reject": {"delivery-tag": 1},
    "basic.recover-async": {"requeue": True},
    "basic.recover": {"requeue": True},
    "basic.nack": {"delivery-tag": 1},
    "tx.select": {}, "tx.commit": {}, "tx.rollback": {},
    "confirm.select": {},
}


class Case:
    def __init__(self, name, state, steps, look=()):
        self.name, self.state, self.steps = name, state, steps
        self.look = look  # steps on channel 9, once the broker has closed the first one
        self.prefix = "?"  # set by the runner

    def text(self, given):
        return given.replace("{p}", self.prefix) if isinstance(given, str) else given


def call(name, changes=None, channel=1, body=b"hello", properties=b"\0\0"):
    """A step that sends the method, right but for `changes`; a publish brings its content."""
    def step(case):
        arguments = {**RIGHT.get(name, {}), **(changes or {})}
        arguments = {k: case.text(v) for k, v in arguments.items()}
        out = method(name, channel, arguments)
        if name == "basic.publish" and channel:
            out += content_header(channel, len(body), properties) + (frame(BODY, channel, body) if body else b"")
        return out
    return step


def raw(data):
    return lambda case: data


def cases():
    yield from methods_in_states()
    yield from argument_variations()
    yield from redeclarations()
    yield from publish_variations()
    yield from sequences()
    yield from frame_variations()
    yield from behind_refusals()


def methods_in_states():
    names = [*METHODS]
    for state in STATES:
        for name in names:
            channel = 0 if name.startswith("connection.") else 1
            yield Case(f"{state} / {name}", state, [call(name, channel=channel)])
    for name in names:
        channel = 1 if name.startswith("connection.") else 0
        yield Case(f"channel / {name} on channel {channel}", "channel", [call(name, channel=channel)])
        yield Case(f"open / {name} on channel {channel}", "open", [call(name, channel=channel)])
        yield Case(f"channel / {name} with bytes behind its arguments", "channel", [
            lambda case, n=name: method(n, 0 if n.startswith("connection.") else 1,
                                        {k: case.text(v) for k, v in RIGHT.get(n, {}).items()}, b"\0\0\0")])
        yield Case(f"channel / {name} cut short", "channel", [
            lambda case, n=name: frame(METHOD, 0 if n.startswith("connection.") else 1,
                                       method(n, 1, RIGHT.get(n, {}))[7:-1][:5 if METHODS[n][2] else 3])])


LONG = "n" * 255
NAMES = {"empty": "", "missing": "{p}missing", "reserved": "amq.{p}", "reserved that exists": "amq.direct", "255 long": LONG,
         "not UTF-8": Raw(shortstr(b"\xff\xfe")), "with a line end": "{p}a\nb", "with a zero": "{p}a\0b", "with blanks": "{p} a ",
         "not ASCII": "{p}ключ"}
NUMBERS = {"0": 0, "1": 1, "2": 2, "highest": None}
TABLES = {
    "nested": {"a": {"b": {"c": [1, "x", None, True]}}},
    "every type": {k: (k, b"\0" * n) for k, n in dict(t=1, b=1, B=1, s=2, u=2, I=4, i=4, l=8, f=4, d=8, D=5, T=8, V=0, S=4, x=4, A=4, F=4).items()},
    "with an unknown type": {"a": ("Z", b"\0")},
    "cut short": Raw(b"\0\0\0\x10\x01a"),
    "longer than the frame": Raw(b"\x7f\xff\xff\xff"),
    "a name twice": Raw(b"\0\0\0\x06\x01at\x01\x01at\x00"[:4] + b"\x01at\x01\x01at\x00"),
}
QUEUE_ARGUMENTS = {
    "x-queue-type": ["classic", "quorum", "none", "", 1],
    "x-message-ttl": [-1, "60000", True, 2**40],
    "x-expires": [0, -1, "60000", 2**40],
    "x-max-length": [-1, "60000", 1.5],
    "x-max-length-bytes": [-1, "60000"],
    "x-overflow": ["none", 1],
    "x-dead-letter-exchange": [1],
    "x-dead-letter-routing-key": ["without an exchange", 1],
    "x-max-priority": [-1, 256, "5"],
    "x-queue-mode": ["none", 1],
    "x-single-active-consumer": ["yes", 1],
    "x-queue-master-locator": ["none"],
    "x-quorum-initial-group-size": [0, -1, "3"],
    "x-delivery-limit": [-1, "3"],
    "x-max-age": ["1D"],
    "x-unknown": [1, "text"],
}


def argument_variations():
    for name in RIGHT:
        if name.startswith("connection.") and name not in ("connection.start-ok", "connection.open", "connection.tune-ok"):
            continue
        state, channel = "channel", 1
        if name.startswith("connection."):
            state, channel = {"connection.start-ok": "started", "connection.tune-ok": "tuning", "connection.open": "tuned"}[name], 0
        for argument, kind in METHODS[name][2]:
            if kind == "bit":
                values = {"set": True}
            elif kind == "shortstr":
                values = NAMES
            elif kind == "table":
                values = TABLES
            elif kind == "longstr":
                values = {"empty": "", "no user": "\0\0", "long": "x" * 5000}
            else:
                top = {"octet": 255, "short": 65535, "long": 2**32 - 1, "longlong": 2**64 - 1}[kind]
                values = {label: top if number is None else number for label, number in NUMBERS.items()}
            for label, given in values.items():
                after = [call("basic.get")] if name in ("basic.ack", "basic.nack", "basic.reject") else []
                before = [call("basic.get")] if after else []
                yield Case(f"{name}: {argument} {label}", state, [*before, call(name, {argument: given}, channel)])
    for argument, values in QUEUE_ARGUMENTS.items():
        for given in values:
            if isinstance(given, float):
                given = ("d", b"\x3f\xf8" + b"\0" * 6)
            yield Case(f"queue.declare: {argument}={given!r}", "channel",
                       [call("queue.declare", {"durable": True, "arguments": {argument: given}})])
    for kind in ("direct", "fanout", "topic", "headers", "x-unknown", "Direct", ""):
        yield Case(f"exchange.declare: type {kind!r}", "channel", [call("exchange.declare", {"type": kind})])
    for argument, given in (("x-priority", "high"), ("x-unknown", 1), ("x-cancel-on-ha-failover", "yes")):
        yield Case(f"basic.consume: {argument}={given!r}", "channel", [call("basic.consume", {"arguments": {argument: given}})])
    for match in ("all", "any", "most", 1):
        yield Case(f"queue.bind: x-match={match!r} to a headers exchange", "channel",
                   [call("queue.bind", {"exchange": "amq.headers", "arguments": {"x-match": match, "a": 1}})])


def redeclarations():
    queue = {"queue": "{p}r", "durable": True}
    for label, first, second in [
        ("equal", queue, queue), ("not durable", queue, {**queue, "durable": False}), ("auto-delete", queue, {**queue, "auto-delete": True}),
        ("exclusive", queue, {**queue, "exclusive": True}), ("no longer exclusive", {**queue, "exclusive": True}, queue),
        ("another type", queue, {**queue, "arguments": {"x-queue-type": "quorum"}}),
        ("its default type said", queue, {**queue, "arguments": {"x-queue-type": "classic"}}),
        ("an unknown argument", queue, {**queue, "arguments": {"x-unknown": 1}}),
        ("passive with other properties", queue, {"queue": "{p}r", "passive": True, "exclusive": True}),
        ("passive and missing", queue, {"queue": "{p}missing", "passive": True}),
        ("quorum, exclusive", queue, {"queue": "{p}z", "durable": True, "exclusive": True, "arguments": {"x-queue-type": "quorum"}}),
        ("quorum, not durable", queue, {"queue": "{p}z", "arguments": {"x-queue-type": "quorum"}}),
        ("quorum, auto-delete", queue, {"queue": "{p}z", "durable": True, "auto-delete": True, "arguments": {"x-queue-type": "quorum"}}),
        ("without waiting", queue, {**queue, "durable": False, "no-wait": True}),
        *((f"with {label}", {**queue, "arguments": first}, {**queue, "arguments": second}) for label, first, second in [
            ("the same times", {"x-expires": 60000, "x-message-ttl": 60000}, {"x-expires": ("I", b"\0\0\xea\x60"), "x-message-ttl": 60000}),
            ("another x-expires", {"x-expires": 60000}, {"x-expires": 60001}), ("no x-expires", {"x-expires": 60000}, {}),
            ("another x-message-ttl", {"x-message-ttl": 60000}, {"x-message-ttl": 0}), ("an x-message-ttl", {}, {"x-message-ttl": 1}),
            ("two other times", {"x-expires": 60000, "x-message-ttl": 60000}, {"x-expires": 1, "x-message-ttl": 1}),
        ]),
    ]:
        yield Case(f"queue redeclared: {label}", "channel", [call("queue.declare", first), call("queue.declare", second)])
    exchange = {"exchange": "{p}r", "type": "direct", "durable": True}
    for label, second in [
        ("equal", exchange), ("another type", {**exchange, "type": "fanout"}), ("not durable", {**exchange, "durable": False}),
        ("auto-delete", {**exchange, "auto-delete": True}), ("internal", {**exchange, "internal": True}),
        ("passive with another type", {**exchange, "passive": True, "type": "topic"}), ("passive with no type", {**exchange, "passive": True, "type": ""}),
        ("an unknown argument", {**exchange, "arguments": {"x-unknown": 1}}),
        ("passive and missing", {"exchange": "{p}missing", "passive": True}), ("without waiting", {**exchange, "type": "fanout", "no-wait": True}),
    ]:
        yield Case(f"exchange redeclared: {label}", "channel", [call("exchange.declare", exchange), call("exchange.declare", second)])
    for kind in ("direct", "fanout", "topic", "headers", "match"):
        yield Case(f"exchange redeclared: amq.{kind}", "channel",
                   [call("exchange.declare", {"exchange": f"amq.{kind}", "type": "headers" if kind == "match" else kind, "durable": True})])


def publish_variations():
    def properties(flags, data=b""):
        return flags.to_bytes(2, "big") + data

    values = {
        "content-type": properties(0x8000, shortstr("text/plain")),
        "headers": properties(0x2000, table({"a": 1})),
        "headers cut short": properties(0x2000, b"\0\0\0\x10\x01"),
        "delivery-mode 0": properties(0x1000, b"\0"), "delivery-mode 1": properties(0x1000, b"\1"),
        "delivery-mode 2": properties(0x1000, b"\2"), "delivery-mode 3": properties(0x1000, b"\3"),
        "priority 255": properties(0x0800, b"\xff"),
        "reply-to": properties(0x0200, shortstr("q")),
        "reply-to the pseudo queue without a consumer": properties(0x0200, shortstr("amq.rabbitmq.reply-to")),
        "expiration 0": properties(0x0100, shortstr("0")), "expiration 60000": properties(0x0100, shortstr("60000")),
        "expiration -1": properties(0x0100, shortstr("-1")), "expiration words": properties(0x0100, shortstr("soon")),
        "expiration empty": properties(0x0100, shortstr("")), "expiration too large": properties(0x0100, shortstr(str(2**40))),
        "expiration with a blank": properties(0x0100, shortstr(" 1")), "expiration 1.5": properties(0x0100, shortstr("1.5")),
        "user-id": properties(0x0010, shortstr("guest")), "user-id of another": properties(0x0010, shortstr("somebody")),
        "cluster-id": properties(0x0004, shortstr("c")),
        "unknown flag 2": properties(0x0002), "continuation flag": properties(0x0001, b"\0\0"),
        "bytes behind": properties(0x8000, shortstr("a") + b"zzz"), "missing": b"", "one byte": b"\0",
        "CC": properties(0x2000, table({"CC": ["{p}"]})), "CC no list": properties(0x2000, table({"CC": "text"})),
        "CC of numbers": properties(0x2000, table({"CC": [1]})), "BCC no list": properties(0x2000, table({"BCC": 7})),
    }
    for label, data in values.items():
        for state in ("channel", "confirm", "tx"):
            yield Case(f"{state} / publish with {label}", state, [call("basic.publish", properties=data), call("basic.get")])
    for label, changes in {
        "to a missing exchange": {"exchange": "{p}missing"}, "to the default exchange": {"exchange": "", "routing-key": "{p}q"},
        "mandatory and unroutable": {"routing-key": "nowhere", "mandatory": True}, "unroutable": {"routing-key": "nowhere"},
        "immediate": {"immediate": True}, "to an internal exchange": {"exchange": "{p}internal"},
        "mandatory to the default exchange, no such queue": {"exchange": "", "routing-key": "{p}missing", "mandatory": True},
    }.items():
        for state in ("channel", "confirm", "tx"):
            yield Case(f"{state} / publish {label}", state, [call("basic.publish", changes), *([call("tx.commit")] if state == "tx" else [])])
    publish = lambda case: method("basic.publish", 1, {"exchange": f"{case.prefix}x", "routing-key": "k"})
    for label, content in {
        "an empty body": content_header(1, 0), "the body in three frames": content_header(1, 3) + frame(BODY, 1, b"a") * 3,
        "an empty body frame": content_header(1, 1) + frame(BODY, 1, b"") + frame(BODY, 1, b"a"),
        "a body larger than announced": content_header(1, 1) + frame(BODY, 1, b"abc"),
        "a header of another class": content_header(1, 1, class_id=50), "a weight": content_header(1, 1, weight=1) + frame(BODY, 1, b"a"),
        "two headers": content_header(1, 1) * 2, "a body without header": frame(BODY, 1, b"a"),
        "a method in place of the header": method("channel.open", 1, {}), "its channel closed in place of the header": method("channel.close", 1, {}),
        "a header on another channel": content_header(2, 1), "a header on channel 0": content_header(0, 1),
        "a heartbeat before the header": frame(HEARTBEAT, 0, b"") + content_header(1, 0),
        "a huge size": content_header(1, 2**63),
    }.items():
        yield Case(f"publish with {label}", "channel", [lambda case, c=content: publish(case) + c])
    yield Case("a content header without a method", "channel", [raw(content_header(1, 0))])
    yield Case("a body without a method", "channel", [raw(frame(BODY, 1, b"a"))])


def sequences():
    def seq(name, *steps, state="channel"):
        return Case(name, state, list(steps))
    declare, get, ack = call("queue.declare"), call("basic.get"), call("basic.ack")
    yield seq("get, ack, ack again", get, ack, ack)
    yield seq("ack 0 with nothing unacked", call("basic.ack", {"delivery-tag": 0}))
    yield seq("ack 0 multiple with nothing unacked", call("basic.ack", {"delivery-tag": 0, "multiple": True}))
    yield seq("get, ack 0 multiple, ack 1", get, call("basic.ack", {"delivery-tag": 0, "multiple": True}), ack)
    yield seq("get twice, ack 2 multiple, ack 1", get, get, call("basic.ack", {"delivery-tag": 2, "multiple": True}), ack)
    yield seq("get twice, ack 3 multiple", get, get, call("basic.ack", {"delivery-tag": 3, "multiple": True}))
    yield seq("get, nack with requeue, get", get, call("basic.nack", {"requeue": True}), get)
    yield seq("get, reject without requeue, get, get", get, call("basic.reject"), get, get)
    yield seq("get, recover, get", get, call("basic.recover"), get)
    yield seq("get, recover without requeue", get, call("basic.recover", {"requeue": False}))
    yield seq("get without ack, ack", call("basic.get", {"no-ack": True}), ack)
    yield seq("get until empty", *[call("basic.get", {"no-ack": True})] * 3)
    yield seq("consume twice with one tag", call("basic.consume"), call("basic.consume"))
    yield seq("consume, cancel, cancel", call("basic.consume"), call("basic.cancel"), call("basic.cancel"))
    yield seq("consume exclusively, consume", call("basic.consume", {"exclusive": True}), call("basic.consume", {"consumer-tag": "b"}))
    yield seq("consume, consume exclusively", call("basic.consume"), call("basic.consume", {"consumer-tag": "b", "exclusive": True}))
    yield seq("consume, delete the queue", call("basic.consume", {"no-ack": True}), call("queue.delete"))
    yield seq("consume, delete the queue if unused", call("queue.purge"), call("basic.consume"), call("queue.delete", {"if-unused": True}))
    yield seq("delete the queue if empty", call("queue.delete", {"if-empty": True}))
    yield seq("delete the queue, get", call("queue.delete"), get)
    yield seq("delete the queue twice", call("queue.delete"), call("queue.delete"))
    yield seq("delete the exchange twice", call("exchange.delete"), call("exchange.delete"))
    yield seq("delete the exchange if unused", call("exchange.delete", {"if-unused": True}))
    yield seq("delete the exchange, publish", call("exchange.delete"), call("basic.publish"))
    yield seq("purge, get", call("queue.purge"), get)
    yield seq("get, purge, ack", get, call("queue.purge"), ack)
    yield seq("declare with no name, then use none", call("queue.declare", {"queue": ""}), call("basic.consume", {"queue": ""}))
    yield seq("use no name without a declare", call("basic.consume", {"queue": ""}))
    yield seq("bind with no queue name and no key", declare, call("queue.bind", {"queue": "", "routing-key": ""}))
    yield seq("bind twice, unbind twice", call("queue.bind"), call("queue.bind"), call("queue.unbind"), call("queue.unbind"))
    yield seq("bind an exchange to itself", call("exchange.bind", {"source": "{p}x"}), call("basic.publish"))
    yield seq("exchanges bound in a ring", call("exchange.bind"), call("exchange.bind", {"destination": "{p}y", "source": "{p}x"}), call("basic.publish"))
    yield seq("qos for all, consume", call("basic.qos", {"prefetch-count": 1, "global": True}), call("basic.consume"))
    yield seq("qos 1, consume, ack", call("basic.qos", {"prefetch-count": 1}), call("basic.consume"), ack)
    yield seq("confirm.select twice", call("confirm.select"), call("confirm.select"))
    yield seq("confirm.select then tx.select", call("confirm.select"), call("tx.select"))
    yield seq("tx.select then confirm.select", call("tx.select"), call("confirm.select"))
    yield seq("tx.select twice", call("tx.select"), call("tx.select"))
    yield seq("tx: publish, get, commit, get", call("queue.purge"), call("tx.select"), call("basic.publish"), get, call("tx.commit"), get)
    yield seq("tx: publish, rollback, get", call("queue.purge"), call("tx.select"), call("basic.publish"), call("tx.rollback"), get)
    yield seq("tx: get, ack, rollback, ack, commit", call("tx.select"), get, ack, call("tx.rollback"), ack, call("tx.commit"))
    yield seq("tx: ack of an unknown tag, commit", call("tx.select"), call("basic.ack", {"delivery-tag": 9}), call("tx.commit"))
    yield seq("tx: get, ack twice, commit", call("tx.select"), get, ack, ack, call("tx.commit"))
    yield seq("tx: publish to a missing exchange, commit", call("tx.select"), call("basic.publish", {"exchange": "{p}missing"}), call("tx.commit"))
    yield seq("confirm: publish three", call("confirm.select"), *[call("basic.publish")] * 3)
    yield seq("confirm: publish to a missing exchange", call("confirm.select"), call("basic.publish", {"exchange": "{p}missing"}))
    yield seq("a channel opened twice", call("channel.open"))
    yield seq("a channel reopened after its close", call("channel.close"), call("channel.open"), get)
    yield seq("flow off", call("channel.flow", {"active": False}))
    yield seq("reply-to consumed with acks", call("basic.consume", {"queue": "amq.rabbitmq.reply-to"}))
    yield seq("reply-to consumed", call("basic.consume", {"queue": "amq.rabbitmq.reply-to", "no-ack": True}))
    yield seq("reply-to consumed twice", *[call("basic.consume", {"queue": "amq.rabbitmq.reply-to", "no-ack": True, "consumer-tag": t}) for t in "ab"])
    yield seq("reply-to declared passively", call("queue.declare", {"queue": "amq.rabbitmq.reply-to", "passive": True}))
    yield seq("reply-to declared", call("queue.declare", {"queue": "amq.rabbitmq.reply-to"}))
    yield seq("reply-to got from", call("basic.get", {"queue": "amq.rabbitmq.reply-to"}))
    for exchange in ("", "amq.direct"):
        yield seq(f"exchange {exchange!r} deleted", call("exchange.delete", {"exchange": exchange}))
        yield seq(f"exchange {exchange!r} declared as fanout", call("exchange.declare", {"exchange": exchange, "type": "fanout"}))
        yield seq(f"exchange {exchange!r} as destination", call("exchange.bind", {"destination": exchange}))
        yield seq(f"exchange {exchange!r} as source", call("exchange.bind", {"source": exchange}))
        yield seq(f"a queue bound to {exchange!r}", call("queue.bind", {"exchange": exchange}))
        yield seq(f"a queue unbound from {exchange!r}", call("queue.unbind", {"exchange": exchange, "routing-key": "{p}q"}))


def frame_variations():
    yield Case("header of AMQP 1.0", "connected", [raw(b"AMQP\0\1\0\0")])
    yield Case("header of AMQP 0-8", "connected", [raw(b"AMQP\1\1\x08\0")])
    yield Case("header of AMQP 0-9", "connected", [raw(b"AMQP\1\1\0\x09")])
    yield Case("an HTTP request", "connected", [raw(b"GET / HTTP/1.1\r\n\r\n")])
    yield Case("the header twice", "started", [raw(HEADER)])
    for state in ("started", "tuning", "tuned", "open", "channel"):
        for label, data in {
            "a heartbeat": frame(HEARTBEAT, 0, b""), "a heartbeat with a body": frame(HEARTBEAT, 0, b"x"),
            "a heartbeat on channel 1": frame(HEARTBEAT, 1, b""), "frame type 9": frame(9, 1, b"x"), "frame type 0": frame(0, 0, b""),
            "frame type 4": frame(4, 0, b""),
            "a wrong frame end": frame(METHOD, 1, b"\0\x14\0\x0a\0", 0xCD),
            "a frame of 4 GiB": b"\x01\0\1\xff\xff\xff\xff", "an empty method frame": frame(METHOD, 1, b""),
            "a method of one byte": frame(METHOD, 1, b"\0"), "an unknown class": frame(METHOD, 1, b"\0\x63\0\x0a"),
            "an unknown method": frame(METHOD, 1, b"\0\x14\0\x63"), "an unknown class on channel 0": frame(METHOD, 0, b"\0\x63\0\x0a"),
            "a channel above channel-max": frame(METHOD, 3000, b"\0\x14\0\x0a\0"),
            "a frame above frame-max": frame(METHOD, 1, b"\0\x14\0\x0a\0" + b"\0" * 131072),
            "a content header cut short": frame(CONTENT_HEADER, 1, b"\0\x3c"),
        }.items():
            yield Case(f"{state} / {label}", state, [raw(data)])
    for label, arguments in {
        "mechanism PLAIN": {}, "mechanism AMQPLAIN": {"mechanism": "AMQPLAIN", "response": table({"LOGIN": "guest", "PASSWORD": "guest"})[4:]},
        "AMQPLAIN without a password": {"mechanism": "AMQPLAIN", "response": table({"LOGIN": "guest"})[4:]},
        "AMQPLAIN that is no table": {"mechanism": "AMQPLAIN", "response": "xyz"},
        "mechanism EXTERNAL": {"mechanism": "EXTERNAL"}, "mechanism unknown": {"mechanism": "GSSAPI"}, "mechanism plain": {"mechanism": "plain"},
        "a wrong password": {"response": "\0guest\0wrong"}, "a wrong user": {"response": "\0somebody\0x"},
        "PLAIN with an authorisation id": {"response": "guest\0guest\0guest"}, "PLAIN without zeros": {"response": "guest"},
        "a wrong password, without authentication_failure_close": {"response": "\0guest\0wrong", "client-properties": {}},
        "no locale": {"locale": ""}, "another locale": {"locale": "de_DE"},
    }.items():
        yield Case(f"start-ok with {label}", "started", [call("connection.start-ok", arguments, 0)])
    for label, arguments in {
        "channel-max 0": {"channel-max": 0}, "channel-max above": {"channel-max": 4000}, "frame-max 0": {"frame-max": 0},
        "frame-max above": {"frame-max": 2**20}, "frame-max 4096": {"frame-max": 4096}, "frame-max below 4096": {"frame-max": 4095},
        "frame-max 1": {"frame-max": 1}, "heartbeat 65535": {"heartbeat": 65535},
    }.items():
        yield Case(f"tune-ok with {label}", "tuning", [call("connection.tune-ok", arguments, 0), call("connection.open", {}, 0)])
    for vhost in ("", "missing", "/", "//"):
        yield Case(f"open of vhost {vhost!r}", "tuned", [call("connection.open", {"virtual-host": vhost}, 0)])


def behind_refusals():
    """What a client pipelined behind a method that ends its channel: nothing of it happens, and nothing of it is answered."""
    refusals = {
        "a passive declare of no queue": call("queue.declare", {"queue": "{p}missing", "passive": True}),
        "a declare that is not equal": call("queue.declare", {"queue": "{p}q", "durable": True}),
        "a bind to no exchange, without waiting": call("queue.bind", {"exchange": "{p}missing", "no-wait": True}),
        "a publish to no exchange": call("basic.publish", {"exchange": "{p}missing"}),
        "a publish to an internal exchange": call("basic.publish", {"exchange": "{p}internal"}),
        "a get from no queue": call("basic.get", {"queue": "{p}missing"}),
        "a consume from no queue": call("basic.consume", {"queue": "{p}missing"}),
        "an ack of nothing": call("basic.ack", {"delivery-tag": 7}),
    }
    behind = {
        "queue.delete": [call("queue.delete")], "queue.purge": [call("queue.purge")], "queue.declare": [call("queue.declare")],
        "exchange.delete, without waiting": [call("exchange.delete", {"no-wait": True})],
        "basic.publish": [call("basic.publish")], "basic.publish, default exchange": [call("basic.publish", {"exchange": "", "routing-key": "{p}q"})],
        "basic.get": [call("basic.get", {"no-ack": True})], "basic.consume": [call("basic.consume", {"no-ack": True})],
        "basic.qos": [call("basic.qos")], "confirm.select": [call("confirm.select")], "a wrong ack": [call("basic.ack", {"delivery-tag": 8})],
        "immediate": [call("basic.publish", {"immediate": True})],
        "a publish to no exchange": [call("basic.publish", {"exchange": "{p}missing"})],
    }
    look = [call("queue.declare", {"passive": True, "queue": "{p}q"}, 9), call("exchange.declare", {"passive": True, "exchange": "{p}x"}, 9),
            call("queue.declare", {"passive": True, "queue": "{p}new"}, 9)]
    for first, refused in refusals.items():
        for second, steps in behind.items():
            yield Case(f"{second} behind {first}", "channel", [refused, *steps], look)
        yield Case(f"publish and commit behind {first}", "tx", [refused, call("basic.publish"), call("tx.commit")], look)
        yield Case(f"an ack behind {first}", "channel", [call("basic.get"), refused, call("basic.ack")], look)
        yield Case(f"an ack before {first}", "channel", [call("basic.get"), call("basic.ack"), refused], look)
        yield Case(f"channel.close behind {first}", "channel", [refused, call("channel.close")])
        yield Case(f"publishes before {first}", "confirm", [call("basic.publish"), call("basic.publish"), refused], look)
