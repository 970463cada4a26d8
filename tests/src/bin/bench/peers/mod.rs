//! The proxies that are compared, and how each is set up: one worker thread, keep-alive everywhere, TLS 1.3 with
//! both certificates between the two, no access log (Sidewind alone writes one: its features are all on).

mod configs;
mod sidewind;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use tokio::process::Child;

use crate::lab::{Lab, memory_of, nginx, process_id};
use crate::{Result, load};
use sidewind_tests::measure::{Pss, cpu_time};

/// A pair of proxies, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// No proxy, no TLS.
    Direct,
    Haproxy,
    HaproxyH2,
    Nginx,
    Envoy,
    EnvoyH2,
    Sidewind,
}

impl Peer {
    pub(crate) const ALL: [Self; 7] = [
        Self::Direct,
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
            Self::Direct => "direct",
            Self::Haproxy => "HAProxy (HTTP/1.1 between)",
            Self::HaproxyH2 => "HAProxy (HTTP/2 between)",
            Self::Nginx => "nginx",
            Self::Envoy => "Envoy (HTTP/1.1 between)",
            Self::EnvoyH2 => "Envoy (HTTP/2 between)",
            Self::Sidewind => "Sidewind",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::HaproxyH2 => "haproxy-h2",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::EnvoyH2 => "envoy-h2",
            Self::Sidewind => "sidewind",
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
            child.kill().await?;
        }
        Ok(())
    }
}

/// Starts the pair and returns once it serves.
pub(crate) async fn start(lab: &Lab, peer: Peer) -> Result<Pair> {
    if peer == Peer::Direct {
        lab.stop_redirecting().await?;
        return Ok(Pair::default());
    }
    lab.redirect().await?;
    let pair = match peer {
        Peer::Direct => Pair::default(),
        Peer::Haproxy | Peer::HaproxyH2 => haproxy(lab, peer == Peer::HaproxyH2)?,
        Peer::Nginx => nginx_pair(lab)?,
        Peer::Envoy | Peer::EnvoyH2 => envoy(lab, peer == Peer::EnvoyH2)?,
        Peer::Sidewind => sidewind::start(lab).await?,
    };
    load::wait_until_served(lab).await?;
    load::expect_mesh_port_refuses_plaintext(lab).await?;
    Ok(pair)
}

fn pair(outbound: Child, inbound: Child) -> Pair {
    Pair {
        proxies: vec![outbound, inbound],
        others: Vec::new(),
    }
}

fn haproxy(lab: &Lab, http2: bool) -> Result<Pair> {
    let run = |namespace: &crate::lab::Namespace, name: &str, config: &str| -> Result<Child> {
        let path = lab.write(name, config)?.display().to_string();
        Ok(namespace.command("haproxy", ["-db", "-f", &path]).spawn()?)
    };
    Ok(pair(
        run(
            &lab.client,
            "haproxy-out.cfg",
            &configs::haproxy_outbound(lab, http2),
        )?,
        run(
            &lab.server,
            "haproxy-in.cfg",
            &configs::haproxy_inbound(lab, http2),
        )?,
    ))
}

fn nginx_pair(lab: &Lab) -> Result<Pair> {
    let outbound = lab.write("nginx-out.conf", &configs::nginx_outbound(lab))?;
    let inbound = lab.write("nginx-in.conf", &configs::nginx_inbound(lab))?;
    Ok(pair(
        nginx(&lab.client, &outbound)?,
        nginx(&lab.server, &inbound)?,
    ))
}

fn envoy(lab: &Lab, http2: bool) -> Result<Pair> {
    let run = |namespace: &crate::lab::Namespace, name: &str, config: &str| -> Result<Child> {
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
    Ok(pair(
        run(
            &lab.client,
            "envoy-out.json",
            &configs::envoy_outbound(lab, http2),
        )?,
        run(
            &lab.server,
            "envoy-in.json",
            &configs::envoy_inbound(lab, http2),
        )?,
    ))
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
