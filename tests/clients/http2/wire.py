"""One HTTP/2 connection whose frames are written by hand: `hyperframe` and `hpack` do the bytes, and nothing checks what
is said."""

import socket
import ssl
import struct
import threading

import hpack
from hyperframe.frame import Frame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types and flags (RFC 9113, section 6).
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20

# Error codes (section 7).
CODES = [
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
]


def code(number):
    return CODES[number] if number < len(CODES) else hex(number)


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    """The bytes of a frame, right or wrong: `length` may lie, and `stream` may have its reserved bit set."""
    length = len(payload) if length is None else length
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs):
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", name, value) for name, value in pairs))


def window(stream, increment):
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", increment))


def reset(stream, error=8):
    return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", error))


def literal(name, value, kind=0x00):
    """A field with a literal name, neither compressed nor indexed (RFC 7541, section 6.2.2), whatever it holds."""
    name, value = (text.encode() if isinstance(text, str) else text for text in (name, value))
    return bytes([kind]) + integer(len(name), 7) + name + integer(len(value), 7) + value


def integer(value, bits, first=0):
    """RFC 7541, section 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = [first | most], value - most
    while value >= 128:
        out.append(value % 128 | 128)
        value //= 128
    return bytes([*out, value])


def block(fields):
    return b"".join(literal(name, value) for name, value in fields)


class Closed(Exception):
    """The other side closed the connection, or cut it off."""


class Tls:
    """TLS over a socket that one thread may read while another writes, which Python's own TLS sockets are not made for."""

    def __init__(self, sock, context, name):
        self.sock, self.using, self.sending = sock, threading.Lock(), threading.Lock()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        while True:
            try:
                self.session.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush()
                self.feed()
        self.flush()

    def feed(self):
        data = self.sock.recv(65536)
        with self.using:
            if data:
                self.incoming.write(data)
            else:
                self.incoming.write_eof()

    def flush(self):
        # In the order in which it was encrypted.
        with self.sending:
            with self.using:
                data = self.outgoing.read()
            if data:
                self.sock.sendall(data)

    def recv(self, length):
        while True:
            try:
                with self.using:
                    return self.session.read(length)
            except ssl.SSLWantReadError:
                self.feed()
            except ssl.SSLZeroReturnError:
                return b""

    def sendall(self, data):
        data = memoryview(data)
        while data:
            with self.using:
                data = data[self.session.write(data) :]
            self.flush()

    def settimeout(self, timeout):
        self.sock.settimeout(timeout)

    def close(self):
        self.sock.close()


class Connection:
    """Frames both ways over a socket, with a deadline for each read."""

    def __init__(self, sock, timeout=8.0):
        self.sock, self.timeout, self.received = sock, timeout, b""
        self.decoder = hpack.Decoder(max_header_list_size=1 << 20)
        sock.settimeout(timeout)

    @classmethod
    def dial(cls, address, identity=None, alpn=None, timeout=8.0):
        sock = socket.create_connection(address, timeout=timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if alpn is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols([alpn])
            if identity is not None:
                context.load_cert_chain(identity)
            sock = Tls(sock, context, "orders-api.data")
            chosen = sock.session.selected_alpn_protocol()
            if chosen != alpn:
                raise AssertionError(f"ALPN chose {chosen!r} and not {alpn!r}")
        return cls(sock, timeout)

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            # What was said before the end is still to be read.
            pass

    def fill(self, length):
        while len(self.received) < length:
            try:
                data = self.sock.recv(65536)
            except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
                data = b""
            if not data:
                raise Closed()
            self.received += data

    def read(self):
        """The next frame: (type, flags, stream, payload)."""
        self.fill(9)
        if self.received.startswith(b"HTTP/1."):
            raise Closed()
        length = int.from_bytes(self.received[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", self.received[3:9])
        self.fill(9 + length)
        payload, self.received = self.received[9 : 9 + length], self.received[9 + length :]
        # The library must be able to read what the proxy writes.
        if kind <= CONTINUATION:
            parsed, _ = Frame.parse_frame_header(memoryview(length.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream)))
            parsed.parse_body(memoryview(payload))
        return kind, flags, stream & 0x7FFFFFFF, payload

    def close(self):
        self.sock.close()
