"""Sixteen tasks at once, each of which holds a connection to a service until all of them and one more do: by Python, by
curl under bash, by another Python, mapped. On Airflow 2 it runs by itself, on 3 when it is triggered."""

from datetime import datetime

try:
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.providers.standard.operators.python import ExternalPythonOperator
    from airflow.sdk import DAG, task

    schedule = None
except ImportError:
    from airflow import DAG
    from airflow.decorators import task
    from airflow.operators.bash import BashOperator
    from airflow.operators.python import ExternalPythonOperator

    schedule = "@once"

HOLD = "http://orders-api.data:8000/hold/{{ run_id }}/17"


def hold(run: str, who: str) -> str:
    import json
    import urllib.request

    with urllib.request.urlopen(f"http://orders-api.data:8000/hold/{run}/17/{who}", timeout=240) as answer:
        return json.load(answer)["held"]


with DAG(
    "crowd", schedule=schedule, start_date=datetime(2026, 1, 1), catchup=False, max_active_tasks=16,
    default_args={"retries": 0},
):
    for number in range(4):

        @task(task_id=f"python_{number}")
        def python(who: str, run_id=None) -> str:
            return hold(run_id, who)

        python(f"python_{number}/-1")

        # Half of them with nothing of the worker's own environment.
        BashOperator(
            task_id=f"curl_{number}",
            bash_command=f"curl -fsS --max-time 240 '{HOLD}/curl_{number}/-1' && echo",
            **({"env": {"PATH": "/usr/bin:/bin"}} if number % 2 else {}),
        )

    for number in range(2):
        ExternalPythonOperator(
            task_id=f"external_{number}",
            python="/usr/bin/python3",
            python_callable=hold,
            op_args=["{{ run_id }}", f"external_{number}/-1"],
            expect_airflow=False,
        )

    @task
    def mapped(number: int, run_id=None) -> str:
        return hold(run_id, f"mapped/{number}")

    mapped.expand(number=list(range(6)))
