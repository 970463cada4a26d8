"""Requests in HTTP/1 that two parsers could read differently, each a case: what is sent, and what must come of it.

`N` stands for the case's number, so that what comes out at the server is told apart. What must come of a case:
a status: the proxy refuses with it (or closes), and nothing reaches the server;
ONE: one request reaches the server, well formed, and is answered;
TWO: two of them;
EITHER: refused, or ONE.
"""

ONE, TWO, EITHER = "one", "two", "either"

POST = b"POST /c/N HTTP/1.1\r\nhost: orders-api.data\r\n"
GET = b"GET /c/N HTTP/1.1\r\nhost: orders-api.data\r\n"
# How a client of HTTP/2 begins, with SETTINGS.
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SMUGGLED = b"GET /smuggled/N HTTP/1.1\r\nhost: orders-api.data\r\n\r\n"


def post(*fields, body=b""):
    return POST + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def get(*fields):
    return GET + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def chunked(body, *fields):
    return post(b"transfer-encoding: chunked", *fields, body=body)


def lengths():
    five = b"hello"
    yield "content-length and transfer-encoding", post(b"content-length: 5", b"transfer-encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED), 400
    yield "transfer-encoding and content-length", post(b"transfer-encoding: chunked", b"content-length: 5", body=b"0\r\n\r\n" + SMUGGLED), 400
    yield "two equal lengths", post(b"content-length: 5", b"content-length: 5", body=five), EITHER
    yield "two lengths that differ", post(b"content-length: 5", b"content-length: 6", body=five + SMUGGLED), 400
    yield "two lengths that differ, the larger first", post(b"content-length: 60", b"content-length: 5", body=five + SMUGGLED), 400
    yield "a list of equal lengths", post(b"content-length: 5, 5", body=five), EITHER
    for value in [b"5, 6", b"+5", b"-5", b"0x5", b"5 5", b"5;", b"5_0", b"", b"\xd9\xa5", b"5.0", b"1e1", b"\x0b5", b"5\x0c", b"'5'",
                  b"18446744073709551616", b"18446744073709551621", b"9" * 40, b"-0", b"5,"]:
        yield f"the length {value.decode('latin-1')!r}", post(b"content-length: " + value, body=five + SMUGGLED), 400
    yield "a length with spaces around it", post(b"content-length:  5\t", body=five), ONE
    yield "a length with zeros before it", post(b"content-length: 005", body=five), ONE
    yield "a length without a space", post(b"content-length:5", body=five), ONE
    yield "a body after GET", get(b"content-length: 5") + five, ONE
    yield "a body after HEAD", get(b"content-length: 5").replace(b"GET", b"HEAD", 1) + five, ONE
    yield "a length of nothing and a request after it", post(b"content-length: 0", body=GET.replace(b"/c/N", b"/c/N/2") + b"\r\n"), TWO
    yield "content-length in disguise", post(b"content_length: 0", b"content-length: 5", body=five), EITHER


def encodings():
    end = b"0\r\n\r\n"
    for value in [b"xchunked", b"chunked, identity", b"identity, chunked", b"identity", b"chunked, chunked", b"gzip, chunked", b"gzip",
                  b"chunked;q=1", b"\x0bchunked", b"chunked\x0b", b"\x0cchunked", b'"chunked"', b"chunk ed", b"", b"chunked,", b",chunked",
                  b"chunked\x00", b"chunked\xff", b"cow", b"chunke", b"chunkedd"]:
        yield f"the transfer-encoding {value.decode('latin-1')!r}", post(b"transfer-encoding: " + value, body=end + SMUGGLED), 400
    yield "two transfer-encodings", chunked(end + SMUGGLED, b"transfer-encoding: chunked"), 400
    yield "two transfer-encodings, one of them another", chunked(end + SMUGGLED, b"transfer-encoding: identity"), 400
    yield "another transfer-encoding before chunked", post(b"transfer-encoding: x", b"transfer-encoding: chunked", body=end + SMUGGLED), 400
    yield "transfer-encoding in capitals", post(b"TRANSFER-ENCODING: CHUNKED", body=end), ONE
    yield "transfer-encoding after a tab", post(b"transfer-encoding:\tchunked", body=end), ONE
    yield "transfer-encoding in HTTP/1.0", post(b"transfer-encoding: chunked", body=end + SMUGGLED).replace(b"HTTP/1.1", b"HTTP/1.0", 1), 400
    for name in [b"transfer-encoding ", b"transfer-encoding\t", b" transfer-encoding", b"transfer-encoding\x0b", b"transfer\xadencoding", b"transfer-encoding\x00"]:
        yield f"the field name {name.decode('latin-1')!r}", post(name + b": chunked", b"content-length: 5", body=end + SMUGGLED), 400
    yield "transfer-encoding in disguise", post(b"transfer_encoding: chunked", b"content-length: 5", body=end), EITHER
    yield "a folded transfer-encoding", post(b"transfer-encoding:\r\n chunked", body=end + SMUGGLED), 400
    yield "transfer-encoding in a folded line", post(b"x: y\r\n transfer-encoding: chunked", b"content-length: 5", body=end + SMUGGLED), 400
    yield "transfer-encoding after a bare line feed", post(b"x: y\ntransfer-encoding: chunked", b"content-length: 5", body=end + SMUGGLED), 400
    yield "transfer-encoding after a bare carriage return", post(b"x: y\rtransfer-encoding: chunked", b"content-length: 5", body=end + SMUGGLED), 400
    yield "a chunked body and no way to see its end in the length", chunked(b"5\r\nhello\r\n" + end), ONE


def lines():
    yield "bare line feeds throughout", (GET + b"\r\n").replace(b"\r\n", b"\n"), 400
    yield "a bare line feed after the request line", GET.replace(b"\r\n", b"\n", 1) + b"\r\n", 400
    yield "a bare line feed after a field", GET + b"x: 1\n\r\n", 400
    yield "a bare line feed that ends the head", GET + b"\n", 400
    yield "a bare line feed before the request line", b"\n" + GET + b"\r\n", 400
    yield "a bare carriage return in a value", get(b"x: a\rb"), 400
    yield "a bare carriage return in the target", b"GET /c/N\r/ HTTP/1.1\r\nhost: a\r\n\r\n", 400
    yield "two carriage returns", get(b"x: a\r"), 400
    yield "NUL in a value", get(b"x: a\x00b"), 400
    yield "NUL in the target", b"GET /c/N\x00 HTTP/1.1\r\nhost: a\r\n\r\n", 400
    yield "NUL in a name", get(b"x\x00y: a"), 400
    yield "DEL in a value", get(b"x: a\x7fb"), 400
    yield "a control character in a value", get(b"x: a\x01b"), 400
    yield "a folded value", get(b"x: a", b" b"), 400
    yield "a field that begins with a space first", b"GET /c/N HTTP/1.1\r\n host: a\r\nhost: orders-api.data\r\n\r\n", 400
    yield "a space before the colon", get(b"x : a"), 400
    yield "a tab before the colon", get(b"x\t: a"), 400
    yield "a field without a name", get(b": a"), 400
    yield "a field without a colon", get(b"nothing"), 400
    for name in [b"x(y)", b'"x"', b"x\x80", b"x y", b"x/y", b"x@y", b"x[y", b"x=y", b"x,y", b"x\x7f"]:
        yield f"the field name {name.decode('latin-1')!r}", get(name + b": 1"), 400
    yield "octets above 0x7f in a value", get(b"x: \xc3\xa4\xff"), ONE
    yield "an empty value", get(b"x:"), ONE
    yield "one empty line before the request", b"\r\n" + GET + b"\r\n", ONE
    yield "nothing but spaces before the request", b"  " + GET + b"\r\n", 400


def request_lines():
    host = b"\r\nhost: orders-api.data\r\n\r\n"
    for line in [b"GET /c/N", b"GET /c/N ", b"GET  /c/N HTTP/1.1", b"GET /c/N  HTTP/1.1", b"GET\t/c/N\tHTTP/1.1", b"GET /c/N HTTP/1.1 ", b"GET /c/N HTTP/1.1\t",
                 b"GET /c/N HTTP/0.9", b"GET /c/N HTTP/1.2", b"GET /c/N HTTP/2.0", b"GET /c/N HTTP/3", b"GET /c/N http/1.1", b"GET /c/N HTTP/1.10",
                 b"GET /c/N HTTP/11", b"GET /c/N HTP/1.1", b"GET /c/N HTTP/1,1", b"GET /c/N b HTTP/1.1", b"G(T /c/N HTTP/1.1", b"GET /c/N\x0b HTTP/1.1",
                 b"GET /c/N\xa0 HTTP/1.1 x", b" GET /c/N HTTP/1.1", b"GET * HTTP/1.1", b"GET c/N HTTP/1.1", b"GET ?c/N HTTP/1.1", b"CONNECT /c/N HTTP/1.1"]:
        yield f"the request line {line.decode('latin-1')!r}", line + host, 400
    yield "HTTP/0.9", b"GET /c/N\r\n", 400
    yield "a fragment in the target", b"GET /c/N#fragment HTTP/1.1" + host, EITHER
    yield "a method of one's own", b"PURGE /c/N HTTP/1.1" + host, ONE
    yield "a method in lower case", b"get /c/N HTTP/1.1" + host, EITHER
    yield "options of the whole server", b"OPTIONS * HTTP/1.1" + host, ("path", "*")
    yield "CONNECT", b"CONNECT orders-api.data:8080 HTTP/1.1" + host, 501
    yield "CONNECT with a length", b"CONNECT orders-api.data:8080 HTTP/1.1\r\nhost: orders-api.data:8080\r\ncontent-length: 60\r\n\r\n" + SMUGGLED, 501


def hosts():
    line = b"GET /c/N HTTP/1.1\r\n"
    yield "no host", line + b"\r\n", 400
    yield "two hosts", line + b"host: a\r\nhost: b\r\n\r\n", 400
    yield "two equal hosts", line + b"host: a\r\nhost: a\r\n\r\n", 400
    for value in [b"", b"a b", b"a@b", b"a/b", b"a,b", b"a\\b", b"a?b", b"a#b", b"[::1", b"a:80:80", b"a\tb", b"http://a", b"a%zz", b"<a>", b"a\"b"]:
        yield f"the host {value.decode('latin-1')!r}", line + b"host: " + value + b"\r\n\r\n", 400
    yield "a target of another host than host", b"GET http://orders-api.data/c/N HTTP/1.1\r\nhost: other.data\r\n\r\n", ("host", "orders-api.data")
    yield "a target with a user", b"GET http://user:word@orders-api.data/c/N HTTP/1.1\r\nhost: orders-api.data\r\n\r\n", 400
    yield "a target of another scheme", b"GET ftp://orders-api.data/c/N HTTP/1.1\r\nhost: orders-api.data\r\n\r\n", EITHER
    yield "HTTP/1.0 without a host", b"GET /c/N HTTP/1.0\r\n\r\n", ONE


def chunks():
    end = b"0\r\n\r\n"
    hello = b"5\r\nhello\r\n"
    yield "a chunk and its end", chunked(hello + end), ONE
    yield "a chunk extension", chunked(b"5;name=value\r\nhello\r\n" + end), ONE
    yield "zeros before a size", chunked(b"0005\r\nhello\r\n" + b"000\r\n\r\n"), ONE
    for size in [b"+5", b"-5", b" 5", b"0x5", b"5_", b"", b"g", b"5h", b"FFFFFFFFFFFFFFFFF", b"10000000000000005", b"5\x0b", b"5\x00", b"5,5", b"\xef\xbc\x95"]:
        yield f"the chunk size {size.decode('latin-1')!r}", chunked(size + b"\r\nhello\r\n" + end + SMUGGLED), 400
    yield "a size that ends with a bare line feed", chunked(b"5\nhello\r\n" + end + SMUGGLED), 400
    yield "a size that ends with a bare carriage return", chunked(b"5\rhello\r\n" + end + SMUGGLED), 400
    yield "a chunk that ends with a bare line feed", chunked(b"5\r\nhello\n" + end + SMUGGLED), 400
    yield "a chunk longer than its size", chunked(b"5\r\nhelloXX\r\n" + end + SMUGGLED), 400
    yield "a bare line feed in an extension", chunked(b"5;a\n\r\nhello\r\n" + end + SMUGGLED), 400
    yield "a bare line feed that ends an extension", chunked(b"5;a\nhello\r\n" + end + SMUGGLED), 400
    yield "a bare carriage return in an extension", chunked(b"5;a\rb\r\nhello\r\n" + end + SMUGGLED), 400
    yield "an extension without an end", chunked(b"5;" + b"a" * 100_000 + b"\r\nhello\r\n" + end + SMUGGLED), 400
    yield "extensions on many chunks", chunked(b"".join(b"1;" + b"a" * 1000 + b"\r\nx\r\n" for _ in range(200)) + end + SMUGGLED), 400
    yield "a last chunk that ends with a bare line feed", chunked(hello + b"0\n\r\n" + SMUGGLED), 400
    yield "an end with a bare line feed", chunked(hello + b"0\r\n\n" + SMUGGLED), 400
    yield "trailers", chunked(hello + b"0\r\nx-end: 1\r\n\r\n", b"trailer: x-end"), ONE
    yield "trailers that belong in a head", chunked(
        hello + b"0\r\nhost: other\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\nx-forwarded-client-cert: forged\r\nauthorization: forged\r\n\r\n",
        b"trailer: host, content-length, transfer-encoding, x-forwarded-client-cert, authorization"), ("without", "forged")
    yield "a trailer with a space before the colon", chunked(hello + b"0\r\nx : 1\r\n\r\n" + SMUGGLED), 400
    yield "a folded trailer", chunked(hello + b"0\r\nx: 1\r\n 2\r\n\r\n" + SMUGGLED), 400
    yield "a trailer with a bare line feed", chunked(hello + b"0\r\nx: 1\ny: 2\r\n\r\n" + SMUGGLED), 400
    yield "a trailer with NUL", chunked(hello + b"0\r\nx: \x00\r\n\r\n" + SMUGGLED), 400
    yield "a trailer without a colon", chunked(hello + b"0\r\nnothing\r\n\r\n" + SMUGGLED), 400
    yield "trailers without an end", chunked(hello + b"0\r\n" + b"x: 1\r\n" * 40_000 + b"\r\n" + SMUGGLED), 400


def connections():
    yield "two requests at once", GET + b"\r\n" + GET.replace(b"/c/N", b"/c/N/2") + b"\r\n", TWO
    yield "garbage after a request", GET + b"\r\n" + b"\x00\x01garbage\r\n\r\n", ONE
    yield "a refused request before another", get(b"x : 1") + SMUGGLED, 400
    yield "connection that names the length", post(b"connection: content-length", b"content-length: 5", body=b"hello"), ONE
    yield "connection that names the encoding", chunked(b"5\r\nhello\r\n0\r\n\r\n", b"connection: transfer-encoding"), ONE
    yield "connection that names the host", get(b"connection: host"), ONE
    yield "connection that names credentials", get(b"connection: authorization, x-hop", b"authorization: kept", b"x-hop: gone"), ("without", "x-hop")
    yield "an upgrade that the server does not take", get(b"connection: upgrade", b"upgrade: websocket") + GET.replace(b"/c/N", b"/c/N/2") + b"\r\n", TWO
    yield "an upgrade in HTTP/1.0", get(b"connection: upgrade", b"upgrade: websocket").replace(b"HTTP/1.1", b"HTTP/1.0"), ("without", "upgrade")
    yield "an expectation with a body at once", post(b"expect: 100-continue", b"content-length: 5", body=b"hello"), ONE
    yield "an expectation with chunks at once", chunked(b"5\r\nhello\r\n0\r\n\r\n", b"expect: 100-continue"), ONE
    yield "an expectation without a body", get(b"expect: 100-continue"), ONE
    yield "an expectation that nobody knows", post(b"expect: 200-ok", b"content-length: 5", body=b"hello"), EITHER
    yield "an expectation and two lengths", post(b"expect: 100-continue", b"content-length: 5", b"transfer-encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED), 400
    yield "identity that only proxies may set", get(b"x-forwarded-client-cert: forged", b"x_forwarded_client_cert: forged", b"sidewind-destination: forged"), ("without", "forged")


def upgrades():
    """What would come after a switch to HTTP or TLS nobody would judge: such a request goes on as one that asks for none."""
    settings = b"http2-settings: AAMAAABkAAQAAP__"
    plain = ("without", "upgrade http2-settings")
    for protocols in [[b"h2c"], [b"H2C"], [b"h2"], [b"h2c-14"], [b"HTTP/2.0"], [b"http/1.1"], [b"TLS/1.2"], [b"websocket, h2c"], [b"h2c,websocket"],
                      [b"websocket", b"h2c"], [b" , h2c"], [b"h2c;q=1"], [b'"h2c"']]:
        fields = [b"upgrade: " + protocol for protocol in protocols]
        name = f"an upgrade to {b' and '.join(protocols).decode()!r}"
        yield f"{name}, with settings", get(b"connection: upgrade, http2-settings", *fields, settings) + HTTP2, plain
        yield f"{name}, with settings that connection does not name", get(b"connection: upgrade", *fields, settings) + HTTP2, plain
        yield f"{name}, without settings", get(b"connection: upgrade", *fields) + HTTP2, plain
    yield "settings of HTTP/2 with another upgrade", get(b"connection: upgrade", b"upgrade: websocket", settings), ("without", "http2-settings")
    yield "settings of HTTP/2 without an upgrade", get(settings), plain
    yield "an upgrade to h2c with a body", post(b"connection: upgrade, http2-settings", b"upgrade: h2c", settings, b"content-length: 5", body=b"hello" + HTTP2), plain


def cases():
    for family in (lengths, encodings, lines, request_lines, hosts, chunks, connections, upgrades):
        yield from family()
