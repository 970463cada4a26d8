//! The proxies that are compared, and how each is set up: one worker thread, keep-alive everywhere, TLS 1.3 with
//! both certificates between the two, no access log (Sidewind alone writes one: its features are all on).

mod configs;
mod sidewind;

use std::fmt;
use std::future::Future;
use std::net::TcpStream;
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::Serialize;
use tokio::process::Child;
use tokio::time::{Instant, timeout};

use crate::lab::{Lab, Namespace, memory_of, nginx, process_id};
use crate::service::Service;
use crate::{Result, load};
use sidewind_tests::measure::{Pss, cpu_time, pause};

pub(crate) use sidewind::COLLECTOR;

/// How long a proxy may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A pair of proxies, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// No proxy, no TLS.
    Direct,
    /// The least that HTTP can cost with hyper and rustls.
    FloorHttp,
    /// The least that bytes can cost with tokio and rustls.
    FloorTcp,
    Haproxy,
    HaproxyH2,
    Nginx,
    Envoy,
    EnvoyH2,
    Sidewind,
}

impl Peer {
    pub(crate) const ALL: [Self; 9] = [
        Self::Direct,
        Self::FloorHttp,
        Self::FloorTcp,
        Self::Haproxy,
        Self::HaproxyH2,
        Self::Nginx,
        Self::Envoy,
        Self::EnvoyH2,
        Self::Sidewind,
    ];

    /// For the head of a table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Direct => "no proxy",
            Self::FloorHttp => "floor, hyper",
            Self::FloorTcp => "floor, splice",
            Self::Haproxy => "HAProxy",
            Self::HaproxyH2 => "HAProxy, HTTP/2 between",
            Self::Nginx => "nginx",
            Self::Envoy => "Envoy",
            Self::EnvoyH2 => "Envoy, HTTP/2 between",
            Self::Sidewind => "Sidewind",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::FloorHttp => "floor-http",
            Self::FloorTcp => "floor-tcp",
            Self::Haproxy => "haproxy",
            Self::HaproxyH2 => "haproxy-h2",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::EnvoyH2 => "envoy-h2",
            Self::Sidewind => "sidewind",
        }
    }
}

impl Peer {
    /// What the pair carries as it should be carried: HTTP/2 from the client goes only where it stays HTTP/2, and
    /// bytes are the same whatever a proxy speaks for HTTP.
    pub(crate) fn carries(self, service: Service) -> bool {
        let (http2, opaque) = (service.is_http2(), service.is_opaque());
        match self {
            Self::Direct | Self::FloorTcp | Self::Sidewind => true,
            Self::FloorHttp => !http2 && !opaque,
            Self::Haproxy | Self::Nginx | Self::Envoy => !http2,
            Self::HaproxyH2 | Self::EnvoyH2 => !opaque,
        }
    }

    fn services(self) -> Vec<Service> {
        let carried = Service::ALL.into_iter();
        carried.filter(|service| self.carries(*service)).collect()
    }

    /// What a client of the inbound proxy offers by ALPN for HTTP.
    pub(crate) fn alpn(self) -> Option<&'static str> {
        match self {
            Self::Direct | Self::FloorTcp => None,
            Self::Haproxy | Self::Nginx | Self::Envoy => Some("http/1.1"),
            Self::FloorHttp | Self::HaproxyH2 | Self::EnvoyH2 => Some("h2"),
            Self::Sidewind => Some("sidewind/1"),
        }
    }

    /// The name in the inbound proxy's certificate; Sidewind's has a SPIFFE ID alone.
    pub(crate) fn server_name(self) -> Option<&'static str> {
        (self != Self::Sidewind).then_some("inbound.bench")
    }

    /// The program, for its size.
    pub(crate) fn program(self, lab: &Lab) -> Option<std::path::PathBuf> {
        match self {
            Self::Direct | Self::FloorHttp | Self::FloorTcp => None,
            Self::Haproxy | Self::HaproxyH2 => Some("/usr/sbin/haproxy".into()),
            Self::Nginx => Some("/usr/sbin/nginx".into()),
            Self::Envoy | Self::EnvoyH2 => Some(lab.envoy.clone()),
            Self::Sidewind => Some(lab.sidewind_proxy.clone()),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|peer| peer.name() == name)
            .ok_or_else(|| {
                format!(
                    "no such peer; there are {}",
                    Self::ALL.map(Self::name).join(", ")
                )
            })
    }
}

/// A running pair.
#[derive(Debug, Default)]
pub(crate) struct Pair {
    /// Outbound, then inbound.
    proxies: Vec<Child>,
    /// What runs beside and is not measured.
    others: Vec<Child>,
    /// From the outbound proxy's start until it was ready.
    pub(crate) start: Duration,
}

/// Memory of the two proxies.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct PairMemory {
    pub(crate) outbound: Pss,
    pub(crate) inbound: Pss,
}

impl Pair {
    /// Of both together.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        self.proxies
            .iter()
            .map(|child| Ok(cpu_time(process_id(child)?)?))
            .sum()
    }

    /// Of the inbound proxy alone.
    pub(crate) fn inbound_cpu_time(&self) -> Result<Duration> {
        let inbound = self.proxies.last().ok_or("there is no proxy")?;
        Ok(cpu_time(process_id(inbound)?)?)
    }

    pub(crate) fn memory(&self) -> Result<PairMemory> {
        let [outbound, inbound] = self.proxies.as_slice() else {
            return Ok(PairMemory::default());
        };
        Ok(PairMemory {
            outbound: memory_of(outbound)?,
            inbound: memory_of(inbound)?,
        })
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        for child in self.proxies.iter_mut().chain(&mut self.others) {
            if let Some(status) = child.try_wait()? {
                return Err(format!("a process ended by itself: {status}").into());
            }
            end(child).await?;
        }
        Ok(())
    }
}

/// Asks it to end, so that it writes what it writes at its end: a proxy built to be trained, its profile.
async fn end(child: &mut Child) -> Result<()> {
    let pid =
        Pid::from_raw(process_id(child)?.cast_signed()).ok_or("no process has the number 0")?;
    rustix::process::kill_process(pid, Signal::TERM)?;
    if timeout(END_TIMEOUT, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

/// Starts the pair and returns once it serves.
pub(crate) async fn start(lab: &Lab, peer: Peer) -> Result<Pair> {
    if peer == Peer::Direct {
        lab.stop_redirecting().await?;
        return Ok(Pair::default());
    }
    match peer {
        // It asks where a connection was going.
        Peer::Sidewind => lab.redirect(|_| Service::Http.outbound_port()).await?,
        _ => lab.redirect(Service::outbound_port).await?,
    }
    let services = peer.services();
    let pair = match peer {
        Peer::Direct => Pair::default(),
        Peer::FloorHttp => floor(lab, "http", &services).await?,
        Peer::FloorTcp => floor(lab, "tcp", &services).await?,
        Peer::Haproxy | Peer::HaproxyH2 => haproxy(lab, peer == Peer::HaproxyH2, &services).await?,
        Peer::Nginx => nginx_pair(lab, &services).await?,
        Peer::Envoy | Peer::EnvoyH2 => envoy(lab, peer == Peer::EnvoyH2, &services).await?,
        Peer::Sidewind => sidewind::start(lab).await?,
    };
    load::wait_until_served(lab).await?;
    load::expect_mesh_port_refuses_plaintext(lab).await?;
    Ok(pair)
}

/// Starts the inbound proxy, then, timed until it takes connections, the outbound one.
async fn pair(
    lab: &Lab,
    inbound: impl FnOnce() -> Result<Child>,
    outbound: impl FnOnce() -> Result<Child>,
) -> Result<Pair> {
    let inbound = inbound()?;
    let listening = Service::Http.outbound_listen();
    let ready = started(&lab.client, move || {
        TcpStream::connect_timeout(&listening, Duration::from_secs(1)).is_ok()
    });
    let begun = Instant::now();
    let outbound = outbound()?;
    Ok(Pair {
        proxies: vec![outbound, inbound],
        others: Vec::new(),
        start: ready.await?.saturating_duration_since(begun),
    })
}

/// The moment from which `ready` holds, asked every half millisecond inside the namespace.
fn started(
    namespace: &Namespace,
    ready: impl Fn() -> bool + Send + 'static,
) -> impl Future<Output = Result<Instant>> {
    const LONGEST: Duration = Duration::from_secs(20);
    let asking = namespace.place().spawn(move || {
        let begun = Instant::now();
        while !ready() {
            if begun.elapsed() > LONGEST {
                return None;
            }
            pause(Duration::from_micros(500));
        }
        Some(Instant::now())
    });
    async {
        let joined = tokio::task::spawn_blocking(move || asking.join()).await?;
        let moment = joined.map_err(|_| "asking whether it is ready panicked")?;
        moment.ok_or_else(|| "a proxy did not get ready".into())
    }
}

async fn floor(lab: &Lab, kind: &str, services: &[Service]) -> Result<Pair> {
    let program = std::env::current_exe()?;
    let run = |namespace: &Namespace, side: &str, route: fn(&Service) -> String| {
        let routes = services
            .iter()
            .map(|service| format!("--route={}", route(service)));
        let certificates = format!("--certificates={}", lab.path("").display());
        let half = format!("{kind}-{side}");
        let args = ["floor".to_owned(), half, certificates]
            .into_iter()
            .chain(routes);
        Result::Ok(namespace.command(&program, args).spawn()?)
    };
    pair(
        lab,
        || {
            run(&lab.server, "inbound", |service| {
                format!("{}={}", service.mesh_address(), service.address())
            })
        },
        || {
            run(&lab.client, "outbound", |service| {
                format!("{}={}", service.outbound_listen(), service.mesh_address())
            })
        },
    )
    .await
}

async fn haproxy(lab: &Lab, http2: bool, services: &[Service]) -> Result<Pair> {
    let run = |namespace: &Namespace, name: &str, config: &str| -> Result<Child> {
        let path = lab.write(name, config)?.display().to_string();
        Ok(namespace
            .command("haproxy", ["-q", "-db", "-f", &path])
            .spawn()?)
    };
    let outbound = configs::haproxy_outbound(lab, http2, services);
    let inbound = configs::haproxy_inbound(lab, http2, services);
    pair(
        lab,
        || run(&lab.server, "haproxy-in.cfg", &inbound),
        || run(&lab.client, "haproxy-out.cfg", &outbound),
    )
    .await
}

async fn nginx_pair(lab: &Lab, services: &[Service]) -> Result<Pair> {
    let outbound = lab.write("nginx-out.conf", &configs::nginx_outbound(lab, services))?;
    let inbound = lab.write("nginx-in.conf", &configs::nginx_inbound(lab, services))?;
    pair(
        lab,
        || nginx(&lab.server, &inbound),
        || nginx(&lab.client, &outbound),
    )
    .await
}

async fn envoy(lab: &Lab, http2: bool, services: &[Service]) -> Result<Pair> {
    let run = |namespace: &Namespace, name: &str, config: &str| -> Result<Child> {
        let path = lab.write(name, config)?.display().to_string();
        let args = [
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
            "--config-path",
            &path,
        ];
        Ok(namespace.command(&lab.envoy, args).spawn()?)
    };
    let outbound = configs::envoy_outbound(lab, http2, services);
    let inbound = configs::envoy_inbound(lab, http2, services);
    pair(
        lab,
        || run(&lab.server, "envoy-in.json", &inbound),
        || run(&lab.client, "envoy-out.json", &outbound),
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_is_found_by_its_name() {
        for peer in Peer::ALL {
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
        assert!("traefik".parse::<Peer>().is_err());
    }
}
