"""Makes many requests to Airflow's Execution API at once, each on a connection of its own, as supervisors do.

outage.py HOST:PORT COUNT [BYTES]: prints how often each status came. With BYTES each is an XCom of so many, and `sent` is printed
when all have sent them as far as somebody takes them.
"""

import asyncio
import collections
import sys

HEAD = (
    "{} HTTP/1.1\r\nhost: {}\r\nuser-agent: apache-airflow-task-sdk/1.3.2 (Python/3.11.7)\r\n"
    "airflow-api-version: 2026-06-30\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n"
)
VARIABLE = "GET /execution/variables/lab_var"
XCOM = "POST /execution/xcoms/d/r/t/k"
# Nobody has taken anything for so long.
STILL = 2


async def send(writer, data):
    """Until all is sent, or nobody takes more."""
    writer.transport.set_write_buffer_limits(0)
    for at in range(0, len(data), 16384):
        writer.write(data[at:at + 16384])
        try:
            await asyncio.wait_for(writer.drain(), STILL)
        except TimeoutError:
            writer.write(data[at + 16384:])
            return


async def call(host, port, size, sent):
    reader, writer = await asyncio.open_connection(host, port)
    # Tokens are several hundred bytes long.
    writer.write(HEAD.format(XCOM if size else VARIABLE, host, "x" * 600, size).encode())
    await send(writer, b"x" * size)
    sent.release()
    answer = await reader.read()
    writer.close()
    return answer.split(b" ", 2)[1].decode()


async def main():
    address, count, *size = sys.argv[1:]
    host, port = address.split(":")
    sent = asyncio.Semaphore(0)
    calls = [asyncio.ensure_future(call(host, int(port), int(size[0]) if size else 0, sent)) for _ in range(int(count))]
    if size:
        for _ in calls:
            await sent.acquire()
        print("sent", flush=True)
    print(dict(collections.Counter(await asyncio.gather(*calls))))


asyncio.run(main())
