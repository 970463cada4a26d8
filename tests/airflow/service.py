"""A FastAPI service that Airflow's tasks call. It prints a line of JSON for each call: the path, and what it was told."""

import asyncio
import json

from fastapi import FastAPI, Request

app = FastAPI()
waiting: dict[str, asyncio.Condition] = {}
arrived: dict[str, int] = {}

TOLD = ("x-airflow-", "traceparent", "baggage", "user-agent")


def note(request: Request) -> dict[str, str]:
    told = {name: value for name, value in request.headers.items() if name.startswith(TOLD)}
    print(json.dumps({"path": request.url.path, "headers": told}), flush=True)
    return told


@app.get("/orders/{rest:path}")
async def orders(rest: str, request: Request) -> dict:
    return {"orders": [7, 11, 13], "told": note(request)}


@app.get("/hold/{crowd}/{count}/{rest:path}")
async def hold(crowd: str, count: int, rest: str, request: Request) -> dict:
    """Answers when as many as `count` are here, so that their connections are open at the same time."""
    told = note(request)
    condition = waiting.setdefault(crowd, asyncio.Condition())
    async with condition:
        arrived[crowd] = arrived.get(crowd, 0) + 1
        condition.notify_all()
        await condition.wait_for(lambda: arrived[crowd] >= count)
    return {"held": rest, "told": told}
