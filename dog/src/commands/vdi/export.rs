//! `dog vdi export`

use crate::contents::{Contents, PATIENCE};
use crate::context::{Context, Image};
use crate::failure::{Failure, code};
use crate::nbd::ClusterImage;
use crate::output::Output;
use crate::progress::{Progress, Unit};
use crate::qemu::{self, Format};
use sheepdog_client::pb::{GetVdiRequest, ReadRequest};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Write a VDI or snapshot to an image file
///
/// Holes stay holes. The working image is read while clients may write: export a snapshot to get one instant. Formats other than raw are written by qemu-img, which has to be
/// installed.
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
    /// Format of the file
    #[arg(long, value_enum, default_value = "raw")]
    format: Format,
    /// Replace the file if it exists
    #[arg(short, long)]
    force: bool,
}

/// Read everything into a file. One that was made here and could not be filled is taken away again.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let snapshot = args.vdi.with_option(&args.snapshot)?;
    let client = ctx.client().await?;
    let vdi = client.get_vdi(GetVdiRequest { vdi: args.vdi.vdi(), usage: false }).await?;
    let at = |id: &str| vdi.snapshots.iter().find(|s| s.tag == id || s.id.to_string() == id).map(|s| s.size);
    let size = if snapshot.is_empty() { vdi.size } else { at(&snapshot).unwrap_or(vdi.size) };
    let done = match args.format {
        Format::Raw => raw(ctx, &args, snapshot, size).await,
        format => {
            qemu::present().await?;
            let contents = Contents::open(ctx, vdi.id, snapshot, size, 0, PATIENCE).await?;
            let data = contents.allocated(false).await?;
            made(&args)?.set_len(0).map_err(|e| fail(&args, &e))?;
            let image = Arc::new(ClusterImage::reader(contents, data));
            let written = tokio::select! {
                r = qemu::export(image, format, &args.file) => r,
                _ = tokio::signal::ctrl_c() => Err(Failure::new(code::FAILED, "interrupted")),
            };
            written
                .and_then(|()| {
                    // qemu-img has closed it, which says nothing of the disk.
                    let synced = File::open(&args.file).and_then(|f| f.sync_all());
                    synced.map_err(|e| fail(&args, &e))
                })
                .inspect_err(|_| drop(std::fs::remove_file(&args.file)))
        }
    };
    done.map(|()| Output::Nothing)
}

fn fail(args: &Args, e: &std::io::Error) -> Failure {
    let f = Failure::io(args.file.display(), e);
    match e.kind() {
        std::io::ErrorKind::AlreadyExists => Failure { code: 3, ..f }.hint("add --force to replace it"),
        std::io::ErrorKind::StorageFull => Failure { code: 4, ..f },
        _ => f,
    }
}

fn made(args: &Args) -> Result<File, Failure> {
    let file = if args.force { File::create(&args.file) } else { File::create_new(&args.file) };
    file.map_err(|e| fail(args, &e))
}

async fn raw(ctx: &Context, args: &Args, snapshot: String, size: u64) -> Result<(), Failure> {
    let request = ReadRequest { vdi: args.vdi.vdi(), snapshot, offset: 0, length: None, background: false };
    // Asked before the file is made, so that a wrong name leaves none behind.
    let mut chunks = ctx.client().await?.read(request).await?;
    let file = made(args)?;
    let fail = |e: std::io::Error| fail(args, &e);
    file.set_len(size).map_err(fail)?;
    let bar = Progress::new("Exporting", size, Unit::Bytes);
    while let Some(c) = chunks.message().await? {
        file.write_all_at(&c.data, c.offset).map_err(fail)?;
        bar.advance(c.offset + c.data.len() as u64 + c.zeros);
    }
    file.sync_all().map_err(fail)
}
