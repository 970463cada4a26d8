//! One peer's turn in one round: started, measured at each work that it can do, stopped.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::clients::{Held, Kind, Way, at_rate, churn, handshakes, stream};
use crate::lab::Lab;
use crate::peers::{self, Pair, PairMemory, Peer};
use crate::service::Service;
use crate::{Result, RunArgs, load};

/// What was measured, by the names that [`crate::report`] shows.
pub(crate) type Figures = BTreeMap<String, f64>;

/// Client connections of the keep-alive runs.
pub(crate) const CONNECTIONS: [u32; 3] = [1, 16, 128];
/// Idle connections whose memory is measured: so many, and as many as [`most_idle`] says.
pub(crate) const SOME_IDLE: usize = 1_000;
/// Readers that read nothing.
pub(crate) const STALLED_READERS: [usize; 2] = [8, 40];
/// Requests per second at which latency is measured.
pub(crate) const RATE: u32 = 1_000;

/// How often, how many times, and for how small a difference the memory of a pair is looked at until it has settled.
const SETTLE_PERIOD: Duration = Duration::from_secs(2);
const SETTLE_LOOKS: u32 = 10;
const SETTLED_BYTES: u64 = 128 * 1024;

const MIB: f64 = 1024.0 * 1024.0;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Http,
    Rate,
    Http2,
    Grpc,
    NewHttp,
    NewTcp,
    Handshake,
    Stream,
    Redis,
    Idle,
    Stalled,
}

impl Work {
    pub(crate) const ALL: [Self; 11] = [
        Self::Http,
        Self::Rate,
        Self::Http2,
        Self::Grpc,
        Self::NewHttp,
        Self::NewTcp,
        Self::Handshake,
        Self::Stream,
        Self::Redis,
        Self::Idle,
        Self::Stalled,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Rate => "rate",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::NewHttp => "new-http",
            Self::NewTcp => "new-tcp",
            Self::Handshake => "handshake",
            Self::Stream => "stream",
            Self::Redis => "redis",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
        }
    }

    fn service(self) -> Service {
        match self {
            Self::Http
            | Self::Rate
            | Self::NewHttp
            | Self::Handshake
            | Self::Idle
            | Self::Stalled => Service::Http,
            Self::Http2 => Service::Http2,
            Self::Grpc => Service::Grpc,
            Self::NewTcp | Self::Stream => Service::Bytes,
            Self::Redis => Service::Redis,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Work {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let named = Self::ALL.into_iter().find(|work| work.name() == name);
        named.ok_or_else(|| {
            format!(
                "no such work; there are {}",
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}

/// Takes a peer's turn. What hardly varies is measured in the `first` round alone.
pub(crate) async fn take(lab: &Lab, peer: Peer, args: &RunArgs, first: bool) -> Result<Figures> {
    let pair = peers::start(lab, peer).await?;
    let mut turn = Turn {
        lab,
        peer,
        pair: &pair,
        seconds: args.seconds,
        figures: Figures::new(),
    };
    turn.at_rest()?;
    // Memory first: what load leaves behind with an allocator would be counted as an idle connection's.
    let (steady, repeated): (Vec<Work>, Vec<Work>) = args
        .work
        .iter()
        .copied()
        .filter(|work| peer.carries(work.service()))
        .partition(|work| matches!(work, Work::Idle | Work::Stalled));
    if first && peer != Peer::Direct {
        for work in steady {
            turn.work(work)
                .await
                .map_err(|error| format!("{work}: {error}"))?;
        }
    }
    for work in repeated {
        turn.work(work)
            .await
            .map_err(|error| format!("{work}: {error}"))?;
    }
    let figures = turn.figures;
    pair.stop().await?;
    Ok(figures)
}

struct Turn<'a> {
    lab: &'a Lab,
    peer: Peer,
    pair: &'a Pair,
    seconds: u32,
    figures: Figures,
}

impl Turn<'_> {
    fn set(&mut self, name: impl Into<String>, value: f64) {
        self.figures.insert(name.into(), value);
    }

    /// CPU time of the pair for each of `units`; direct has none.
    fn set_cpu(&mut self, name: impl Into<String>, spent: Duration, units: f64) {
        if self.peer != Peer::Direct {
            self.set(name, spent.as_secs_f64() / units);
        }
    }

    async fn work(&mut self, work: Work) -> Result<()> {
        match work {
            Work::Http => self.keep_alive().await,
            Work::Rate => self.rate().await,
            Work::Http2 => self.streams("http2", Service::Http2, 8, 16).await,
            Work::Grpc => self.streams("grpc", Service::Grpc, 4, 8).await,
            Work::NewHttp => {
                self.new_connections("new_http", Service::Http, Kind::Http)
                    .await
            }
            Work::NewTcp => {
                self.new_connections("new_tcp", Service::Bytes, Kind::Bytes)
                    .await
            }
            Work::Handshake => self.handshake().await,
            Work::Stream => self.stream().await,
            Work::Redis => self.redis().await,
            Work::Idle => self.idle().await,
            Work::Stalled => self.stalled().await,
        }
    }

    fn at_rest(&mut self) -> Result<()> {
        if self.peer == Peer::Direct {
            return Ok(());
        }
        let memory = self.pair.memory()?;
        self.set("rest_outbound_mb", megabytes(memory.outbound.0));
        self.set("rest_inbound_mb", megabytes(memory.inbound.0));
        self.set("start_ms", self.pair.start.as_secs_f64() * 1e3);
        if let Some(program) = self.peer.program(self.lab) {
            self.set("program_mb", megabytes(std::fs::metadata(program)?.len()));
        }
        Ok(())
    }

    async fn keep_alive(&mut self) -> Result<()> {
        let measured = Duration::from_secs(u64::from(self.seconds));
        for connections in CONNECTIONS {
            load::wrk(self.lab, connections, measured / 2).await?;
            let before = self.pair.cpu_time()?;
            let run = load::wrk(self.lab, connections, measured).await?;
            let spent = self.pair.cpu_time()?.saturating_sub(before);
            none_failed(run.errors, run.requests)?;
            let requests = count(run.requests);
            let name = |what| format!("http_{connections}_{what}");
            self.set_cpu(name("cpu_us"), spent, requests / 1e6);
            self.set(name("per_second"), requests / (run.duration / 1e6));
            self.set(name("p50_us"), run.p50);
            self.set(name("p99_us"), run.p99);
        }
        Ok(())
    }

    async fn rate(&mut self) -> Result<()> {
        let duration = Duration::from_secs(u64::from(self.seconds));
        let latencies = at_rate(self.lab, address(Service::Http)?, RATE, duration).await?;
        for (name, fraction) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
            let value = quantile(&latencies, fraction).ok_or("not one request was timed")?;
            self.set(format!("rate_{name}_us"), value);
        }
        Ok(())
    }

    async fn streams(
        &mut self,
        name: &str,
        service: Service,
        clients: u32,
        streams: u32,
    ) -> Result<()> {
        let requests = u64::from(self.seconds) * 10_000;
        load::h2load(self.lab, service, clients, streams, requests / 4).await?;
        let before = self.pair.cpu_time()?;
        let run = load::h2load(self.lab, service, clients, streams, requests).await?;
        let spent = self.pair.cpu_time()?.saturating_sub(before);
        none_failed(run.errors, run.requests)?;
        self.set_cpu(format!("{name}_cpu_us"), spent, count(run.requests) / 1e6);
        self.set(format!("{name}_per_second"), run.per_second);
        Ok(())
    }

    async fn new_connections(&mut self, name: &str, service: Service, kind: Kind) -> Result<()> {
        let connections = u64::from(self.seconds) * 1_000;
        churn(self.lab, address(service)?, kind, connections / 4).await?;
        let before = self.pair.cpu_time()?;
        let run = churn(self.lab, address(service)?, kind, connections).await?;
        let spent = self.pair.cpu_time()?.saturating_sub(before);
        none_failed(run.errors, run.done)?;
        self.set_cpu(format!("{name}_cpu_us"), spent, count(run.done) / 1e6);
        Ok(())
    }

    async fn handshake(&mut self) -> Result<()> {
        if self.peer == Peer::Direct {
            return Ok(());
        }
        let address = Service::Http.mesh_address().parse()?;
        let (alpn, name) = (self.peer.alpn(), self.peer.server_name());
        let wanted = u64::from(self.seconds) * 400;
        handshakes(self.lab, address, alpn, name, wanted / 4).await?;
        let before = self.pair.inbound_cpu_time()?;
        let run = handshakes(self.lab, address, alpn, name, wanted).await?;
        let spent = self.pair.inbound_cpu_time()?.saturating_sub(before);
        none_failed(run.errors, run.done)?;
        self.set_cpu("handshake_cpu_us", spent, count(run.done) / 1e6);
        Ok(())
    }

    async fn stream(&mut self) -> Result<()> {
        let bytes = u64::from(self.seconds) * (256 << 20);
        for (name, way) in [("down", Way::Down), ("up", Way::Up)] {
            stream(self.lab, address(Service::Bytes)?, way, bytes / 8).await?;
            let before = self.pair.cpu_time()?;
            stream(self.lab, address(Service::Bytes)?, way, bytes).await?;
            let spent = self.pair.cpu_time()?.saturating_sub(before);
            let gibibytes = count(bytes) / (1024.0 * MIB);
            self.set_cpu(format!("stream_{name}_cpu_s"), spent, gibibytes);
        }
        Ok(())
    }

    async fn redis(&mut self) -> Result<()> {
        let commands = u64::from(self.seconds) * 15_000;
        load::redis(self.lab, 16, commands / 4).await?;
        let before = self.pair.cpu_time()?;
        let run = load::redis(self.lab, 16, commands).await?;
        let spent = self.pair.cpu_time()?.saturating_sub(before);
        self.set_cpu("redis_cpu_us", spent, count(run.requests) / 1e6);
        self.set("redis_per_second", run.per_second);
        Ok(())
    }

    async fn idle(&mut self) -> Result<()> {
        for (name, service, kind) in [
            ("http", Service::Http, Kind::Http),
            ("tcp", Service::Bytes, Kind::Bytes),
        ] {
            if !self.peer.carries(service) {
                continue;
            }
            // What the first connections cost once is no idle connection's.
            churn(self.lab, address(service)?, kind, 64).await?;
            for (many, connections) in [("some", SOME_IDLE), ("many", self.lab.most_idle)] {
                let before = self.settled().await?;
                let held = Held::start(self.lab, address(service)?, kind, connections).await?;
                let with = self.pair.memory()?;
                held.release().await?;
                let each = |of: fn(&PairMemory) -> u64| {
                    (count(of(&with)) - count(of(&before))) / 1024.0 / count(connections as u64)
                };
                let out = each(|memory| memory.outbound.0);
                let inbound = each(|memory| memory.inbound.0);
                self.set(format!("idle_{name}_{many}_outbound_kib"), out);
                self.set(format!("idle_{name}_{many}_inbound_kib"), inbound);
            }
        }
        Ok(())
    }

    /// The pair's memory once it falls no more: closed connections are given back some time after their end.
    async fn settled(&self) -> Result<PairMemory> {
        let mut last = self.pair.memory()?;
        for _ in 0..SETTLE_LOOKS {
            tokio::time::sleep(SETTLE_PERIOD).await;
            let now = self.pair.memory()?;
            let both = |memory: PairMemory| memory.outbound.0 + memory.inbound.0;
            let fell = both(last).saturating_sub(both(now));
            last = now;
            if fell < SETTLED_BYTES {
                break;
            }
        }
        Ok(last)
    }

    async fn stalled(&mut self) -> Result<()> {
        let seconds = Duration::from_secs(2);
        load::wrk(self.lab, 4, seconds / 2).await?;
        let alone = load::wrk(self.lab, 4, seconds).await?;
        for readers in STALLED_READERS {
            let before = self.settled().await?;
            let address = address(Service::Http)?;
            let held = Held::start(self.lab, address, Kind::Stalled, readers).await?;
            // None that is answered at all is no error of the benchmark's here.
            let beside = load::wrk_or_nothing(self.lab, 4, seconds).await?;
            let with = self.pair.memory()?;
            held.release().await?;
            let share = beside / (count(alone.requests) / (alone.duration / 1e6));
            self.set(format!("stalled_{readers}_share"), share);
            let grown = |of: fn(&PairMemory) -> u64| count(of(&with)) - count(of(&before));
            let both = grown(|memory| memory.outbound.0) + grown(|memory| memory.inbound.0);
            self.set(format!("stalled_{readers}_mib"), both / MIB);
        }
        Ok(())
    }
}

/// 10,000, or what the limit of open files lets a proxy have with as many connections onwards.
pub(crate) fn most_idle(open_files: u64) -> usize {
    let half = (open_files / 2).saturating_sub(1_000);
    usize::try_from(half).unwrap_or(usize::MAX).min(10_000)
}

fn address(service: Service) -> Result<SocketAddr> {
    Ok(service.address().parse()?)
}

/// A run with errors did less work than its figures say.
fn none_failed(errors: u64, of: u64) -> Result<()> {
    match errors {
        0 => Ok(()),
        errors => Err(format!("{errors} of {of} failed").into()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}

fn megabytes(bytes: u64) -> f64 {
    count(bytes) / 1e6
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a fraction of a length is an index"
)]
fn quantile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let index = (sorted.len() as f64 * fraction) as usize;
    sorted.get(index.min(sorted.len().checked_sub(1)?)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_is_found_by_its_name() {
        for work in Work::ALL {
            assert_eq!(work.to_string().parse(), Ok(work));
        }
        assert!("sleep".parse::<Work>().is_err());
    }

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        let sorted: Vec<f64> = (0..1000).map(f64::from).collect();
        assert_eq!(quantile(&sorted, 0.5), Some(500.0));
        assert_eq!(quantile(&sorted, 0.999), Some(999.0));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn idle_connections_are_as_many_as_fit() {
        assert_eq!(most_idle(20_000), 9_000);
        assert_eq!(most_idle(u64::MAX), 10_000);
        assert_eq!(most_idle(1_024), 0);
    }

    #[test]
    fn a_run_with_errors_is_no_run() {
        assert!(none_failed(0, 10).is_ok());
        assert!(none_failed(1, 10).is_err());
    }
}
