//! The harness itself, with no mesh between: what it says about a mesh is only worth what is shown here.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use sidewind_tests::collector::Collector;
use sidewind_tests::http::Request;
use sidewind_tests::lan::{Host, Lan, Namespace};
use sidewind_tests::load::Load;
use sidewind_tests::scratch::Scratch;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::wire::Recording;
use sidewind_tests::workloads;

fn at(host: &Host, port: u16) -> SocketAddr {
    (host.address, port).into()
}

#[test]
fn a_listener_on_the_wire_reads_what_is_not_encrypted() {
    let (mut lan, scratch) = (Lan::new(), Scratch::new());
    let (client, server) = (lan.host("client"), lan.host("server"));
    let _api = workloads::api(&server, 8080, &scratch);
    let recording = Recording::start(&lan.router());
    let url = format!("http://server:8080/echo?{}", "q=1");
    let curl = client
        .place
        .program("curl")
        .args(["-sS", "-H", "x-canary: seen-by-all", &url]);
    assert!(curl.finish().success().contains("/echo?q=1"));
    let wire = recording.stop().between(client.address, server.address);
    assert!(wire.shows(b"GET /echo?q=1 HTTP/1.1"));
    let error = wire.only_tls(8080, &["seen-by-all"]).unwrap_err();
    assert!(error.contains("can be read"), "{error}");
}

#[test]
fn nothing_is_left_of_a_network_and_its_processes() {
    let names = |directory: &str| {
        let own = format!("sw-{}-", std::process::id());
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| name.starts_with(&own))
            .collect::<Vec<_>>()
    };
    let (id, address);
    {
        let scratch = Scratch::new();
        let mut lan = Lan::new();
        let host = lan.host("server");
        let api = workloads::api(&host, 8080, &scratch);
        (id, address) = (api.id(), scratch.path().to_owned());
        assert!(!names("/run/netns").is_empty());
    }
    assert_eq!(names("/run/netns"), [""; 0]);
    assert_eq!(names("/etc/netns"), [""; 0]);
    assert!(!address.exists());
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
}

#[test]
fn unmodified_programs_talk_across_the_network() {
    let (mut lan, scratch) = (Lan::new(), Scratch::new());
    let (client, server) = (lan.host("client"), lan.host("server"));
    let _nginx = workloads::nginx(&server, 8080, &scratch);
    let _redis = workloads::redis(&server, 6379, false, &scratch);
    let _postgres = workloads::postgres(&server, 5432, "10.77.0.0/16", &scratch);

    let h2load = |url: &str, version: &[&str]| {
        let h2load = client
            .place
            .program("h2load")
            .args(["-n", "200", "-c", "4"])
            .args(version)
            .arg(url);
        h2load.finish().success()
    };
    let http1 = h2load("http://server:8080/", &["--h1"]);
    assert!(http1.contains("200 succeeded, 0 failed"), "{http1}");
    let h2c = h2load("http://server:8081/", &["-m", "4"]);
    assert!(h2c.contains("200 succeeded, 0 failed"), "{h2c}");

    let redis = client
        .place
        .program("redis-benchmark")
        .args(["-h", "server", "-n", "200", "-t", "set,get", "-q"]);
    assert!(redis.finish().success().contains("GET:"));
    let psql = client.place.program("psql").args([
        "-h",
        "server",
        "-U",
        "postgres",
        "-Atc",
        "select 6 * 7",
    ]);
    assert_eq!(psql.finish().success().trim(), "42");
}

#[test]
fn a_redis_in_protected_mode_refuses_other_hosts() {
    let (mut lan, scratch) = (Lan::new(), Scratch::new());
    let (client, server) = (lan.host("client"), lan.host("server"));
    let _redis = workloads::redis(&server, 6379, true, &scratch);
    let ping = |host: &Host, name: &str| {
        host.place
            .program("redis-cli")
            .args(["-h", name, "PING"])
            .finish()
    };
    assert!(ping(&server, "127.0.0.1").out().contains("PONG"));
    let refused = ping(&client, "server");
    assert!(
        (refused.out() + &refused.err()).contains("DENIED"),
        "{refused:?}"
    );
}

#[test]
fn load_is_no_more_than_was_asked_for_and_failures_are_counted() {
    let (mut lan, scratch) = (Lan::new(), Scratch::new());
    let (client, server) = (lan.host("client"), lan.host("server"));
    let _api = workloads::api(&server, 8080, &scratch);
    let load = Load::new(at(&server, 8080), "/orders")
        .rate(200)
        .duration(Duration::from_secs(1));
    let report = load.start(&client.place).finish();
    // A machine that is busy with other things sends fewer, and never more.
    assert!((1..=200).contains(&report.requests), "{}", report.requests);
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert!(report.quantile(0.5) > Duration::ZERO && report.quantile(0.5) < Duration::from_secs(1));

    let load = Load::new(at(&server, 8080), "/flaky")
        .rate(300)
        .connections(1)
        .duration(Duration::from_secs(1));
    let report = load.start(&client.place).finish();
    let every_third = report.requests / 3;
    assert!(every_third > 0);
    assert_eq!(
        report.failures.get("503 of the workload"),
        Some(&every_third),
        "{:?}",
        report.failures
    );

    let nobody = Load::new(at(&server, 1), "/")
        .rate(10)
        .duration(Duration::from_secs(1));
    let report = nobody.start(&client.place).finish();
    assert_eq!((report.requests, report.failed()), (10, 10));
}

#[test]
fn a_load_that_outlives_its_server_says_so() {
    let (mut lan, scratch) = (Lan::new(), Scratch::new());
    let (client, server) = (lan.host("client"), lan.host("server"));
    let mut api = workloads::api(&server, 8080, &scratch);
    let load = Load::new(at(&server, 8080), "/orders").start(&client.place);
    eventually("requests succeed", PATIENCE, || {
        (load.succeeded() > 20).then_some(())
    });
    api.kill();
    eventually("requests fail", PATIENCE, || {
        (load.failed() > 20).then_some(())
    });
    assert!(load.stop().failed() > 20);
}

#[test]
fn the_collector_takes_what_an_exporter_sends() {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};

    let namespace = Namespace::new();
    let collector = Collector::start(&namespace.place(), (Ipv4Addr::LOCALHOST, 4317).into());
    let endpoint = collector.endpoint();
    let span = Span {
        trace_id: vec![0xab; 16],
        span_id: vec![1; 8],
        name: "GET".into(),
        ..Span::default()
    };
    let scope = ScopeSpans {
        spans: vec![span],
        ..ScopeSpans::default()
    };
    let spans = ResourceSpans {
        scope_spans: vec![scope],
        ..ResourceSpans::default()
    };
    namespace.place().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let channel = tonic::transport::Endpoint::from_shared(endpoint)
                .unwrap()
                .connect()
                .await
                .unwrap();
            let request = ExportTraceServiceRequest {
                resource_spans: vec![spans],
            };
            TraceServiceClient::new(channel)
                .export(request)
                .await
                .unwrap();
        });
    });
    let spans = collector.trace(&"ab".repeat(16), 1, PATIENCE);
    assert_eq!(spans.len(), 1);
    assert_eq!(
        (spans[0].name.as_str(), spans[0].parent_id.as_str()),
        ("GET", "")
    );
}

#[test]
fn a_host_without_link_is_not_reached() {
    let (mut lan, scratch) = (Lan::new(), Scratch::new());
    let (client, server) = (lan.host("client"), lan.host("server"));
    let _api = workloads::api(&server, 8080, &scratch);
    lan.set_link(&server, false);
    assert!(!client.place.is_open(at(&server, 8080)));
    lan.set_link(&server, true);
    eventually("the link is mended", PATIENCE, || {
        client.place.is_open(at(&server, 8080)).then_some(())
    });
    assert_eq!(
        Request::get(at(&server, 8080), "/orders")
            .send(&client.place)
            .status,
        200
    );
}
