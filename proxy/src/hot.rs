//! What `benches/` measure: each of these holds one piece that every request passes, ready to be called again and
//! again. No part of the program.

mod access_log;
mod authorization;
mod balance;
mod detection;
mod header_rewriting;
mod route;
mod task_search;

pub use access_log::AccessLine;
pub use authorization::Authorization;
pub use balance::Balance;
pub use detection::is_decided;
pub use header_rewriting::HeaderRewriting;
pub use route::Routing;
pub use task_search::TaskSearch;
