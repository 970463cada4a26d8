"""Two DAGs that call the same service from the same worker. They know nothing of a mesh."""

import requests
from airflow.sdk import DAG, task

API = "http://orders-api.data:8000"

with DAG("payroll", schedule=None, catchup=False, default_args={"retries": 0}):

    @task
    def charge(run_id: str | None = None) -> None:
        # Is answered when somebody else is there, too.
        requests.get(f"{API}/hold/{run_id}/2/payroll", timeout=240).raise_for_status()

    charge()

with DAG("reports", schedule=None, catchup=False, default_args={"retries": 0}):

    @task
    def send() -> None:
        requests.get(f"{API}/orders/reports", timeout=240).raise_for_status()

    send()
