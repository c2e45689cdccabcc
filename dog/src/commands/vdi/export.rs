//! `dog vdi export`

use crate::context::{Context, Image};
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::{Progress, Unit};
use sheepdog_client::pb::{GetVdiRequest, ReadRequest};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Write a VDI or snapshot to a raw image file
///
/// Holes stay holes. The working image is read while clients may write: export a snapshot to get one instant.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME or NAME@TAG
    #[arg(value_parser = Image::parse)]
    vdi: Image,
    /// File to write
    file: PathBuf,
    /// Snapshot: tag or number
    #[arg(short, long, value_name = "TAG")]
    snapshot: Option<String>,
    /// Replace the file if it exists
    #[arg(short, long)]
    force: bool,
}

/// Read everything into a sparse file.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let snapshot = args.vdi.with_option(&args.snapshot)?;
    let client = ctx.client().await?;
    let vdi = client.get_vdi(GetVdiRequest { vdi: args.vdi.vdi(), usage: false }).await?;
    let at = |id: &str| vdi.snapshots.iter().find(|s| s.tag == id || s.id.to_string() == id).map(|s| s.size);
    let size = if snapshot.is_empty() { vdi.size } else { at(&snapshot).unwrap_or(vdi.size) };
    let request = ReadRequest { vdi: args.vdi.vdi(), snapshot, offset: 0, length: None };
    // Asked before the file is made, so that a wrong name leaves none behind.
    let mut chunks = client.read(request).await?;
    let fail = |e: std::io::Error| {
        let f = Failure::io(args.file.display(), &e);
        match e.kind() {
            std::io::ErrorKind::AlreadyExists => Failure { code: 3, ..f }.hint("add --force to replace it"),
            std::io::ErrorKind::StorageFull => Failure { code: 4, ..f },
            _ => f,
        }
    };
    let file =
        if args.force { File::create(&args.file) } else { File::create_new(&args.file) }.map_err(fail)?;
    file.set_len(size).map_err(fail)?;
    let bar = Progress::new("Exporting", size, Unit::Bytes);
    while let Some(c) = chunks.message().await? {
        file.write_all_at(&c.data, c.offset).map_err(fail)?;
        bar.advance(c.offset + c.data.len() as u64 + c.zeros);
    }
    file.sync_all().map_err(fail)?;
    Ok(Output::Nothing)
}
