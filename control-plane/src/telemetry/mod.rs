//! What the control plane says about itself: metrics and logs.

mod logs;
mod metrics;

pub use logs::{LogFormat, init_logs};
pub use metrics::Metrics;

use std::error::Error;

/// An error with its causes, from the outermost to the first: `a: b: c`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Libraries often repeat their cause in their own message.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
