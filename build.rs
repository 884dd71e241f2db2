//! Compiles `proto/onnx.proto` with protox, so that no `protoc` is needed on the machine.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/onnx.proto");
    println!("cargo::rerun-if-changed=build.rs");
    let descriptors = protox::compile(["proto/onnx.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // tests/proto.rs compares the compiled schema with the standard's.
    fs::write(out.join("onnx.descriptors"), prost::Message::encode_to_vec(&descriptors))?;
    prost_build::Config::new()
        // Weights stay windows of the file that they were read from.
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
