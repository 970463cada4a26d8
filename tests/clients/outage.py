"""Makes many requests to Airflow's Execution API at once, each on a connection of its own, as supervisors do.

outage.py HOST:PORT COUNT: prints how often each status came.
"""

import asyncio
import collections
import sys

HEAD = (
    "GET /execution/variables/lab_var HTTP/1.1\r\nhost: {}\r\nuser-agent: apache-airflow-task-sdk/1.3.2 (Python/3.11.7)\r\n"
    "airflow-api-version: 2026-06-30\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n"
)


async def call(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    # Tokens are several hundred bytes long.
    writer.write(HEAD.format(host, "x" * 600).encode())
    answer = await reader.read()
    writer.close()
    return answer.split(b" ", 2)[1].decode()


async def main():
    address, count = sys.argv[1:]
    host, port = address.split(":")
    statuses = await asyncio.gather(*(call(host, int(port)) for _ in range(int(count))))
    print(dict(collections.Counter(statuses)))


asyncio.run(main())
