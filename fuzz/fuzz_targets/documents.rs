//! Resources as an operator writes them: routes, policies, service entries, registrations.
#![no_main]

use sidewind_control_plane::config::Config;
use sidewind_control_plane::config::document::SourceFile;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let file = SourceFile {
        name: "fuzz.yaml".into(),
        text: text.into(),
    };
    if let Err(errors) = Config::parse(&[file]) {
        // Each error can be told.
        assert!(!errors.to_string().is_empty());
    }
});
