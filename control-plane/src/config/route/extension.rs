//! `RouteExtension`: what the Gateway API has no field for. A rule names one by a filter of type `ExtensionRef`.

use super::super::Draft;
use super::super::document::{Reader, Resource, present};
use super::parts::{MAX_ATTEMPTS, Timeouts, is_token, milliseconds, one_of, timeouts};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::v1;

/// Most of a body that a route may have kept for another try.
const MAX_BODY_BYTES: u32 = 16 * 1024 * 1024;

/// gRPC's statuses but OK, by their numbers.
const GRPC_STATUSES: [(&str, u32); 16] = [
    ("CANCELLED", 1),
    ("UNKNOWN", 2),
    ("INVALID_ARGUMENT", 3),
    ("DEADLINE_EXCEEDED", 4),
    ("NOT_FOUND", 5),
    ("ALREADY_EXISTS", 6),
    ("PERMISSION_DENIED", 7),
    ("RESOURCE_EXHAUSTED", 8),
    ("FAILED_PRECONDITION", 9),
    ("ABORTED", 10),
    ("OUT_OF_RANGE", 11),
    ("UNIMPLEMENTED", 12),
    ("INTERNAL", 13),
    ("UNAVAILABLE", 14),
    ("DATA_LOSS", 15),
    ("UNAUTHENTICATED", 16),
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default)]
    timeouts: Option<Timeouts>,
    #[serde(default)]
    retry: Option<Retry>,
    #[serde(default, deserialize_with = "present")]
    hold: Option<Hold>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Retry {
    #[serde(default, deserialize_with = "present")]
    attempts: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    backoff: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    methods: Option<Vec<Spanned<String>>>,
    #[serde(default, deserialize_with = "present")]
    grpc_statuses: Option<Vec<Spanned<String>>>,
    #[serde(default, deserialize_with = "present")]
    max_body_bytes: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hold {
    timeout: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    max_requests: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    max_bytes: Option<Spanned<u64>>,
}

/// A checked extension.
#[derive(Debug, Clone)]
pub(crate) struct Extension(v1::RoutePolicy);

/// Reads an extension into the draft.
pub(crate) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spanned<Spec>>>() else {
        return;
    };
    let (namespace, name) = resource.metadata.check("RouteExtension", reader, draft);
    let Spec {
        timeouts: times,
        retry,
        hold,
    } = &resource.spec.value;
    if times.is_none() && retry.is_none() && hold.is_none() {
        reader.refuse(&resource.spec, "must have `timeouts`, `retry` or `hold`");
    }
    let mut policy = v1::RoutePolicy::default();
    timeouts(reader, times.as_ref(), &mut policy);
    if let Some(retry) = retry {
        read_retry(reader, retry, &mut policy);
    }
    policy.hold = hold.as_ref().map(|hold| read_hold(reader, hold));
    if reader.is_sound() {
        draft
            .routes
            .add_extension(namespace, name, Extension(policy));
    }
}

fn read_retry(reader: &mut Reader<'_>, retry: &Retry, policy: &mut v1::RoutePolicy) {
    policy.retry_attempts = retry.attempts.as_ref().map(|attempts| attempts.value);
    if let Some(attempts) = retry.attempts.as_ref().filter(|a| a.value > MAX_ATTEMPTS) {
        reader.refuse(attempts, format!("must be at most {MAX_ATTEMPTS}"));
    }
    policy.retry_backoff_ms = milliseconds(reader, retry.backoff.as_ref());
    for method in retry.methods.iter().flatten() {
        let upper = method
            .value
            .bytes()
            .all(|byte| is_token(byte) && !byte.is_ascii_lowercase());
        if method.value.is_empty() || !upper {
            reader.refuse(method, "must be an HTTP method in upper case, like POST");
        }
        policy.retry_methods.push(method.value.clone());
    }
    for status in retry.grpc_statuses.iter().flatten() {
        policy
            .retry_grpc_codes
            .extend(one_of(reader, status, &GRPC_STATUSES));
    }
    policy.retry_body_bytes = retry.max_body_bytes.as_ref().map(|bytes| bytes.value);
    if let Some(bytes) = retry
        .max_body_bytes
        .as_ref()
        .filter(|b| b.value > MAX_BODY_BYTES)
    {
        reader.refuse(bytes, format!("must be at most {MAX_BODY_BYTES}"));
    }
}

fn read_hold(reader: &mut Reader<'_>, hold: &Hold) -> v1::Hold {
    let timeout_ms = milliseconds(reader, Some(&hold.timeout)).unwrap_or_default();
    if timeout_ms == 0 && reader.is_sound() {
        reader.refuse(&hold.timeout, "must be more than 0");
    }
    let zero = "must be more than 0; leave it out for the default";
    if let Some(requests) = hold.max_requests.as_ref().filter(|max| max.value == 0) {
        reader.refuse(requests, zero);
    }
    if let Some(bytes) = hold.max_bytes.as_ref().filter(|max| max.value == 0) {
        reader.refuse(bytes, zero);
    }
    v1::Hold {
        timeout_ms,
        max_requests: hold.max_requests.as_ref().map_or(0, |max| max.value),
        max_bytes: hold.max_bytes.as_ref().map_or(0, |max| max.value),
    }
}

impl Extension {
    /// Adds to a rule what the extension says.
    ///
    /// # Errors
    /// When the rule says it too.
    pub(super) fn apply(&self, rule: &mut v1::RouteRule) -> Result<(), String> {
        let policy = rule.policy.get_or_insert_default();
        let own = &self.0;
        for (field, twice) in [
            (
                "timeouts.request",
                policy.request_timeout_ms.is_some() && own.request_timeout_ms.is_some(),
            ),
            (
                "timeouts.backendRequest",
                policy.backend_request_timeout_ms.is_some()
                    && own.backend_request_timeout_ms.is_some(),
            ),
            (
                "retry.attempts",
                policy.retry_attempts.is_some() && own.retry_attempts.is_some(),
            ),
            (
                "retry.backoff",
                policy.retry_backoff_ms.is_some() && own.retry_backoff_ms.is_some(),
            ),
        ] {
            if twice {
                return Err(format!(
                    "names an extension with `{field}`, which the rule has too; one of the two must go"
                ));
            }
        }
        let own = own.clone();
        policy.request_timeout_ms = policy.request_timeout_ms.or(own.request_timeout_ms);
        policy.backend_request_timeout_ms = policy
            .backend_request_timeout_ms
            .or(own.backend_request_timeout_ms);
        policy.retry_attempts = policy.retry_attempts.or(own.retry_attempts);
        policy.retry_backoff_ms = policy.retry_backoff_ms.or(own.retry_backoff_ms);
        policy.retry_methods = own.retry_methods;
        policy.retry_grpc_codes = own.retry_grpc_codes;
        policy.retry_body_bytes = own.retry_body_bytes;
        policy.hold = own.hold;
        Ok(())
    }
}
