//! The floor: pairs that do nothing but the work itself, with the libraries that Sidewind uses and nothing on top.

mod http;
mod tcp;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::Result;

/// The name in the inbound side's certificate.
const INBOUND_NAME: &str = "inbound.bench";

/// Which half of which pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Half {
    /// hyper: HTTP/1.1 in, one HTTP/2 connection by mutual TLS out.
    HttpOutbound,
    /// hyper: HTTP/2 by mutual TLS in, HTTP/1.1 out.
    HttpInbound,
    /// Bytes in, a TLS connection for each out.
    TcpOutbound,
    /// TLS in, bytes out.
    TcpInbound,
}

#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    half: Half,
    /// Directory of the certificates.
    #[arg(long)]
    certificates: PathBuf,
    /// Where to listen, and where to go from there.
    #[arg(long = "route", required = true)]
    routes: Vec<Route>,
}

/// `LISTEN=TARGET`.
#[derive(Debug, Clone, Copy)]
struct Route {
    listen: SocketAddr,
    target: SocketAddr,
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (listen, target) = text.split_once('=').ok_or("not LISTEN=TARGET")?;
        let parse = |address: &str| {
            address
                .parse()
                .map_err(|_| format!("no address: {address}"))
        };
        Ok(Self {
            listen: parse(listen)?,
            target: parse(target)?,
        })
    }
}

/// Serves until it is killed.
pub(crate) async fn run(args: &FloorArgs) -> Result<()> {
    let local = tokio::task::LocalSet::new();
    for &route in &args.routes {
        let directory = args.certificates.clone();
        match args.half {
            Half::HttpOutbound => local.spawn_local(http::outbound(route, directory)),
            Half::HttpInbound => local.spawn_local(http::inbound(route, directory)),
            Half::TcpOutbound => local.spawn_local(tcp::outbound(route, directory)),
            Half::TcpInbound => local.spawn_local(tcp::inbound(route, directory)),
        };
    }
    local.await;
    Err("every listener has ended".into())
}

fn roots(directory: &Path) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem"))?)?;
    Ok(Arc::new(roots))
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn own(directory: &Path, side: &str) -> Result<Own> {
    let certificate = CertificateDer::from_pem_file(directory.join(format!("{side}.pem")))?;
    let key = PrivateKeyDer::from_pem_file(directory.join(format!("{side}.key")))?;
    Ok((vec![certificate], key))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The outbound side's, which is also that of every client that makes handshakes with an inbound proxy.
pub(crate) fn client_config(
    directory: &Path,
    side: &str,
    alpn: Option<&str>,
) -> Result<ClientConfig> {
    let (chain, key) = own(directory, side)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(directory)?)
        .with_client_auth_cert(chain, key)?;
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = alpn
        .map(|protocol| vec![protocol.as_bytes().to_vec()])
        .unwrap_or_default();
    Ok(config)
}

fn server_config(directory: &Path, alpn: Option<&str>) -> Result<ServerConfig> {
    let (chain, key) = own(directory, "inbound")?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(directory)?, provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn
        .map(|protocol| vec![protocol.as_bytes().to_vec()])
        .unwrap_or_default();
    Ok(config)
}

fn inbound_name() -> Result<ServerName<'static>> {
    Ok(ServerName::try_from(INBOUND_NAME)?)
}
