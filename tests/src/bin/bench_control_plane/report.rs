//! The figures, and the table that people read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use sidewind_tests::measure;
use sidewind_tests::metrics::Metrics;

use crate::Cli;
use crate::tally::Spread;

/// Everything that was measured. Times are in seconds, memory in bytes.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: BTreeMap<String, String>,
    proxies: u32,
    concurrency: usize,
    attest: Rate,
    connect: Seconds,
    connect_cpu: f64,
    idle_cores: f64,
    pub(crate) memory_at_start: u64,
    memory_connected: u64,
    pub(crate) memory_after_renewals: u64,
    renew: Vec<Renewals>,
    pub(crate) bans: Vec<Seconds>,
    pub(crate) bundle: Option<Seconds>,
    writes_lost: f64,
    pub(crate) reconnected: Option<Return>,
    pub(crate) reattested: Option<Return>,
}

/// How often something was done.
#[derive(Debug, Default, Serialize)]
struct Rate {
    number: usize,
    took: f64,
    cpu: f64,
}

/// A run of renewals.
#[derive(Debug, Serialize)]
struct Renewals {
    /// Each on a connection of its own.
    anew: bool,
    rate: Rate,
    /// Processor time of the writes that followed the answers.
    cpu_after: f64,
}

/// How long the proxies took for something.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Seconds {
    median: f64,
    last: f64,
}

/// How all proxies came back after `kill -9`, from the start of the new process on.
#[derive(Debug, Serialize)]
pub(crate) struct Return {
    /// Until the control plane answered.
    pub(crate) ready: f64,
    /// Until the streams were open.
    pub(crate) back: Seconds,
    /// Connections that were tried from then on.
    pub(crate) attempts: usize,
    pub(crate) most_attempts_in_a_second: usize,
    pub(crate) cpu: f64,
    pub(crate) peak: u64,
    pub(crate) failures: String,
}

impl From<Spread> for Seconds {
    fn from(spread: Spread) -> Self {
        Self {
            median: spread.median.as_secs_f64(),
            last: spread.last.as_secs_f64(),
        }
    }
}

impl Rate {
    fn per_second(&self) -> f64 {
        self.number as f64 / self.took
    }

    fn microseconds_each(&self, more_cpu: f64) -> f64 {
        (self.cpu + more_cpu) * 1e6 / self.number.max(1) as f64
    }
}

impl Report {
    pub(crate) fn new(cli: &Cli) -> Self {
        Self {
            machine: BTreeMap::new(),
            proxies: cli.proxies,
            concurrency: cli.concurrency,
            attest: Rate::default(),
            connect: Seconds::default(),
            connect_cpu: 0.0,
            idle_cores: 0.0,
            memory_at_start: 0,
            memory_connected: 0,
            memory_after_renewals: 0,
            renew: Vec::new(),
            bans: Vec::new(),
            bundle: None,
            writes_lost: 0.0,
            reconnected: None,
            reattested: None,
        }
    }

    pub(crate) fn attested(&mut self, number: usize, took: Duration, cpu: Duration) {
        self.attest = rate(number, took, cpu);
    }

    pub(crate) fn connected(&mut self, number: usize, spread: Spread, cpu: Duration) {
        self.connect = spread.into();
        self.connect_cpu = cpu.as_secs_f64() / number as f64;
    }

    pub(crate) fn idle(&mut self, memory: u64, cpu: Duration, time: Duration) {
        self.memory_connected = memory;
        self.idle_cores = cpu.as_secs_f64() / time.as_secs_f64().max(1.0);
    }

    pub(crate) fn idle_cores(&self) -> f64 {
        self.idle_cores
    }

    pub(crate) fn renewed(
        &mut self,
        anew: bool,
        number: usize,
        took: Duration,
        cpu: Duration,
        after: Duration,
    ) {
        self.renew.push(Renewals {
            anew,
            rate: rate(number, took, cpu),
            cpu_after: after.as_secs_f64(),
        });
    }

    pub(crate) fn metrics(&mut self, metrics: &Metrics) {
        self.writes_lost = metrics.sum("sidewind_store_writes_lost_total", &[]);
    }

    pub(crate) fn finish(&mut self) {
        self.machine = measure::machine();
    }

    /// The table.
    pub(crate) fn to_markdown(&self) -> String {
        let mut rows = vec![
            ("proxies".to_owned(), self.proxies.to_string()),
            (
                "attested with join tokens".to_owned(),
                format!(
                    "{:.0}/s, {:.0} µs of processor time each",
                    self.attest.per_second(),
                    self.attest.microseconds_each(0.0)
                ),
            ),
            (
                "all streams opened".to_owned(),
                format!(
                    "{}, {:.0} µs each",
                    seconds(&self.connect),
                    self.connect_cpu * 1e6
                ),
            ),
            ("memory".to_owned(), self.memory()),
            (
                "idle, all connected".to_owned(),
                format!("{:.2} cores", self.idle_cores),
            ),
        ];
        rows.extend(self.renew.iter().map(|run| self.renewals(run)));
        let lost = format!("{}", self.writes_lost);
        rows.push(("writes to the store lost".to_owned(), lost));
        for ban in &self.bans {
            rows.push(("a ban known to all".to_owned(), seconds(ban)));
        }
        let bundle = self.bundle.as_ref().map(seconds);
        rows.push((
            "a trust bundle known to all".to_owned(),
            bundle.unwrap_or_else(|| "not measured: this control plane rotates no root".to_owned()),
        ));
        let returns = [
            ("killed: all reconnected", &self.reconnected),
            ("killed: all attested anew", &self.reattested),
        ];
        for (what, back) in returns {
            rows.extend(back.as_ref().map(|back| (what.to_owned(), back.to_text())));
        }
        let machine = self.machine.iter();
        rows.extend(machine.map(|(what, value)| (what.clone(), value.clone())));
        let mut table = "| what | measured |\n| --- | --- |\n".to_owned();
        for (what, value) in rows {
            // Writing to a String does not fail.
            let _ = writeln!(table, "| {what} | {value} |");
        }
        table
    }

    fn memory(&self) -> String {
        let each = |bytes: u64| {
            let grown = bytes.saturating_sub(self.memory_at_start) as f64;
            grown / 1024.0 / f64::from(self.proxies)
        };
        format!(
            "{} at the start, {} with all connected: {:.1} KiB each; {} after the renewals: {:.1} KiB",
            mebibytes(self.memory_at_start),
            mebibytes(self.memory_connected),
            each(self.memory_connected),
            mebibytes(self.memory_after_renewals),
            each(self.memory_after_renewals),
        )
    }

    fn renewals(&self, run: &Renewals) -> (String, String) {
        let on = match run.anew {
            false => "the streams' connections",
            true => "connections of their own",
        };
        let what = format!("renewed, {} at once, on {on}", self.concurrency);
        let each = run.rate.microseconds_each(run.cpu_after);
        let value = format!(
            "{:.0}/s; {each:.0} µs of processor time each ({:.0} of them after the answer): {:.0}/s by two cores",
            run.rate.per_second(),
            run.cpu_after * 1e6 / run.rate.number.max(1) as f64,
            2e6 / each,
        );
        (what, value)
    }
}

impl Return {
    fn to_text(&self) -> String {
        let failures = match self.failures.as_str() {
            "" => "none",
            failures => failures,
        };
        format!(
            "{} after the start; it answered after {:.1} s; {} attempts, {} in the busiest second; {:.1} s of processor \
             time; peak memory {}; failures: {failures}",
            seconds(&self.back),
            self.ready,
            self.attempts,
            self.most_attempts_in_a_second,
            self.cpu,
            mebibytes(self.peak),
        )
    }
}

fn rate(number: usize, took: Duration, cpu: Duration) -> Rate {
    Rate {
        number,
        took: took.as_secs_f64(),
        cpu: cpu.as_secs_f64(),
    }
}

fn seconds(spread: &Seconds) -> String {
    format!("{:.2} s (half: {:.2} s)", spread.last, spread.median)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}
