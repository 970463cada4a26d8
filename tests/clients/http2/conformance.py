"""Holds an HTTP/2 listener against RFC 9113 and RFC 7541, by frames written by hand.

conformance.py server-role ADDRESS [--alpn NAME --identity PEM] [--field NAME=VALUE]...   the listener as a server
conformance.py client-role ADDRESS                                                  the proxy as a client of `server.py`

Prints a line of JSON for each case: its name, whether it holds, and what came.
"""

import argparse
import json
import struct
import sys
import time

import answers
import demands
from wire import *

# What `server.py` adds to each of its answers, so that they are told from the proxy's.
BACKEND = ("x-backend", "seen")


class Came:
    """All that came back."""

    def __init__(self, connection):
        self.connection = connection
        self.goaway, self.closed, self.timed_out = None, False, False
        self.resets, self.answers, self.ended, self.bytes = {}, {}, set(), {}
        self.settings_acks, self.pings, self.stray = 0, [], []

    def read(self, done):
        """Reads until `done`, the end of the connection, or the deadline."""
        while not self.closed and not done(self):
            try:
                self.take(*self.connection.read())
            except Closed:
                self.closed = True
                status = self.connection.received
                if status.startswith(b"HTTP/1.1 "):
                    self.answers[0] = {":status": status[9:12].decode()}
            except TimeoutError:
                self.timed_out = True
                return

    def take(self, kind, flags, stream, payload):
        if kind == HEADERS:
            fields = self.connection.decoder.decode(payload)
            # Pseudo-header fields that have no place there.
            names = [name for name, _ in fields if name.startswith(":")]
            self.stray += names if stream in self.answers else names[1:]
            self.answers.setdefault(stream, dict(fields))
        elif kind == DATA:
            self.bytes[stream] = self.bytes.get(stream, 0) + len(payload)
        elif kind == RST_STREAM:
            self.resets.setdefault(stream, []).append(code(struct.unpack(">I", payload)[0]))
        elif kind == GOAWAY:
            self.goaway = code(struct.unpack(">I", payload[4:8])[0])
        elif kind == SETTINGS and flags & ACK:
            self.settings_acks += 1
        elif kind == SETTINGS:
            self.connection.send(frame(SETTINGS, ACK))
        elif kind == PING and flags & ACK:
            self.pings.append(payload)
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.ended.add(stream)

    def passed(self):
        return any(fields.get(BACKEND[0]) == BACKEND[1] for fields in self.answers.values())

    def decided(self, stream):
        return stream in self.answers or stream in self.resets

    def text(self):
        parts = [f"GOAWAY {self.goaway}"] if self.goaway else []
        parts += [f"RST_STREAM {stream} {' '.join(codes)}" for stream, codes in list(self.resets.items())[:3]]
        parts += [f"{stream}: {fields.get(':status')} {fields.get('sidewind-error', '')}" for stream, fields in self.answers.items()]
        parts += ["closed"] if self.closed else []
        parts += ["nothing more came in time"] if self.timed_out else []
        return ", ".join(parts) or "nothing"


PROBE = b"\x01probe\x02\x03"

# Section 7 keeps this one for errors that are not told apart. The h2 crate's reader of frames gives it for most of what it
# cannot read, so that an end with it is taken for an end with the code that the RFC names.
UNSPECIFIC = "PROTOCOL_ERROR"


def verdict(came, expected, request):
    """Reads what comes of a case; gives none where it is as expected, else what is wrong."""
    kind, *rest = expected
    if kind == "works" or kind == "answered":
        stream = rest[0] if rest else 1
        came.read(lambda came: stream in came.ended or stream in came.resets)
        answer = came.answers.get(stream, {})
        if answer.get(":status") != "200" or stream not in came.ended:
            return "no answer of the server's"
        return None
    if kind == "connection error":
        came.read(lambda came: False)
        if not came.closed:
            return "the connection is not closed"
        if came.goaway not in (*rest, UNSPECIFIC):
            return f"no GOAWAY with {' or '.join(rest)}"
        return None
    if kind in ("stream error", "refused"):
        came.read(lambda came: came.resets or 0 in came.answers or (kind == "refused" and any(came.decided(s) for s in (1, 3))))
        codes = [code for codes in came.resets.values() for code in codes]
        refusal = kind == "refused" and any(fields.get(":status", "").startswith("4") for fields in came.answers.values())
        if came.passed() and kind == "refused":
            return "it reached the server"
        if came.goaway and came.goaway not in (*rest, UNSPECIFIC):
            return "another error"
        if not refusal and not came.goaway and not set(codes) & set(rest):
            return f"neither RST_STREAM with {' or '.join(rest)} nor a refusal"
        return None if came.closed or came.goaway else still_works(came, request)
    if kind == "crowd":
        came.read(lambda came: came.resets)
        if not {code for codes in came.resets.values() for code in codes} <= {"REFUSED_STREAM", "PROTOCOL_ERROR"}:
            return "another error"
        refused = min(came.resets, default=0)
        if refused < 2:
            return "no stream is refused"
        came.connection.send(b"".join(reset(number) for number in range(1, refused, 2)))
        return still_works(came, request)
    if kind == "dropped":
        came.read(lambda came: came.decided(1))
        return "it reached the server" if rest[0] in came.answers.get(1, {}).get("x-trailers", "").split() else None
    if kind == "ignored":
        if came.resets.keys() - {1} or set(came.resets.get(1, [])) - set(rest):
            return "a reset"
        problem = still_works(came, request)
        if rest and came.goaway in (*rest, UNSPECIFIC):
            return None
        return "a reset" if set(came.resets.get(1, [])) - set(rest) else problem
    if kind == "settings acknowledged":
        came.read(lambda came: came.settings_acks >= 1)
        return None if came.settings_acks >= 1 else "no acknowledgement"
    if kind == "ping answered":
        came.read(lambda came: rest[0] in came.pings)
        return None if rest[0] in came.pings else "no answer"
    if kind == "ping ignored":
        problem = still_works(came, request)
        return "an answer" if rest[0] in came.pings else problem
    if kind == "bytes":
        came.read(lambda came: came.bytes.get(1, 0) >= rest[0])
        # Whatever else would come has come before the answer to this.
        problem = still_works(came, request)
        return None if came.bytes.get(1) == rest[0] else f"{came.bytes.get(1, 0)} bytes", problem
    if kind == "not indexed":
        came.read(lambda came: 1 in came.ended)
        indexed = came.answers.get(1, {}).get("x-indexed")
        return "no answer of the server's" if indexed is None else f"{indexed} are indexed" if set(rest) & set(indexed.split()) else None
    raise AssertionError(kind)


def still_works(came, request):
    """A stream error ends no other stream: another request on the same connection is answered."""
    came.connection.send(frame(PING, 0, 0, PROBE) + window(0, 1000) + request.headers(4001))
    came.read(lambda came: 4001 in came.answers and PROBE in came.pings)
    if came.answers.get(4001, {}).get(":status") != "200":
        return "no other request works on the connection any more"
    return None


def told(problem):
    """A problem may be told in two halves."""
    if isinstance(problem, tuple):
        return next((half for half in problem if half), None)
    return problem


def special(name, request, connection):
    """Cases that have to wait for what comes."""
    if name == "many streams":
        # Ends after what any sane limit allows.
        connection.send(b"".join(request.post(number) for number in range(1, 2 * 1100, 2)))
        return
    stream = request.headers(1, request.fields(path="/bytes/7"))
    if name == "window of one":
        connection.send(settings((4, 1)) + stream)
    elif name == "shrinking window":
        connection.send(settings((4, 4)) + stream)
        wait_bytes(connection, 4)
        connection.send(settings((4, 0)))
    elif name == "growing window":
        connection.send(settings((4, 2)) + stream + settings((4, 6)))
    elif name == "beyond the window":
        # The server of this path reads nothing, so that nobody opens the window again once all buffers on the way are
        # full. A socket's own may hold over a megabyte.
        connection.send(request.headers(1, request.fields("POST", "/stall"), end=False))
        connection.send(frame(DATA, 0, 1, bytes(16384)) * 400)
    else:
        raise AssertionError(name)


def wait_bytes(connection, wanted):
    came = connection.came
    came.read(lambda came: came.bytes.get(1, 0) >= wanted)


def run(case, dial, request):
    name, sent, expected = case
    connection = dial()
    came = connection.came = Came(connection)
    connection.send(PREFACE + settings() if not isinstance(sent, Raw) else b"")
    came.read(lambda came: isinstance(sent, Raw) or came.settings_acks >= 1)
    came.settings_acks = 0
    if isinstance(sent, str):
        special(sent, request, connection)
    else:
        connection.send(sent)
    problem = told(verdict(came, expected, request))
    connection.close()
    return {"case": name, "holds": problem is None, "problem": problem, "came": came.text()}


class Raw(bytes):
    """What is sent in place of the preface and settings."""


def prefaces(request):
    """Section 3.4: how a connection begins. Who breaks it need not be told why."""
    unserved = ("not served",)
    yield "9113 3.4 a preface without SETTINGS ends the connection", Raw(PREFACE + frame(PING, 0, 0, b"8 octets")), unserved
    yield "9113 3.4 a preface with a request in place of SETTINGS ends the connection", Raw(PREFACE + request.headers()), unserved
    yield "9113 3.4 a preface with an acknowledgement in place of SETTINGS ends the connection", Raw(PREFACE + frame(SETTINGS, ACK) + request.headers()), unserved
    yield "9113 3.4 a preface that is none is no connection", Raw(PREFACE[:-6] + b"XX\r\n\r\n" + settings() + request.headers()), unserved
    yield "9113 3.4 requests may follow SETTINGS at once", Raw(PREFACE + settings() + request.headers()), demands.WORKS


def server_role(arguments):
    host, port = arguments.address.rsplit(":", 1)
    extra = [tuple(field.split("=", 1)) for field in arguments.field]
    request = demands.Request(arguments.authority, extra)
    dial = lambda: Connection.dial((host, int(port)), arguments.identity, arguments.alpn)
    for case in [*prefaces(request), *demands.cases(request)]:
        if case[2] == ("not served",):
            yield not_served(case, dial)
        else:
            yield undisturbed(lambda: run(case, dial, request))


def undisturbed(run):
    """A listener that is too busy says so by its own answer, which tells nothing of the case: it is told once more then."""
    for _ in range(20):
        result = run()
        if "503 overloaded" not in result["came"]:
            break
        time.sleep(0.5)
    return result


def not_served(case, dial):
    connection = dial()
    came = Came(connection)
    connection.send(case[1])
    came.read(lambda came: came.passed())
    problem = "it reached the server" if came.passed() else None if came.closed else "the connection is not closed"
    return {"case": case[0], "holds": problem is None, "problem": problem, "came": came.text()}


def client_role(arguments):
    """The proxy must refuse what a server may not send, and go on with a new connection."""
    host, port = arguments.address.rsplit(":", 1)
    request = demands.Request(arguments.authority, [])
    for number, (name, _, expected) in enumerate(answers.cases()):
        connection = Connection.dial((host, int(port)))
        came = Came(connection)
        connection.send(PREFACE + settings() + request.headers(1, request.fields(path=f"/bad/{number}")))
        came.read(lambda came: 1 in came.ended or 1 in came.resets)
        answer = came.answers.get(1, {})
        status = answer.get(":status")
        if expected == "taken":
            holds = status == "200" and 1 in came.ended and answer.get(BACKEND[0]) == BACKEND[1]
        elif expected == "dropped":
            holds = status == "502" or (status == "200" and not came.stray)
        elif expected == "cut off":
            # The head was good, so that it has gone on; its body must not seem whole.
            holds = 1 in came.resets or status == "502"
        else:
            holds = status == "502" and answer.get("sidewind-error") in ("upstream-protocol", "upstream-reset")
        problem = None if holds else f"expected {expected}"
        problem = problem or still_works(came, request)
        connection.close()
        yield {"case": name, "holds": problem is None, "problem": problem, "came": came.text()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["server-role", "client-role"])
    parser.add_argument("address")
    parser.add_argument("--authority", default="orders-api.data:8080")
    parser.add_argument("--alpn")
    parser.add_argument("--identity")
    parser.add_argument("--field", action="append", default=[])
    arguments = parser.parse_args()
    run_role = server_role if arguments.role == "server-role" else client_role
    for result in run_role(arguments):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    sys.exit(main())
