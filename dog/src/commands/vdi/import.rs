//! `dog vdi import`

use super::write::send;
use crate::contents::{Contents, PATIENCE};
use crate::context::Context;
use crate::failure::{Failure, code};
use crate::nbd::ClusterImage;
use crate::output::Output;
use crate::progress::{Progress, Unit};
use crate::qemu::{self, Format, Info};
use crate::redundancy::Copies;
use crate::size;
use sheepdog_client::pb::{CreateVdiRequest, DeleteVdiRequest, Vdi, VdiRef};
use std::fs::File;
use std::io::{Cursor, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Make a VDI from an image file
///
/// Raw files are read as they are. Others (qcow2, vmdk, vdi, vhdx...) are told by their first bytes and read by qemu-img, which has to be installed. Zeros take no space. An
/// image that names other files is refused. A raw disk that a guest could write may pretend to be anything: give --format raw for those.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// File, or - for standard input (raw; then --size is needed)
    file: PathBuf,
    /// Name of the new VDI
    name: String,
    /// Size of the VDI; the image's if left out
    #[arg(long, value_parser = size::parse_positive)]
    size: Option<u64>,
    /// Format of the file; seen from its contents if left out
    #[arg(short, long, value_enum)]
    format: Option<Format>,
    /// Also read files that the image names (a backing file, external data), whatever they are: only for images of people you trust
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    copies: Copies,
}

/// What goes into the VDI.
enum Source {
    Raw(Box<dyn Read + Send>),
    Other(Info),
}

/// Make, fill; what is half filled is deleted again.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let (source, length) = source(&args).await?;
    let wanted = args.size.unwrap_or(length).next_multiple_of(512);
    if wanted < length || wanted == 0 {
        return Err(Failure::usage(format!("the image has {length} bytes: the VDI cannot have {wanted}")));
    }
    let client = ctx.client().await?;
    let request = CreateVdiRequest {
        name: args.name,
        size: wanted,
        redundancy: args.copies.to_pb(),
        uuid: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let vdi = client.create_vdi(request).await?;
    let target = VdiRef::id(vdi.id);
    let filled = tokio::select! {
        r = fill(ctx, &vdi, source, length) => r,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(code::FAILED, "interrupted")),
    };
    if let Err(f) = filled {
        let undone =
            client.delete_vdi(DeleteVdiRequest { vdi: Some(target), now: true, ..Default::default() }).await;
        if let Err(e) = undone {
            eprintln!("dog: the unfinished VDI {} was not deleted: {e}", vdi.name);
        }
        return Err(f);
    }
    Ok(Output::Done(super::record(&vdi)))
}

async fn fill(ctx: &Context, vdi: &Vdi, source: Source, length: u64) -> Result<(), Failure> {
    match source {
        Source::Raw(input) => {
            let bar = Progress::new("Importing", length, Unit::Bytes);
            send(ctx, VdiRef::id(vdi.id), input, 0, true, Some(&bar)).await.map(drop)
        }
        Source::Other(info) => {
            let contents = Contents::open(ctx, vdi.id, String::new(), vdi.size, 0, PATIENCE).await?;
            info.import(Arc::new(ClusterImage::writer(contents))).await
        }
    }
}

/// And how many bytes it makes.
async fn source(args: &Args) -> Result<(Source, u64), Failure> {
    if args.file.as_os_str() == "-" {
        return standard_input(args);
    }
    let fail = |e: std::io::Error| Failure::io(args.file.display(), &e);
    let mut file = File::open(&args.file).map_err(fail)?;
    // Also right for block devices, whose metadata has no size.
    let length = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(fail)?;
    std::io::Seek::rewind(&mut file).map_err(fail)?;
    let head = look(&file, 0, length).map_err(fail)?;
    let tail = look(&file, length.saturating_sub(qemu::LOOK as u64), length).map_err(fail)?;
    match args.format.or_else(|| qemu::detect(&head, &tail)).unwrap_or(Format::Raw) {
        Format::Raw => Ok((Source::Raw(Box::new(file)), length)),
        format => {
            let info =
                Info::of(&args.file, &head, format, args.follow).await.map_err(|f| seen(f, args, format))?;
            let size = info.size;
            Ok((Source::Other(info), size))
        }
    }
}

/// Who did not say what it is shall know why it is taken for that.
fn seen(f: Failure, args: &Args, format: Format) -> Failure {
    if args.format.is_some() {
        return f;
    }
    Failure { message: format!("{} looks like {}: {}", show(&args.file), format.name(), f.message), ..f }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn look(file: &File, at: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut out = vec![0; (length - at).min(qemu::LOOK as u64) as usize];
    file.read_exact_at(&mut out, at)?;
    Ok(out)
}

/// Nothing but raw images can be read from the beginning to the end.
fn standard_input(args: &Args) -> Result<(Source, u64), Failure> {
    let length = args.size.ok_or_else(|| Failure::usage("standard input has no size: give --size"))?;
    let mut head = Vec::new();
    let looked = std::io::stdin().take(qemu::LOOK as u64).read_to_end(&mut head);
    looked.map_err(|e| Failure::io("standard input", &e))?;
    match args.format.or_else(|| qemu::detect(&head, &[])).unwrap_or(Format::Raw) {
        Format::Raw => Ok((Source::Raw(Box::new(Cursor::new(head).chain(std::io::stdin()))), length)),
        format => {
            let text =
                format!("standard input is a {} image, which cannot be read from a pipe", format.name());
            Err(Failure::new(code::FAILED, text)
                .hint("import it from a file; --format raw if these bytes are the disk"))
        }
    }
}
