//! Sends a request where its route says: for sidecars and gateways alike.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request::Parts};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt};

use super::{
    destination::Resolved,
    http::{Among, Balance},
    service::{Routes, Service},
};
use crate::{
    airflow::ExecutionCall,
    balance::Tried,
    errors::{ErrorCode, ProxyError},
    exchange::{Exchange, Origin},
    http::Body,
    retry::{Others, RetryObserver, RetryPolicy},
    route::{CopiedBody, Front, Mirror, RouteTable, Selected, Target},
    telemetry::metrics::MirrorOutcome,
    worker::{READY_WAIT, Worker},
};

/// How long a mirror may take to answer.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(15);

/// One request on its way from where it came in to a backend.
#[derive(Debug)]
pub(crate) struct Forward<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) origin: &'a Origin,
    pub(crate) exchange: &'a Rc<Exchange>,
    pub(crate) front: Front,
    /// Whether the service that the client has dialled is spoken to in HTTP/2, as the client does.
    pub(crate) http2: bool,
    /// What it asks of Airflow's Execution API, if that is what it is for.
    pub(crate) call: Option<&'a ExecutionCall>,
}

impl Forward<'_> {
    /// Sends a request that is for `service`, by its routes where it has any.
    pub(crate) async fn by_service(
        &self,
        service: &Rc<Service>,
        request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        match service.routes() {
            Routes::None(policy) => {
                if let Some(route) = &policy.route {
                    self.exchange.set_route(route);
                }
                self.to_service(service, policy, self.http2, request).await
            }
            Routes::Table(table) => self.by_table(&table, Some(service), request).await,
            Routes::Unreadable(reason) => {
                self.exchange.set_service(service.name());
                let message = format_args!("The service's routes cannot be read: {reason}.");
                Err(ProxyError::new(ErrorCode::BackendInvalid, message))
            }
        }
    }

    /// Sends a request by the rule that matches it. `own` is the service that the table is of; none for a gateway's.
    pub(crate) async fn by_table(
        &self,
        table: &RouteTable,
        own: Option<&Rc<Service>>,
        request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let result = match table.select(&request) {
            Some(selected) => self.by_rule(&selected, own, request).await,
            None => Err(ProxyError::new(
                ErrorCode::NoRoute,
                "No rule of the routes that are attached here matches the request.",
            )),
        };
        if let Some(own) = own {
            // Where no backend was found.
            self.exchange.set_service(own.name());
        }
        result
    }

    async fn by_rule(
        &self,
        selected: &Selected,
        own: Option<&Rc<Service>>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let Selected { rule, prefix } = selected;
        self.exchange.set_route(&rule.name);
        let mut response = match &rule.filters.redirect {
            Some(redirect) => redirect.answer(&request, self.front, *prefix)?,
            None => {
                rule.filters.change_request(&mut request, *prefix)?;
                for mirror in rule.mirrors() {
                    self.mirror(mirror, own, &mut request).await;
                }
                let Some(backend) = rule.backend() else {
                    return Err(invalid("every backend has weight 0"));
                };
                let service = self.resolve(&backend.target, own).await?;
                backend.filters.change_request(&mut request, *prefix)?;
                let policy = Rc::clone(&rule.policy);
                let http2 = self.speaks_http2(&service, own);
                let mut response = self.to_service(&service, policy, http2, request).await?;
                backend.filters.change_response(&mut response);
                response
            }
        };
        rule.filters.change_response(&mut response);
        Ok(response)
    }

    async fn resolve(
        &self,
        target: &Target,
        own: Option<&Rc<Service>>,
    ) -> Result<Rc<Service>, ProxyError> {
        match target {
            Target::Own => own.cloned().ok_or_else(|| invalid("it names no backend")),
            Target::Invalid(reason) => Err(invalid(reason)),
            Target::Destination(target) => {
                let destination = self.worker.destinations.get(target);
                match destination.resolve(self.worker, READY_WAIT).await? {
                    Resolved::Service(service) => Ok(service),
                    Resolved::Outside => Err(invalid(format_args!(
                        "no service of the mesh is at {target}"
                    ))),
                }
            }
        }
    }

    /// Whether a backend is spoken to in HTTP/2. What a client speaks says something of the service that it has dialled
    /// alone, and nothing of one that a route names.
    fn speaks_http2(&self, service: &Service, own: Option<&Rc<Service>>) -> bool {
        match own {
            Some(own) if own.is_that_of(service) => self.http2,
            _ => self.exchange.is_grpc() || service.declares_http2(),
        }
    }

    /// Sends a request to an endpoint of a service, again where `policy` and the outcome say so.
    async fn to_service(
        &self,
        service: &Rc<Service>,
        policy: Rc<RetryPolicy>,
        http2: bool,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        self.exchange.set_service(service.name());
        let held_until = self
            .call
            .and_then(|_| self.worker.held_until(self.exchange));
        let policy = match (self.call, held_until) {
            (Some(call), Some(until)) => {
                let hedge = self.worker.config.airflow.hedge;
                let hedge = hedge.filter(|_| service.has_choice());
                call.policy(&policy, until, hedge)
            }
            _ => policy,
        };
        let limits = service.limits();
        if let Some(limits) = &limits {
            let route = self.exchange.route();
            self.exchange
                .pass(limits, &request, route.as_deref())
                .await?;
        }
        if http2 {
            self.exchange.ignore_upgrade(&mut request);
        }
        let observer = Rc::clone(self.exchange) as Rc<dyn RetryObserver>;
        let retry = service.retry(Rc::clone(&policy)).observed(observer);
        let among = Rc::new(Among {
            service: Rc::clone(service),
            tried: Tried::default(),
        });
        let retry = retry.since(self.exchange.started());
        let retry = retry.among(Rc::clone(&among) as Rc<dyn Others>);
        let balance = Balance {
            worker: Rc::clone(self.worker),
            exchange: Rc::clone(self.exchange),
            among,
            http2,
            secure: self.front.tls,
            ends: retry.ends(request.headers()),
            policy,
        };
        let result = retry.layer(balance).oneshot(request).await;
        match limits {
            Some(limits) if result.is_err() && self.exchange.body_was_cut_by(&limits) => {
                Err(limits.body_too_large())
            }
            _ => result,
        }
    }

    /// Sends a copy of a request on its own way, once its body has gone by. Whatever comes of it is counted and
    /// nothing else.
    async fn mirror(
        &self,
        mirror: &Mirror,
        own: Option<&Rc<Service>>,
        request: &mut Request<Body>,
    ) {
        let count = |worker: &Worker, service: &str, outcome| {
            worker.telemetry.metrics().mirrored(service, outcome);
        };
        // An upgraded connection is no request that could be copied.
        if self.exchange.wants_upgrade() {
            return;
        }
        // Resolving it may wait, which the request must not.
        let service = match &mirror.backend.target {
            Target::Own => own.cloned(),
            Target::Invalid(_) => None,
            Target::Destination(target) => match self.worker.destinations.get(target).current() {
                Some(Resolved::Service(service)) => Some(service),
                Some(Resolved::Outside) | None => None,
            },
        };
        let Some(service) = service else {
            return count(self.worker, "", MirrorOutcome::Dropped);
        };
        let Some(place) = self.worker.copies.begin() else {
            return count(self.worker, service.name(), MirrorOutcome::Dropped);
        };
        let copy = MirrorCopy {
            worker: Rc::clone(self.worker),
            origin: self.origin.clone(),
            front: self.front,
            http2: self.speaks_http2(&service, own),
            route: self.exchange.route(),
            service,
            head: head_of(request),
        };
        let send = move |body: Option<Bytes>| match body {
            Some(body) => {
                tokio::task::spawn_local(async move {
                    copy.send(body).await;
                    drop(place);
                });
            }
            None => count(&copy.worker, copy.service.name(), MirrorOutcome::Dropped),
        };
        if request.body().is_empty() {
            return send(Some(Bytes::new()));
        }
        let body = std::mem::take(request.body_mut());
        *request.body_mut() = Body::Copied(Box::new(CopiedBody::new(body, send)));
    }
}

/// A copy that waits for its body.
struct MirrorCopy {
    worker: Rc<Worker>,
    origin: Origin,
    front: Front,
    http2: bool,
    route: Option<Rc<str>>,
    service: Rc<Service>,
    head: Parts,
}

impl MirrorCopy {
    async fn send(self, body: Bytes) {
        let mut request = Request::from_parts(self.head, Body::from(body));
        let exchange = Exchange::begin(&self.origin, &mut request, self.worker.drain.active());
        if let Some(route) = &self.route {
            exchange.set_route(route);
        }
        let forward = Forward {
            worker: &self.worker,
            origin: &self.origin,
            exchange: &exchange,
            front: self.front,
            http2: self.http2,
            call: None,
        };
        // A copy is sent once.
        let policy = Rc::new(RetryPolicy {
            max_retries: 0,
            request_timeout: Some(MIRROR_TIMEOUT),
            ..RetryPolicy::default()
        });
        let result = forward
            .to_service(&self.service, policy, self.http2, request)
            .await;
        let outcome = match &result {
            Ok(_) => MirrorOutcome::Answered,
            Err(_) => MirrorOutcome::Failed,
        };
        let metrics = self.worker.telemetry.metrics();
        metrics.mirrored(self.service.name(), outcome);
        let mut body = exchange.end(result).into_body();
        // What the mirror says is of no use, and a connection on which it is read can be used again.
        let read = async { while let Some(Ok(_)) = body.frame().await {} };
        drop(tokio::time::timeout(MIRROR_TIMEOUT, read).await);
    }
}

fn head_of(request: &Request<Body>) -> Parts {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = HeaderMap::clone(request.headers());
    copy.into_parts().0
}

fn invalid(reason: impl std::fmt::Display) -> ProxyError {
    let message = format_args!("The request's route leads nowhere: {reason}.");
    ProxyError::new(ErrorCode::BackendInvalid, message)
}
