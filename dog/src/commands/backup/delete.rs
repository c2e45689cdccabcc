//! `dog backup delete`

use crate::backup::At;
use crate::context::Confirm;
use crate::failure::Failure;
use crate::output::Output;
use sheepdog_backup::Repository;

/// Delete backups; prune gives their room back
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    at: At,
    /// Which: VOLUME@TAG or the beginning of an id
    #[arg(required = true)]
    backups: Vec<String>,
    #[command(flatten)]
    confirm: Confirm,
}

/// All are looked up before the first is deleted. One that cannot be read any more is named by its whole id.
pub async fn run(args: Args) -> Result<Output, Failure> {
    let repository = args.at.open().await?;
    let (all, _) = repository.backups().await?;
    let mut ids = Vec::new();
    for b in &args.backups {
        let whole = b.len() == 32 && b.bytes().all(|c| c.is_ascii_hexdigit());
        match Repository::find(&all, b) {
            Ok(m) => ids.push(m.id.clone()),
            Err(_) if whole && repository.place.has(&format!("backups/{b}")).await? => ids.push(b.clone()),
            Err(e) => return Err(e.into()),
        }
    }
    args.confirm.ask(&format!("deletes {} backups: {}.", ids.len(), ids.join(", ")))?;
    let lock = repository.lock("backup").await?;
    for id in ids {
        repository.delete(&id).await?;
    }
    lock.release().await?;
    Ok(Output::Nothing)
}
