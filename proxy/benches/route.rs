//! Which rule a request matches, in a table of a hundred.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sidewind_proxy::hot::Routing;

fn route(criterion: &mut Criterion) {
    let routing = Routing::default();
    let cases = [
        ("an exact path", "/exact/50", true),
        ("a prefix", "/prefix/50/and/more", true),
        ("a header and a query", "/detailed?tenant=7", true),
        ("none", "/elsewhere", false),
    ];
    for (name, path, found) in cases {
        let request = Routing::request(path);
        assert_eq!(routing.finds(&request), found, "{name}");
        criterion.bench_function(&format!("route, {name}"), |bencher| {
            bencher.iter(|| routing.finds(black_box(&request)));
        });
    }
    let trivial = Routing::trivial();
    let request = Routing::request("/api/v2/dags");
    criterion.bench_function("route, the only rule", |bencher| {
        bencher.iter(|| trivial.finds(black_box(&request)));
    });
}

criterion_group!(benches, route);
criterion_main!(benches);
