//! What a call must pass before its request is read: how often its caller may ask, and how large it may be.
//!
//! A request that is refused here costs a few bytes of memory and no cryptography. What is let through is
//! bounded, too: [`ANONYMOUS_CALLS`] and [`KNOWN_CALLS`] at once, each with a message of at most 64 KiB that
//! must arrive within [`MESSAGE_TIME`]; with gRPC's buffer and its decoded copy that is at most
//! (2048 + 1024) × 2 × 64 KiB = 384 MiB, were every one of them as large as it may be.

mod body;

use super::limits::{Buckets, Limits, source};
use super::line::Line;
use super::listener::Caller;
use super::subjects::Subjects;
use crate::issuance::Refusal;
use crate::issuance::issuer::Issuer;
use crate::store::RegistrationId;
use crate::telemetry::{Metrics, Throttle};
use body::{Opening, guard};
use http::{HeaderMap, Request, Response};
use sidewind_api::reason::RETRY_AFTER_KEY;
use sidewind_api::{MAX_CSR_BYTES, MAX_PROXY_MESSAGE_BYTES, Reason};
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tower::{Layer, Service};

/// Calls of strangers under way at once. More than one address can hold up: at the default rate that is
/// the burst of 1,000 and 200 in each of [`MESSAGE_TIME`]'s seconds.
const ANONYMOUS_CALLS: usize = 2_048;
/// Calls under way at once of those with a certificate, so that strangers never hold these up.
const KNOWN_CALLS: usize = 1_024;
/// How long the message of a call may take to arrive.
const MESSAGE_TIME: Duration = Duration::from_secs(5);
/// Most bytes of a call's headers. HTTP/2 itself takes twice as much, so that what is over is refused here.
pub(super) const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;

/// What calls are let in by.
#[derive(Debug)]
pub(super) struct Turnstile {
    attest: Buckets<IpAddr>,
    sign: Buckets<RegistrationId>,
    subjects: Arc<Subjects>,
    anonymous: Arc<Semaphore>,
    known: Arc<Semaphore>,
    line: Arc<Line>,
    issuer: Arc<Issuer>,
    metrics: Arc<Metrics>,
}

/// A call of `IdentityService`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Challenge,
    Attest,
    Renew,
    MintJwtSvid,
    IssueTaskSvid,
}

impl Call {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/sidewind.v1.IdentityService/Challenge" => Some(Self::Challenge),
            "/sidewind.v1.IdentityService/Attest" => Some(Self::Attest),
            "/sidewind.v1.IdentityService/Renew" => Some(Self::Renew),
            "/sidewind.v1.IdentityService/MintJwtSvid" => Some(Self::MintJwtSvid),
            "/sidewind.v1.IdentityService/IssueTaskSvid" => Some(Self::IssueTaskSvid),
            _ => None,
        }
    }

    /// Its name in metrics and audit.
    fn name(self) -> &'static str {
        match self {
            Self::Challenge => "challenge",
            Self::Attest => "attest",
            Self::Renew => "renew",
            Self::MintJwtSvid => "mint-jwt-svid",
            Self::IssueTaskSvid => "issue-task-svid",
        }
    }

    /// Whether the first field of its request is a signing request.
    fn has_csr(self) -> bool {
        matches!(self, Self::Attest | Self::Renew | Self::IssueTaskSvid)
    }
}

/// A refusal, and when to come again.
struct Refused {
    refusal: Refusal,
    retry_after: Option<Duration>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            retry_after: None,
        }
    }
}

impl Turnstile {
    pub(super) fn new(
        limits: Limits,
        line: Arc<Line>,
        subjects: Arc<Subjects>,
        issuer: Arc<Issuer>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            attest: Buckets::new(f64::from(limits.attest_per_second.get())),
            sign: Buckets::new(f64::from(limits.sign_per_second.get())),
            anonymous: Arc::new(Semaphore::new(ANONYMOUS_CALLS)),
            known: Arc::new(Semaphore::new(KNOWN_CALLS)),
            subjects,
            line,
            issuer,
            metrics,
        }
    }

    /// Takes a place and a token for a call.
    fn enter(&self, call: Call, caller: &Caller) -> Result<OwnedSemaphorePermit, Refused> {
        let peer = caller.peer.as_deref();
        let registration = match call {
            // Evidence counts, and not who else its bearer is.
            Call::Challenge | Call::Attest => None,
            Call::Renew | Call::MintJwtSvid | Call::IssueTaskSvid => {
                peer.and_then(|peer| self.issuer.known_registration(peer, SystemTime::now()))
            }
        };
        let (places, asked) = match registration {
            Some(registration) => {
                let own = self.sign.take(registration.id.clone());
                (
                    &self.known,
                    own.and_then(|()| self.subjects.sign(&registration)),
                )
            }
            None => (
                &self.anonymous,
                self.attest.take(source(caller.address.ip())),
            ),
        };
        asked.map_err(rate_limited)?;
        Arc::clone(places).try_acquire_owned().map_err(|_| {
            let message = "the control plane has too many calls under way; try again";
            Refused {
                refusal: Refusal::new(Reason::Overloaded, message),
                retry_after: Some(self.line.appointment()),
            }
        })
    }

    /// Counts and records the refusal of a call whose request was not read.
    fn refuse(&self, call: Call, caller: &Caller, refused: Refused) -> Status {
        let Refused {
            refusal,
            retry_after,
        } = refused;
        self.metrics
            .count_call_refused(call.name(), refusal.reason.as_str());
        let (peer, address) = (caller.peer.as_deref(), caller.address.ip());
        let refusal = self
            .issuer
            .refuse_unread(call.name(), peer, address, refusal);
        let status = Status::from(refusal);
        match retry_after {
            Some(wait) => told_when(status, wait),
            None => status,
        }
    }

    fn refuse_header(&self, caller: Option<&Caller>) -> Status {
        static REFUSED: Throttle = Throttle::new();
        self.metrics
            .count_call_refused("any", Reason::LimitExceeded.as_str());
        if let Some(unsaid) = REFUSED.admit("header") {
            let peer = caller.map(|caller| tracing::field::display(caller.address));
            tracing::warn!(peer, unsaid, "a call with too large a header was refused");
        }
        let message = format!("a call's headers may have at most {MAX_HEADER_LIST_BYTES} bytes");
        Reason::LimitExceeded.status(message)
    }
}

/// A refusal that says when to come again.
pub(super) fn told_when(mut status: Status, wait: Duration) -> Status {
    let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    let value = MetadataValue::from(milliseconds);
    status.metadata_mut().insert(RETRY_AFTER_KEY, value);
    status
}

fn rate_limited(wait: Duration) -> Refused {
    Refused {
        refusal: too_often("too many calls", wait),
        retry_after: Some(wait),
    }
}

/// A refusal of what comes more often than it may.
pub(super) fn too_often(what: &str, wait: Duration) -> Refusal {
    let seconds = wait.as_secs_f64().max(0.1);
    Refusal::new(
        Reason::RateLimited,
        format!("{what}; try again in {seconds:.1} s"),
    )
}

/// Whether a message may be read, by what its first bytes say of it.
fn check_size(call: Call, opening: &Opening) -> Result<(), Refusal> {
    let Some(message_bytes) = opening.message_bytes else {
        return Ok(());
    };
    if message_bytes <= MAX_PROXY_MESSAGE_BYTES {
        return Ok(());
    }
    let csr_bytes = opening.first_field_bytes.filter(|_| call.has_csr());
    if let Some(csr_bytes) = csr_bytes.filter(|bytes| *bytes > MAX_CSR_BYTES) {
        let message = format!(
            "the certificate signing request has {csr_bytes} bytes; at most {MAX_CSR_BYTES} are taken"
        );
        return Err(Refusal::new(Reason::CsrRefused, message));
    }
    let message = format!(
        "the request has {message_bytes} bytes; at most {MAX_PROXY_MESSAGE_BYTES} are taken"
    );
    Err(Refusal::new(Reason::LimitExceeded, message))
}

/// The bytes of headers as HTTP/2 counts them (RFC 9113 section 6.5.2).
fn header_bytes(headers: &HeaderMap) -> u64 {
    let bytes = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() as u64 + value.len() as u64 + 32
    };
    headers.iter().map(bytes).sum()
}

/// Lets calls in.
#[derive(Debug, Clone)]
pub(super) struct TurnstileLayer(pub(super) Arc<Turnstile>);

/// A service behind [`TurnstileLayer`].
#[derive(Debug, Clone)]
pub(super) struct Admitted<S> {
    inner: S,
    turnstile: Arc<Turnstile>,
}

impl<S> Layer<S> for TurnstileLayer {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        let turnstile = Arc::clone(&self.0);
        Admitted { inner, turnstile }
    }
}

impl<S> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let caller = request.extensions().get::<Caller>().cloned();
        if header_bytes(request.headers()) > u64::from(MAX_HEADER_LIST_BYTES) {
            let status = self.turnstile.refuse_header(caller.as_ref());
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let call = Call::of(request.uri().path());
        let (Some(call), Some(caller)) = (call, caller) else {
            return Box::pin(self.inner.call(request));
        };
        let place = match self.turnstile.enter(call, &caller) {
            Ok(place) => place,
            Err(refused) => {
                let status = self.turnstile.refuse(call, &caller, refused);
                return Box::pin(std::future::ready(Ok(status.into_http())));
            }
        };
        let attestation = match call {
            Call::Attest => caller.doing.as_ref().map(|doing| doing.attest()),
            _ => None,
        };
        let turnstile = Arc::clone(&self.turnstile);
        // The one that is ready is the one to be used.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let _place = place;
            let (head, body) = request.into_parts();
            let (opening, body) = guard(body, MESSAGE_TIME).await;
            if let Err(refusal) = check_size(call, &opening) {
                let status = turnstile.refuse(call, &caller, refusal.into());
                return Ok(status.into_http());
            }
            let answer = inner.call(Request::from_parts(head, body)).await?;
            // A call that is refused says so in its head.
            if let Some(attestation) = attestation
                && !answer.headers().contains_key("grpc-status")
            {
                attestation.granted();
            }
            Ok(answer)
        })
    }
}
