//! HTTP of a gateway: the way of one request.
//!
//! forwarded headers → exchange (record, trace) → clean, without what is said of tasks → listener by host → the listener's limits → its routes →
//! [`Forward`], which is a sidecar's way too

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc};

use super::{
    OpenPort, forwarded,
    port::{Listener, Port},
};
use crate::{
    airflow::{ExecutionCall, baggage, outage},
    copy::Connection,
    errors::{Chain, ErrorCode, ProxyError},
    exchange::{Exchange, Origin, Party},
    http::{Body, Idle},
    limit::ServiceLimits,
    outbound::Forward,
    retry::RetryPolicy,
    route::{Front, RouteTable},
    telemetry::Direction,
    worker::Worker,
};
use http::{HeaderValue, Request, Response, header};

/// Serves the requests of one client's connection.
#[derive(Clone, Debug)]
pub(super) struct GatewayHttp(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    worker: Rc<Worker>,
    port: Arc<OpenPort>,
    origin: Origin,
    client: SocketAddr,
    /// The listener whose certificate the client saw; none without TLS.
    proven: Option<String>,
    idle: Rc<Idle>,
}

/// Serves a connection to its end: until the client closes it, it is idle for too long, the port is closed, or the
/// drain begins.
pub(super) async fn serve<T>(worker: Rc<Worker>, stream: T, http2: bool, http: GatewayHttp)
where
    T: Connection + Send + 'static,
{
    let _open = worker.open_http(Direction::Gateway, http2, "", None);
    let idle = Rc::clone(&http.0.idle);
    let (drain, closed) = (worker.drain.begun(), http.0.port.closed());
    let ending = {
        let idle = Rc::clone(&idle);
        async move {
            tokio::select! {
                () = drain => {}
                () = closed => {}
                () = idle.too_long() => {}
            }
        }
    };
    let service = move |request| {
        let http = http.clone();
        async move { Ok(http.respond(request).await) }
    };
    tokio::select! {
        () = worker.serve_http(stream, http2, Direction::Gateway, false, ending, service) => {}
        // It was told to go and stays.
        () = idle.overstayed() => {}
    }
}

impl GatewayHttp {
    pub(super) fn new(
        worker: &Rc<Worker>,
        port: Arc<OpenPort>,
        client: SocketAddr,
        proven: Option<String>,
    ) -> Self {
        let source = Party {
            address: Some(client),
            id: None,
        };
        Self(Rc::new(Inner {
            origin: Origin::new(worker, Direction::Gateway, source),
            worker: Rc::clone(worker),
            port,
            client,
            proven,
            idle: Idle::new(worker.config.gateway.idle_timeout),
        }))
    }

    async fn respond(&self, mut request: Request<Body>) -> Response<Body> {
        let inner = &*self.0;
        let under_way = inner.idle.begin();
        let tls = inner.proven.is_some();
        let host = host_value(&request);
        let trusted = &inner.worker.config.gateway.trusted_proxies;
        let headers = request.headers_mut();
        let client = forwarded::apply(headers, host.as_ref(), inner.client, tls, trusted);
        let mut origin = inner.origin.clone();
        if client.address != inner.client.ip().to_canonical() {
            // A proxy in front says who it is, and from no port.
            origin.source.address = Some(SocketAddr::new(client.address, 0));
        }
        // Where it came in at that proxy nobody says: most likely at the scheme's own port.
        let number = match (client.tls == tls, client.tls) {
            (true, _) => inner.port.number,
            (false, true) => 443,
            (false, false) => 80,
        };
        let front = Front {
            tls: client.tls,
            port: number,
        };
        let exchange = Exchange::begin(&origin, &mut request, inner.worker.drain.active());
        let port = inner.port.current();
        let host = host.as_ref().and_then(|host| host.to_str().ok());
        let listener = inner.listener(&port, host.unwrap_or_default());
        let is_for_airflow = ExecutionCall::of(&request).is_some();
        let result = inner.forward(&origin, &exchange, front, listener, request);
        let mut result = result.await;
        if is_for_airflow {
            result = outage::tell(result);
        }
        let mut response = exchange.end(result);
        if let Some(hsts) = listener.ok().and_then(|listener| listener.hsts.clone()) {
            let headers = response.headers_mut();
            headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts);
        }
        response.map(|body| body.watched(Rc::new(under_way)))
    }
}

impl Inner {
    /// The listener that a request is for, where its connection may ask for it.
    fn listener<'p>(
        &self,
        port: &'p Port,
        authority: &str,
    ) -> Result<&'p Arc<Listener>, NoListener> {
        let host = host_of(authority).to_ascii_lowercase();
        let listener = port.listener(&host).ok_or(NoListener::Unknown)?;
        match &self.proven {
            // Another host's listener has another certificate, and perhaps other clients (RFC 9110, section 15.5.20).
            Some(proven) if *proven != listener.name => Err(NoListener::Other),
            _ => Ok(listener),
        }
    }

    async fn forward(
        &self,
        origin: &Origin,
        exchange: &Rc<Exchange>,
        front: Front,
        listener: Result<&Arc<Listener>, NoListener>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        exchange.keep_admission(self.worker.overload.admit()?);
        exchange.clean(&mut request)?;
        // Whoever comes from outside is no task of the mesh, whatever he says.
        baggage::take(request.headers_mut());
        let listener = listener?;
        let served = self.worker.gateway.tables.of(&self.worker, listener);
        if let Some(limits) = &served.limits {
            exchange.pass(limits, &request, None).await?;
        }
        let table = served.routes(listener)?;
        let forward = Forward {
            worker: &self.worker,
            origin,
            exchange,
            front,
            // Each service says what it speaks; what the client spoke says nothing of it.
            http2: false,
            call: None,
        };
        let result = forward.by_table(table, None, request).await;
        match &served.limits {
            Some(limits) if result.is_err() && exchange.body_was_cut_by(limits) => {
                Err(limits.body_too_large())
            }
            _ => result,
        }
    }
}

/// Why a request has no listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoListener {
    Unknown,
    Other,
}

impl From<NoListener> for ProxyError {
    fn from(reason: NoListener) -> Self {
        match reason {
            // On whichever connection: a new one would be of no use.
            NoListener::Unknown => Self::new(
                ErrorCode::NoRoute,
                "No listener of this gateway is for the host that the request names.",
            ),
            NoListener::Other => Self::new(
                ErrorCode::WrongDestination,
                "The host that the request names is served by another listener than this connection; make a new one.",
            ),
        }
    }
}

/// The authority that a request names.
fn host_value(request: &Request<Body>) -> Option<HeaderValue> {
    match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers().get(header::HOST).cloned(),
    }
}

/// Without user, port and final dot.
fn host_of(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        // The colons of an IPv6 address are within brackets.
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// The listeners of ports as one worker serves them.
#[derive(Debug, Default)]
pub(super) struct Tables(RefCell<Vec<(Arc<Listener>, Served)>>);

/// What a worker makes of a listener.
#[derive(Clone, Debug)]
pub(super) struct Served {
    /// None where they cannot be read.
    routes: Option<Rc<RouteTable>>,
    pub(super) limits: Option<Rc<ServiceLimits>>,
}

impl Tables {
    /// What is made of a listener: once, and forgotten when the port has another listener in its place.
    pub(super) fn of(&self, worker: &Worker, listener: &Arc<Listener>) -> Served {
        let mut known = self.0.borrow_mut();
        if let Some((_, served)) = known.iter().find(|(it, _)| Arc::ptr_eq(it, listener)) {
            return served.clone();
        }
        let place = format!("gateway {}", listener.name);
        let (bounds, rates) = (listener.bounds.as_ref(), &listener.rate_limits);
        let served = Served {
            routes: read(worker, listener),
            limits: worker.limits.of(&place, &listener.name, bounds, rates),
        };
        // Those that nobody else holds are of a state that is gone. Not before, since its buckets go on.
        known.retain(|(other, _)| Arc::strong_count(other) > 1);
        known.push((Arc::clone(listener), served.clone()));
        served
    }
}

impl Served {
    fn routes(&self, listener: &Listener) -> Result<&RouteTable, ProxyError> {
        self.routes.as_deref().ok_or_else(|| {
            let message = format_args!("The routes of listener {} cannot be read.", listener.name);
            ProxyError::new(ErrorCode::BackendInvalid, message)
        })
    }
}

fn read(worker: &Worker, listener: &Listener) -> Option<Rc<RouteTable>> {
    let Some(routes) = &listener.routes else {
        return Some(Rc::default());
    };
    let policy = |route: Option<&_>| RetryPolicy::new(route, &worker.config.traffic);
    RouteTable::compile(routes, &policy)
        .map(Rc::new)
        .inspect_err(|error| {
            tracing::error!(listener = listener.name, error = %Chain(error), "a listener's routes cannot be read");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_authority_has_no_port() {
        for (authority, host) in [
            ("airflow.example.com", "airflow.example.com"),
            ("airflow.example.com:8443", "airflow.example.com"),
            ("airflow.example.com.:8443", "airflow.example.com"),
            ("[::1]:8443", "[::1]"),
            ("[::1]", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(host_of(authority), host);
        }
    }
}
