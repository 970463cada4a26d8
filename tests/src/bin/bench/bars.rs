//! What Sidewind must reach and what it aims at, as ratios to other proxies in the same run.

use std::fmt;

use crate::peers::Peer;

/// A bound of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// So many times a peer's figure at most.
    Times(f64, Peer),
    AtMost(f64),
    AtLeast(f64),
}

/// What one figure has to be.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) work: &'static str,
    /// By the names of [`crate::turn::Figures`].
    pub(crate) figure: &'static str,
    pub(crate) must: Bound,
    pub(crate) aim: Option<Bound>,
}

/// How Sidewind's figure stands to a bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Standing {
    /// The ratio, or the figure itself.
    pub(crate) reached: f64,
    pub(crate) met: bool,
}

impl Bound {
    /// `figure` gives a peer's median of what the bound is about.
    pub(crate) fn judge(self, figure: impl Fn(Peer) -> Option<f64>) -> Option<Standing> {
        let own = figure(Peer::Sidewind)?;
        let (reached, met) = match self {
            Self::Times(most, peer) => {
                let ratio = own / figure(peer)?;
                (ratio, ratio <= most)
            }
            Self::AtMost(most) => (own, own <= most),
            Self::AtLeast(least) => (own, own >= least),
        };
        Some(Standing { reached, met })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Times(most, peer) => write!(formatter, "≤ {most} × {}", peer.title()),
            Self::AtMost(most) => write!(formatter, "≤ {most}"),
            Self::AtLeast(least) => write!(formatter, "≥ {least}"),
        }
    }
}

/// A bar of both kinds.
const fn bar(work: &'static str, figure: &'static str, must: Bound, aim: Bound) -> Bar {
    Bar {
        work,
        figure,
        must,
        aim: Some(aim),
    }
}

use Bound::{AtLeast, AtMost, Times};
use Peer::{Envoy, FloorTcp, Haproxy, HaproxyH2, Nginx};

const fn against_envoy(work: &'static str, figure: &'static str) -> Bar {
    Bar {
        work,
        figure,
        must: Times(0.45, Envoy),
        aim: None,
    }
}

pub(crate) const BARS: &[Bar] = &[
    bar(
        "HTTP/1.1, 16 connections: CPU",
        "http_16_cpu_us",
        Times(1.0, Haproxy),
        Times(1.0, HaproxyH2),
    ),
    bar(
        "HTTP/1.1, 128 connections: CPU",
        "http_128_cpu_us",
        Times(1.0, Haproxy),
        Times(1.0, HaproxyH2),
    ),
    against_envoy("HTTP/1.1, 16 connections: CPU", "http_16_cpu_us"),
    against_envoy("HTTP/1.1, 128 connections: CPU", "http_128_cpu_us"),
    bar(
        "HTTP/1.1, 1 connection: CPU",
        "http_1_cpu_us",
        Times(1.1, Haproxy),
        Times(1.0, Nginx),
    ),
    bar(
        "1,000 requests/s: added p50",
        "rate_added_p50_us",
        Times(1.1, Haproxy),
        Times(1.0, Nginx),
    ),
    bar(
        "HTTP/2, 8 × 16 streams: CPU",
        "http2_cpu_us",
        Times(1.5, HaproxyH2),
        Times(1.0, HaproxyH2),
    ),
    bar(
        "gRPC, 4 × 8 streams: CPU",
        "grpc_cpu_us",
        Times(1.5, HaproxyH2),
        Times(1.0, HaproxyH2),
    ),
    bar(
        "new opaque TCP connection: CPU",
        "new_tcp_cpu_us",
        Times(0.2, Haproxy),
        Times(0.12, Haproxy),
    ),
    bar(
        "TCP stream down: CPU",
        "stream_down_cpu_s",
        Times(0.75, Haproxy),
        Times(1.05, FloorTcp),
    ),
    bar(
        "TCP stream up: CPU",
        "stream_up_cpu_s",
        Times(0.75, Haproxy),
        Times(1.05, FloorTcp),
    ),
    bar(
        "Redis, 16 connections: CPU",
        "redis_cpu_us",
        Times(0.95, Haproxy),
        Times(1.05, FloorTcp),
    ),
    bar(
        "full handshake at inbound: CPU",
        "handshake_cpu_us",
        Times(0.5, Haproxy),
        Times(1.0, FloorTcp),
    ),
    bar(
        "outbound proxy at rest: PSS MB",
        "rest_outbound_mb",
        AtMost(8.0),
        AtMost(5.0),
    ),
    bar(
        "inbound proxy at rest: PSS MB",
        "rest_inbound_mb",
        AtMost(8.0),
        AtMost(5.0),
    ),
    bar(
        "1,000 idle HTTP connections: KiB each",
        "idle_http_some_outbound_kib",
        AtMost(6.0),
        AtMost(2.5),
    ),
    bar(
        "many idle HTTP connections: KiB each",
        "idle_http_many_outbound_kib",
        AtMost(6.0),
        AtMost(2.5),
    ),
    bar(
        "1,000 idle opaque connections: KiB each",
        "idle_tcp_some_outbound_kib",
        AtMost(8.0),
        AtMost(5.0),
    ),
    bar(
        "many idle opaque connections: KiB each",
        "idle_tcp_many_outbound_kib",
        AtMost(8.0),
        AtMost(5.0),
    ),
    bar(
        "8 stalled readers: another client's share of its rate",
        "stalled_8_share",
        AtLeast(0.9),
        AtLeast(0.98),
    ),
    bar(
        "40 stalled readers: another client's share of its rate",
        "stalled_40_share",
        AtLeast(0.9),
        AtLeast(0.98),
    ),
    bar(
        "8 stalled readers: memory of the pair, MiB more",
        "stalled_8_mib",
        AtMost(64.0),
        AtMost(16.0),
    ),
    bar(
        "40 stalled readers: memory of the pair, MiB more",
        "stalled_40_mib",
        AtMost(64.0),
        AtMost(16.0),
    ),
    bar("start to ready, ms", "start_ms", AtMost(60.0), AtMost(25.0)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_judged_by_the_ratio_or_by_the_figure() {
        let figure = |peer| match peer {
            Peer::Sidewind => Some(45.0),
            Peer::Haproxy => Some(50.0),
            _ => None,
        };
        let judged = |bound: Bound| bound.judge(figure).map(|standing| standing.met);
        assert_eq!(judged(Times(0.9, Haproxy)), Some(true));
        assert_eq!(judged(Times(0.89, Haproxy)), Some(false));
        assert_eq!(judged(Times(1.0, Nginx)), None);
        assert_eq!(judged(AtMost(45.0)), Some(true));
        assert_eq!(judged(AtLeast(45.5)), Some(false));
    }
}
