//! One access-log line, from a finished request to bytes.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use sidewind_proxy::hot::AccessLine;

fn access_log(criterion: &mut Criterion) {
    let (mut line, mut offset) = (AccessLine::default(), Duration::ZERO);
    criterion.bench_function("access-log line", |bencher| {
        bencher.iter(|| {
            offset += Duration::from_micros(40);
            line.format(offset).len()
        });
    });
}

criterion_group!(benches, access_log);
criterion_main!(benches);
