"""AMQP 0-9-1 frames written and read by a table of the specification's methods.

Owns: the bytes. Knows nothing of what a broker should answer; writes wrong values when asked to."""

import socket
import struct
import time

HEADER = b"AMQP\x00\x00\x09\x01"
METHOD, CONTENT_HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = 0xCE

_SPEC = """
connection.start 10 10 major:octet minor:octet server-properties:table mechanisms:longstr locales:longstr
connection.start-ok 10 11 client-properties:table mechanism:shortstr response:longstr locale:shortstr
connection.secure 10 20 challenge:longstr
connection.secure-ok 10 21 response:longstr
connection.tune 10 30 channel-max:short frame-max:long heartbeat:short
connection.tune-ok 10 31 channel-max:short frame-max:long heartbeat:short
connection.open 10 40 virtual-host:shortstr reserved-1:shortstr reserved-2:bit
connection.open-ok 10 41 reserved-1:shortstr
connection.close 10 50 reply-code:short reply-text:shortstr class-id:short method-id:short
connection.close-ok 10 51
connection.blocked 10 60 reason:shortstr
connection.unblocked 10 61
connection.update-secret 10 70 new-secret:longstr reason:shortstr
connection.update-secret-ok 10 71
channel.open 20 10 reserved-1:shortstr
channel.open-ok 20 11 reserved-1:longstr
channel.flow 20 20 active:bit
channel.flow-ok 20 21 active:bit
channel.close 20 40 reply-code:short reply-text:shortstr class-id:short method-id:short
channel.close-ok 20 41
access.request 30 10 realm:shortstr exclusive:bit passive:bit active:bit write:bit read:bit
access.request-ok 30 11 reserved-1:short
exchange.declare 40 10 reserved-1:short exchange:shortstr type:shortstr passive:bit durable:bit auto-delete:bit internal:bit no-wait:bit arguments:table
exchange.declare-ok 40 11
exchange.delete 40 20 reserved-1:short exchange:shortstr if-unused:bit no-wait:bit
exchange.delete-ok 40 21
exchange.bind 40 30 reserved-1:short destination:shortstr source:shortstr routing-key:shortstr no-wait:bit arguments:table
exchange.bind-ok 40 31
exchange.unbind 40 40 reserved-1:short destination:shortstr source:shortstr routing-key:shortstr no-wait:bit arguments:table
exchange.unbind-ok 40 51
queue.declare 50 10 reserved-1:short queue:shortstr passive:bit durable:bit exclusive:bit auto-delete:bit no-wait:bit arguments:table
queue.declare-ok 50 11 queue:shortstr message-count:long consumer-count:long
queue.bind 50 20 reserved-1:short queue:shortstr exchange:shortstr routing-key:shortstr no-wait:bit arguments:table
queue.bind-ok 50 21
queue.purge 50 30 reserved-1:short queue:shortstr no-wait:bit
queue.purge-ok 50 31 message-count:long
queue.delete 50 40 reserved-1:short queue:shortstr if-unused:bit if-empty:bit no-wait:bit
queue.delete-ok 50 41 message-count:long
queue.unbind 50 50 reserved-1:short queue:shortstr exchange:shortstr routing-key:shortstr arguments:table
queue.unbind-ok 50 51
basic.qos 60 10 prefetch-size:long prefetch-count:short global:bit
basic.qos-ok 60 11
basic.consume 60 20 reserved-1:short queue:shortstr consumer-tag:shortstr no-local:bit no-ack:bit exclusive:bit no-wait:bit arguments:table
basic.consume-ok 60 21 consumer-tag:shortstr
basic.cancel 60 30 consumer-tag:shortstr no-wait:bit
basic.cancel-ok 60 31 consumer-tag:shortstr
basic.publish 60 40 reserved-1:short exchange:shortstr routing-key:shortstr mandatory:bit immediate:bit
basic.return 60 50 reply-code:short reply-text:shortstr exchange:shortstr routing-key:shortstr
basic.deliver 60 60 consumer-tag:shortstr delivery-tag:longlong redelivered:bit exchange:shortstr routing-key:shortstr
basic.get 60 70 reserved-1:short queue:shortstr no-ack:bit
basic.get-ok 60 71 delivery-tag:longlong redelivered:bit exchange:shortstr routing-key:shortstr message-count:long
basic.get-empty 60 72 reserved-1:shortstr
basic.ack 60 80 delivery-tag:longlong multiple:bit
basic.reject 60 90 delivery-tag:longlong requeue:bit
basic.recover-async 60 100 requeue:bit
basic.recover 60 110 requeue:bit
basic.recover-ok 60 111
basic.nack 60 120 delivery-tag:longlong multiple:bit requeue:bit
tx.select 90 10
tx.select-ok 90 11
tx.commit 90 20
tx.commit-ok 90 21
tx.rollback 90 30
tx.rollback-ok 90 31
confirm.select 85 10 no-wait:bit
confirm.select-ok 85 11
"""

METHODS = {}
BY_ID = {}
for _line in _SPEC.strip().splitlines():
    _name, _class, _method, *_arguments = _line.split()
    _arguments = [tuple(a.split(":")) for a in _arguments]
    METHODS[_name] = (int(_class), int(_method), _arguments)
    BY_ID[int(_class), int(_method)] = (_name, _arguments)

NUMBERS = {"octet": ">B", "short": ">H", "long": ">I", "longlong": ">Q"}


class Raw(bytes):
    """Goes on the wire as it is, whatever the argument's type."""


def shortstr(text):
    data = text.encode() if isinstance(text, str) else text
    return bytes([len(data)]) + data


def longstr(data):
    data = data.encode() if isinstance(data, str) else data
    return struct.pack(">I", len(data)) + data


def value(item):
    """A table value; a pair (tag, bytes) is written as it is."""
    if isinstance(item, tuple):
        return item[0].encode() + item[1]
    if isinstance(item, bool):
        return b"t" + bytes([item])
    if isinstance(item, int):
        return b"l" + struct.pack(">q", item)
    if isinstance(item, (str, bytes)):
        return b"S" + longstr(item)
    if isinstance(item, dict):
        return b"F" + table(item)
    if isinstance(item, list):
        return b"A" + longstr(b"".join(value(i) for i in item))
    if item is None:
        return b"V"
    raise TypeError(item)


def table(items):
    return longstr(b"".join(shortstr(k) + value(v) for k, v in items.items()))


def frame(kind, channel, payload, end=END):
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


def method(name, channel, arguments, trailing=b""):
    class_id, method_id, types = METHODS[name]
    out = struct.pack(">HH", class_id, method_id)
    bits, count = 0, 0

    def flush():
        nonlocal bits, count
        data, bits, count = (bytes([bits]) if count else b""), 0, 0
        return data

    for argument, kind in types:
        given = arguments.get(argument)
        if kind == "bit":
            bits |= bool(given) << count
            count += 1
            continue
        out += flush()
        if isinstance(given, Raw):
            out += given
        elif kind in NUMBERS:
            out += struct.pack(NUMBERS[kind], given or 0)
        elif kind == "shortstr":
            out += shortstr(given or "")
        elif kind == "longstr":
            out += longstr(given or "")
        elif kind == "table":
            out += table(given or {})
    return frame(METHOD, channel, out + flush() + trailing)


def content_header(channel, size, properties=b"\0\0", class_id=60, weight=0):
    return frame(CONTENT_HEADER, channel, struct.pack(">HHQ", class_id, weight, size) + properties)


def decode(payload):
    """A method's payload as (name, arguments)."""
    ids = struct.unpack_from(">HH", payload)
    name, types = BY_ID.get(ids, (f"unknown {ids}", []))
    at, bit, arguments = 4, 0, {}
    for argument, kind in types:
        if kind == "bit":
            arguments[argument] = bool(payload[at] >> bit & 1)
            bit += 1
            continue
        at, bit = at + (bit > 0), 0
        if kind in NUMBERS:
            (arguments[argument],) = struct.unpack_from(NUMBERS[kind], payload, at)
            at += struct.calcsize(NUMBERS[kind])
        elif kind == "shortstr":
            arguments[argument] = payload[at + 1:at + 1 + payload[at]].decode(errors="replace")
            at += 1 + payload[at]
        else:
            (length,) = struct.unpack_from(">I", payload, at)
            arguments[argument] = payload[at + 4:at + 4 + length]
            at += 4 + length
    return name, arguments


class Closed(Exception):
    """The broker closed the socket."""


class Quiet(Exception):
    """Nothing came in time."""


class Wire:
    """One connection."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def close(self):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError as error:
            # What the broker said before it closed can still be read.
            self.broken = error

    def _fill(self, length, deadline):
        while len(self.buffer) < length:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                raise Quiet from None
            except OSError:
                raise Closed from None
            if not data:
                raise Closed
            self.buffer += data

    def receive(self, seconds=10.0):
        """The next frame: (kind, channel, payload); a protocol header comes as (0, 0, header)."""
        deadline = time.monotonic() + seconds
        self._fill(1, deadline)
        if self.buffer[:1] == b"A":
            self._fill(8, deadline)
            header, self.buffer = self.buffer[:8], self.buffer[8:]
            return 0, 0, header
        self._fill(7, deadline)
        kind, channel, length = struct.unpack_from(">BHI", self.buffer)
        self._fill(8 + length, deadline)
        payload, self.buffer = self.buffer[7:7 + length], self.buffer[8 + length:]
        return kind, channel, payload

    def expect(self, name):
        kind, _, payload = self.receive()
        got = decode(payload)[0] if kind == METHOD else f"frame of type {kind}"
        if got != name:
            raise AssertionError(f"expected {name}, got {decode(payload) if kind == METHOD else got}")
        return decode(payload)[1]
