//! The own trust domain's bundle, for others to fetch (SPIFFE Federation, section 5.2): by `https_web`, with a certificate
//! that is given, and by `https_spiffe`, with the control plane's own SVID.
//!
//! A connection carries one request and lives for [`CONNECTION_TIME`] at most. Nobody is asked who he is, so everybody counts
//! by his address, and whoever comes while all places are taken ends the connection that has waited longest.

use super::limits::{Buckets, source};
use super::web_certificate::WebCertificate;
use crate::federation::document::{ConversionError, of_api};
use crate::issuance::authority::CertificateAuthority;
use crate::issuance::own::OwnIdentity;
use crate::telemetry::{Metrics, Throttle, chain, lasting_fault};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 256;
/// From accepting a connection to the last byte of its response.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// How long a client may take to send its request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's header.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Fields of a request's header.
const MAX_HEADERS: usize = 64;
/// Connections of one address in a second; five times as many at once. A foreign control plane comes every few minutes.
const PER_SECOND: f64 = 10.0;
/// How long to wait after accepting failed, as it does while file descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the endpoint proves itself.
#[derive(Debug)]
pub(super) enum Proof {
    /// By a certificate for its host.
    Web(Arc<WebCertificate>),
    /// By the control plane's SVID.
    Spiffe(Arc<OwnIdentity>),
}

/// A bundle endpoint.
#[derive(Debug)]
pub(super) struct BundleEndpoint {
    proof: Proof,
    authority: Arc<CertificateAuthority>,
    metrics: Arc<Metrics>,
    connections: Buckets<IpAddr>,
}

impl BundleEndpoint {
    pub(super) fn new(
        proof: Proof,
        authority: Arc<CertificateAuthority>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            proof,
            authority,
            metrics,
            connections: Buckets::new(PER_SECOND),
        })
    }

    fn profile(&self) -> &'static str {
        match self.proof {
            Proof::Web(_) => "https_web",
            Proof::Spiffe(_) => "https_spiffe",
        }
    }

    fn tls(&self) -> Arc<ServerConfig> {
        match &self.proof {
            Proof::Web(certificate) => certificate.tls(),
            Proof::Spiffe(own) => own.bundle_endpoint_tls(),
        }
    }

    /// Serves until dropped.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = JoinSet::new();
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.refused("accept-failed", None, &error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if self.connections.take(source(remote.ip())).is_err() {
                let why = "it was closed before its handshake";
                self.refused("rate-limited", Some(remote), &why);
                continue;
            }
            open.retain(|connection| !connection.is_finished());
            if open.len() >= MAX_CONNECTIONS
                && let Some(oldest) = open.pop_front()
            {
                let excess = format_args!("more than {MAX_CONNECTIONS} connections at once");
                self.refused("too-many", Some(remote), &excess);
                oldest.abort();
            }
            let connection = Arc::clone(&self).connection(stream, remote);
            open.push_back(tasks.spawn(connection));
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, remote: SocketAddr) {
        let serving = async {
            let stream = match TlsAcceptor::from(self.tls()).accept(stream).await {
                Ok(stream) => stream,
                Err(error) => {
                    self.refused("handshake-failed", Some(remote), &error);
                    return;
                }
            };
            let service = service_fn(|request| {
                let endpoint = Arc::clone(&self);
                async move { Ok::<_, Infallible>(endpoint.answer(&request)) }
            });
            let served = http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER_BYTES)
                .max_headers(MAX_HEADERS)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            match served {
                Err(error) if error.is_parse() || error.is_timeout() => {
                    self.refused("bad-request", Some(remote), &error);
                }
                Err(error) => {
                    tracing::debug!(%remote, %error, "a client of the bundle endpoint went away")
                }
                Ok(()) => {}
            }
        };
        if let Err(elapsed) = tokio::time::timeout(CONNECTION_TIME, Box::pin(serving)).await {
            self.refused("timeout", Some(remote), &elapsed);
        }
    }

    fn refused(
        &self,
        outcome: &'static str,
        remote: Option<SocketAddr>,
        error: &dyn std::fmt::Display,
    ) {
        static REFUSED: Throttle = Throttle::new();
        let profile = self.profile();
        self.metrics.federation.count_served(profile, outcome);
        if let Some(unsaid) = REFUSED.admit(outcome) {
            let remote = remote.map(tracing::field::display);
            tracing::warn!(reason = outcome, profile, remote, %error, unsaid, "a connection to the bundle endpoint was refused");
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (outcome, response) = if request.method() != Method::GET {
            let mut response = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET is answered here\n",
            );
            let allowed = HeaderValue::from_static("GET");
            response.headers_mut().insert(header::ALLOW, allowed);
            ("method-not-allowed", response)
        } else if request.uri().path() != "/" {
            let there_is = "there is only /, which is the trust bundle\n";
            ("not-found", text(StatusCode::NOT_FOUND, there_is))
        } else {
            match self.document() {
                Ok(document) => ("served", json(document)),
                Err(error) => {
                    lasting_fault("the own bundle cannot be served as a document", &error);
                    let sentence = "the bundle cannot be served at present\n";
                    ("failed", text(StatusCode::SERVICE_UNAVAILABLE, sentence))
                }
            }
        };
        self.metrics
            .federation
            .count_served(self.profile(), outcome);
        response
    }

    fn document(&self) -> Result<String, ConversionError> {
        let bundles = self.authority.api_bundles();
        let own = bundles.bundles.first().cloned().unwrap_or_default();
        Ok(of_api(&own)?.to_json())
    }
}

fn json(document: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(document)));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, kind);
    // A revocation must not wait in a cache on the way.
    let cache = HeaderValue::from_static("no-store");
    headers.insert(header::CACHE_CONTROL, cache);
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Reads the certificate again and again. Runs until dropped.
pub(super) async fn follow(certificate: Arc<WebCertificate>) {
    const INTERVAL: Duration = Duration::from_secs(1);
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let read = Arc::clone(&certificate);
        match tokio::task::spawn_blocking(move || read.look()).await {
            Ok(Ok(true)) => tracing::info!("the bundle endpoint has a new certificate"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => lasting_fault(
                "the new certificate of the bundle endpoint is not taken; the one before stays in use",
                &error,
            ),
            Err(error) => tracing::error!(error = chain(&error), "a look at a certificate failed"),
        }
    }
}
