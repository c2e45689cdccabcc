//! Generates the admin messages, client and server from `proto/admin.proto`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/admin.proto");
    let files = protox::compile(["proto/admin.proto"], ["proto"])?;
    // Contents of volumes are not copied once more to get into a message or out of it.
    tonic_prost_build::configure().bytes(".sheepdog.admin.v1.Chunk.data").compile_fds(files)?;
    Ok(())
}
