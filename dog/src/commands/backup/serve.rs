//! `dog backup serve`

use crate::backup::chunks::Chunks;
use crate::backup::point::Point;
use crate::backup::{At, lock_for_reading, pick, readable};
use crate::context::Context;
use crate::failure::Failure;
use crate::nbd::{Address, Listener, serve};
use crate::output::Output;
use std::sync::Arc;
use tokio::sync::watch;

/// Let NBD clients read a backup as it lies there
///
/// Nothing is restored and no cluster is needed: to look at a file in it, or to compare. What is read is fetched and checked. It ends with Ctrl-C.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    at: At,
    /// Which one: VOLUME (its latest), VOLUME@TAG, or the beginning of an id as dog backup list shows it. May be left out when there is only one
    backup: Option<String>,
    /// Where: the path of a socket (./nbd.sock), or a port of loopback (10809, 127.0.0.1:10809)
    #[arg(long, value_name = "ADDRESS", value_parser = Address::parse)]
    listen: Address,
}

/// Serve until it is interrupted.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let repository = args.at.open().await?;
    let all = readable(&repository).await?;
    let found = pick(&all, args.backup.as_deref())?;
    let lock = lock_for_reading(ctx, &repository).await?;
    let index = repository.index(found).await?;
    let image = Point(Chunks::new(repository.clone(), index, found.volume.size));
    let listener = Listener::bind(&args.listen).await?;
    eprintln!("dog: {} is served at {}", found.volume.name, listener.uri(&found.volume.name));
    let (clients, _) = watch::channel(0);
    let ended = tokio::select! {
        broken = serve(&listener, &found.volume.name, Arc::new(image), &clients) => Err(broken),
        _ = tokio::signal::ctrl_c() => Ok(Output::Nothing),
    };
    if let Some(lock) = lock {
        lock.release().await?;
    }
    ended
}
