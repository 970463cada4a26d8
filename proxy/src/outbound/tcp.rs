//! Outbound bytes: opaque connections, and TLS that is the workload's own.
//!
//! balance → tunnel through the mesh, or a plain connection → copy

use std::{net::SocketAddr, rc::Rc, time::SystemTime};

use tokio::{net::TcpStream, time::Instant};

use super::{
    destination::{Destination, Resolved, Target},
    outside::{connect_first, outside_addresses},
    service::Service,
};
use crate::{
    airflow::ConnectionTask,
    balance::{MOST_UNSENT, Outcome, Pick, Tried},
    copy::{self, Connection, Progress, Side},
    errors::{ErrorCode, ProxyError},
    exchange::Party,
    limit::{Permit, client_of},
    mesh::TunnelStream,
    telemetry::{
        ConnectionRecord, Direction, Protocol,
        metrics::{ConnectionHandles, OpenConnection},
    },
    worker::{READY_WAIT, Worker},
};

/// How often a connection is tried where there is no other endpoint that was not.
const LEAST_TRIES: u32 = 3;

/// A connection of the workload that is carried as bytes.
#[derive(Debug)]
pub(crate) struct OpaqueConnection<T> {
    pub(crate) stream: T,
    pub(crate) client: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) direction: Direction,
    pub(crate) task: ConnectionTask,
}

enum Upstream {
    Mesh(TunnelStream),
    Plain(TcpStream),
}

/// A connection to a destination that was made before its client says anything. It is recorded once it is used.
pub(super) struct Ahead {
    journey: Journey,
    upstream: Upstream,
}

/// What is known of a connection, which is recorded when it ends or is dropped before.
struct Journey {
    worker: Rc<Worker>,
    started: (SystemTime, Instant),
    direction: Direction,
    protocol: Protocol,
    source: Party,
    service: Option<Rc<str>>,
    destination: Party,
    tls: bool,
    attempts: u32,
    progress: Progress,
    task: ConnectionTask,
    /// Once it is known where it goes.
    open: Option<(Rc<ConnectionHandles>, OpenConnection)>,
    recorded: bool,
    /// Among the connections at once.
    place: Option<Permit>,
    /// The endpoint counts it among its own until it ends.
    pick: Option<Pick>,
}

impl Journey {
    fn begin(
        worker: &Rc<Worker>,
        direction: Direction,
        protocol: Protocol,
        (client, task): (SocketAddr, &ConnectionTask),
    ) -> Self {
        // Whoever comes to a gateway from outside is nobody.
        let own_id = || worker.identity().ok().map(|identity| identity.id.clone());
        let is_own = direction != Direction::Gateway;
        Self {
            worker: Rc::clone(worker),
            started: (SystemTime::now(), Instant::now()),
            direction,
            protocol,
            source: Party {
                address: Some(client),
                id: is_own.then(own_id).flatten(),
            },
            service: None,
            destination: Party::default(),
            tls: false,
            attempts: 0,
            progress: Progress::default(),
            task: task.clone(),
            open: None,
            recorded: false,
            place: None,
            pick: None,
        }
    }

    /// Counts the connection as open, under what is known of it now.
    fn open(&mut self) {
        let handles = self.worker.telemetry.metrics().connection_handles(
            self.direction,
            self.protocol,
            self.service.as_deref().unwrap_or_default(),
            self.destination.as_peer().spiffe_id,
            self.tls,
        );
        let open = handles.open();
        self.open = Some((handles, open));
    }

    fn end(&mut self, error: Option<&ProxyError>) {
        self.recorded = true;
        let detail = error.map(|error| error.chain().to_string());
        self.worker.telemetry.finish_connection(&ConnectionRecord {
            started: self.started.0,
            duration: self.started.1.elapsed(),
            error: error.map(ProxyError::code),
            error_detail: detail.as_deref(),
            service: self.service.as_deref().unwrap_or_default(),
            endpoint: self.destination.address,
            source: self.source.as_peer(),
            destination: self.destination.as_peer(),
            tls: self.tls,
            attempts: self.attempts,
            request_bytes: self.progress.sent(),
            response_bytes: self.progress.received(),
            task: self.task.now(),
            task_unknown: self.task.unknown(),
            handles: self.open.as_ref().map(|(handles, _)| &**handles),
            ..ConnectionRecord::new(self.direction, self.protocol)
        });
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        if !self.recorded {
            let error = self.worker.telemetry.cut_off();
            self.end(Some(&error));
        }
    }
}

/// Connects to a destination whose client waits to hear whether it can be reached. A failure is recorded as that of the
/// connection.
///
/// # Errors
/// Why it cannot.
pub(super) async fn connect_ahead(
    worker: &Rc<Worker>,
    destination: &Destination,
    protocol: Protocol,
    client: (SocketAddr, &ConnectionTask),
) -> Result<Box<Ahead>, ProxyError> {
    let mut journey = Journey::begin(worker, Direction::Outbound, protocol, client);
    match Box::pin(connect(worker, destination, protocol, &mut journey)).await {
        Ok(upstream) => {
            // Not before there is anything to record.
            journey.recorded = true;
            Ok(Box::new(Ahead { journey, upstream }))
        }
        Err(error) => {
            journey.open();
            journey.end(Some(&error));
            Err(error)
        }
    }
}

/// Leaves a connection that was made ahead to the requests that its client turned out to send.
pub(super) async fn keep_for_requests(ahead: Option<Box<Ahead>>) {
    let Some(ahead) = ahead else { return };
    let Ahead { journey, upstream } = *ahead;
    if let (Upstream::Plain(stream), Some(address)) = (upstream, journey.destination.address) {
        journey.worker.endpoints.keep(address, stream).await;
    }
}

/// Carries a connection to its destination until both sides have closed it, and records it. Where there is one already,
/// that was made `ahead`, it goes by that.
pub(super) async fn forward<T: Connection>(
    worker: &Rc<Worker>,
    destination: &Destination,
    connection: OpaqueConnection<T>,
    ahead: Option<Box<Ahead>>,
) {
    let OpaqueConnection {
        stream,
        client,
        protocol,
        direction,
        task,
    } = connection;
    let (mut journey, connected) = match ahead {
        Some(ahead) => {
            let Ahead {
                mut journey,
                upstream,
            } = *ahead;
            journey.recorded = false;
            journey.protocol = protocol;
            (journey, Ok(upstream))
        }
        None => {
            let mut journey = Journey::begin(worker, direction, protocol, (client, &task));
            // In a box, since it is over when bytes flow.
            let connecting = connect(worker, destination, protocol, &mut journey);
            let connected = Box::pin(connecting).await;
            (journey, connected)
        }
    };
    journey.open();
    let result = match connected {
        Ok(upstream) => relay(stream, upstream, &journey.progress).await,
        Err(error) => {
            // A reset, not an orderly end: the client must not take silence for success.
            stream.close_by_reset();
            Err(error)
        }
    };
    journey.end(result.err().as_ref());
}

async fn relay<T: Connection>(
    client: T,
    upstream: Upstream,
    progress: &Progress,
) -> Result<(), ProxyError> {
    let result = match upstream {
        Upstream::Mesh(tunnel) => copy::copy_tunnel(client, tunnel, None, progress).await,
        Upstream::Plain(stream) => copy::copy_both(client, stream, None, progress).await,
    };
    result.map_err(|error| error.blame(Side::Near))
}

async fn connect(
    worker: &Rc<Worker>,
    destination: &Destination,
    protocol: Protocol,
    journey: &mut Journey,
) -> Result<Upstream, ProxyError> {
    match destination.resolve(worker, READY_WAIT).await {
        Ok(Resolved::Service(service)) => connect_to_service(worker, &service, journey).await,
        // Routes name services of the mesh, and nothing else may be reached by a gateway.
        Ok(Resolved::Outside) if journey.direction == Direction::Gateway => {
            Err(unknown_service(destination.target()))
        }
        Ok(Resolved::Outside) => connect_outside(worker, destination, journey).await,
        // What the workload has encrypted itself may go on without the control plane's word; plaintext that
        // might belong into the mesh may not.
        Err(_) if protocol == Protocol::Tls && journey.direction == Direction::Outbound => {
            connect_outside(worker, destination, journey).await
        }
        Err(error) => Err(error),
    }
}

/// What is said of a gateway's route to a service that discovery does not know.
pub(super) fn unknown_service(target: &Target) -> ProxyError {
    let message = format_args!("{target}, which a route names, is no service of the mesh.");
    ProxyError::new(ErrorCode::NoEndpoints, message)
}

async fn connect_to_service(
    worker: &Rc<Worker>,
    service: &Rc<Service>,
    journey: &mut Journey,
) -> Result<Upstream, ProxyError> {
    journey.service = Some(Rc::clone(service.name()));
    if let Some(limits) = service.limits() {
        journey.place = limits.admit_connection()?;
    }
    let mut last = None;
    let tried = Tried::default();
    let address = (journey.source.address).map(|it| client_of(journey.direction, it.ip()));
    while journey.attempts < LEAST_TRIES
        || journey.attempts < MOST_UNSENT && service.has_untried(&tried)
    {
        let Some(pick) = service.pick(&journey.source, address, &tried) else {
            break;
        };
        journey.attempts += 1;
        let endpoint = pick.desc();
        tried.add(endpoint.address);
        journey.tls = endpoint.mesh.is_some();
        journey.destination = Party {
            address: Some(endpoint.address),
            id: endpoint.mesh.as_ref().map(|mesh| mesh.id.clone()),
        };
        let result = match &endpoint.mesh {
            Some(mesh) => match worker.caller(&journey.task).await {
                Ok(identity) => {
                    journey.source.id = Some(identity.id.clone());
                    let tunnel = endpoint
                        .tunnel(worker, &identity, mesh, journey.task.now())
                        .await;
                    tunnel.map(Upstream::Mesh)
                }
                Err(error) => Err(error),
            },
            None => {
                let connected = worker.endpoints.connect(endpoint.address).await;
                connected.map(Upstream::Plain)
            }
        };
        match result {
            Ok(upstream) => {
                pick.finish(Outcome::Success);
                journey.pick = Some(pick);
                return Ok(upstream);
            }
            // Who is refused here is refused by every endpoint, and what this proxy lacks it lacks for all.
            Err(error) if is_about_us(error.code()) => return Err(error),
            Err(error) => {
                pick.finish(Outcome::ConnectFailed);
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| service.no_endpoints()))
}

fn is_about_us(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::PolicyDenied
            | ErrorCode::IdentityUnavailable
            | ErrorCode::IdentityExpired
            | ErrorCode::TaskIdentityUnavailable
            | ErrorCode::TaskIdentityRefused
            | ErrorCode::Overloaded
    )
}

async fn connect_outside(
    worker: &Rc<Worker>,
    destination: &Destination,
    journey: &mut Journey,
) -> Result<Upstream, ProxyError> {
    let addresses = outside_addresses(worker, destination).await?;
    let connected = connect_first(&worker.endpoints, &addresses, |address| {
        journey.attempts += 1;
        journey.destination.address = Some(address);
    });
    connected.await.map(Upstream::Plain)
}
