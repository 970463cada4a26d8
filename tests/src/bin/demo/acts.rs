//! The story, act by act.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sidewind_tests::access_log::AccessRecord;
use sidewind_tests::collector::Span;
use sidewind_tests::load::RunningLoad;
use sidewind_tests::mesh::{MESH_PORT, Workload};
use sidewind_tests::wait::within;
use sidewind_tests::wire::hexdump;

use crate::ground::{Ground, obstacle};
use sidewind_tests::stage::{Paint, Stage};

/// How long a certificate of 60 s may at most go without renewal, with time to spare.
const ROTATION_PATIENCE: Duration = Duration::from_secs(35);

/// Plays everything.
pub(crate) fn play(stage: &mut Stage, loopback: bool) {
    let obstacle = if loopback {
        Some("as asked".into())
    } else {
        obstacle()
    };
    let mode = match &obstacle {
        None => "in network namespaces of its own, with redirection".into(),
        Some(why) => format!("on loopback addresses, with explicit capture ({why})"),
    };
    stage.title("Sidewind: a mesh in a minute", &mode);
    let mut ground = None;
    stage.act("Start", |stage| {
        ground = Some(start(stage, obstacle.is_none()))
    });
    let Some(mut ground) = ground else {
        return;
    };
    let expiries =
        [&ground.task, &ground.api].map(|workload| workload.sidecar.certificate_expiry());
    let load = ground.load().start(&ground.task.place);
    stage.act("Who calls whom", |stage| who_calls_whom(stage, &ground));
    stage.act("A 503 that the caller never sees", |stage| {
        retried(stage, &ground)
    });
    stage.act("The wrong identity", |stage| wrong_identity(stage, &ground));
    stage.act("No identity at all", |stage| plaintext(stage, &ground));
    stage.act("Not HTTP: Redis", |stage| opaque(stage, &ground));
    stage.act("The wire", |stage| wire(stage, &mut ground));
    stage.act("A trace", |stage| trace(stage, &ground));
    stage.act("New certificates under live traffic", |stage| {
        rotation(stage, &ground, expiries, load)
    });
    stage.act("Metrics", |stage| metrics(stage, &ground));
    // What was said is in the logs, which go away with the rest.
    if !stage.all_held() {
        ground.mesh.scratch.show_logs();
    }
}

fn start(stage: &mut Stage, transparent: bool) -> Ground {
    let ground = Ground::start(transparent);
    stage.line(&format!(
        "control plane     {}",
        ground.mesh.control_plane.host().address
    ));
    for (workload, what) in [
        (&ground.api, "an HTTP API and a Redis"),
        (&ground.task, "a task that calls them"),
        (&ground.reporting, "somebody who may not"),
    ] {
        stage.line(&format!(
            "{:<16}  {:<12} {:<49} {what}",
            workload.name, workload.address, workload.spiffe_id
        ));
    }
    let listed = ground.mesh.control_plane.workloads().to_string();
    let all = [&ground.api, &ground.task, &ground.reporting]
        .map(|workload| listed.contains(&workload.spiffe_id));
    stage.claim(
        "three sidecars have joined, each with a certificate that lives for 60 s",
        all == [true; 3],
    );
    ground
}

fn told(stage: &Stage, who: &str, record: &AccessRecord) {
    let id = |id: String| {
        if id.is_empty() {
            "nobody known".into()
        } else {
            id
        }
    };
    let wire = if record.tls() { "TLS" } else { "plaintext" };
    let outcome = match (record.status(), record.error()) {
        (0, _) => format!("{} bytes", record.number("response_bytes")),
        (status, error) if error.is_empty() => status.to_string(),
        (status, error) => format!("{status} {error}"),
    };
    let ids = format!(
        "{} → {}",
        id(record.source_id()),
        id(record.destination_id())
    );
    let heading = format!("{who:<18} {:<8}", record.direction());
    stage.line(&format!("{} {ids}", stage.paint(Paint::Dim, &heading)));
    let text = format!(
        "{:<27} {outcome} over {wire}, {} ms",
        "",
        record.text("duration_ms")
    );
    stage.line(&stage.paint(Paint::Dim, &text));
}

fn who_calls_whom(stage: &mut Stage, ground: &Ground) {
    let answer = ground.call(&ground.task, "/orders", &["user-agent: demo"]);
    stage.line(&format!(
        "the task:  GET http://orders-api.data/orders  →  {} {}",
        answer.status, answer.body
    ));
    stage.claim(
        "the task got its answer, with an unmodified client",
        answer.status == "200",
    );
    let of_call = |record: &AccessRecord| record.text("user_agent") == "demo";
    let outbound = ground.task.sidecar.wait_for_access("the call", of_call);
    let inbound = ground.api.sidecar.wait_for_access("the call", of_call);
    told(stage, "the task's sidecar", &outbound);
    told(stage, "the API's sidecar", &inbound);
    let ids = (ground.task.spiffe_id.clone(), ground.api.spiffe_id.clone());
    let knows = |record: &AccessRecord| {
        (record.source_id(), record.destination_id()) == ids && record.tls()
    };
    stage.claim(
        "both sidecars have proof of both identities",
        knows(&outbound) && knows(&inbound),
    );
}

fn retried(stage: &mut Stage, ground: &Ground) {
    let statuses: Vec<String> = (0..6)
        .map(|_| ground.call(&ground.task, "/flaky", &[]).status)
        .collect();
    stage.line(&format!(
        "the task calls /flaky six times and sees   {}",
        statuses.join(" ")
    ));
    let flaky = |workload: &Workload, count: usize| {
        let records = || {
            let log = workload.sidecar.access_log().into_iter();
            log.filter(|record| record.path() == "/flaky")
                .collect::<Vec<_>>()
        };
        within(Duration::from_secs(5), || {
            Some(records()).filter(|found| found.len() >= count)
        })
        .unwrap_or_else(records)
    };
    let calls = flaky(&ground.task, 6);
    let answers = flaky(&ground.api, 8);
    let answers: Vec<String> = answers
        .iter()
        .map(|record| record.status().to_string())
        .collect();
    stage.line(&format!(
        "the API, asked again, has answered         {}",
        answers.join(" ")
    ));
    let again = calls.iter().filter(|record| record.attempts() > 1).count();
    stage.line(&format!(
        "calls that were sent a second time         {again}"
    ));
    let unseen = statuses.iter().all(|status| status == "200")
        && answers.iter().any(|status| status == "503");
    stage.claim(
        "a 503 of the API was retried, and the task saw only successes",
        unseen && again >= 1,
    );
}

fn wrong_identity(stage: &mut Stage, ground: &Ground) {
    let answer = ground.call(&ground.reporting, "/orders", &[]);
    stage.line(&format!(
        "reporting:  GET http://orders-api.data/orders  →  {} {}",
        answer.status, answer.error
    ));
    stage.lines(Paint::Yellow, &answer.body);
    let refused = answer.status == "403" && answer.error == "policy-denied";
    stage.claim(
        "a caller whom no rule allows is refused and told so",
        refused,
    );
    let of_call = |record: &AccessRecord| record.error() == "policy-denied";
    let record = ground.api.sidecar.wait_for_access("the refusal", of_call);
    told(stage, "the API's sidecar", &record);
    stage.claim(
        "and the API's sidecar knows who it was",
        record.source_id() == ground.reporting.spiffe_id,
    );
}

fn plaintext(stage: &mut Stage, ground: &Ground) {
    let answer = ground.call_from_outside("/orders");
    stage.line(&format!(
        "outside:  GET /orders in plaintext  →  {} {}",
        answer.status, answer.error
    ));
    stage.lines(Paint::Yellow, &answer.body);
    let refused = answer.status == "403" && answer.error == "plaintext-refused";
    stage.claim("a caller without a certificate is refused", refused);
}

fn opaque(stage: &mut Stage, ground: &Ground) {
    let (set, get) = (
        ground.redis(&["SET", "wind", "from-the-side"]),
        ground.redis(&["GET", "wind"]),
    );
    stage.line(&format!("the task:  SET wind from-the-side  →  {set}"));
    stage.line(&format!("the task:  GET wind                →  {get}"));
    stage.claim(
        "Redis' own protocol passes",
        set == "OK" && get == "from-the-side",
    );
    let of_call =
        |record: &AccessRecord| !record.is_request() && record.number("response_bytes") > 0;
    let record = ground
        .api
        .sidecar
        .wait_for_access("the connection", of_call);
    told(stage, "the API's sidecar", &record);
    stage.claim(
        "under the same identities",
        record.source_id() == ground.task.spiffe_id && record.tls(),
    );
}

fn wire(stage: &mut Stage, ground: &mut Ground) {
    let wire = ground.wire();
    stage.line("the task has sent");
    stage.lines(
        Paint::Dim,
        &hexdump(b"GET /orders HTTP/1.1\r\nhost: orders-api.data\r\n", 3),
    );
    stage.line("a listener between the two sees");
    if let Some(segment) = wire.sample() {
        stage.lines(Paint::Dim, &hexdump(&segment.payload, 4));
    }
    let secrets = [
        "GET /",
        "HTTP/1.1",
        "orders",
        "anemometer",
        "canary",
        "from-the-side",
        "wind\r\n",
    ];
    match wire.only_tls(MESH_PORT, &secrets) {
        Ok(seen) => {
            let records = seen.handshake_records + seen.application_records;
            let text = format!(
                "all that passed is TLS on port {MESH_PORT}: {} segments, {records} records, {} connections",
                wire.segments().len(),
                seen.connections
            );
            stage.claim(&text, true);
        }
        Err(error) => {
            stage.claim("all that passed is TLS", false);
            stage.lines(Paint::Red, &error);
        }
    }
}

fn trace(stage: &mut Stage, ground: &Ground) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (id, parent) = (format!("{:032x}", now.as_nanos()), "00f067aa0ba902b7");
    let answer = ground.call(
        &ground.task,
        "/orders",
        &[&format!("traceparent: 00-{id}-{parent}-01")],
    );
    let spans = ground.collector.trace(&id, 2, Duration::from_secs(15));
    stage.line(&format!("trace {id}"));
    stage.line(&format!("└─ the task's own span {parent}"));
    let child = |of: &str| spans.iter().find(|span| span.parent_id == of);
    let outbound = child(parent);
    let inbound = outbound.and_then(|span| child(&span.span_id));
    let shown = |indent: usize, who: &str, span: &Span| {
        let attribute = |name: &str| span.attributes.get(name).map_or("", String::as_str);
        let status = attribute("http.response.status_code");
        let milliseconds = span.duration.as_secs_f64() * 1000.0;
        let text = format!(
            "└─ {who:<18} {} {} {status}",
            span.name,
            attribute("url.path")
        );
        stage.line(&format!(
            "{}{text}  {milliseconds:.1} ms",
            " ".repeat(indent)
        ));
    };
    if let Some(span) = outbound {
        shown(3, "the task's sidecar", span);
    }
    if let Some(span) = inbound {
        shown(6, "the API's sidecar", span);
    }
    let whole = answer.status == "200" && outbound.is_some() && inbound.is_some();
    stage.claim("the task's trace goes on through both sidecars", whole);
}

fn rotation(stage: &mut Stage, ground: &Ground, before: [f64; 2], load: RunningLoad) {
    let names = ["the task's", "the API's"];
    let now = || [&ground.task, &ground.api].map(|workload| workload.sidecar.certificate_expiry());
    let mut told = [false; 2];
    let rotated = within(ROTATION_PATIENCE, || {
        for (at, expiry) in now().into_iter().enumerate() {
            let (Some(told), Some(before), Some(name)) =
                (told.get_mut(at), before.get(at), names.get(at))
            else {
                continue;
            };
            if expiry > *before && !std::mem::replace(told, true) {
                let sent = load.succeeded() + load.failed();
                let (old, new) = (clock(*before), clock(expiry));
                stage.line(&format!("{name:<10} sidecar's certificate:  until {old}  →  until {new}   ({sent} requests so far)"));
            }
        }
        (told == [true; 2]).then_some(())
    });
    stage.claim(
        "both certificates were replaced while requests went on",
        rotated.is_some(),
    );
    // Some more over what is new.
    let so_far = load.succeeded();
    let _ = within(Duration::from_secs(5), || {
        (load.succeeded() > so_far + 100).then_some(())
    });
    let report = load.stop();
    let (median, slow) = (report.quantile(0.5), report.quantile(0.99));
    stage.line(&format!(
        "{} requests, {} failed; p50 {median:.1?}, p99 {slow:.1?}",
        report.requests,
        report.failed()
    ));
    for (cause, count) in &report.failures {
        stage.lines(Paint::Red, &format!("{count} times: {cause}"));
    }
    stage.claim(
        "and not one of them failed",
        report.failed() == 0 && report.requests > 200,
    );
}

/// The time of day in UTC.
fn clock(seconds: f64) -> String {
    let of_day = seconds as u64 % 86_400;
    format!(
        "{:02}:{:02}:{:02}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

fn metrics(stage: &mut Stage, ground: &Ground) {
    let text = ground.task.sidecar.get("/metrics").text();
    let wanted = [
        "sidewind_requests_total{",
        "sidewind_retries_total{",
        "sidewind_tls_handshakes_total{",
        "sidewind_certificate_remaining",
    ];
    for line in text
        .lines()
        .filter(|line| wanted.iter().any(|wanted| line.starts_with(wanted)))
        .take(8)
    {
        stage.lines(Paint::Dim, line);
    }
    let metrics = ground.task.sidecar.metrics();
    let succeeded = metrics.sum(
        "sidewind_requests_total",
        &[
            ("direction", "outbound"),
            ("status", "2xx"),
            ("tls", "true"),
        ],
    );
    let retried = metrics.sum("sidewind_retries_total", &[("outcome", "retried")]);
    let told =
        format!("the task's sidecar has counted {succeeded} good requests and {retried} retries");
    stage.claim(&told, succeeded > 200.0 && retried >= 1.0);
}
