# Airflow's image with the sidecar in it, for tasks of the ECS executor, and with the trust bundle of
# `sidewind ca show --pem`. The version is that of your Airflow. Where `make image` ran, the C library must not be newer than
# the one in Airflow's image (Debian 12's).
FROM apache/airflow:3.3.2
COPY --from=sidewind-proxy:0.1.0 /sidewind-proxy /sidewind-proxy
COPY trust-bundle.pem /mesh/trust-bundle.pem
