//! The mesh over real loopback sockets with real certificates.

use bytes::Bytes;
use http::Request;

use super::{MeshPool, PoolSettings, client::MeshConnection, testing::Bouncer};

mod floods;
mod pool;
mod server;
mod standing;
mod tunnel;

pub(super) fn pool(settings: PoolSettings) -> MeshPool {
    MeshPool::new(settings, Box::new(()), Bouncer::default().census())
}

pub(super) fn get(path: &str) -> Request<()> {
    Request::get(format!("http://service.test{path}"))
        .body(())
        .unwrap()
}

/// Sends a request and gives the answer's body.
pub(super) async fn fetch(connection: &mut MeshConnection, path: &str) -> Result<Bytes, h2::Error> {
    let (response, _) = connection.send_request().send_request(get(path), true)?;
    let mut body = response.await?.into_body();
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all.into())
}
