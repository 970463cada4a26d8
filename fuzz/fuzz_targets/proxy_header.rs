//! What a load balancer says before its client's bytes: the PROXY protocol, versions 1 and 2.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidewind_proxy::fuzzing::proxy_header(bytes));
