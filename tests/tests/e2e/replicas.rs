//! Several control planes on one PostgreSQL, one of which dies now and then.

use std::sync::Arc;
use std::time::Duration;

use sidewind_tests::database::Database;
use sidewind_tests::mesh::{ControlPlane, Mesh};
use sidewind_tests::renewals::{Issuers, Seen, tokens, use_tokens};
use sidewind_tests::scratch::Scratch;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A mesh with two replicas on loopback, and its database.
struct Replicas {
    planes: Vec<ControlPlane>,
    mesh: Mesh,
    database: Database,
    scratch: Scratch,
}

impl Replicas {
    fn start() -> Self {
        let scratch = Scratch::new();
        let database = Database::start(&scratch);
        let mut mesh = Mesh::plan()
            .flag("--store", database.url())
            .flag("--svid-ttl", "60s")
            .start_on_host_loopback();
        let planes = vec![mesh.replica(), mesh.replica()];
        // The first of them is for sidecars alone.
        mesh.control_plane.kill();
        Self {
            planes,
            mesh,
            database,
            scratch,
        }
    }

    fn issuers(&self) -> Arc<Issuers> {
        let addresses = self.planes.iter().map(ControlPlane::address);
        let roots = std::fs::read_to_string(self.mesh.trust_bundle()).unwrap();
        Issuers::new(addresses.collect(), &roots)
    }

    /// Kills a replica at random and starts it again.
    fn kill_one(&mut self) {
        let unlucky = rand::random_range(0..self.planes.len());
        let plane = &mut self.planes[unlucky];
        plane.kill();
        plane.start(&self.scratch);
    }

    /// Nothing was issued twice, and every certificate that was seen is in the audit.
    fn check_database(&self, tokens: usize, seen: &Seen) {
        let granted = "FROM audit WHERE outcome = 'granted' AND serial IS NOT NULL";
        let query = |sql: &str| self.database.query(sql);
        let twice = query(&format!(
            "SELECT count(*) - count(DISTINCT serial) {granted}"
        ));
        assert_eq!(twice, "0", "serial numbers twice in the audit");
        let used = "SELECT count(*) FROM registrations";
        let used: usize = query(used).parse().unwrap();
        assert!(used <= tokens, "{used} registrations of {tokens} tokens");
        let known = query(&format!("SELECT serial {granted}"));
        let known: std::collections::HashSet<&str> = known.lines().collect();
        let lost: Vec<_> = seen
            .serials
            .iter()
            .filter(|serial| !known.contains(serial.as_str()))
            .collect();
        // What a killed process had not written yet: less than a second of its certificates.
        assert!(
            lost.len() * 20 <= seen.serials.len(),
            "{} of {} certificates are not in the audit",
            lost.len(),
            seen.serials.len()
        );
    }
}

/// Lets what the runtime does go on for a while.
fn wait(runtime: &Runtime, time: Duration) {
    runtime.block_on(async { tokio::time::sleep(time).await });
}

/// Renews identities while replicas die.
fn renew_through_deaths(identities: usize, interval: Duration, duration: Duration) {
    let mut replicas = Replicas::start();
    let runtime = Runtime::new().unwrap();
    let issuers = replicas.issuers();
    let made = runtime.block_on(tokens(replicas.planes[0].state(), identities));
    let svids = runtime.block_on(use_tokens(&issuers, &made, 4));
    assert_eq!(svids.len(), identities);
    let until = Instant::now() + duration;
    let mut renewing = JoinSet::new();
    for svid in svids {
        let renewals = Arc::clone(&issuers).keep_renewing(svid, interval, interval, until);
        renewing.spawn_on(renewals, runtime.handle());
    }
    let mut deaths = 0;
    while Instant::now() < until {
        let pause = Duration::from_millis(rand::random_range(1_500..4_000));
        wait(&runtime, pause);
        replicas.kill_one();
        deaths += 1;
    }
    runtime.block_on(renewing.join_all());
    let seen = issuers.seen();
    eprintln!(
        "{identities} identities, {} renewals, {deaths} deaths, {} failed tries, the slowest renewal {:?}",
        seen.renewed, seen.failed_tries, seen.slowest
    );
    assert!(seen.missed.is_empty(), "missed: {:?}", seen.missed);
    assert!(seen.twice.is_empty(), "serials twice: {:?}", seen.twice);
    let rounds = duration.as_millis() / interval.as_millis();
    let wanted = identities * usize::try_from(rounds - 1).unwrap();
    assert!(seen.renewed >= wanted, "{} of {wanted}", seen.renewed);
    replicas.check_database(identities, &seen);
}

#[test]
fn replicas_that_die_cost_no_renewal_and_no_token_is_used_twice() {
    renew_through_deaths(60, Duration::from_secs(3), Duration::from_secs(24));
}

#[test]
fn a_database_that_is_away_for_a_while_costs_no_renewal() {
    let mut replicas = Replicas::start();
    let runtime = Runtime::new().unwrap();
    let issuers = replicas.issuers();
    let made = runtime.block_on(tokens(replicas.planes[0].state(), 40));
    let svids = runtime.block_on(use_tokens(&issuers, &made, 1));
    let interval = Duration::from_secs(2);
    let until = Instant::now() + Duration::from_secs(20);
    let mut renewing = JoinSet::new();
    for svid in svids {
        let renewals = Arc::clone(&issuers).keep_renewing(svid, interval, interval, until);
        renewing.spawn_on(renewals, runtime.handle());
    }
    wait(&runtime, Duration::from_secs(4));
    replicas.database.kill();
    for plane in &replicas.planes {
        eventually("a replica says that the store is away", PATIENCE, || {
            (plane.metrics().value("sidewind_store_up") == Some(0.0)).then_some(())
        });
    }
    wait(&runtime, Duration::from_secs(3));
    replicas.database.start_again(&replicas.scratch);
    runtime.block_on(renewing.join_all());
    let seen = issuers.seen();
    assert!(seen.missed.is_empty(), "missed: {:?}", seen.missed);
    // Everything that was issued meanwhile is written, once.
    eventually("the audit is complete", PATIENCE, || {
        let sql = "SELECT serial FROM audit WHERE outcome = 'granted' AND serial IS NOT NULL";
        let known = replicas.database.query(sql);
        let known: Vec<&str> = known.lines().collect();
        let has = |serial: &String| known.iter().filter(|known| **known == serial).count() == 1;
        seen.serials.iter().all(has).then_some(())
    });
}

#[test]
fn sidecars_go_to_another_replica_and_find_what_is_new_there() {
    let scratch = Scratch::new();
    let database = Database::start(&scratch);
    let mut mesh = Mesh::plan().flag("--store", database.url()).start();
    let other = mesh.replica();
    let api = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data=8080")
        .start();
    let _server = workloads::api(&api, 8080, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    let call = |url: &str| task.curl(&["-f", url]).finish().code() == Some(0);
    assert!(call("http://orders-api.data:8080/orders"));

    let report = mesh
        .workload("data", "report")
        .serves("report.data=8080")
        .start();
    let _report_server = workloads::api(&report, 8080, &mesh.scratch);
    mesh.control_plane.kill();
    let connected = || other.metrics().value("sidewind_connected_proxies");
    eventually("every sidecar is at the other replica", PATIENCE, || {
        (connected() == Some(3.0)).then_some(())
    });
    eventually("what is new is found", PATIENCE, || {
        call("http://report.data:8080/orders").then_some(())
    });
    assert!(call("http://orders-api.data:8080/orders"));
}

mod soak {
    use super::*;

    #[test]
    fn five_hundred_identities_renew_for_three_minutes_while_replicas_die() {
        renew_through_deaths(500, Duration::from_secs(10), Duration::from_secs(180));
    }
}
