//! `dog trash ...`

mod list;
mod purge;
mod restore;

use crate::context::Context;
use crate::failure::{Failure, code};
use crate::output::Output;
use clap::Subcommand;
use sheepdog_client::pb::TrashItem;

/// Deleted VDIs and snapshots that can still be brought back
#[derive(Subcommand, Debug)]
pub enum Command {
    /// What is in the trash, first what leaves it first
    List(list::Args),
    /// Bring a deleted VDI or snapshot back
    Restore(restore::Args),
    /// Really delete what is in the trash
    Purge(purge::Args),
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        match self {
            Self::List(a) => list::run(ctx, a).await,
            Self::Restore(a) => restore::run(ctx, a).await,
            Self::Purge(a) => purge::run(ctx, a).await,
        }
    }
}

/// The id by which it is the only one: `00001a`, or `00001a@3` for a snapshot.
fn id(t: &TrashItem) -> String {
    match t.snapshot {
        0 => format!("{:06x}", t.vdi),
        n => format!("{:06x}@{n}", t.vdi),
    }
}

/// In words.
fn called(t: &TrashItem) -> String {
    match (t.snapshot, t.tag.as_str()) {
        (0, _) => format!("VDI {} (id {})", t.name, id(t)),
        (n, "") => format!("snapshot {n} of VDI {} (id {})", t.name, id(t)),
        (_, tag) => format!("snapshot {tag} of VDI {} (id {})", t.name, id(t)),
    }
}

/// What NAME, NAME@TAG or an id mean, newest first. A name comes before an id of the same letters.
fn find<'a>(all: &'a [TrashItem], which: &str) -> Result<Vec<&'a TrashItem>, Failure> {
    let (base, tag) = match which.split_once('@') {
        Some((base, tag)) => (base, Some(tag)),
        None => (which, None),
    };
    let fits = |t: &TrashItem| match tag {
        None => t.snapshot == 0,
        Some(tag) => t.snapshot != 0 && (t.tag == tag || t.snapshot.to_string() == tag),
    };
    let of = |is: &dyn Fn(&TrashItem) -> bool| {
        let mut found: Vec<&TrashItem> = all.iter().filter(|t| is(t) && fits(t)).collect();
        found.sort_by_key(|t| std::cmp::Reverse((t.deleted_ms, t.vdi, t.snapshot)));
        found
    };
    let named = of(&|t| t.name == base);
    let found = if named.is_empty() { of(&|t| format!("{:06x}", t.vdi) == base) } else { named };
    if found.is_empty() {
        return Err(Failure::new(code::MISSING, format!("there is no {which} in the trash"))
            .hint("dog trash list shows what there is"));
    }
    Ok(found)
}

/// Their ids, for somebody who has to choose.
fn ids(of: &[&TrashItem]) -> String {
    of.iter().map(|t| id(t)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn item(vdi: u32, snapshot: u32, name: &str, tag: &str, deleted_ms: u64) -> TrashItem {
        TrashItem { vdi, snapshot, name: name.into(), tag: tag.into(), deleted_ms, ..Default::default() }
    }

    #[test]
    fn names_come_before_ids() {
        let all = [
            item(1, 0, "a", "", 10),
            item(2, 0, "a", "", 20),
            item(3, 0, "000001", "", 30),
            item(3, 4, "000001", "t", 40),
            item(3, 5, "000001", "4", 50),
        ];
        for (which, want) in [
            ("a", "000002, 000001"),
            ("000002", "000002"),
            ("000001", "000003"),
            ("000001@t", "000003@4"),
            ("000003@5", "000003@5"),
            ("000003@4", "000003@5, 000003@4"),
        ] {
            assert_eq!(ids(&find(&all, which).unwrap()), want, "{which}");
        }
        for which in ["b", "a@t", "00000a", "", "@", "000003@6"] {
            assert!(find(&all, which).is_err(), "{which}");
        }
    }
}
