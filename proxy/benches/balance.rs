//! Picking an endpoint and telling how it went: what each request pays for balancing and health.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sidewind_proxy::hot::Balance;

fn balance(criterion: &mut Criterion) {
    let cases = [
        ("peak EWMA of 3", 3, false),
        ("peak EWMA of 100", 100, false),
        ("consistent hash of 3", 3, true),
        ("consistent hash of 100", 100, true),
    ];
    for (name, endpoints, consistent_hash) in cases {
        let balance = Balance::new(endpoints, consistent_hash);
        let mut key = 0;
        criterion.bench_function(&format!("balance, {name}"), |bencher| {
            bencher.iter(|| {
                key += 1;
                assert!(balance.request(black_box(key)));
            });
        });
    }
}

criterion_group!(benches, balance);
criterion_main!(benches);
