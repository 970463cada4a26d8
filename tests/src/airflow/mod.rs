//! A real Airflow on a network of its own: every component on a host of its own, beside a sidecar, with redirection.
//!
//! | room | what is in it |
//! | --- | --- |
//! | [`release`] | Airflow from PyPI, and a database with its tables, installed once |
//! | [`settings`] | what Airflow is told; nothing of it speaks of a mesh |
//! | [`ground`] | the mesh under it: hosts, sidecars, the gateway, the names that Airflow uses |
//! | [`deployment`] | its processes, and what a test does with them |
//! | [`faults`] | what can be wrong with its API servers |
//! | [`rest`] | a client of its REST API, outside the mesh |

mod deployment;
mod faults;
mod ground;
mod release;
mod rest;
mod settings;

pub use deployment::{Deployment, Plan};
pub use faults::Fault;
pub use ground::Machine;
pub use release::{Installed, Release};
pub use rest::Rest;
pub use settings::{Executor, SECRETS};
