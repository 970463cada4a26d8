//! Retries that cannot make things worse: of what is safe to repeat, within a budget, after a jittered wait.

mod backoff;
mod budget;
mod classify;
mod layer;
mod policy;
mod replay;

pub(crate) use budget::RetryBudget;
pub(crate) use classify::{Progress, RetryError};
pub(crate) use layer::{RetryLayer, RetryObserver};
pub(crate) use policy::RetryPolicy;
pub(crate) use replay::ReplayBody;

#[cfg(test)]
mod tests;
