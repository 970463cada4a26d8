"""Clients of `server.py`, by the same libraries.

client.py check WEBSOCKET-URL GRPC-ADDRESS             every kind of call; a line of JSON for each
client.py hold SECONDS WEBSOCKET-URL GRPC-ADDRESS      one WebSocket and one gRPC stream both ways, a message a second each
"""

import asyncio
import json
import sys

import grpc
import websockets

identity = lambda data: data


def calls(channel):
    return {
        "unary": channel.unary_unary("/test.Echo/Unary", identity, identity),
        "server stream": channel.unary_stream("/test.Echo/ServerStream", identity, identity),
        "client stream": channel.stream_unary("/test.Echo/ClientStream", identity, identity),
        "both": channel.stream_stream("/test.Echo/Both", identity, identity),
    }


def open_channel(address):
    return grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)])


async def unary(call):
    sent = call["unary"](b"hello", metadata=[("x-mine", "1"), ("x-mine-bin", b"\x00\x80")])
    assert await sent == b"hello"
    initial, trailing = dict(await sent.initial_metadata()), dict(await sent.trailing_metadata())
    assert initial["x-mine"] == "1" and initial["x-mine-bin"] == b"\x00\x80", initial
    assert trailing["x-trailing"] == "last" and trailing["x-bytes-bin"] == b"\x00\xff", trailing


async def large(call):
    assert await call["unary"](b"x" * (32 << 20)) == b"x" * (32 << 20)


async def failing(call):
    try:
        await call["unary"](b"fail", metadata=[("x-mine", "1")])
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert error.details() == "as you wish: ü", error
        assert dict(error.trailing_metadata())["x-mine"] == "1", error
        return
    raise AssertionError("no failure")


async def code_of(sent):
    try:
        await sent
        return "OK"
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def deadline(call):
    assert await code_of(call["unary"](b"wait", timeout=0.5)) == "DEADLINE_EXCEEDED"
    assert await call["unary"](b"after") == b"after"


async def unknown(call, channel):
    assert await code_of(channel.unary_unary("/test.Echo/Nobody", identity, identity)(b"")) == "UNIMPLEMENTED"


async def server_stream(call):
    got = [part async for part in call["server stream"](b"1000")]
    assert got == [b"%d" % number for number in range(1000)], len(got)


async def client_stream(call):
    async def parts():
        for _ in range(1000):
            yield b"x" * 1000

    assert await call["client stream"](parts()) == b"1000"


async def both(call):
    stream = call["both"]()
    for number in range(200):
        await stream.write(b"%d" % number)
        assert await stream.read() == b"%d" % number
    await stream.done_writing()
    assert await stream.read() == grpc.aio.EOF
    assert await stream.code() == grpc.StatusCode.OK


async def cancelled(call):
    stream = call["both"]()
    await stream.write(b"one")
    assert await stream.read() == b"one"
    stream.cancel()
    assert await call["unary"](b"after") == b"after"


async def websocket(url):
    async with websockets.connect(url, max_size=64 << 20, proxy=None) as socket:
        for message in ["text ü", b"\x00\xff" * 1000, "x" * (4 << 20), ""]:
            await socket.send(message)
            assert await socket.recv() == message
        await (await socket.ping())
    assert socket.close_code == 1000, socket.close_code


async def check(url, address):
    channel = open_channel(address)
    call = calls(channel)
    cases = {
        "gRPC unary, with metadata both ways": unary(call),
        "gRPC with messages of 32 MiB": large(call),
        "gRPC that fails, with its message and metadata": failing(call),
        "gRPC past its deadline, and another call after it": deadline(call),
        "gRPC to a method that there is not": unknown(call, channel),
        "gRPC stream of the server's": server_stream(call),
        "gRPC stream of the client's": client_stream(call),
        "gRPC streams both ways in step": both(call),
        "gRPC stream that is cancelled, and another call after it": cancelled(call),
        "WebSocket with text, bytes, 4 MiB, ping and close": websocket(url),
    }
    for name, case in cases.items():
        problem = None
        try:
            await asyncio.wait_for(case, 60)
        except Exception as error:
            problem = repr(error)
        print(json.dumps({"case": name, "holds": problem is None, "problem": problem, "came": ""}), flush=True)
    await channel.close()


async def hold(seconds, url, address):
    """Ends well only where no message was lost and no stream ended."""
    async with open_channel(address) as channel, websockets.connect(url, ping_interval=None, proxy=None) as socket:
        stream = calls(channel)["both"]()
        for number in range(seconds):
            message = b"%d" % number
            await socket.send(message)
            await stream.write(message)
            assert await asyncio.wait_for(socket.recv(), 30) == message
            assert await asyncio.wait_for(stream.read(), 30) == message
            print(number, flush=True)
            await asyncio.sleep(1)
        await stream.done_writing()
        assert await stream.code() == grpc.StatusCode.OK


def main():
    command, *rest = sys.argv[1:]
    if command == "check":
        asyncio.run(check(*rest))
    else:
        asyncio.run(hold(int(rest[0]), *rest[1:]))


main()
