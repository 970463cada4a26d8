//! Figures, their medians over the rounds, and the tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::RunArgs;
use crate::bars::{BARS, Bound};
use crate::peers::Peer;
use crate::turn::{CONNECTIONS, Figures, SOME_IDLE, STALLED_READERS};
use sidewind_tests::measure::median;

/// One peer's turn in one round.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) peer: Peer,
    pub(crate) figures: Figures,
}

/// Everything that one run of the benchmark found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    machine: BTreeMap<String, String>,
    versions: BTreeMap<String, String>,
    rounds_of_each: u32,
    seconds: u32,
    /// How many the "many" idle connections were.
    most_idle: usize,
    peers: Vec<Peer>,
    rounds: Vec<Round>,
    bars: Vec<Judged>,
}

/// A bar and how Sidewind stood to it.
#[derive(Debug, Serialize)]
struct Judged {
    work: &'static str,
    must: Verdict,
    aim: Option<Verdict>,
}

#[derive(Debug, Serialize)]
struct Verdict {
    bound: String,
    /// Nothing where a peer or the work was left out of the run.
    reached: Option<f64>,
    met: Option<bool>,
}

/// A row of the table.
struct Row {
    label: String,
    decimals: usize,
    figure: String,
}

impl Results {
    pub(crate) fn new(
        args: &RunArgs,
        most_idle: usize,
        machine: BTreeMap<String, String>,
        versions: BTreeMap<String, String>,
        mut rounds: Vec<Round>,
    ) -> Self {
        add_latency_over_direct(&mut rounds);
        let mut results = Self {
            machine,
            versions,
            rounds_of_each: args.rounds,
            seconds: args.seconds,
            most_idle,
            peers: args.peers.clone(),
            rounds,
            bars: Vec::new(),
        };
        results.bars = results.judge();
        results
    }

    fn judge(&self) -> Vec<Judged> {
        let verdict = |bound: Bound, figure| {
            let standing = bound.judge(|peer| self.median(peer, figure));
            Verdict {
                bound: bound.to_string(),
                reached: standing.map(|standing| standing.reached),
                met: standing.map(|standing| standing.met),
            }
        };
        let judged = BARS.iter().map(|bar| Judged {
            work: bar.work,
            must: verdict(bar.must, bar.figure),
            aim: bar.aim.map(|aim| verdict(aim, bar.figure)),
        });
        judged.collect()
    }

    pub(crate) fn to_markdown(&self) -> String {
        let mut text = format!(
            "Client → outbound proxy → mutual TLS 1.3 → inbound proxy → server; one worker thread per proxy, CPU of \
             both proxies together.\nSidewind with policy, metrics, access log to a file and traces of 1 % of the \
             requests; the others without logs.\nMedians of {} rounds with half their range; runs of {} s.\n\n",
            self.rounds_of_each, self.seconds
        );
        for (name, value) in self.machine.iter().chain(&self.versions) {
            let _ = writeln!(text, "- {name}: {value}");
        }
        self.write_bars(&mut text);
        self.write_figures(&mut text);
        text
    }

    fn write_bars(&self, text: &mut String) {
        text.push_str("\n| work | must | reached | | aim | reached | |\n| --- | --- | ---: | --- | --- | ---: | --- |\n");
        for bar in &self.bars {
            let _ = write!(text, "| {} |", bar.work);
            for verdict in [Some(&bar.must), bar.aim.as_ref()] {
                let Some(verdict) = verdict else {
                    text.push_str(" | | |");
                    continue;
                };
                let reached = verdict
                    .reached
                    .map_or("–".to_owned(), |value| format!("{value:.2}"));
                let met = match verdict.met {
                    Some(true) => "met",
                    Some(false) => "**missed**",
                    None => "–",
                };
                let _ = write!(text, " {} | {reached} | {met} |", verdict.bound);
            }
            text.push('\n');
        }
    }

    fn write_figures(&self, text: &mut String) {
        text.push_str("\n| |");
        for peer in &self.peers {
            let _ = write!(text, " {} |", peer.title());
        }
        let _ = write!(text, "\n| --- |{}\n", " ---: |".repeat(self.peers.len()));
        for row in rows(self.most_idle) {
            let cells: Vec<_> = self
                .peers
                .iter()
                .map(|peer| self.cell(*peer, &row))
                .collect();
            if cells.iter().all(Option::is_none) {
                continue;
            }
            let _ = write!(text, "| {} |", row.label);
            for cell in cells {
                let _ = write!(text, " {} |", cell.unwrap_or_else(|| "–".to_owned()));
            }
            text.push('\n');
        }
    }

    fn cell(&self, peer: Peer, row: &Row) -> Option<String> {
        let values = || self.values(peer, &row.figure);
        let median = median(values())?;
        let (least, most) = values().fold((f64::MAX, f64::MIN), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let decimals = row.decimals;
        Some(match values().count() {
            1 => format!("{median:.decimals$}"),
            _ => format!("{median:.decimals$} ±{:.decimals$}", (most - least) / 2.0),
        })
    }

    fn median(&self, peer: Peer, figure: &str) -> Option<f64> {
        median(self.values(peer, figure))
    }

    fn values(&self, peer: Peer, figure: &str) -> impl Iterator<Item = f64> {
        let turns = self.rounds.iter().filter(move |round| round.peer == peer);
        turns.filter_map(move |round| round.figures.get(figure).copied())
    }
}

/// What each proxy adds to the latency without one, within each round.
fn add_latency_over_direct(rounds: &mut [Round]) {
    const QUANTILES: [&str; 3] = ["p50", "p99", "p999"];
    let mut direct = [None; 3];
    for round in rounds {
        for (name, direct) in QUANTILES.iter().zip(&mut direct) {
            let value = round.figures.get(&format!("rate_{name}_us")).copied();
            if round.peer == Peer::Direct {
                *direct = value;
            } else if let (Some(value), Some(direct)) = (value, *direct) {
                let added = format!("rate_added_{name}_us");
                round.figures.insert(added, value - direct);
            }
        }
    }
}

fn rows(most_idle: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |label: String, decimals, figure: String| {
        rows.push(Row {
            label,
            decimals,
            figure,
        });
    };
    for connections in CONNECTIONS {
        let plural = if connections == 1 { "" } else { "s" };
        for (label, decimals, figure) in [
            ("CPU µs/request", 1, "cpu_us"),
            ("requests/s", 0, "per_second"),
            ("p50 µs", 0, "p50_us"),
            ("p99 µs", 0, "p99_us"),
        ] {
            row(
                format!("HTTP/1.1, {connections} connection{plural}: {label}"),
                decimals,
                format!("http_{connections}_{figure}"),
            );
        }
    }
    for quantile in ["p50", "p99", "p999"] {
        row(
            format!("1,000 requests/s: added {quantile} µs"),
            0,
            format!("rate_added_{quantile}_us"),
        );
    }
    for (label, decimals, figure) in [
        ("HTTP/2, 8 × 16 streams: CPU µs/request", 1, "http2_cpu_us"),
        ("HTTP/2, 8 × 16 streams: requests/s", 0, "http2_per_second"),
        ("gRPC, 4 × 8 streams: CPU µs/call", 1, "grpc_cpu_us"),
        ("gRPC, 4 × 8 streams: calls/s", 0, "grpc_per_second"),
        (
            "new HTTP connection with a request: CPU µs",
            0,
            "new_http_cpu_us",
        ),
        ("new opaque TCP connection: CPU µs", 0, "new_tcp_cpu_us"),
        ("full handshake at inbound: CPU µs", 0, "handshake_cpu_us"),
        ("TCP stream down: CPU s/GiB", 2, "stream_down_cpu_s"),
        ("TCP stream up: CPU s/GiB", 2, "stream_up_cpu_s"),
        ("Redis, 16 connections: CPU µs/command", 1, "redis_cpu_us"),
        ("Redis, 16 connections: commands/s", 0, "redis_per_second"),
        ("PSS MB, outbound at rest", 1, "rest_outbound_mb"),
        ("PSS MB, inbound at rest", 1, "rest_inbound_mb"),
    ] {
        row(label.to_owned(), decimals, figure.to_owned());
    }
    for kind in ["http", "tcp"] {
        for (many, connections) in [("some", SOME_IDLE), ("many", most_idle)] {
            for side in ["outbound", "inbound"] {
                row(
                    format!("{connections} idle {kind} connections: KiB each, {side}"),
                    1,
                    format!("idle_{kind}_{many}_{side}_kib"),
                );
            }
        }
    }
    for readers in STALLED_READERS {
        row(
            format!("{readers} stalled readers: share of another client's rate"),
            2,
            format!("stalled_{readers}_share"),
        );
        row(
            format!("{readers} stalled readers: MiB more, both proxies"),
            0,
            format!("stalled_{readers}_mib"),
        );
    }
    row("program, MB".to_owned(), 1, "program_mb".to_owned());
    row("start to ready, ms".to_owned(), 0, "start_ms".to_owned());
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(peer: Peer, figure: &str, value: f64) -> Round {
        Round {
            peer,
            figures: Figures::from([(figure.to_owned(), value)]),
        }
    }

    fn results(rounds: Vec<Round>) -> Results {
        let mut results = Results {
            machine: BTreeMap::new(),
            versions: BTreeMap::new(),
            rounds_of_each: 3,
            seconds: 1,
            most_idle: 10_000,
            peers: vec![Peer::Direct, Peer::Haproxy, Peer::Sidewind],
            rounds,
            bars: Vec::new(),
        };
        results.bars = results.judge();
        results
    }

    #[test]
    fn the_table_shows_medians_with_their_spread() {
        let rounds = [50.0, 90.0, 60.0].map(|cpu| round(Peer::Haproxy, "http_16_cpu_us", cpu));
        let table = results(rounds.into()).to_markdown();
        let row = "| HTTP/1.1, 16 connections: CPU µs/request | – | 60.0 ±20.0 | – |";
        assert!(table.contains(row), "{table}");
        assert!(!table.contains("1 connection: CPU µs"), "{table}");
    }

    #[test]
    fn a_bar_is_marked_as_met_or_missed() {
        let table = results(vec![
            round(Peer::Haproxy, "http_16_cpu_us", 50.0),
            round(Peer::Sidewind, "http_16_cpu_us", 55.0),
            round(Peer::Sidewind, "start_ms", 55.0),
        ])
        .to_markdown();
        assert!(
            table.contains("| ≤ 1 × HAProxy | 1.10 | **missed** |"),
            "{table}"
        );
        assert!(
            table.contains("| ≤ 60 | 55.00 | met | ≤ 25 | 55.00 | **missed** |"),
            "{table}"
        );
    }

    #[test]
    fn added_latency_is_over_the_direct_one_of_the_same_round() {
        let mut rounds = vec![
            round(Peer::Direct, "rate_p50_us", 100.0),
            round(Peer::Sidewind, "rate_p50_us", 250.0),
            round(Peer::Direct, "rate_p50_us", 120.0),
            round(Peer::Sidewind, "rate_p50_us", 250.0),
        ];
        add_latency_over_direct(&mut rounds);
        let added = |index: usize| rounds[index].figures.get("rate_added_p50_us").copied();
        assert_eq!(
            [added(0), added(1), added(3)],
            [None, Some(150.0), Some(130.0)]
        );
    }
}
