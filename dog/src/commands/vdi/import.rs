//! `dog vdi import`

use super::write::send;
use crate::context::Context;
use crate::failure::{Failure, code};
use crate::output::Output;
use crate::progress::{Progress, Unit};
use crate::redundancy::Copies;
use crate::size;
use sheepdog_client::pb::{CreateVdiRequest, DeleteVdiRequest, VdiRef};
use std::io::Read;
use std::path::PathBuf;

/// Make a VDI from a raw image file
///
/// Zeros of the file take no space. For qcow2 and others use qemu-img convert to an nbd:// address.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// File, or - for standard input (then --size is needed)
    file: PathBuf,
    /// Name of the new VDI
    name: String,
    /// Size of the VDI; the file's if left out
    #[arg(long, value_parser = size::parse_positive)]
    size: Option<u64>,
    #[command(flatten)]
    copies: Copies,
}

/// Make, fill; what is half filled is deleted again.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let stdin = args.file.as_os_str() == "-";
    let (mut input, length): (Box<dyn Read + Send>, _) = if stdin {
        let length = args.size.ok_or_else(|| Failure::usage("standard input has no size: give --size"))?;
        (Box::new(std::io::stdin()), length)
    } else {
        let fail = |e: std::io::Error| Failure::io(args.file.display(), &e);
        let mut file = std::fs::File::open(&args.file).map_err(fail)?;
        // Also right for block devices, whose metadata has no size.
        let length = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(fail)?;
        std::io::Seek::rewind(&mut file).map_err(fail)?;
        (Box::new(file), length)
    };
    let mut head = [0; 4];
    if !stdin && length >= 4 {
        input.read_exact(&mut head).map_err(|e| Failure::io(args.file.display(), &e))?;
        if &head == b"QFI\xfb" {
            return Err(Failure::new(
                code::FAILED,
                format!("{} is a qcow2 image, not a raw one", args.file.display()),
            )
            .hint("qemu-img convert -O raw FILE nbd://HOST/NAME writes it into a VDI of the right size"));
        }
        input = Box::new(std::io::Cursor::new(head).chain(input));
    }
    let wanted = args.size.unwrap_or(length).next_multiple_of(512);
    if wanted < length || wanted == 0 {
        return Err(Failure::usage(format!("the file has {length} bytes: the VDI cannot have {wanted}")));
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
    let bar = Progress::new("Importing", length, Unit::Bytes);
    let sent = tokio::select! {
        r = send(ctx, target.clone(), input, 0, true, Some(&bar)) => r,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(code::FAILED, "interrupted")),
    };
    drop(bar);
    if let Err(f) = sent {
        let undone =
            client.delete_vdi(DeleteVdiRequest { vdi: Some(target), now: true, ..Default::default() }).await;
        if let Err(e) = undone {
            eprintln!("dog: the unfinished VDI {} was not deleted: {e}", vdi.name);
        }
        return Err(f);
    }
    Ok(Output::Done(super::record(&vdi)))
}
