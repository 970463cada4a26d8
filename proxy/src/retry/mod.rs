//! Retries that cannot make things worse: of what is safe to repeat, within a budget, after a jittered wait, and before
//! the client gives up. [`hold`]: requests that wait while no endpoint is up; [`hedge`]: a second attempt beside a slow one.

mod backoff;
mod budget;
mod classify;
mod deadline;
mod hedge;
mod hold;
mod layer;
mod policy;
mod replay;
mod spare;

pub(crate) use budget::RetryBudget;
pub(crate) use classify::{
    Progress, RetryError, grpc_status, is_idempotent, is_repeatable, said_by_proxy,
};
pub(crate) use hold::{HoldLimits, HoldQueue};
pub(crate) use layer::{Failed, Others, OutsideRetries, RetryLayer, RetryObserver};
pub(crate) use policy::{RetryPolicy, UNAVAILABLE};
pub(crate) use replay::{ReplayBody, ReplayBuffer};
pub(crate) use spare::copy_head;

#[cfg(test)]
mod tests;
