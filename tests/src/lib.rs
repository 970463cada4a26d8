//! The end-to-end harness: real processes in networks of their own.
//!
//! | room | what is in it |
//! | --- | --- |
//! | [`lan`], [`place`] | network namespaces, and making sockets or starting programs in one |
//! | [`invocation`], [`process`] | a program run to its end, or beside the test |
//! | [`scratch`], [`cleanup`] | logs and files of a test; nothing stays behind, also after a signal |
//! | [`mesh`] | a control plane and workloads with sidecars |
//! | [`workloads`], [`database`] | unmodified servers; a PostgreSQL for control planes |
//! | [`airflow`] | a real Airflow, each component beside a sidecar |
//! | [`registered`] | a workload that a document registers |
//! | [`renewals`] | many identities that are renewed all the time, without a proxy each |
//! | [`load`], [`http`] | requests: a steady stream of them, or one exact one |
//! | [`attesting`], [`aws`] | a client that attests step by step; STS and ECS around it |
//! | [`clients`], [`envoy`] | programs that nobody of this project wrote, at the Workload API socket and on the wire |
//! | [`authority`], [`peer`] | certificates of our own, and a client of the mesh port that uses them |
//! | [`wire`], [`relay`] | what a listener on the wire sees |
//! | [`collector`], [`metrics`], [`access_log`] | what sidecars say about themselves |
//! | [`measure`] | what the kernel says of a process: processor time, memory |
//! | [`stage`] | how the demos look |
//! | [`wait`] | conditions with deadlines |
//!
//! What needs root panics without it; no test is ever skipped.

pub mod access_log;
pub mod airflow;
pub mod attesting;
pub mod authority;
pub mod aws;
pub mod binaries;
pub mod cleanup;
pub mod clients;
pub mod collector;
pub mod database;
pub mod envoy;
pub mod http;
pub mod invocation;
pub mod lan;
pub mod load;
pub mod measure;
pub mod mesh;
pub mod metrics;
pub mod peer;
pub mod place;
pub mod process;
pub mod registered;
pub mod relay;
pub mod renewals;
pub mod scratch;
pub mod stage;
pub mod wait;
pub mod wire;
pub mod workloads;
