//! Has the crate compiled again when a migration is added: the macro that takes them up sees only those it knows. And
//! notes when that was, which no clock of a machine that runs it can be before.

use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    for path in ["build.rs", "Cargo.toml", "migrations", "src"] {
        println!("cargo:rerun-if-changed={path}");
    }
    // What builds that are to be the same byte for byte set (https://reproducible-builds.org/specs/source-date-epoch).
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let given = std::env::var("SOURCE_DATE_EPOCH").ok();
    let built = given.and_then(|text| text.trim().parse::<u64>().ok());
    let built = built.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    });
    println!("cargo:rustc-env=SIDEWIND_BUILT_AT={built}");
}
