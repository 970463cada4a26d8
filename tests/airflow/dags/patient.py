"""Tasks that are not tried again, and ask for something of Airflow's own all the while: until they are told to end."""

import time

from airflow.sdk import DAG, Variable, task

with DAG("patient", schedule=None, catchup=False, default_args={"retries": 0}):

    @task
    def begin() -> int:
        # A default that is taken in place of what is stored would be a wrong result, and no error.
        greeting = Variable.get("greeting", default="the default")
        assert greeting == "ahoy", f"greeting: {greeting}"
        return 1

    @task
    def go_on(number: int, ti=None) -> int:
        while (stage := Variable.get("stage", default="the default")) == "on":
            number += 1
            ti.xcom_push("round", number)
            time.sleep(2)
        assert stage == "over", f"stage: {stage}"
        return number

    go_on(begin())
