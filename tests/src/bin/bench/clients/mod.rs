//! Clients and servers of our own, on threads of this process inside the namespaces; what other programs do well is
//! left to them ([`crate::load`]).

mod churn;
mod handshake;
mod hold;
mod rate;
pub(crate) mod server;
mod stream;

use std::future::Future;

use serde::Serialize;
use sidewind_tests::place::Place;

pub(crate) use churn::churn;
pub(crate) use handshake::handshakes;
pub(crate) use hold::{Held, Kind};
pub(crate) use rate::at_rate;
pub(crate) use stream::{Way, stream};

use crate::Result;

/// What a thread gives back; an error has to pass between threads.
type Outcome<T> = std::result::Result<T, String>;

/// What so many operations came to.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) done: u64,
    pub(crate) errors: u64,
}

/// Runs `work` on a thread of its own in `place`, and waits for it without holding up this one.
async fn within<T, F>(place: &Place, work: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
{
    let thread = place.spawn(move || -> Outcome<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let local = tokio::task::LocalSet::new();
        runtime
            .block_on(local.run_until(work()))
            .map_err(|error| error.to_string())
    });
    let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
    Ok(joined.map_err(|_| "a client panicked")??)
}
