//! Compiles the protobuf files of the Workload API socket with a compiler written in Rust, so that no protoc is needed.

use std::path::PathBuf;

/// Messages that hold a private key or a token: `Debug` is written by hand, so that no log line can show either.
const SECRET: [&str; 4] = [
    "X509SVID",
    "JWTSVID",
    "ValidateJWTSVIDRequest",
    "envoy.config.core.v3.DataSource",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files([
        "workload.proto",
        "envoy/service/secret/v3/sds.proto",
        "envoy/extensions/transport_sockets/tls/v3/secret.proto",
    ])?;
    // Clients that ask by reflection are shown the descriptors as they are here.
    let directory = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let descriptors = compiler.encode_file_descriptor_set();
    std::fs::write(directory.join("workload_api.bin"), descriptors)?;
    tonic_prost_build::configure()
        // It carries private keys, and the library's own type is not wiped when dropped.
        .extern_path(
            ".google.protobuf.Any",
            "crate::workload_api::proto::WipedAny",
        )
        .skip_debug(SECRET)
        .btree_map(".")
        .client_mod_attribute(".", "#[cfg(test)]")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
