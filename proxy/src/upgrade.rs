//! HTTP/1.1 upgrades (RFC 9110, section 7.8): after `101 Switching Protocols` both connections carry bytes that
//! are no longer HTTP.

use std::rc::Rc;

use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::{
    copy::{self, Connection, Progress},
    errors::{Chain, ProxyError},
    exchange::Exchange,
    http::Body,
};

impl Connection for TokioIo<hyper::upgrade::Upgraded> {}

/// Sends a request that asks for an upgrade, by `send`, on a connection of its own. Where the server switches
/// protocols, bytes are copied both ways for as long as both sides like; the exchange ends with that.
pub(crate) async fn relay<F>(
    mut request: Request<Body>,
    exchange: &Rc<Exchange>,
    send: impl FnOnce(Request<Body>) -> F,
) -> Result<Response<Body>, ProxyError>
where
    F: Future<Output = Result<Response<Body>, ProxyError>>,
{
    let client = hyper::upgrade::on(&mut request);
    let mut response = send(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let server = hyper::upgrade::on(&mut response);
        let exchange = Rc::clone(exchange);
        tokio::task::spawn_local(async move {
            match futures_util::future::try_join(client, server).await {
                Ok((client, server)) => {
                    let (client, server) = (TokioIo::new(client), TokioIo::new(server));
                    let progress = Progress::default();
                    if let Err(error) = copy::copy_both(client, server, None, &progress).await {
                        tracing::debug!(error = %Chain(&error), "an upgraded connection broke off");
                    }
                    exchange.count_request_bytes(progress.sent());
                    exchange.count_response_bytes(progress.received());
                }
                Err(error) => tracing::debug!(%error, "an upgrade was not completed"),
            }
        });
    }
    Ok(response)
}
