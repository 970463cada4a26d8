"""What RFC 9113 forbids a server, each a case: how it answers a request on stream `s`, and what must come of it: `refused`
(502 of the proxy's), `cut off` (the head may have gone on, its body must not seem whole), or `taken`. What the h2 crate overlooks and drops is
`dropped`: it may be answered, and does not go on."""

import struct

from wire import *


def head(s, *fields, end=False, status="200"):
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, s, block([(":status", status), ("x-backend", "seen"), *fields]))


def data(s, payload, end=True):
    return frame(DATA, END_STREAM if end else 0, s, payload)


def raw(s, fields, end=True):
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), s, block(fields))


def cases():
    seen = ("x-backend", "seen")
    yield from [
        ("9113 8.1.1 a response with more data than content-length", lambda s: head(s, ("content-length", "1")) + data(s, b"xx"), "cut off"),
        ("9113 8.1.1 a response with less data than content-length", lambda s: head(s, ("content-length", "3")) + data(s, b"xx"), "cut off"),
        ("9113 8.1.1 a response with no data and a content-length", lambda s: head(s, ("content-length", "3"), end=True), "cut off"),
        ("9113 8.1.1 a response with two lengths", lambda s: head(s, ("content-length", "1"), ("content-length", "2")) + data(s, b"x"), "refused"),
        ("9113 8.1.1 a response with a length that is no number", lambda s: head(s, ("content-length", "+1")) + data(s, b"x"), "refused"),
        ("9113 8.1 a response without :status", lambda s: raw(s, [seen]), "refused"),
        ("9113 8.3.2 a response whose :status is no number", lambda s: raw(s, [(":status", "abc"), seen]), "refused"),
        ("9113 8.3.2 a response whose :status has two digits", lambda s: raw(s, [(":status", "20"), seen]), "refused"),
        ("9113 8.3.2 a response with two :status", lambda s: raw(s, [(":status", "200"), (":status", "200"), seen]), "refused"),
        ("9113 8.3 a response with a pseudo-header field of requests", lambda s: raw(s, [(":status", "200"), (":path", "/"), seen]), "dropped"),
        ("9113 8.3 a response with :status after another field", lambda s: raw(s, [seen, (":status", "200")]), "refused"),
        ("9113 8.2.1 a response with an upper-case field name", lambda s: head(s, ("X-Up", "1"), end=True), "refused"),
        ("9113 8.2.1 a response with a line's end in a value", lambda s: head(s, ("x-value", "a\r\nx-smuggled: 1"), end=True), "refused"),
        ("9113 8.2.1 a response with NUL in a value", lambda s: head(s, ("x-value", "a\0b"), end=True), "refused"),
        ("9113 8.2.1 a response with a space before a value", lambda s: head(s, ("x-value", " a"), end=True), "refused"),
        ("9113 8.2.2 a response with connection", lambda s: head(s, ("connection", "close"), end=True), "refused"),
        ("9113 8.2.2 a response with transfer-encoding", lambda s: head(s, ("transfer-encoding", "chunked"), end=True), "refused"),
        ("9113 8.1 a response whose trailers hold a pseudo-header field", lambda s: head(s) + data(s, b"x", False) + raw(s, [(":status", "200")]), "dropped"),
        ("9113 8.1 a response whose trailers do not end it", lambda s: head(s) + data(s, b"x", False) + raw(s, [("x-end", "1")], end=False), "cut off"),
        ("9113 8.1 data before the head of a response", lambda s: data(s, b"x"), "refused"),
        ("9113 8.1 a 1xx response that ends the stream", lambda s: head(s, status="103", end=True), "refused"),
        ("9113 8.6 101 has no place in HTTP/2", lambda s: head(s, status="101", end=True), "refused"),
        ("9113 8.4 a push that was forbidden",
         lambda s: frame(PUSH_PROMISE, END_HEADERS, s, struct.pack(">I", 2) + block([(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")])) + head(s, end=True), "refused"),
        ("9113 4.3 a header block that cannot be decoded", lambda s: frame(HEADERS, END_HEADERS | END_STREAM, s, b"\xff\xff\xff\xff\xff\xff"), "refused"),
        ("9113 5.1.1 an answer on a stream that nobody opened", lambda s: head(s + 1000, end=True), "refused"),
        ("9113 6.5.2 a server that enables push", lambda s: settings((2, 1)) + head(s, end=True), "dropped"),
        ("9113 6.9.1 a window above 2^31-1", lambda s: window(0, (1 << 31) - 1) + head(s, end=True), "refused"),
        ("9113 4.2 a frame above SETTINGS_MAX_FRAME_SIZE", lambda s: head(s) + data(s, bytes(16385)), "cut off"),
        ("9113 6.1 padding of the payload's length", lambda s: head(s) + frame(DATA, END_STREAM | PADDED, s, b"\x05xxxx"), "cut off"),
        ("9113 5.1 a connection that ends within a response", lambda s: head(s) + data(s, b"x", False) + b"close", "cut off"),
        ("9113 8.1 a head and its data", lambda s: head(s, ("content-length", "2")) + data(s, b"xx"), "taken"),
        ("9113 8.1 trailers", lambda s: head(s) + data(s, b"x", False) + raw(s, [("x-end", "1")]), "taken"),
        ("9113 5.5 unknown frames and settings", lambda s: frame(0x77, 3, s, b"?") + settings((0x77, 1)) + head(s, end=True), "taken"),
        ("9113 8.1 a reset with NO_ERROR after a whole response", lambda s: head(s) + data(s, b"x") + reset(s, 0), "taken"),
        ("9113 6.10 a head in pieces",
         lambda s: frame(HEADERS, END_STREAM, s, literal(":status", "200")) + frame(CONTINUATION, END_HEADERS, s, literal("x-backend", "seen")), "taken"),
    ]
