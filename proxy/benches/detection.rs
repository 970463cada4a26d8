//! What a client speaks, by its first bytes.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sidewind_proxy::hot::is_decided;

fn detection(criterion: &mut Criterion) {
    let cases: [(&str, &[u8]); 3] = [
        (
            "HTTP/1.1",
            b"GET /api/v2/dags HTTP/1.1\r\nhost: api-server:8080\r\n\r\n",
        ),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("Redis", b"*1\r\n$4\r\nPING\r\n"),
    ];
    for (name, bytes) in cases {
        assert!(is_decided(bytes));
        criterion.bench_function(&format!("detection, {name}"), |bencher| {
            bencher.iter(|| is_decided(black_box(bytes)));
        });
    }
}

criterion_group!(benches, detection);
criterion_main!(benches);
