//! `dog backup prune`

use crate::backup::At;
use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use sheepdog_backup::Manifest;
use std::collections::BTreeMap;

/// Delete what no backup needs, and with --keep-last old backups before
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    at: At,
    /// Of each VDI only so many backups stay, the latest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep_last: Option<u32>,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
}

/// Those of each volume beyond its latest `keep`. What was made together stays or goes together.
fn old(all: &[Manifest], keep: u32) -> Vec<&Manifest> {
    let mut newer: BTreeMap<&str, u32> = BTreeMap::new();
    let mut out = Vec::new();
    for m in all.iter().rev() {
        let n = newer.entry(&m.volume.uuid).or_default();
        *n += 1;
        if *n > keep {
            out.push(m);
        }
    }
    let kept = |set: &Option<String>| {
        set.is_some() && all.iter().any(|m| m.set == *set && !out.iter().any(|o| o.id == m.id))
    };
    out.iter().copied().filter(|m| !kept(&m.set)).collect()
}

/// Old backups, then chunks.
pub async fn run(args: Args) -> Result<Output, Failure> {
    let repository = args.at.open().await?;
    let old = |all: &[Manifest]| match args.keep_last {
        Some(keep) => old(all, keep).iter().map(|m| m.id.clone()).collect(),
        None => Vec::new(),
    };
    let done = repository.prune(old, args.dry_run).await?;
    Ok(Output::Done(
        Record::default()
            .field("backups", "Backups deleted", Cell::Number(done.backups))
            .field("chunks", "Chunks deleted", Cell::Number(done.deleted))
            .field("freed", "Freed", Cell::Bytes(done.freed))
            .field("kept", "Chunks kept", Cell::Number(done.kept)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_backup::manifest::{Snapshot, Volume};

    fn made(n: u64, uuid: &str, set: Option<&str>) -> Manifest {
        Manifest {
            version: 1,
            id: format!("{n:032x}"),
            created_ms: n,
            volume: Volume {
                uuid: uuid.into(),
                name: uuid.into(),
                size: 0,
                redundancy: "3".into(),
                object_size: 4 << 20,
                attributes: BTreeMap::new(),
            },
            snapshot: Snapshot { id: 1, tag: String::new(), created_ms: n, own: true },
            chunk: 1 << 20,
            pages: Vec::new(),
            data: 0,
            added: 0,
            stored: 0,
            set: set.map(Into::into),
            set_size: None,
        }
    }

    #[test]
    fn the_latest_of_each_volume_stay_and_sets_stay_whole() {
        let all = [
            made(1, "a", None),
            made(2, "a", Some("s")),
            made(3, "b", Some("s")),
            made(4, "a", None),
            made(5, "a", None),
        ];
        let times = |keep| old(&all, keep).iter().map(|m| m.created_ms).collect::<Vec<_>>();
        assert_eq!(times(1), [4, 1], "the set has the only backup of b");
        assert_eq!(times(2), [1]);
        assert_eq!(times(9), [0; 0]);
    }
}
