//! Compiles the .proto files in pure Rust: no protoc has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 3] =
    ["copse/door/v1/door.proto", "copse/peer/v1/peer.proto", "copse/files/v1/files.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Reflection serves these.
    fs::write(out.join("copse.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Bulk data is shared, not copied.
        .bytes(".copse.door.v1.PutRequest.data")
        .bytes(".copse.door.v1.GetReply.data")
        .bytes(".copse.files.v1.ReadResponse.data")
        .bytes(".copse.files.v1.PutRequest.data")
        .compile_fds(descriptors)?;
    Ok(())
}
