//! A run of minutes with certificates that live for one, and a control plane that is killed again and again.

mod soak {
    use std::time::Duration;

    use sidewind_tests::airflow::{Deployment, Machine, Plan};
    use sidewind_tests::mesh::Sidecar;
    use sidewind_tests::wait::{eventually, throughout};
    use tokio::time::Instant;

    use super::super::story::{long_lived, open_connections};

    const PATIENCE: Duration = Duration::from_secs(240);

    /// How long the run takes.
    const RUN: Duration = Duration::from_secs(300);

    /// How long the control plane is away each time: less than a certificate that is renewed in time has left.
    const AWAY: Duration = Duration::from_secs(20);

    fn sidecars(airflow: &Deployment) -> impl Iterator<Item = &Sidecar> {
        airflow.machines().iter().map(Machine::sidecar)
    }

    #[test]
    fn a_run_of_five_minutes_succeeds_while_the_control_plane_is_killed_again_and_again() {
        let plan = Plan::celery(&["patient.py"]).svid_ttl("60s");
        let mut airflow = plan.start();
        let rest = airflow.login();
        airflow.set_variable("stage", "on");
        rest.trigger("patient", "long", PATIENCE);
        let go_on =
            "select count(*) from task_instance where task_id = 'go_on' and state = 'running'";
        eventually("the long task runs", PATIENCE, || {
            (airflow.query(go_on) == "1").then_some(())
        });
        let kept = long_lived(&airflow);
        let began = Instant::now();
        let mut times = 0;
        while began.elapsed() < RUN {
            let expiries: Vec<f64> = sidecars(&airflow)
                .map(Sidecar::certificate_expiry)
                .collect();
            airflow.mesh.control_plane.kill();
            throughout("the worker runs", AWAY, || {
                airflow.process("worker").is_running()
            });
            airflow.mesh.control_plane.start(&airflow.mesh.scratch);
            // Each of them, or one that has missed every return so far is without a certificate in the end.
            for (sidecar, expiry) in sidecars(&airflow).zip(expiries) {
                sidecar.wait_for_rotation(expiry, Duration::from_secs(60));
            }
            times += 1;
            let now = open_connections(&airflow);
            let closed: Vec<_> = kept.difference(&now).collect();
            assert!(closed.is_empty(), "closed after {times} times: {closed:?}");
        }
        airflow.set_variable("stage", "over");
        let state = airflow.wait_for_run("patient", "long", PATIENCE);
        assert_eq!(state, "success", "{}", airflow.tasks("patient", "long"));
        for (machine, record) in airflow.access_log() {
            let service = record.text("service");
            if service == "redis.airflow" || service == "postgres.airflow" {
                assert_eq!(record.error(), "", "{machine}: {record}");
            }
        }
        println!(
            "{times} times without a control plane, {} connections kept",
            kept.len()
        );
    }
}
