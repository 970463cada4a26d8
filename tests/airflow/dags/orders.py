"""One DAG that calls a service in every way that DAGs use. It knows nothing of a mesh."""

import asyncio

import httpx
import requests
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Variable, task

API = "http://orders-api.data:8000/orders"

with DAG("orders", schedule=None, catchup=False, default_args={"retries": 0}):
    operator = HttpOperator(task_id="operator", http_conn_id="orders_api", endpoint="/orders/operator", method="GET")
    curl = BashOperator(task_id="curl", bash_command=f"curl -fsS {API}/curl >/dev/null && echo 3")
    deferred = HttpOperator(
        task_id="deferred", http_conn_id="orders_api", endpoint="/orders/deferred", method="GET", deferrable=True
    )

    @task
    def by_requests() -> int:
        answer = requests.get(f"{API}/by_requests", timeout=20)
        answer.raise_for_status()
        return len(answer.json()["orders"])

    @task
    def by_httpx() -> int:
        async def call() -> int:
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"{API}/by_httpx", timeout=20)
                answer.raise_for_status()
                return len(answer.json()["orders"])

        return asyncio.run(call())

    @task
    def mapped(number: int) -> int:
        answer = requests.get(f"{API}/mapped/{number}", timeout=20)
        answer.raise_for_status()
        return number

    @task
    def total(counts: list[int], others: list[int]) -> int:
        everything = sum(counts) + sum(others)
        assert everything == 12, everything
        assert Variable.get("greeting") == "ahoy"
        return everything

    [operator, curl, deferred] >> total([by_requests(), by_httpx()], mapped.expand(number=[1, 2, 3]))
