//! Has the crate compiled again when a migration is added: the macro that takes them up sees only those it knows.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
