//! `dog vdi write`, and the way contents of files go into a VDI.

use crate::context::{Context, vdi};
use crate::failure::{Failure, code};
use crate::output::Output;
use crate::progress::Progress;
use crate::size;
use sheepdog_client::client::MAX_CHUNK;
use sheepdog_client::pb::{Chunk, VdiRef};
use std::io::Read;
use tokio::sync::mpsc;

/// Write standard input into a VDI
///
/// Everything is durable on all copies when dog returns. Fails when there is more input than room.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    /// Where to begin
    #[arg(value_parser = size::parse, default_value = "0")]
    offset: u64,
    /// How much; to the end of input if left out
    #[arg(value_parser = size::parse)]
    length: Option<u64>,
}

/// Write.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let target = vdi(&args.name).unwrap_or_default();
    let length = args.length.unwrap_or(u64::MAX);
    let input = Box::new(std::io::stdin().take(length));
    let written = send(ctx, target, input, args.offset, false, None).await?;
    if let Some(wanted) = args.length
        && written < wanted
    {
        return Err(Failure::new(code::FAILED, format!("the input ended after {written} of {wanted} bytes")));
    }
    ctx.remark(&format!("{written} bytes written"));
    Ok(Output::Nothing)
}

/// Write everything of `input` from `offset` on; zeros may be left out when the target is new. The number of bytes, once they are durable.
pub async fn send(
    ctx: &Context,
    target: VdiRef,
    input: Box<dyn Read + Send>,
    offset: u64,
    skip_zeros: bool,
    bar: Option<&Progress>,
) -> Result<u64, Failure> {
    let (tx, rx) = mpsc::channel::<Chunk>(8);
    // Reading blocks, so it has a thread of its own; it ends with the input or with the stream.
    let reader = tokio::task::spawn_blocking(move || read_chunks(input, offset, skip_zeros, &tx));
    let mut acks = ctx.client().await?.write(target, tokio_stream::wrappers::ReceiverStream::new(rx)).await?;
    while let Some(ack) = acks.message().await? {
        if let Some(bar) = bar {
            bar.advance(ack.durable);
        }
    }
    let read = reader.await.map_err(|e| Failure::new(code::FAILED, e.to_string()))?;
    read.map_err(|e| Failure::io("the input", &e))
}

fn read_chunks(
    mut input: Box<dyn Read + Send>,
    mut offset: u64,
    skip_zeros: bool,
    out: &mpsc::Sender<Chunk>,
) -> std::io::Result<u64> {
    let start = offset;
    loop {
        let mut data = vec![0; MAX_CHUNK];
        let mut n = 0;
        while n < data.len() {
            match input.read(&mut data[n..]) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if n == 0 {
            return Ok(offset - start);
        }
        data.truncate(n);
        let zero = skip_zeros && data.iter().all(|b| *b == 0);
        if !zero && out.blocking_send(Chunk { offset, data: data.into(), zeros: 0 }).is_err() {
            // The stream ended with an error, which its other end reports.
            return Ok(offset - start);
        }
        offset += n as u64;
    }
}
