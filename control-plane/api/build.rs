//! Compiles the protobuf API with a compiler written in Rust, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/sidewind/v1/mesh.proto";
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(true)
        .codec_path("crate::codec::ApiCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
