"""Tells the Sidewind sidecar which Airflow task a process works for."""
