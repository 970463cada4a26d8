//! Whether a caller may send a request, by a policy that looks at method and path.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use http::Method;
use sidewind_proxy::hot::Authorization;

fn authorization(criterion: &mut Criterion) {
    let policy = Authorization::default();
    let cases = [
        ("allowed", "/api/v2/dags/example/dagRuns", true),
        ("denied", "/auth/token", false),
    ];
    for (name, path, allowed) in cases {
        assert_eq!(policy.allows(&Method::GET, path), allowed);
        criterion.bench_function(&format!("authorization, {name}"), |bencher| {
            bencher.iter(|| policy.allows(&Method::GET, black_box(path)));
        });
    }
}

criterion_group!(benches, authorization);
criterion_main!(benches);
