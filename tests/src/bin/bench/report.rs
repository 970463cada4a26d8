//! Samples, their medians over the rounds, and the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::load::WrkResult;
use crate::peers::{PairMemory, Peer};
use crate::{CONNECTIONS, IDLE_CONNECTIONS, RunArgs};
use sidewind_tests::measure::{Pss, median};

/// One peer's turn in one round.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) peer: Peer,
    pub(crate) loads: Vec<LoadSample>,
    pub(crate) memory: MemorySample,
}

/// One run at one number of connections.
#[derive(Debug, Serialize)]
pub(crate) struct LoadSample {
    pub(crate) connections: u32,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) requests_per_second: f64,
    /// User and system time of both proxies.
    pub(crate) cpu_us_per_request: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl LoadSample {
    #[expect(
        clippy::cast_precision_loss,
        reason = "requests of one run are far below 2^52"
    )]
    pub(crate) fn new(connections: u32, load: &WrkResult, cpu: Duration) -> Self {
        let requests = load.requests as f64;
        Self {
            connections,
            requests: load.requests,
            errors: load.errors,
            requests_per_second: requests / (load.duration / 1e6),
            cpu_us_per_request: cpu.as_secs_f64() * 1e6 / requests,
            p50_us: load.p50,
            p99_us: load.p99,
        }
    }
}

/// Memory of the pair, in bytes.
#[derive(Debug, Default, Serialize)]
pub(crate) struct MemorySample {
    /// After the start and one request.
    pub(crate) at_rest: PairMemory,
    /// After all load, before the idle connections.
    pub(crate) before_idle: PairMemory,
    pub(crate) with_idle: PairMemory,
}

/// Everything that one run of the benchmark found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    machine: BTreeMap<String, String>,
    versions: BTreeMap<String, String>,
    rounds_of_each: u32,
    seconds: u32,
    peers: Vec<Peer>,
    rounds: Vec<Round>,
}

/// A row of the table: its label, decimals, and one value of a round.
struct Row {
    label: String,
    decimals: usize,
    value: OfRound,
}

type OfRound = Box<dyn Fn(&Round) -> Option<f64>>;
type OfLoad = fn(&LoadSample) -> f64;
type OfMemory = fn(&MemorySample) -> Pss;

impl Results {
    pub(crate) fn new(
        args: &RunArgs,
        machine: BTreeMap<String, String>,
        versions: BTreeMap<String, String>,
        rounds: Vec<Round>,
    ) -> Self {
        Self {
            machine,
            versions,
            rounds_of_each: args.rounds,
            seconds: args.seconds,
            peers: args.peers.clone(),
            rounds,
        }
    }

    pub(crate) fn to_markdown(&self) -> String {
        let mut text = format!(
            "HTTP/1.1 keep-alive, 1 KiB body: wrk → outbound proxy → mutual TLS 1.3 → inbound proxy → nginx.\n\
             One worker thread per proxy, CPU of both proxies together. Sidewind with policy, metrics and access \
             log; the others without logs.\nMedians of {} rounds of {} s.\n\n",
            self.rounds_of_each, self.seconds
        );
        for (name, value) in self.machine.iter().chain(&self.versions) {
            let _ = writeln!(text, "- {name}: {value}");
        }
        let _ = write!(text, "\n| |");
        for peer in &self.peers {
            let _ = write!(text, " {} |", peer.title());
        }
        let _ = write!(text, "\n| --- |{}\n", " ---: |".repeat(self.peers.len()));
        for row in rows() {
            let _ = write!(text, "| {} |", row.label);
            for &peer in &self.peers {
                let _ = match self.median(peer, &row) {
                    Some(value) => write!(text, " {value:.*} |", row.decimals),
                    None => write!(text, " – |"),
                };
            }
            text.push('\n');
        }
        text.push_str(&self.warnings());
        text
    }

    fn median(&self, peer: Peer, row: &Row) -> Option<f64> {
        median(
            self.rounds
                .iter()
                .filter(|round| round.peer == peer)
                .filter_map(|round| (row.value)(round)),
        )
    }

    /// A run with errors did less work than its figures say.
    fn warnings(&self) -> String {
        let mut text = String::new();
        for round in &self.rounds {
            for load in round.loads.iter().filter(|load| load.errors > 0) {
                let _ = write!(
                    text,
                    "\nNOT COMPARABLE: {} failed {} of {} requests in a round with {} connections.\n",
                    round.peer.title(),
                    load.errors,
                    load.requests,
                    load.connections
                );
            }
        }
        text
    }
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let columns: [(&str, usize, OfLoad); 4] = [
        ("CPU µs/request", 1, |load| load.cpu_us_per_request),
        ("requests/s", 0, |load| load.requests_per_second),
        ("p50 µs", 0, |load| load.p50_us),
        ("p99 µs", 0, |load| load.p99_us),
    ];
    for connections in CONNECTIONS {
        for (label, decimals, value) in columns {
            rows.push(Row {
                label: format!("{label}, {}", counted(connections)),
                decimals,
                value: Box::new(move |round| {
                    let load = round
                        .loads
                        .iter()
                        .find(|load| load.connections == connections)?;
                    // The direct line has no proxy whose time could be told.
                    (round.peer != Peer::Direct || label != "CPU µs/request").then(|| value(load))
                }),
            });
        }
    }
    let memory: [(String, OfMemory); 5] = [
        ("outbound at rest".into(), |memory| memory.at_rest.outbound),
        ("inbound at rest".into(), |memory| memory.at_rest.inbound),
        ("outbound after load".into(), |memory| {
            memory.before_idle.outbound
        }),
        (
            format!("outbound, {IDLE_CONNECTIONS} idle connections"),
            |memory| memory.with_idle.outbound,
        ),
        (
            format!("inbound, {IDLE_CONNECTIONS} idle connections"),
            |memory| memory.with_idle.inbound,
        ),
    ];
    for (label, value) in memory {
        rows.push(Row {
            label: format!("PSS MB, {label}"),
            decimals: 1,
            value: Box::new(move |round| {
                (round.peer != Peer::Direct).then(|| megabytes(value(&round.memory)))
            }),
        });
    }
    rows
}

fn counted(connections: u32) -> String {
    match connections {
        1 => "1 connection".to_owned(),
        more => format!("{more} connections"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 bytes")]
fn megabytes(pss: Pss) -> f64 {
    pss.0 as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(peer: Peer, cpu: f64, errors: u64) -> Round {
        Round {
            peer,
            loads: vec![LoadSample {
                connections: 16,
                requests: 1000,
                errors,
                requests_per_second: 500.0,
                cpu_us_per_request: cpu,
                p50_us: 90.0,
                p99_us: 200.0,
            }],
            memory: MemorySample::default(),
        }
    }

    fn results(rounds: Vec<Round>) -> Results {
        Results {
            machine: BTreeMap::new(),
            versions: BTreeMap::new(),
            rounds_of_each: 3,
            seconds: 1,
            peers: vec![Peer::Direct, Peer::Haproxy],
            rounds,
        }
    }

    #[test]
    fn the_table_shows_medians_and_leaves_out_what_direct_has_not() {
        let rounds = [50.0, 90.0, 60.0]
            .into_iter()
            .map(|cpu| round(Peer::Haproxy, cpu, 0))
            .chain([round(Peer::Direct, 0.0, 0)])
            .collect();
        let table = results(rounds).to_markdown();
        assert!(
            table.contains("| CPU µs/request, 16 connections | – | 60.0 |"),
            "{table}"
        );
        assert!(
            table.contains("| requests/s, 16 connections | 500 | 500 |"),
            "{table}"
        );
        assert!(!table.contains("NOT COMPARABLE"));
    }

    #[test]
    fn a_round_with_errors_is_named() {
        let table = results(vec![round(Peer::Haproxy, 50.0, 7)]).to_markdown();
        assert!(table.contains("failed 7 of 1000 requests"), "{table}");
    }

    #[test]
    fn cpu_is_divided_by_requests() {
        let load = WrkResult {
            requests: 1000,
            duration: 2e6,
            p50: 1.0,
            p99: 2.0,
            errors: 0,
        };
        let sample = LoadSample::new(1, &load, Duration::from_millis(50));
        assert!((sample.cpu_us_per_request - 50.0).abs() < 1e-9);
        assert!((sample.requests_per_second - 500.0).abs() < 1e-9);
    }
}
