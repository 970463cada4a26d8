//! Full handshakes with an inbound proxy, with the outbound side's certificate.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Tally, within};
use crate::Result;
use crate::floor::client_config;
use crate::lab::Lab;

/// Makes `count` handshakes, four at a time, and closes each connection at once.
pub(crate) async fn handshakes(
    lab: &Lab,
    address: SocketAddr,
    alpn: Option<&'static str>,
    server_name: Option<&'static str>,
    count: u64,
) -> Result<Tally> {
    const CONCURRENCY: u64 = 4;
    let mut config = client_config(&lab.path(""), "outbound", alpn)?;
    if server_name.is_none() {
        // A mesh certificate names a SPIFFE ID and no host. What is measured is the server's part.
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(Unchecked));
        config.enable_sni = false;
    }
    let connector = TlsConnector::from(Arc::new(config));
    within(&lab.client.place(), move || async move {
        let clients: Vec<_> = (0..CONCURRENCY)
            .map(|_| {
                let connector = connector.clone();
                tokio::task::spawn_local(async move {
                    let mut errors = 0;
                    for _ in 0..count / CONCURRENCY {
                        errors += u64::from(once(&connector, address, server_name).await.is_err());
                    }
                    errors
                })
            })
            .collect();
        let mut errors = 0;
        for client in clients {
            errors += client.await?;
        }
        let done = count / CONCURRENCY * CONCURRENCY;
        Ok(Tally { done, errors })
    })
    .await
}

async fn once(
    connector: &TlsConnector,
    address: SocketAddr,
    server_name: Option<&'static str>,
) -> Result<()> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = server_name.unwrap_or("inbound.bench").try_into()?;
    let mut stream = connector.connect(name, stream).await?;
    stream.shutdown().await?;
    // The server has judged our certificate when it closes too. How it does so is its own affair.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    Ok(())
}

/// Takes every server's certificate, with its signature checked.
#[derive(Debug)]
struct Unchecked;

impl rustls::client::danger::ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> std::result::Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
