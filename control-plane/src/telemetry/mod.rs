//! What the control plane says about itself: metrics, logs, and how often it repeats itself.

mod authority_metrics;
mod federation_metrics;
mod logs;
mod metrics;
mod throttle;

pub use authority_metrics::AuthorityMetrics;
pub use federation_metrics::{FederationAlarm, FederationMetrics, FederationState};
pub use logs::{LogError, LogFormat, LogHandle, init_logs};
pub use metrics::Metrics;
pub use throttle::Throttle;

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

/// Says a fault that comes again with every look until somebody mends it, once a minute.
pub fn lasting_fault(what: &'static str, error: &dyn Error) {
    static FAULTS: Throttle = Throttle::new();
    if let Some(unsaid) = FAULTS.admit(what) {
        tracing::error!(error = chain(error), unsaid, "{what}");
    }
}
