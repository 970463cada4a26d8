"""What RFC 9113 and RFC 7541 demand of a server, each demand a case: its section and sentence, what is sent, and what must
come of it. A case is sent after the preface and an exchange of settings."""

import struct

import hpack
from wire import *

# What must come of a case. A connection error may always take the place of a stream error (RFC 9113, section 5.4.2),
# and a malformed request may be answered with a status of the 400s (section 8.1.1).
WORKS = ("works",)
IGNORED = ("ignored",)


def connection_error(*codes):
    return ("connection error", *codes)


def stream_error(*codes):
    return ("stream error", *codes)


def refused(*codes):
    """A malformed request, which must not get anywhere."""
    return ("refused", *(codes or ("PROTOCOL_ERROR",)))


class Request:
    """Requests as this listener takes them."""

    def __init__(self, authority, extra):
        self.authority, self.extra = authority, extra

    def fields(self, method="GET", path="/", **pseudo):
        fields = {":method": method, ":scheme": "http", ":authority": self.authority, ":path": path}
        fields |= {":" + name: value for name, value in pseudo.items()}
        return [(name, value) for name, value in fields.items() if value is not None] + self.extra

    def headers(self, stream=1, fields=None, end=True, flags=END_HEADERS, extra=()):
        fields = self.fields() if fields is None else fields
        payload = block([*fields, *extra])
        return frame(HEADERS, flags | (END_STREAM if end else 0), stream, payload)

    def post(self, stream=1, extra=(), flags=END_HEADERS):
        return self.headers(stream, self.fields("POST"), end=False, extra=extra, flags=flags)


def padded(payload, padding):
    return bytes([padding]) + payload + bytes(padding)


def cases(r):
    get, post, fields = r.headers, r.post, r.fields
    bare = block(fields())
    huge = b"x" * 16385
    prioritised = struct.pack(">IB", 0, 15)

    yield from [
        # RFC 9113, section 4: frames.
        ("9113 4.1 flags without a meaning are ignored", get(flags=END_HEADERS | 0xD2), WORKS),
        ("9113 4.1 the reserved bit is ignored", frame(PING, 0, 0x80000000, b"8 octets") + get(), WORKS),
        ("9113 4.2 a DATA frame of 2^14 octets is taken", post() + frame(DATA, END_STREAM, 1, huge[1:]), WORKS),
        ("9113 4.2 a DATA frame above SETTINGS_MAX_FRAME_SIZE is refused",
         post() + frame(DATA, END_STREAM, 1, huge), stream_error("FRAME_SIZE_ERROR")),
        ("9113 4.2 a HEADERS frame above SETTINGS_MAX_FRAME_SIZE ends the connection",
         frame(HEADERS, END_STREAM | END_HEADERS, 1, bare + literal("x", huge)), connection_error("FRAME_SIZE_ERROR")),
        ("9113 4.2 a SETTINGS frame above SETTINGS_MAX_FRAME_SIZE ends the connection",
         frame(SETTINGS, 0, 0, bytes(16386)), connection_error("FRAME_SIZE_ERROR")),
        ("9113 4.3 a header block that cannot be decoded ends the connection",
         frame(HEADERS, END_STREAM | END_HEADERS, 1, bare + b"\xff\xff\xff\xff\xff\xff"), connection_error("COMPRESSION_ERROR")),
        ("9113 4.3 a header block that is cut off ends the connection",
         frame(HEADERS, END_STREAM | END_HEADERS, 1, bare + b"\x00\x05ab"), connection_error("COMPRESSION_ERROR")),
        ("9113 4.3 another frame within a header block ends the connection",
         get(flags=0) + frame(PING, 0, 0, b"8 octets"), connection_error("PROTOCOL_ERROR")),
        ("9113 4.3 a frame of another stream within a header block ends the connection",
         get(flags=0) + get(3), connection_error("PROTOCOL_ERROR")),

        # Section 5: streams.
        ("9113 5.1 DATA on an idle stream ends the connection", frame(DATA, END_STREAM, 1, b"x"), connection_error("PROTOCOL_ERROR")),
        ("9113 5.1 RST_STREAM on an idle stream ends the connection", reset(1), connection_error("PROTOCOL_ERROR")),
        ("9113 5.1 WINDOW_UPDATE on an idle stream ends the connection", window(1, 100), connection_error("PROTOCOL_ERROR")),
        ("9113 5.1 CONTINUATION on an idle stream ends the connection",
         frame(CONTINUATION, END_HEADERS, 1, bare), connection_error("PROTOCOL_ERROR")),
        ("9113 5.1 PRIORITY on an idle stream is taken", frame(PRIORITY, 0, 1, prioritised) + get(), WORKS),
        ("9113 5.1 DATA on a half-closed stream is refused",
         get() + frame(DATA, END_STREAM, 1, b"x"), stream_error("STREAM_CLOSED")),
        ("9113 5.1 HEADERS on a half-closed stream are refused", get() + get(), stream_error("STREAM_CLOSED", "PROTOCOL_ERROR")),
        ("9113 5.1 CONTINUATION on a half-closed stream ends the connection",
         get() + frame(CONTINUATION, END_HEADERS, 1, bare), connection_error("PROTOCOL_ERROR", "STREAM_CLOSED")),
        ("9113 5.1 WINDOW_UPDATE, PRIORITY and RST_STREAM on a half-closed stream are taken",
         get() + window(1, 100) + frame(PRIORITY, 0, 1, prioritised) + reset(1) + get(3), ("works", 3)),
        ("9113 5.1 DATA after RST_STREAM is refused or ignored",
         post() + reset(1) + frame(DATA, END_STREAM, 1, b"x"), ("ignored", "STREAM_CLOSED")),
        ("9113 5.1 HEADERS after RST_STREAM are refused or ignored",
         post() + reset(1) + get(1), ("ignored", "STREAM_CLOSED")),
        ("9113 5.1 CONTINUATION after RST_STREAM ends the connection",
         post() + reset(1) + frame(CONTINUATION, END_HEADERS, 1, bare), connection_error("PROTOCOL_ERROR", "STREAM_CLOSED")),
        ("9113 5.1.1 a stream with an even number ends the connection", get(2), connection_error("PROTOCOL_ERROR")),
        ("9113 5.1.1 a stream with a smaller number than before ends the connection",
         get(5) + get(3), connection_error("PROTOCOL_ERROR", "STREAM_CLOSED")),
        ("9113 5.1.1 stream numbers may be left out", get(101), ("works", 101)),
        ("9113 5.1.1 stream 0 cannot be opened", get(0), connection_error("PROTOCOL_ERROR")),
        ("9113 5.1.2 more streams than SETTINGS_MAX_CONCURRENT_STREAMS are refused", "many streams", ("crowd",)),
        ("9113 5.4.1 after a connection error the connection is closed", frame(DATA, 0, 0, b"x"), connection_error("PROTOCOL_ERROR")),
        ("9113 5.4.2 RST_STREAM is not answered with RST_STREAM", post() + reset(1), IGNORED),
        ("9113 5.5 frames of unknown types are ignored", frame(0x77, 0xFF, 0, b"what") + frame(0x78, 0, 1, b"") + get(), WORKS),
        ("9113 5.5 a frame of an unknown type within a header block ends the connection",
         get(flags=0) + frame(0x77, 0, 1, b"what") + frame(CONTINUATION, END_HEADERS, 1, b""), connection_error("PROTOCOL_ERROR")),
        ("9113 5.5 unknown settings are ignored", settings((0x77, 7), (0xFFFF, 1)) + get(), WORKS),

        # Section 6.1: DATA.
        ("9113 6.1 DATA on stream 0 ends the connection", frame(DATA, END_STREAM, 0, b"x"), connection_error("PROTOCOL_ERROR")),
        ("9113 6.1 padding of the payload's length ends the connection",
         post() + frame(DATA, END_STREAM | PADDED, 1, b"\x05xxxx"), connection_error("PROTOCOL_ERROR")),
        ("9113 6.1 padding is taken out", post() + frame(DATA, END_STREAM | PADDED, 1, padded(b"body", 200)), WORKS),
        ("9113 6.1 padding alone is a frame without data",
         post() + frame(DATA, PADDED, 1, padded(b"", 255)) + frame(DATA, END_STREAM, 1), WORKS),
        ("9113 6.1 a padded frame without a padding length ends the connection",
         post() + frame(DATA, END_STREAM | PADDED, 1, b""), connection_error("FRAME_SIZE_ERROR", "PROTOCOL_ERROR")),

        # Section 6.2: HEADERS.
        ("9113 6.2 padding of a header's length ends the connection",
         frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, bytes([len(bare) + 1]) + bare), connection_error("PROTOCOL_ERROR")),
        ("9113 6.2 padding and priority are taken",
         frame(HEADERS, END_STREAM | END_HEADERS | PADDED | PRIORITY_FLAG, 1, padded(prioritised + bare, 40)), WORKS),
        ("9113 6.2 a priority that is cut off ends the connection",
         frame(HEADERS, END_STREAM | END_HEADERS | PRIORITY_FLAG, 1, b"\0\0"), connection_error("FRAME_SIZE_ERROR", "PROTOCOL_ERROR")),

        # Section 6.3: PRIORITY.
        ("9113 6.3 PRIORITY on stream 0 ends the connection", frame(PRIORITY, 0, 0, prioritised), connection_error("PROTOCOL_ERROR")),
        ("9113 6.3 PRIORITY of another length than 5 octets is refused",
         post() + frame(PRIORITY, 0, 1, b"\0\0\0\0"), stream_error("FRAME_SIZE_ERROR")),

        # Section 6.4: RST_STREAM.
        ("9113 6.4 RST_STREAM on stream 0 ends the connection", reset(0), connection_error("PROTOCOL_ERROR")),
        ("9113 6.4 RST_STREAM of another length than 4 octets ends the connection",
         post() + frame(RST_STREAM, 0, 1, b"\0\0\0"), connection_error("FRAME_SIZE_ERROR")),
        ("9113 7 an unknown error code ends its stream alone", post() + reset(1, 0xFFFFFFF) + get(3), ("works", 3)),

        # Section 6.5: SETTINGS.
        ("9113 6.5 SETTINGS with ACK and a payload end the connection",
         frame(SETTINGS, ACK, 0, bytes(6)), connection_error("FRAME_SIZE_ERROR")),
        ("9113 6.5 SETTINGS on a stream end the connection", frame(SETTINGS, 0, 1), connection_error("PROTOCOL_ERROR")),
        ("9113 6.5 SETTINGS of another length than a multiple of 6 end the connection",
         frame(SETTINGS, 0, 0, bytes(5)), connection_error("FRAME_SIZE_ERROR")),
        ("9113 6.5.2 SETTINGS_ENABLE_PUSH of another value than 0 and 1 ends the connection",
         settings((2, 2)), connection_error("PROTOCOL_ERROR")),
        ("9113 6.5.2 SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1 ends the connection",
         settings((4, 1 << 31)), connection_error("FLOW_CONTROL_ERROR")),
        ("9113 6.5.2 SETTINGS_MAX_FRAME_SIZE below 2^14 ends the connection", settings((5, 16383)), connection_error("PROTOCOL_ERROR")),
        ("9113 6.5.2 SETTINGS_MAX_FRAME_SIZE above 2^24-1 ends the connection", settings((5, 1 << 24)), connection_error("PROTOCOL_ERROR")),
        ("9113 6.5.3 settings are acknowledged", settings((3, 100)), ("settings acknowledged",)),
        ("9113 6.5.3 settings are taken in their order", settings((4, 0), (4, 65535)) + get(), WORKS),

        # Section 6.6: PUSH_PROMISE.
        ("9113 6.6 PUSH_PROMISE of a client ends the connection",
         post() + frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + bare), connection_error("PROTOCOL_ERROR")),

        # Section 6.7: PING.
        ("9113 6.7 PING is answered with its own payload", frame(PING, 0, 0, b"\x00\xffpayl\x00!"), ("ping answered", b"\x00\xffpayl\x00!")),
        ("9113 6.7 an answer to PING is not answered", frame(PING, ACK, 0, b"nobodyno"), ("ping ignored", b"nobodyno")),
        ("9113 6.7 PING on a stream ends the connection", frame(PING, 0, 1, b"8 octets"), connection_error("PROTOCOL_ERROR")),
        ("9113 6.7 PING of another length than 8 octets ends the connection", frame(PING, 0, 0, b"7 octet"), connection_error("FRAME_SIZE_ERROR")),

        # Section 6.8: GOAWAY.
        ("9113 6.8 GOAWAY on a stream ends the connection",
         frame(GOAWAY, 0, 1, bytes(8)), connection_error("PROTOCOL_ERROR")),
        ("9113 6.8 what is open when GOAWAY comes is answered", post() + frame(GOAWAY, 0, 0, bytes(8)) + frame(DATA, END_STREAM, 1, b"x"), ("answered", 1)),

        # Section 6.9: WINDOW_UPDATE and flow control.
        ("9113 6.9 an increment of 0 for the connection ends it", window(0, 0), connection_error("PROTOCOL_ERROR")),
        ("9113 6.9 an increment of 0 for a stream is refused", post() + window(1, 0), stream_error("PROTOCOL_ERROR")),
        ("9113 6.9 WINDOW_UPDATE of another length than 4 octets ends the connection",
         frame(WINDOW_UPDATE, 0, 0, b"\0\0\1"), connection_error("FRAME_SIZE_ERROR")),
        ("9113 6.9 the reserved bit of an increment is ignored", window(0, 1 | 1 << 31) + get(), WORKS),
        ("9113 6.9.1 a window of the connection above 2^31-1 ends it",
         window(0, (1 << 31) - 1), connection_error("FLOW_CONTROL_ERROR")),
        ("9113 6.9.1 a window of a stream above 2^31-1 is refused",
         post() + window(1, (1 << 31) - 1), stream_error("FLOW_CONTROL_ERROR")),
        ("9113 6.9.1 no more is sent than the window allows", "window of one", ("bytes", 1)),
        ("9113 6.9.1 more than the stream's window is refused", "beyond the window", stream_error("FLOW_CONTROL_ERROR")),
        ("9113 6.9.2 a smaller initial window holds for open streams, which may owe", "shrinking window", ("bytes", 4)),
        ("9113 6.9.2 a larger initial window holds for open streams", "growing window", ("bytes", 6)),
        ("9113 6.9.2 an initial window that makes a stream's too large ends the connection",
         post() + window(1, 1) + settings((4, (1 << 31) - 1)), connection_error("FLOW_CONTROL_ERROR")),

        # Section 6.10: CONTINUATION.
        ("9113 6.10 a header block may come in pieces",
         frame(HEADERS, END_STREAM, 1, bare[:5]) + frame(CONTINUATION, 0, 1, bare[5:9]) + frame(CONTINUATION, 0, 1)
         + frame(CONTINUATION, END_HEADERS, 1, bare[9:]), WORKS),
        ("9113 6.10 CONTINUATION on stream 0 ends the connection",
         get(flags=0) + frame(CONTINUATION, END_HEADERS, 0), connection_error("PROTOCOL_ERROR")),
        ("9113 6.10 CONTINUATION of another stream ends the connection",
         get(flags=0) + frame(CONTINUATION, END_HEADERS, 3), connection_error("PROTOCOL_ERROR")),
        ("9113 6.10 CONTINUATION after END_HEADERS ends the connection",
         post() + frame(CONTINUATION, END_HEADERS, 1, bare), connection_error("PROTOCOL_ERROR")),
        ("9113 6.10 CONTINUATION after DATA ends the connection",
         post() + frame(DATA, 0, 1, b"x") + frame(CONTINUATION, END_HEADERS, 1, bare), connection_error("PROTOCOL_ERROR")),

        # Section 8.1: the shape of a request.
        ("9113 8.1 trailers end a request",
         post(extra=[("trailer", "x-end")]) + frame(DATA, 0, 1, b"x") + frame(HEADERS, END_STREAM | END_HEADERS, 1, literal("x-end", "1")), WORKS),
        ("9113 8.1 trailers without END_STREAM are malformed",
         post() + frame(DATA, 0, 1, b"x") + frame(HEADERS, END_HEADERS, 1, literal("x-end", "1")), refused()),
        # The h2 crate drops it.
        ("9113 8.1 a pseudo-header field in trailers gets nowhere",
         post() + frame(DATA, 0, 1, b"x") + frame(HEADERS, END_STREAM | END_HEADERS, 1, literal(":path", "/other") + literal("x-end", "1")), ("dropped", ":path")),
        ("9113 8.1.1 more data than content-length is malformed",
         post(extra=[("content-length", "1")]) + frame(DATA, END_STREAM, 1, b"xx"), refused()),
        ("9113 8.1.1 less data than content-length is malformed",
         post(extra=[("content-length", "3")]) + frame(DATA, END_STREAM, 1, b"xx"), refused()),
        ("9113 8.1.1 no data with a content-length is malformed",
         get(fields=fields("POST"), extra=[("content-length", "3")]), refused()),
        ("9113 8.1.1 less data than content-length before trailers is malformed",
         post(extra=[("content-length", "3")]) + frame(DATA, 0, 1, b"xx") + frame(HEADERS, END_STREAM | END_HEADERS, 1, literal("x-end", "1")), refused()),
        ("9113 8.1.1 two lengths that differ are malformed",
         post(extra=[("content-length", "2"), ("content-length", "3")]) + frame(DATA, END_STREAM, 1, b"xx"), refused()),
        ("9113 8.1.1 a length that is no number is malformed",
         post(extra=[("content-length", "+2")]) + frame(DATA, END_STREAM, 1, b"xx"), refused()),
        ("9113 8.1.1 a list of lengths is malformed",
         post(extra=[("content-length", "2, 2")]) + frame(DATA, END_STREAM, 1, b"xx"), refused()),
        ("9113 8.1.1 a length that equals the data is taken", post(extra=[("content-length", "2")]) + frame(DATA, 0, 1, b"x") + frame(DATA, END_STREAM, 1, b"x"), WORKS),
    ]

    # Section 8.2: fields.
    names = {
        "an upper-case letter": "X-Up", "a space": "x y", "a colon within": "x:y", "NUL": "x\0y", "CR": "x\ry", "LF": "x\ny",
        "DEL": "x\x7fy", "an octet above 0x7f": b"x\xff", "no character": "", "a parenthesis": "x(y)",
    }
    for what, name in names.items():
        yield f"9113 8.2.1 a field name with {what} is malformed", get(extra=[(name, "value")]), refused()
    values = {
        "NUL": "a\0b", "CR": "a\rb", "LF": "a\nb", "CR and LF": "a\r\nx-smuggled: 1", "a space first": " a", "a tab first": "\ta",
        "a space last": "a ", "a tab last": "a\t",
    }
    for what, value in values.items():
        yield f"9113 8.2.1 a field value with {what} is malformed", get(extra=[("x-value", value)]), refused()
    yield "9113 8.2.1 a field value may be empty, and hold spaces and octets above 0x7f", get(extra=[("x-value", ""), ("x-other", b"a b\xc3\xa4")]), WORKS
    for name, value in [("connection", "close"), ("keep-alive", "1"), ("proxy-connection", "keep-alive"),
                        ("transfer-encoding", "chunked"), ("upgrade", "h2c"), ("te", "gzip"), ("te", "trailers, deflate")]:
        yield f"9113 8.2.2 {name}: {value} is malformed", get(extra=[(name, value)]), refused()
    yield "9113 8.2.2 te: trailers is taken", get(extra=[("te", "trailers")]), WORKS
    yield "9113 8.2.3 cookies may come in several fields", get(extra=[("cookie", "a=1"), ("cookie", "b=2")]), WORKS

    # Section 8.3: pseudo-header fields.
    malformed = {
        "8.3 an unknown pseudo-header field": [*fields(), (":unknown", "1")],
        "8.3 a pseudo-header field of responses": [*fields(), (":status", "200")],
        "8.3 a pseudo-header field after another field": [*fields()[:1], ("x-first", "1"), *fields()[1:]],
        "8.3.1 no :method": fields(method=None),
        "8.3.1 no :scheme": fields(scheme=None),
        "8.3.1 no :path": fields(path=None),
        "8.3.1 an empty :path": fields(path=""),
        "8.3.1 a :path that does not begin with /": fields(path="orders"),
        "8.3.1 a :path of * for another method than OPTIONS": fields(path="*"),
        "8.3.1 a :path with a space": fields(path="/a b"),
        "8.3.1 a :path with a line's end": fields(path="/a\r\nhost: other"),
        "8.3.1 a :path with a whole request line": fields(path="/ HTTP/1.1\r\n\r\nGET /smuggled"),
        "8.3.1 a :path with NUL": fields(path="/a\0"),
        "8.3.1 a :path with a tab": fields(path="/a\tb"),
        "8.3.1 an empty :method": fields(method=""),
        "8.3.1 a :method with a space": fields(method="GET /x"),
        "8.3.1 a :method with a line's end": fields(method="GET\r\n"),
        "8.3.1 a :scheme that is none": fields(scheme="ht tp"),
        "8.3.1 a :scheme with a request in it": fields(scheme="http://other/?"),
        "8.3.1 an :authority with a user": fields(authority="user@" + r.authority),
        "8.3.1 an :authority with a space": fields(authority="a b"),
        "8.3.1 an :authority with a path": fields(authority=r.authority + "/path"),
        "8.3.1 an empty :authority and no host": fields(authority=""),
        "8.3.1 a host that differs from :authority": [*fields(), ("host", "other.data")],
        "8.3.1 neither :authority nor host": fields(authority=None),
        "8.3.1 two hosts": [*fields(), ("host", r.authority), ("host", r.authority)],
        "8.5 CONNECT with :scheme and :path": fields(method="CONNECT"),
        "8.5 CONNECT without :authority": fields(method="CONNECT", scheme=None, path=None, authority=None),
        "8.5 an extended CONNECT, which is not offered (RFC 8441)": [*fields(method="CONNECT")[:4], (":protocol", "websocket"), *r.extra],
    }
    for name in (":method", ":scheme", ":path", ":authority"):
        twice = dict(fields())[name]
        malformed[f"8.3.1 two fields {name}"] = [(name, twice), *fields()]
    for what, given in malformed.items():
        yield f"9113 {what}: is malformed", get(fields=given), refused()
    yield "9113 8.3.1 host in place of :authority is taken", get(fields=[*fields(authority=None), ("host", r.authority)]), WORKS
    yield "9113 8.3.1 host beside an equal :authority is taken", get(extra=[("host", r.authority)]), WORKS
    yield "9113 8.3.1 OPTIONS * is taken", get(fields=fields("OPTIONS", "*")), WORKS

    # RFC 7541: header compression.
    def compressed(block, expected, then=b""):
        return frame(HEADERS, END_STREAM | END_HEADERS, 1, block) + then, expected

    bad = connection_error("COMPRESSION_ERROR")
    long_integer = b"\x7f" + b"\x80" * 12 + b"\x01"
    eos = b"\xff\xff\xff\xff"
    broken = {
        "2.3.3 an index beyond both tables": bare + integer(70, 7, 0x80),
        "6.1 an index of 0": bare + b"\x80",
        "6.2.1 the name of a field beyond both tables": bare + integer(70, 6, 0x40) + b"\x01a",
        "5.1 an integer that never ends": bare + long_integer,
        "5.1 an integer that is too large": bare + b"\x00\x7f\xff\xff\xff\xff\xff\xff\xff\xff\x7fabc",
        "5.2 a string longer than its block": bare + b"\x00\x01a\x7f\x80\x01abc",
        "5.2 Huffman padding of more than 7 bits": bare + b"\x00\x01x\x82\x1f\xff",
        "5.2 Huffman padding that is not of ones": bare + b"\x00\x01x\x81\x18",
        "5.2 Huffman's end of string": bare + b"\x00\x01x\x84" + eos,
        "4.2 a table size update after a field": bare + b"\x20",
        "6.3 a table size update above SETTINGS_HEADER_TABLE_SIZE": integer(4097, 5, 0x20) + bare,
        "4.4 an index of what was evicted": b"\x20" + bare + literal("x-a", "b", 0x40) + integer(62, 7, 0x80),
        "4.1 an index of a field larger than the table": bare + literal("x-a", "b" * 5000, 0x40) + integer(62, 7, 0x80),
    }
    for what, given in broken.items():
        yield (f"7541 {what}: ends the connection", *compressed(given, bad))
    encoder, plain = hpack.Encoder(), hpack.Encoder()
    # Compressing encoders as third parties write them, with and without Huffman codes.
    yield ("7541 5.2 Huffman codes are read", *compressed(encoder.encode(fields(), huffman=True), WORKS))
    yield ("7541 6.2.1 indexed fields are read again",
           *compressed(plain.encode([*fields(), ("x-a", "b")], huffman=False), ("works", 3),
                       frame(HEADERS, END_STREAM | END_HEADERS, 3, plain.encode([*fields(), ("x-a", "b")], huffman=False))))
    yield ("7541 4.2 a table size of 0 and back is taken", *compressed(b"\x20" + integer(4096, 5, 0x20) + bare + literal("x-a", "b", 0x40) + integer(62, 7, 0x80), WORKS))
    secrets = [("authorization", "Bearer abc"), ("cookie", "session=abc")]
    yield ("7541 7.1.3 credentials are in no table",
           *compressed(bare + b"".join(literal(*secret, kind=0x10) for secret in secrets), ("not indexed", "authorization", "cookie")))
    yield ("7541 2.3.2 a header that is refused still counts for the table",
           *compressed(bare + literal("x-a", "b", 0x40) + literal("connection", "close"), ("works", 3),
                       frame(HEADERS, END_STREAM | END_HEADERS, 3, bare + integer(62, 7, 0x80))))
