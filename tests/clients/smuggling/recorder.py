"""An HTTP/1 server that writes down what it gets, byte by byte, and answers `/r/N` as `responses.py` says.

recorder.py ADDRESS LOG

A line of JSON in LOG for each request: its path, its bytes, and what is wrong with them. `h11` reads the requests; what it
would forgive is looked for beside it.
"""

import json
import re
import socket
import sys
import threading
import time

import h11
import responses

ANSWERS = list(responses.cases())
FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[^\x00-\x08\x0a-\x1f\x7f]*")
LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/1\.1")
log_lock = threading.Lock()


def problems(raw):
    """What a parser could take otherwise than another, in the head of a request."""
    head = raw.partition(b"\r\n\r\n")[0]
    line, *fields = head.split(b"\r\n")
    found = [] if LINE.fullmatch(line) else [f"the request line {line!r}"]
    found += [f"the field {field!r}" for field in fields if not FIELD.fullmatch(field)]
    names = [field.partition(b":")[0].lower().replace(b"_", b"-") for field in fields]
    for name in (b"host", b"content-length", b"transfer-encoding"):
        if names.count(name) > 1:
            found.append(f"{names.count(name)} fields {name.decode()}")
    if names.count(b"host") != 1:
        found.append("no host")
    if b"content-length" in names and b"transfer-encoding" in names:
        found.append("both content-length and transfer-encoding")
    return found


class Peer:
    def __init__(self, sock, log):
        self.sock, self.log = sock, log
        self.reset(b"")

    def reset(self, begun):
        self.http, self.raw, self.request, self.trailers = h11.Connection(h11.SERVER), b"", None, []
        self.pending = begun

    def write_down(self, path, raw, wrong):
        with log_lock:
            self.log.write(json.dumps({"path": path, "raw": raw.decode("latin-1"), "wrong": wrong}) + "\n")
            self.log.flush()

    def serve(self):
        while True:
            if self.pending:
                data, self.pending = self.pending, b""
            else:
                data = self.sock.recv(65536)
            if data:
                self.raw += data
            try:
                if not self.events(data):
                    return
            except h11.RemoteProtocolError as error:
                if self.raw:
                    self.write_down(self.path(), self.raw, [f"h11: {error}"])
                return

    def path(self):
        return self.request.target.decode("latin-1") if self.request else None

    def events(self, data):
        self.http.receive_data(data)
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                if self.http.they_are_waiting_for_100_continue:
                    self.sock.sendall(self.http.send(h11.InformationalResponse(status_code=100, headers=[])))
                return bool(data)
            if isinstance(event, h11.Request):
                self.request = event
                if event.target == b"/stall":
                    # Reads no further, and so opens no window.
                    time.sleep(30)
                    return False
            elif isinstance(event, h11.EndOfMessage):
                rest = self.http.trailing_data[0]
                raw = self.raw[: len(self.raw) - len(rest)] if rest else self.raw
                self.write_down(self.path(), raw, problems(raw))
                if taken := self.takes():
                    return self.switch(taken, rest)
                if not self.answer([name for name, _ in event.headers]):
                    return False
                self.reset(rest)
                return True
            elif isinstance(event, h11.ConnectionClosed):
                return False

    def takes(self):
        """What of HTTP's and TLS' own a request wants to go on with, which this server takes gladly."""
        offered = b",".join(value for name, value in self.request.headers if name == b"upgrade")
        return next((name for name in (b"h2", b"http/", b"tls/") if name in offered.lower()), None)

    def switch(self, protocol, data):
        said = b"h2c" if protocol == b"h2" else protocol + b"1.2"
        self.sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: " + said + b"\r\n\r\n")
        while data := data or self.sock.recv(65536):
            self.write_down(self.path(), data, [f"went on after a switch to {said.decode()}"])
            data = b""
        return False

    def answer(self, trailers):
        path = self.path()
        if path.startswith("/r/"):
            _, _, said, closes, _ = ANSWERS[int(path.rsplit("/", 1)[1])]
            self.sock.sendall(said)
            return not closes
        body = b"x" * int(path.rsplit("/", 1)[1]) if path.startswith("/bytes/") else path.encode()
        head = ["HTTP/1.1 200 OK", "x-backend: seen", f"x-case: {path}", "x-indexed: ", "x-trailers: " + " ".join(name.decode() for name in trailers)]
        self.sock.sendall("\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode("latin-1") + (b"" if self.request.method == b"HEAD" else body))
        return True


def guarded(sock, log):
    try:
        Peer(sock, log).serve()
    except OSError:
        pass
    finally:
        sock.close()


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    log = open(sys.argv[2], "a")
    listener = socket.create_server((host, int(port)), backlog=512)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    while True:
        sock = listener.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=guarded, args=(sock, log), daemon=True).start()


main()
