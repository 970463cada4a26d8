"""The other end of a sidecar on the mesh wire (HBONE), made of PyPI's `spiffe-tls` (OpenSSL) and `h2`.

peer.py dial SOCKET ADDRESS EXPECTED-ID AUTHORITY PATH    GET through a tunnel of a sidecar's mesh port, printed
peer.py listen SOCKET ADDRESS EXPECTED-ID                 answers what comes through tunnels, for ever
"""

import socket
import sys

import h2.config
import h2.connection
import h2.events
from OpenSSL import SSL
from spiffe import SpiffeId, X509Source
from spiffetls.context import create_ssl_context
from spiffetls.tlsconfig.authorize import authorize_id

MUTUAL = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT


def send(tls, http):
    data = http.data_to_send()
    if data:
        tls.sendall(data)


def events(tls, http):
    while True:
        try:
            data = tls.recv(65536)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return
        if not data:
            return
        yield from http.receive_data(data)
        send(tls, http)


def dial(source, address, expected, authority, path):
    context = create_ssl_context(SSL.TLS_CLIENT_METHOD, source, authorize_id(SpiffeId(expected)), MUTUAL)
    context.set_alpn_protos([b"h2"])
    tls = SSL.Connection(context, socket.create_connection(address))
    tls.set_connect_state()
    tls.do_handshake()
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http.initiate_connection()
    http.send_headers(1, [(":method", "CONNECT"), (":authority", authority)])
    send(tls, http)
    request = f"GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n"
    for event in events(tls, http):
        if isinstance(event, h2.events.ResponseReceived):
            status = dict(event.headers)[b":status"].decode()
            if status != "200":
                sys.exit(f"the tunnel was answered with {status}")
            http.send_data(1, request.encode())
            send(tls, http)
        elif isinstance(event, h2.events.DataReceived):
            sys.stdout.write(event.data.decode())
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
            return


def serve(tls):
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    http.initiate_connection()
    send(tls, http)
    body = b"hello from spiffe-tls\n"
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    for event in events(tls, http):
        if isinstance(event, h2.events.RequestReceived):
            method = dict(event.headers)[b":method"]
            http.send_headers(event.stream_id, [(":status", "200" if method == b"CONNECT" else "405")])
        elif isinstance(event, h2.events.DataReceived) and b"\r\n\r\n" in event.data:
            http.send_data(event.stream_id, answer)
        elif isinstance(event, h2.events.StreamEnded):
            http.end_stream(event.stream_id)
        send(tls, http)


def listen(source, address, expected):
    context = create_ssl_context(SSL.TLS_SERVER_METHOD, source, authorize_id(SpiffeId(expected)), MUTUAL)
    context.set_alpn_select_callback(lambda _, offered: b"h2" if b"h2" in offered else SSL.NO_OVERLAPPING_PROTOCOLS)
    listener = socket.create_server(address)
    while True:
        tls = SSL.Connection(context, listener.accept()[0])
        tls.set_accept_state()
        try:
            tls.do_handshake()
            serve(tls)
        except (SSL.Error, OSError) as error:
            print(f"a connection failed: {error!r}", file=sys.stderr, flush=True)


def main():
    command, path, address, expected, *rest = sys.argv[1:]
    host, port = address.rsplit(":", 1)
    with X509Source(socket_path=f"unix://{path}", timeout_in_seconds=30) as source:
        {"dial": dial, "listen": listen}[command](source, (host, int(port)), expected, *rest)


main()
