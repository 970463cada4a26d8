"""gRPC calls of bytes, by gRPC's own library.

calls.py serve ADDRESS:PORT               serves /calls.Calls/Echo: the request; Flaky: UNAVAILABLE to every second call;
                                          /calls.Calls/Order: the same, with a count of its own;
                                          /calls.Calls/Slow: answers after 3 s; /calls.Calls/Begun: UNAVAILABLE to
                                          every call, once its response has begun, and says how many there were;
                                          and grpc.health.v1, which says that it is well
calls.py call ADDRESS:PORT METHOD N SECONDS   makes N calls with that deadline, and prints each one's status
"""

import itertools
import sys
import time
from concurrent import futures

import grpc

def flaky():
    count = itertools.count(1)

    def answer(request, context):
        if next(count) % 2 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "every second")
        return request

    return answer


def slow(request, context):
    time.sleep(3)
    return request


def echo(request, context):
    return request


def healthy(request, context):
    # HealthCheckResponse, status: SERVING.
    return b"\x08\x01"


begun_calls = itertools.count(1)


def begun(request, context):
    # With nothing in it gRPC may send it together with the status, as if nothing had begun.
    context.send_initial_metadata((("x-begun", "yes"),))
    context.abort(grpc.StatusCode.UNAVAILABLE, f"call {next(begun_calls)}")


def serve(address):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    calls = {"Echo": echo, "Flaky": flaky(), "Order": flaky(), "Slow": slow, "Begun": begun}
    for service, handlers in {"calls.Calls": calls, "grpc.health.v1.Health": {"Check": healthy}}.items():
        handlers = {name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in handlers.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    assert server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def call(address, method, number, seconds):
    # Its own retries would hide what the proxy does.
    options = [("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = channel.unary_unary(f"/calls.Calls/{method}")
        for _ in range(int(number)):
            try:
                assert stub(b"question", timeout=float(seconds)) == b"question"
                print("OK")
            except grpc.RpcError as error:
                print(error.code().name, error.details())


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    call(*sys.argv[2:])
