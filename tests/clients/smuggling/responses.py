"""What hostile servers answer, each a case: the bytes of a response, and what must come of it: REFUSED (502 of the proxy's),
CUT (refused, or the client sees that it is not whole), or TAKEN. `EITHER` may be refused or taken. NOT_SWITCHED answers a client
that asks for a WebSocket, and is refused. Whatever comes of a case, the next requests get their own answers."""

REFUSED, CUT, TAKEN, EITHER, NOT_SWITCHED = "refused", "cut", "taken", "either", "not switched"

OK = b"HTTP/1.1 200 OK\r\nx-case: poison\r\n"
POISON = b"HTTP/1.1 200 OK\r\nx-case: poison\r\ncontent-length: 6\r\n\r\npoison"


def ok(*fields, body=b""):
    return OK + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def cases():
    """(name, method, bytes, whether the server closes after them, what must come of it)"""
    yield "a plain response", "GET", ok(b"content-length: 2", body=b"ok"), False, TAKEN
    yield "a chunked response", "GET", ok(b"transfer-encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"), False, TAKEN
    yield "a response until the end of the connection", "GET", ok(body=b"ok"), True, TAKEN
    yield "content-length and transfer-encoding", "GET", ok(b"content-length: 60", b"transfer-encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n" + POISON), False, EITHER
    yield "two lengths that differ", "GET", ok(b"content-length: 2", b"content-length: 60", body=b"ok" + POISON), False, REFUSED
    for value in [b"+2", b"-2", b"2, 3", b"0x2", b"2 2", b"", b"9" * 40, b"2;"]:
        yield f"the length {value.decode('latin-1')!r}", "GET", ok(b"content-length: " + value, body=b"ok" + POISON), False, REFUSED
    for value in [b"xchunked", b"chunked, identity", b"identity, chunked", b"chunked, chunked", b"gzip, chunked", b"\x0bchunked"]:
        yield f"the transfer-encoding {value.decode('latin-1')!r}", "GET", ok(b"transfer-encoding: " + value, body=b"2\r\nok\r\n0\r\n\r\n" + POISON), True, REFUSED
    yield "two transfer-encodings", "GET", ok(b"transfer-encoding: chunked", b"transfer-encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"), True, REFUSED
    for what, field in {"NUL in a value": b"x: a\0b", "a bare carriage return in a value": b"x: a\rb", "a control character in a value": b"x: a\x01",
                        "a field without a name": b": a", "a field without a colon": b"nothing", "a name that is no token": b"x(y): 1",
                        "a name with octets above 0x7f": b"x\xff: 1"}.items():
        yield what, "GET", ok(field, b"content-length: 2", body=b"ok"), False, REFUSED
    yield "a space before the colon", "GET", ok(b"x : a", b"content-length: 2", body=b"ok"), False, EITHER
    yield "a folded value", "GET", ok(b"x: a", b" b", b"content-length: 2", body=b"ok"), False, EITHER
    yield "a length in a folded line", "GET", ok(b"x: a", b" content-length: 60", b"content-length: 2", body=b"ok" + POISON), False, EITHER
    yield "bare line feeds", "GET", ok(b"content-length: 2", body=b"ok").replace(b"\r\n", b"\n"), False, EITHER
    for line in [b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/2.0 200 OK", b"HTTP/1.1 099 OK", b"ICY 200 OK", b"HTTP/1.1", b"200 OK", b"HTTP/1.1 2x0 OK", b"HTTP/1.1 +20 OK"]:
        yield f"the status line {line.decode()!r}", "GET", line + b"\r\ncontent-length: 2\r\n\r\nok", True, REFUSED
    yield "no reason", "GET", b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", False, TAKEN
    yield "HTTP/1.0", "GET", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", True, TAKEN
    yield "a chunked HTTP/1.0 response", "GET", b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True, EITHER
    yield "garbage", "GET", b"\x16\x03\x01\x02\x00\x01\x00" * 20, True, REFUSED
    yield "nothing", "GET", b"", True, REFUSED
    yield "a head without an end", "GET", OK, True, REFUSED
    yield "a head that is too large", "GET", OK + b"x: " + b"a" * 300_000 + b"\r\n\r\n", True, REFUSED
    yield "too many fields", "GET", OK + b"x: 1\r\n" * 1000 + b"\r\n", True, REFUSED
    # What has no body, whatever it says.
    yield "204 with a length and a body", "GET", b"HTTP/1.1 204 No Content\r\ncontent-length: %d\r\n\r\n" % len(POISON) + POISON, False, EITHER
    yield "204 that is chunked", "GET", b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", False, EITHER
    yield "304 with a length", "GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 60\r\n\r\n", False, TAKEN
    yield "304 with a length and a body", "GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: %d\r\n\r\n" % len(POISON) + POISON, False, EITHER
    yield "an answer to HEAD with a length", "HEAD", ok(b"content-length: 60"), False, TAKEN
    yield "an answer to HEAD with a body", "HEAD", ok(b"content-length: %d" % len(POISON), body=POISON), False, EITHER
    yield "an answer to HEAD that is chunked", "HEAD", ok(b"transfer-encoding: chunked"), False, TAKEN
    yield "100 before the answer", "GET", b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"content-length: 2", body=b"ok"), False, TAKEN
    yield "103 before the answer", "GET", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + ok(b"content-length: 2", body=b"ok"), False, TAKEN
    yield "100 with a length", "GET", b"HTTP/1.1 100 Continue\r\ncontent-length: 60\r\n\r\n" + ok(b"content-length: 2", body=b"ok"), False, EITHER
    yield "a protocol switched unasked", "GET", b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n" + POISON, False, REFUSED
    for what, fields in {"a switch to HTTP/2 for a WebSocket": b"upgrade: h2c\r\n", "a switch to two protocols for a WebSocket": b"upgrade: websocket, h2c\r\n",
                         "a switch to nothing": b""}.items():
        yield what, "GET", b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n" + fields + b"\r\n" + POISON, False, NOT_SWITCHED
    yield "interim responses without an end", "GET", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 20_000, True, REFUSED
    # What comes after the answer is nobody's.
    yield "a second response after the first", "GET", ok(b"content-length: 2", body=b"ok" + POISON), False, TAKEN
    yield "a second response after a chunked one", "GET", ok(b"transfer-encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n" + POISON), False, TAKEN
    yield "more than the length", "GET", ok(b"content-length: 2", body=b"okmore"), False, TAKEN
    # Bodies that are not whole.
    yield "less than the length", "GET", ok(b"content-length: 60", body=b"ok"), True, CUT
    yield "chunks without an end", "GET", ok(b"transfer-encoding: chunked", body=b"2\r\nok\r\n"), True, CUT
    for size in [b"+2", b"0x2", b"FFFFFFFFFFFFFFFFF", b"g", b"2h", b"-2"]:
        yield f"the chunk size {size.decode()!r}", "GET", ok(b"transfer-encoding: chunked", body=size + b"\r\nok\r\n0\r\n\r\n"), True, CUT
    yield "a chunk longer than its size", "GET", ok(b"transfer-encoding: chunked", body=b"2\r\nokXX\r\n0\r\n\r\n"), True, CUT
    yield "identity that only proxies may set", "GET", ok(b"sidewind-error: policy-denied", b"content-length: 2", body=b"ok"), False, TAKEN
