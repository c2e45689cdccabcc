//! `dog backup list`

use crate::backup::At;
use crate::failure::{Failure, code};
use crate::output::{Cell, Column, Output, Table};

/// Backups, oldest first
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    at: At,
    /// Only those of this VDI
    vdi: Option<String>,
}

const COLUMNS: &[Column] = &[
    Column("id", "BACKUP", false),
    Column("volume", "VDI", false),
    Column("tag", "SNAPSHOT", false),
    Column("taken", "TAKEN", false),
    Column("size", "SIZE", false),
    Column("data", "CONTENTS", false),
    Column("added", "ADDED", false),
    Column("stored", "STORED", false),
    Column("uuid", "UUID", true),
    Column("set", "SET", true),
];

/// A row for each; what cannot be read is told and fails.
pub async fn run(args: Args) -> Result<Output, Failure> {
    let (all, bad) = args.at.open().await?.backups().await?;
    let mut table = Table::new(COLUMNS);
    for m in all.iter().filter(|m| args.vdi.as_ref().is_none_or(|v| *v == m.volume.name)) {
        table.row(vec![
            Cell::text(&m.id),
            Cell::text(&m.volume.name),
            Cell::text(&m.snapshot.tag),
            Cell::Time(m.snapshot.created_ms),
            Cell::Bytes(m.volume.size),
            Cell::Bytes(m.data),
            Cell::Bytes(m.added),
            Cell::Bytes(m.stored),
            Cell::text(&m.volume.uuid),
            Cell::text(m.set.clone().unwrap_or_default()),
        ]);
    }
    for e in &bad {
        eprintln!("dog: {e}");
    }
    if bad.is_empty() || !table.is_empty() {
        return Ok(Output::Table(table));
    }
    Err(Failure::new(code::FAILED, "no backup of this repository can be read"))
}
