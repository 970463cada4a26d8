//! Every story is told by real processes in network namespaces of its own.
//!
//! [`harness`] tells what the harness itself is worth; the others are about the mesh, each named after what it shows.

mod support;

mod airflow;
mod airflow_real;
mod api_servers;
mod attacks;
mod aws;
mod aws_pca;
mod bad_input;
mod bad_requests;
mod balancing;
mod bans;
mod bench;
mod conformance;
mod control_plane;
mod crowds;
mod demo;
mod discovery;
mod drain;
mod edge;
mod execution_api;
mod explicit;
mod federation;
mod federation_redirects;
mod full_disk;
mod gateway;
mod harness;
mod health;
mod interim;
mod ipv6;
mod limits;
mod mesh_port;
mod opaque;
mod outage;
mod policy;
mod protocols;
mod replicas;
mod retries;
mod rotation;
mod rotation_ca;
mod routes;
mod run;
mod secrets;
mod sessions;
mod slow;
mod startup;
mod streams;
mod task_sources;
mod tasks;
mod telemetry;
mod transparent;
mod upgrades;
mod workload_api;
mod x509;
