//! `dog vdi read`

use crate::context::{Context, Image};
use crate::failure::Failure;
use crate::output::Output;
use crate::size;
use sheepdog_client::pb::ReadRequest;
use std::io::Write;

/// Write contents to standard output
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME or NAME@TAG
    #[arg(value_parser = Image::parse)]
    vdi: Image,
    /// Where to begin
    #[arg(value_parser = size::parse, default_value = "0")]
    offset: u64,
    /// How much; to the end if left out
    #[arg(value_parser = size::parse)]
    length: Option<u64>,
    /// Snapshot: tag or number
    #[arg(short, long, value_name = "TAG")]
    snapshot: Option<String>,
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Read.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let request = ReadRequest {
        vdi: args.vdi.vdi(),
        snapshot: args.vdi.with_option(&args.snapshot)?,
        offset: args.offset,
        length: args.length,
        background: false,
    };
    let mut chunks = ctx.client().await?.read(request).await?;
    let mut out = std::io::stdout().lock();
    while let Some(c) = chunks.message().await? {
        let mut write = || -> std::io::Result<()> {
            out.write_all(&c.data)?;
            let mut left = c.zeros;
            while left > 0 {
                let n = left.min(ZEROS.len() as u64);
                out.write_all(&ZEROS[..n as usize])?;
                left -= n;
            }
            Ok(())
        };
        match write() {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Output::Nothing),
            r => r.map_err(|e| Failure::io("standard output", &e))?,
        }
    }
    out.flush().map_err(|e| Failure::io("standard output", &e))?;
    Ok(Output::Nothing)
}
