//! `tls.options` of a Gateway's listener: what Gateway API leaves to each implementation.

use sidewind_api::{duration, v1};

/// Oldest version of TLS: `"1.2"` or `"1.3"`.
const MIN_VERSION: &str = "sidewind.dev/tls-min-version";
/// How long browsers are to use HTTPS alone, as a duration, `0s` to have them forget it.
const HSTS_MAX_AGE: &str = "sidewind.dev/hsts-max-age";
/// `"true"`: that goes for the host's subdomains as well.
const HSTS_SUBDOMAINS: &str = "sidewind.dev/hsts-include-subdomains";

/// Applies one option to the listener.
///
/// # Errors
/// What is wrong with its name or value.
pub(super) fn apply(
    option: &str,
    value: &str,
    listener: &mut v1::GatewayListener,
) -> Result<(), String> {
    match option {
        MIN_VERSION => {
            listener.tls13_only = match value {
                "1.2" => false,
                "1.3" => true,
                _ => return Err("must be \"1.2\" or \"1.3\"".to_owned()),
            };
        }
        HSTS_MAX_AGE => {
            let age = duration::parse(value).map_err(|error| error.to_string())?;
            listener.hsts_seconds = Some(age.as_secs());
        }
        HSTS_SUBDOMAINS => {
            listener.hsts_include_subdomains = match value {
                "true" => true,
                "false" => false,
                _ => return Err("must be \"true\" or \"false\"".to_owned()),
            };
        }
        _ => {
            return Err(format!(
                "is of option {option:?}, which there is not; there are {MIN_VERSION}, {HSTS_MAX_AGE} and {HSTS_SUBDOMAINS}"
            ));
        }
    }
    Ok(())
}
