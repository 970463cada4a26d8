"""Sends what two parsers could read differently, and looks at what came out at `recorder.py`.

smuggling.py requests ADDRESS LOG [--identity PEM]   hostile clients
smuggling.py responses ADDRESS LOG                   hostile servers

Prints a line of JSON for each case: its name, whether it holds, and what came.
"""

import argparse
import json
import socket
import ssl

import h11
import requests
import responses


class Answers:
    """Responses on one connection, as `h11` reads them."""

    def __init__(self, address, tls=None):
        self.sock = socket.create_connection(address, timeout=8)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["http/1.1"])
            self.sock = context.wrap_socket(self.sock, server_hostname=tls)
        self.closed = False
        self.left = b""

    def send(self, data):
        try:
            self.sock.sendall(data)
        except OSError:
            # Refused before all was sent; the answer is still to be read.
            pass

    def read(self, method="GET"):
        """The next response: (status, headers, body, whether it is whole); none at the end of the connection."""
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        http.send(h11.EndOfMessage())
        head, body = None, b""
        data, self.left = self.left, b""
        while True:
            try:
                if data:
                    http.receive_data(data)
                while (event := http.next_event()) is not h11.NEED_DATA:
                    if isinstance(event, h11.Response):
                        head = event
                    elif isinstance(event, h11.Data):
                        body += bytes(event.data)
                    elif isinstance(event, h11.EndOfMessage):
                        self.left = http.trailing_data[0]
                        return head.status_code, dict(head.headers), body, True
                    elif isinstance(event, h11.ConnectionClosed):
                        return None
                data = self.sock.recv(65536)
            except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
                data = b""
            except h11.RemoteProtocolError as error:
                return self.end(head, body, str(error))
            except TimeoutError:
                return (None, {}, b"", False) if head is None else self.end(head, body, "")
            if not data:
                self.closed = True
                try:
                    http.receive_data(b"")
                    event = http.next_event()
                    if isinstance(event, h11.EndOfMessage):
                        return head.status_code, dict(head.headers), body, True
                except h11.RemoteProtocolError:
                    pass
                return self.end(head, body, "")

    def end(self, head, body, error):
        self.closed = True
        return (head.status_code, dict(head.headers), body, False) if head else None

    def close(self):
        self.sock.close()


def log_since(path, offset):
    with open(path) as log:
        log.seek(offset)
        lines = log.readlines()
        return [json.loads(line) for line in lines], log.tell()


def hostile_clients(arguments):
    address = split(arguments.address)
    for number, (name, sent, expected) in enumerate(requests.cases()):
        mark = str(number).encode()
        sent = sent.replace(b"/c/N", b"/c/" + mark).replace(b"/smuggled/N", b"/smuggled/" + mark)
        _, offset = log_since(arguments.log, 0)
        answers = Answers(address, arguments.tls)
        answers.send(sent)
        method = sent.split(b" ")[0].decode("latin-1").strip()
        wanted = 2 if expected == requests.TWO else 1
        got = [answers.read(method if method in ("HEAD", "CONNECT") else "GET") for _ in range(wanted)]
        answers.close()
        # What would come out has come out before a later request on the same way.
        probe = Answers(address, arguments.tls)
        probe.send(b"GET /probe HTTP/1.1\r\nhost: orders-api.data\r\n\r\n")
        alive = probe.read()
        probe.close()
        seen, _ = log_since(arguments.log, offset)
        # The end of an earlier case may be written down late.
        seen = [entry for entry in seen if belongs(entry, number)]
        problem = judge(expected, got, seen) or (None if alive and alive[0] == 200 else "another client is not served")
        yield {"case": name, "holds": problem is None, "problem": problem, "came": brief(got, seen)}


def belongs(entry, number):
    path = entry["path"] or "/"
    if path.startswith("/c/") or path.startswith("/smuggled/"):
        return path.split("/")[2].partition("#")[0] == str(number)
    return path != "/probe" and not path.startswith("/c/")


# A body that the proxy gave up: its end never came, so that the server took nothing for a request.
UNFINISHED = "without sending complete message body"


def judge(expected, got, seen):
    if expected == 400:
        seen = [entry for entry in seen if not any(UNFINISHED in wrong for wrong in entry["wrong"])]
    wrong = [problem for entry in seen for problem in entry["wrong"]]
    if wrong:
        return f"at the server: {wrong}"
    if any(entry["path"] and entry["path"].startswith("/smuggled") for entry in seen):
        return "the smuggled request reached the server"
    statuses = [answer[0] if answer else None for answer in got]
    if expected == requests.EITHER:
        expected = requests.ONE if seen else 400
    if isinstance(expected, int):
        if seen:
            return "it reached the server"
        answer = got[0]
        if answer is None:
            return None
        status, headers, _, _ = answer
        refused = status == expected or (expected == 400 and status in (431, 413, 501))
        return None if refused and b"sidewind-error" in headers else f"answered with {status}"
    if expected in (requests.ONE, requests.TWO):
        wanted = 2 if expected == requests.TWO else 1
        if statuses != [200] * wanted or len(seen) != wanted:
            return f"{len(seen)} requests reached the server, answered with {statuses}"
        return None
    kind, text = expected
    if statuses != [200] or len(seen) != 1:
        return f"{len(seen)} requests reached the server, answered with {statuses}"
    raw = seen[0]["raw"].lower()
    if kind == "without":
        return next((f"{gone} went through" for gone in text.split() if gone in raw), None)
    if kind == "host":
        return None if f"\r\nhost: {text}\r\n" in raw else "another host went through"
    if kind == "path":
        return None if seen[0]["path"] == text else "another path went through"
    raise AssertionError(kind)


def hostile_servers(arguments):
    address = split(arguments.address)
    for number, (name, method, _, _, expected) in enumerate(responses.cases()):
        answers = Answers(address, arguments.tls)
        asks = "connection: upgrade\r\nupgrade: websocket\r\n" if expected == responses.NOT_SWITCHED else ""
        answers.send(f"{method} /r/{number} HTTP/1.1\r\nhost: orders-api.data\r\n{asks}\r\n".encode())
        answer = answers.read(method)
        problem = judge_response(expected, answer)
        # The same connection, where it goes on, and others that may be given the same connection to the server.
        if not problem and not answers.closed:
            answers.send(f"GET /c/same/{number} HTTP/1.1\r\nhost: orders-api.data\r\n\r\n".encode())
            problem = own(answers.read(), f"/c/same/{number}", may_close=True)
        answers.close()
        for turn in range(3):
            other = Answers(address, arguments.tls)
            other.send(f"GET /c/other/{number}/{turn} HTTP/1.1\r\nhost: orders-api.data\r\n\r\n".encode())
            problem = problem or own(other.read(), f"/c/other/{number}/{turn}")
            other.close()
        yield {"case": name, "holds": problem is None, "problem": problem, "came": brief([answer], [])}


def own(answer, path, may_close=False):
    if answer is None:
        return None if may_close else "another request is not answered"
    status, headers, body, whole = answer
    if status == 200 and body == path.encode() and headers.get(b"x-case") == path.encode() and whole:
        return None
    return f"another request gets {status} {headers.get(b'x-case')} {body[:60]!r}"


def judge_response(expected, answer):
    if answer is None:
        return None if expected in (responses.CUT, responses.REFUSED, responses.EITHER) else "no answer"
    status, headers, body, whole = answer
    refused = status in (502, 503, 504) and b"sidewind-error" in headers
    if expected == responses.NOT_SWITCHED:
        # Through a tunnel the proxy beside the server is not told from the server.
        return None if status == 502 else f"answered with {status}"
    if expected == responses.REFUSED:
        return None if refused else f"answered with {status}"
    if expected == responses.CUT:
        return None if refused or not whole else "it seems whole"
    if expected == responses.TAKEN or not refused:
        if refused or not whole or status is None or b"sidewind-error" in headers:
            return f"answered with {status}, whole: {whole}"
        if b"content-length" in headers and b"transfer-encoding" in headers:
            return "both content-length and transfer-encoding went through"
        if status == 204 and (b"content-length" in headers or b"transfer-encoding" in headers):
            return "204 with a length went through"
    return None


def brief(got, seen):
    answers = [None if answer is None else (answer[0], answer[1].get(b"sidewind-error", b"").decode()) for answer in got]
    return f"{answers}; at the server {[entry['raw'][:200] for entry in seen]}"


def split(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["requests", "responses"])
    parser.add_argument("address")
    parser.add_argument("log")
    parser.add_argument("--tls", help="the server name of a listener with TLS")
    arguments = parser.parse_args()
    role = hostile_clients if arguments.role == "requests" else hostile_servers
    for result in role(arguments):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
