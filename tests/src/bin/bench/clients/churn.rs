//! New connections, one after another.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::hold::Kind;
use super::{Tally, within};
use crate::Result;
use crate::lab::Lab;

/// How many are open at once.
const CONCURRENCY: u64 = 8;

/// Opens `count` connections, each for one exchange.
pub(crate) async fn churn(lab: &Lab, address: SocketAddr, kind: Kind, count: u64) -> Result<Tally> {
    within(&lab.client.place(), move || async move {
        let (left, errors) = (Rc::new(Cell::new(count)), Rc::new(Cell::new(0)));
        let clients: Vec<_> = (0..CONCURRENCY)
            .map(|_| {
                let (left, errors) = (Rc::clone(&left), Rc::clone(&errors));
                tokio::task::spawn_local(async move {
                    while let Some(rest) = left.get().checked_sub(1) {
                        left.set(rest);
                        if once(address, kind).await.is_err() {
                            errors.set(errors.get() + 1);
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.await?;
        }
        Ok(Tally {
            done: count,
            errors: errors.get(),
        })
    })
    .await
}

async fn once(address: SocketAddr, kind: Kind) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    kind.exchange(&mut stream).await
}
