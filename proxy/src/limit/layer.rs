//! The layer that keeps the limits of a service before anything is done for a request.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower::{Layer, Service, ServiceExt};

use super::ServiceLimits;
use crate::errors::ProxyError;
use crate::exchange::Exchange;
use crate::http::Body;

/// Keeps the limits of a service, where it has any.
#[derive(Clone, Debug)]
pub(crate) struct LimitLayer {
    pub(crate) limits: Option<Rc<ServiceLimits>>,
    pub(crate) exchange: Rc<Exchange>,
    /// The route that the request matched, "namespace/name".
    pub(crate) route: Option<Rc<str>>,
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service that [`LimitLayer`] makes.
#[derive(Debug)]
pub(crate) struct Limited<S> {
    inner: S,
    layer: LimitLayer,
}

impl<S> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = ProxyError> + Clone + 'static,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, ProxyError>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.inner.clone();
        let LimitLayer {
            limits,
            exchange,
            route,
        } = self.layer.clone();
        Box::pin(async move {
            let Some(limits) = limits else {
                return inner.oneshot(request).await;
            };
            exchange.pass(&limits, &request, route.as_deref()).await?;
            let result = inner.oneshot(request).await;
            if result.is_err() && exchange.body_was_cut_by(&limits) {
                return Err(limits.body_too_large());
            }
            result
        })
    }
}
