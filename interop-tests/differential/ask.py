"""Brings a connection into a state, sends a case's frames, and writes down what the broker answers in a form that can be compared.

Owns: states, when an answer is complete, and what is left out because it is made up anew each time (generated names)."""

import re
import struct

from frames import BODY, CONTENT_HEADER, HEADER, HEARTBEAT, METHOD, Closed, Quiet, Wire, content_header, decode, frame, method
from matrix import RIGHT

MARKER = method("channel.flow", 1, {"active": True})
LEFT_OUT = {"server-properties"}


def ask(address, case, patience):
    """The broker's answers to a case: a list of short texts. `patience`: how many times longer than usual to wait for silence."""
    wire = Wire(address)
    try:
        before = bring(wire, case.state, case)
        # In one write: what is behind a close comes before its answer, every time.
        behind = {"channel": MARKER, "open": method("channel.open", 9, {}), "half-closed": method("channel.open", 9, {})}
        wire.send(b"".join(step(case) for step in case.steps) + behind.get(before, b""))
        return answers(wire, case, before, patience)
    except AssertionError as error:
        return [f"state not reached: {error}"]
    except (Closed, Quiet):
        return ["state not reached"]
    finally:
        wire.close()


def bring(wire, state, case):
    """Returns which sort of state it is: "handshake", "open" (no channel), "channel" or "closed"."""
    p = case.prefix

    def go(name, expected, changes=None, channel=1):
        wire.send(method(name, channel, {k: case.text(v) for k, v in {**RIGHT[name], **(changes or {})}.items()}))
        if expected:
            return wire.expect(expected)
        return None

    if state == "connected":
        return "handshake"
    wire.send(HEADER)
    wire.expect("connection.start")
    if state == "started":
        return "handshake"
    go("connection.start-ok", "connection.tune", channel=0)
    if state == "tuning":
        return "handshake"
    go("connection.tune-ok", None, channel=0)
    if state == "tuned":
        return "handshake"
    go("connection.open", "connection.open-ok", channel=0)
    if state == "open":
        return "open"
    go("channel.open", "channel.open-ok")
    for exchange in ("x", "y"):
        go("exchange.declare", "exchange.declare-ok", {"exchange": p + exchange})
    go("exchange.declare", "exchange.declare-ok", {"exchange": p + "internal", "internal": True})
    go("queue.declare", "queue.declare-ok", {"queue": p + "q"})
    go("queue.bind", "queue.bind-ok")
    for body in (b"m1", b"m2"):
        wire.send(method("basic.publish", 1, {"exchange": p + "x", "routing-key": "k"}) + content_header(1, 2) + frame(BODY, 1, body))
    # Behind it both are in the queue, and nothing of the client's is on its way.
    go("queue.declare", "queue.declare-ok", {"queue": p + "q", "passive": True})
    if state == "confirm":
        go("confirm.select", "confirm.select-ok")
    elif state == "tx":
        go("tx.select", "tx.select-ok")
    elif state == "consuming":
        go("basic.qos", "basic.qos-ok", {"prefetch-count": 1})
        go("basic.consume", "basic.consume-ok")
        wire.expect("basic.deliver")
        for _ in range(2):
            wire.receive()
    elif state in ("header-expected", "body-expected"):
        wire.send(method("basic.publish", 1, {"exchange": p + "x", "routing-key": "k"}))
        if state == "body-expected":
            wire.send(content_header(1, 10))
    elif state == "channel-closed-by-client":
        go("channel.close", "channel.close-ok")
        return "open"
    elif state == "channel-closed-by-server":
        go("queue.declare", "channel.close", {"queue": p + "missing", "passive": True})
        return "half-closed"
    elif state == "connection-closed-by-server":
        go("tx.commit", None, channel=7)
        wire.expect("connection.close")
        return "closed"
    return "channel"


def answers(wire, case, sort, patience):
    """Reads until the broker has nothing more to say: it closed, or it answered what was asked behind the case's frames."""
    out = []
    marker = {"channel": (1, "channel.flow-ok"), "open": (9, "channel.open-ok"), "half-closed": (9, "channel.open-ok")}.get(sort)
    wait = (2.5 if marker else 0.8) * patience
    if sort == "closed":
        wait = min(wait, 1.6)  # three seconds after its close a broker closes the socket, which is no answer
    look = case.look
    try:
        while True:
            kind, channel, payload = wire.receive(wait)
            if kind == HEARTBEAT:
                continue
            if kind == 0:
                out.append(f"header {payload[4:].hex()}")
            elif kind == CONTENT_HEADER:
                class_id, _, size = struct.unpack_from(">HHQ", payload)
                out.append(f"{channel} content of class {class_id}, {size} bytes, properties {payload[12:].hex()}")
            elif kind == BODY:
                out.append(f"{channel} body {payload.hex()}")
            else:
                name, arguments = decode(payload)
                if (channel, name) == marker:
                    # Deliveries and confirms come from elsewhere and may be behind it.
                    marker, wait = None, 0.15 * patience
                    continue
                out.append(case_text(case, f"{channel} {name} " + " ".join(f"{k}={v!r}" for k, v in arguments.items() if k not in LEFT_OUT)).strip())
                if name == "channel.close":
                    wire.send(method("channel.close-ok", channel, {}) + method("channel.open", 9, {}))
                    marker, wait = (9, "channel.open-ok"), 2.5 * patience
                    if look:
                        wire.send(b"".join(step(case) for step in look) + method("channel.flow", 9, {"active": True}))
                        marker, look = (9, "channel.flow-ok"), ()
                elif name == "connection.close":
                    wire.send(method("connection.close-ok", 0, {}))
                    marker, wait = None, 2.5 * patience
    except Closed:
        out.append("closed")
    except Quiet:
        if marker:
            out.append("no answer any more")
    return tidy(out)


def case_text(case, text):
    text = text.replace(case.prefix, "{p}")
    text = re.sub(r"amq\.gen-[\w-]+", "amq.gen-*", text)
    text = re.sub(r"amq\.ctag-[\w-]+", "amq.ctag-*", text)
    return re.sub(r"amq\.rabbitmq\.reply-to\.[\w.=+/-]+", "amq.rabbitmq.reply-to.*", text)


# A client that breaks the protocol itself is told so by code and place; the words behind are for people, and each broker's own.
OWN_WORDS = re.compile(r"(connection\.close reply-code=(?:501|502|503|504|505|540|541) reply-text=).([A-Z_]+).*?( class-id=)")


def tidy(out):
    """Confirms come one by one or together: what counts is which numbers were confirmed. Who closes the socket first after a
    close-ok does not count."""
    confirmed, kept = 0, []
    for line in out:
        if kept and kept[-1] == "0 connection.close-ok":
            break
        line = OWN_WORDS.sub(r"\1\2\3", line)
        found = re.fullmatch(r"1 basic\.ack delivery-tag=(\d+) multiple=(True|False)", line)
        if found:
            confirmed = max(confirmed, int(found[1]))
        else:
            kept.append(line)
    return kept + ([f"confirmed up to {confirmed}"] if confirmed else [])
