"""What Airflow loads."""

from airflow.plugins_manager import AirflowPlugin

from sidewind_airflow import listener


class SidewindPlugin(AirflowPlugin):
    """Listens to tasks that begin and end."""

    name = "sidewind"
    listeners = [listener]
