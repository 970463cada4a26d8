//! A request's head, from an HTTP/1.1 client to the mesh wire.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::Request;
use sidewind_proxy::hot::HeaderRewriting;

fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = http::Uri::from_static("/api/v2/dags/example/dagRuns?limit=10");
    let fields = [
        ("host", "api-server.airflow:8080"),
        ("user-agent", "python-httpx/0.28.1"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip, deflate"),
        ("authorization", "Bearer 0123456789abcdef0123456789abcdef"),
        ("connection", "keep-alive"),
        ("content-type", "application/json"),
    ];
    for (name, value) in fields {
        request
            .headers_mut()
            .insert(name, http::HeaderValue::from_static(value));
    }
    request
}

fn header_rewriting(criterion: &mut Criterion) {
    let mut rewriting = HeaderRewriting::default();
    assert_eq!(rewriting.to_wire(request()), Some(5));
    criterion.bench_function("header rewriting", |bencher| {
        bencher.iter_batched(
            request,
            |request| rewriting.to_wire(request),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, header_rewriting);
criterion_main!(benches);
