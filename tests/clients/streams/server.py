"""A WebSocket server by PyPI's `websockets` and a gRPC server by `grpcio`, which know nothing of a mesh.

server.py ADDRESS WEBSOCKET-PORT GRPC-PORT
"""

import asyncio
import sys

import grpc
import websockets

identity = lambda data: data


async def echo(socket):
    async for message in socket:
        await socket.send(message)


def metadata(context):
    """What of the call's metadata is echoed."""
    return tuple((key, value) for key, value in context.invocation_metadata() if key.startswith("x-"))


async def unary(request, context):
    if request == b"fail":
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish: ü", metadata(context))
    if request == b"wait":
        await asyncio.sleep(60)
    await context.send_initial_metadata(metadata(context))
    context.set_trailing_metadata((("x-trailing", "last"), ("x-bytes-bin", b"\x00\xff")))
    return request


async def server_stream(request, context):
    for number in range(int(request)):
        yield b"%d" % number


async def client_stream(requests, context):
    return b"%d" % len([request async for request in requests])


async def both(requests, context):
    async for request in requests:
        yield request


class Handler(grpc.GenericRpcHandler):
    def service(self, call):
        serve = {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary, identity, identity),
            "/test.Echo/ServerStream": grpc.unary_stream_rpc_method_handler(server_stream, identity, identity),
            "/test.Echo/ClientStream": grpc.stream_unary_rpc_method_handler(client_stream, identity, identity),
            "/test.Echo/Both": grpc.stream_stream_rpc_method_handler(both, identity, identity),
        }
        return serve.get(call.method)


async def main():
    address, websocket_port, grpc_port = sys.argv[1:]
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)])
    server.add_generic_rpc_handlers([Handler()])
    server.add_insecure_port(f"{address}:{grpc_port}")
    await server.start()
    async with websockets.serve(echo, address, int(websocket_port), max_size=64 << 20, ping_interval=None):
        await server.wait_for_termination()


asyncio.run(main())
