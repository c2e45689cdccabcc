//! `dog cluster support-bundle`: a tar file of what the cluster says about itself. No contents of volumes, no attributes' values, no secrets.

use crate::commands::Cli;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Format, Output, Record};
use std::io::Write;
use std::path::PathBuf;

/// Write everything that helps to find a fault into one file
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The tar file to write; never overwritten
    #[arg(short, long, default_value = "sheepdog-support.tar", value_name = "FILE")]
    file: PathBuf,
}

/// Collect; what cannot be had is noted and left out.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    ctx.client().await?;
    let mut file = std::fs::File::create_new(&args.file).map_err(|e| {
        let f = Failure::io(args.file.display(), &e);
        if e.kind() == std::io::ErrorKind::AlreadyExists { Failure { code: 3, ..f } } else { f }
    })?;
    let version = format!("dog {}\naddress {}\n", env!("CARGO_PKG_VERSION"), ctx.global.address);
    let mut parts = vec![("dog.txt", version)];
    for (name, line) in [
        ("cluster-info.json", "cluster info --history 1000"),
        ("events.json", "cluster events"),
        ("nodes.json", "node list"),
        ("space.json", "node info"),
        ("disks.json", "node md info"),
        ("recovery.json", "node recovery"),
        ("counters.json", "node stat"),
        ("vdis.json", "vdi list"),
        ("vdi-counters.json", "vdi stat"),
    ] {
        let text = match answer(ctx, line).await {
            Ok(text) => text,
            Err(f) => format!("{{\"error\": {}}}\n", serde_json::Value::from(f.message)),
        };
        parts.push((name, text));
    }
    let mut tar = Vec::new();
    for (name, text) in &parts {
        tar_member(&mut tar, &format!("sheepdog-support/{name}"), text.as_bytes());
    }
    tar.resize(tar.len() + 1024, 0);
    file.write_all(&tar).map_err(|e| Failure::io(args.file.display(), &e))?;
    Ok(Output::Record(
        Record::default().field("file", "Written", Cell::text(args.file.display().to_string())).field(
            "parts",
            "Parts",
            Cell::Number(parts.len() as u64),
        ),
    ))
}

/// The JSON answer of another command.
async fn answer(ctx: &Context, line: &str) -> Result<String, Failure> {
    use clap::Parser;
    let words = std::iter::once("dog").chain(line.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|e| Failure::usage(e.to_string()))?;
    // Boxed: this command is one of those it runs.
    let output = Box::pin(cli.command.run(ctx)).await?;
    Ok(output.render(Format::Json, true))
}

/// One file of a ustar archive.
fn tar_member(out: &mut Vec<u8>, name: &str, contents: &[u8]) {
    let mut header = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", contents.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(contents);
    out.resize(out.len().next_multiple_of(512), 0);
}
