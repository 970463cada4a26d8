//! What clients of HTTP do wrong, logged once a minute for each cause.

use std::error::Error;

use crate::{
    errors::{Chain, ErrorCode, ProxyError},
    telemetry::{Direction, logs::Throttle},
};

/// Logs what is the client's doing; false for any other code, which is no news.
pub(crate) fn complain(
    direction: Direction,
    code: ErrorCode,
    error: &(dyn Error + 'static),
) -> bool {
    static SLOW: Throttle = Throttle::new();
    static LARGE: Throttle = Throttle::new();
    static GARBAGE: Throttle = Throttle::new();
    let throttle = match code {
        ErrorCode::ClientTimeout => &SLOW,
        ErrorCode::HeaderTooLarge => &LARGE,
        ErrorCode::BadRequest => &GARBAGE,
        _ => return false,
    };
    if let Some(suppressed) = throttle.admit() {
        tracing::warn!(direction = direction.as_str(), %code, error = %Chain(error), suppressed, "a client was refused");
    }
    true
}

/// Refuses a request in HTTP/2 whose header list has more bytes than `limit`; h2 lets larger ones through, so that
/// they are told why.
///
/// # Errors
/// What the client is told.
pub(crate) fn check_header_list(
    bytes: usize,
    limit: usize,
    direction: Direction,
) -> Result<(), ProxyError> {
    if bytes <= limit {
        return Ok(());
    }
    let error = ProxyError::new(
        ErrorCode::HeaderTooLarge,
        format_args!(
            "The request's header has {bytes} bytes, and --max-header-bytes allows {limit}."
        ),
    );
    complain(direction, error.code(), &error);
    Err(error)
}
