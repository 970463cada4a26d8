"""An HTTP/2 server that believes everything: it answers whatever it can take for a request, so that what a proxy should
have refused is seen to have come through. It answers `/bad/N` as `answers.py` says.

server.py ADDRESS
"""

import socket
import struct
import sys
import threading

import answers
from wire import *

BAD = [answer for _, answer, _ in answers.cases()]


class Stream:
    def __init__(self, window):
        self.headers, self.fields, self.trailers = b"", {}, b""
        self.window, self.unsent = window, None


def serve(sock):
    connection = Connection(sock, timeout=600)
    connection.fill(len(PREFACE))
    connection.received = connection.received[len(PREFACE) :]
    connection.send(settings() + window(0, 1 << 30))
    connection.decoder = hpack.Decoder(max_header_list_size=1 << 24)
    streams, initial, connection.window = {}, 65535, 65535
    while True:
        kind, flags, number, payload = connection.read()
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at : at + 6])
                if name == 4:
                    for stream in streams.values():
                        stream.window += value - initial
                    initial = value
            connection.send(frame(SETTINGS, ACK))
        elif kind == WINDOW_UPDATE:
            increment = struct.unpack(">I", payload)[0]
            if number == 0:
                connection.window += increment
            elif number in streams:
                streams[number].window += increment
            for number, stream in list(streams.items()):
                send_body(connection, streams, number, stream)
        elif kind == RST_STREAM:
            streams.pop(number, None)
        elif kind == PING and not flags & ACK:
            connection.send(frame(PING, ACK, 0, payload))
        elif kind in (HEADERS, CONTINUATION):
            stream = streams.setdefault(number, Stream(initial))
            if kind == HEADERS and flags & PRIORITY_FLAG:
                payload = payload[5:]
            stream.headers += payload
            if kind == HEADERS:
                stream.ends = bool(flags & END_STREAM)
            if flags & END_HEADERS:
                fields = connection.decoder.decode(stream.headers, raw=True)
                stream.headers = b""
                if not stream.fields:
                    stream.fields = {bytes(name): bytes(value) for name, value in fields}
                    table = connection.decoder.header_table.dynamic_entries
                    stream.indexed = b" ".join(bytes(name) for name, value in table if value)
                else:
                    stream.trailers = b" ".join(bytes(name) for name, _ in fields)
                if stream.ends:
                    answer(connection, streams, number, stream)
        elif kind == DATA and number in streams:
            stream = streams[number]
            if stream.fields.get(b":path") == b"/stall":
                continue
            if payload:
                connection.send(window(number, len(payload)) + window(0, len(payload)))
            if flags & END_STREAM:
                answer(connection, streams, number, stream)


def answer(connection, streams, number, stream):
    path = stream.fields.get(b":path", b"").decode("latin-1")
    if path.startswith("/bad/"):
        said = BAD[int(path.rsplit("/", 1)[1])](number)
        connection.send(said.removesuffix(b"close"))
        if said.endswith(b"close"):
            connection.sock.shutdown(socket.SHUT_RDWR)
        return
    body = b"x" * int(path.rsplit("/", 1)[1]) if path.startswith("/bytes/") else b"ok\n"
    fields = [(":status", "200"), ("x-backend", "seen"), ("content-length", str(len(body)))]
    fields += [("x-indexed", stream.indexed), ("x-trailers", stream.trailers)]
    connection.send(frame(HEADERS, END_HEADERS, number, block(fields)))
    stream.unsent = body
    send_body(connection, streams, number, stream)


def send_body(connection, streams, number, stream):
    """As much of a body as the windows allow."""
    while stream.unsent is not None:
        piece = stream.unsent[: max(0, min(16384, stream.window, connection.window))]
        if not piece and stream.unsent:
            return
        stream.unsent = stream.unsent[len(piece) :]
        stream.window -= len(piece)
        connection.window -= len(piece)
        connection.send(frame(DATA, 0 if stream.unsent else END_STREAM, number, piece))
        if not stream.unsent:
            stream.unsent = None
            streams.pop(number, None)


def guarded(sock):
    try:
        serve(sock)
    except (Closed, OSError):
        pass
    finally:
        sock.close()


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    listener = socket.create_server((host, int(port)), backlog=512)
    while True:
        sock = listener.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=guarded, args=(sock,), daemon=True).start()


main()
