//! `dog vdi list`

use crate::backup::mark;
use crate::commands::node::short;
use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use crate::redundancy;
use sheepdog_client::pb::{Attachment, GetVdiRequest, Vdi, session};

/// All VDIs and snapshots, or those of one VDI
///
/// USED is what a VDI or snapshot itself takes on all disks together, SHARED what its snapshots take. The first column is s for a
/// snapshot and c for a clone that reads from its source.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only this VDI
    name: Option<String>,
    /// Do not ask the nodes how much space is used
    #[arg(long)]
    fast: bool,
}

const COLUMNS: &[Column] = &[
    Column("kind", "", false),
    Column("name", "NAME", false),
    Column("snapshot", "ID", false),
    Column("size", "SIZE", false),
    Column("used", "USED", false),
    Column("shared", "SHARED", false),
    Column("created", "CREATED", false),
    Column("vdi_id", "VDI ID", false),
    Column("copies", "COPIES", false),
    Column("tag", "TAG", false),
    Column("object_size", "OBJECT SIZE", true),
    Column("state", "STATE", true),
    Column("owner", "OWNER", true),
    Column("parent", "PARENT", true),
    Column("uuid", "UUID", true),
    Column("attached", "ATTACHED TO", true),
    Column("locked_until", "LOCKED UNTIL", true),
];

/// A row for each VDI, then its snapshots.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let client = ctx.client().await?;
    let usage = !args.fast;
    let vdis = match &args.name {
        Some(name) => vec![client.get_vdi(GetVdiRequest { vdi: vdi(name), usage }).await?],
        None => client.all_vdis("", usage).await?,
    };
    if let Some(missing) = vdis.iter().filter_map(|v| v.usage.as_ref()).map(|u| u.missing_nodes.len()).max()
        && missing > 0
    {
        eprintln!("dog: {missing} nodes did not answer: USED and SHARED are too low");
    }
    let mut table = Table::new(COLUMNS);
    for v in &vdis {
        if v.working {
            table.row(working(v));
        }
        for s in &v.snapshots {
            table.row(snapshot(v, s));
        }
    }
    Ok(Output::Table(table))
}

fn state(v: &Vdi) -> &'static str {
    if mark::is_restoring(v) {
        return "restoring";
    }
    if v.flattening {
        return "flattening";
    }
    match v.session.as_ref().map(|s| s.state()).unwrap_or_default() {
        session::State::Closed => "closed",
        session::State::Opening => "opening",
        session::State::Open => "open",
        session::State::Unclean => "unclean",
    }
}

fn parent(v: &Vdi) -> String {
    let Some(p) = &v.parent else { return String::new() };
    let tag = if p.tag.is_empty() { p.snapshot.to_string() } else { p.tag.clone() };
    let name = if p.name.is_empty() { format!("{:06x}", p.vdi) } else { p.name.clone() };
    format!("{name}@{tag}")
}

/// Each with what stands behind # in the name of its NBD export.
fn attached(v: &Vdi) -> Cell {
    let one = |a: &Attachment| format!("{} (#{}, {})", a.holder, a.id, super::attach::word(a.access()));
    match v.attachments.as_slice() {
        [] => Cell::None,
        all => Cell::List(all.iter().map(one).collect()),
    }
}

fn working(v: &Vdi) -> Vec<Cell> {
    let used = |f: fn(&sheepdog_client::pb::Usage) -> u64| {
        v.usage.as_ref().map_or(Cell::None, |u| Cell::Bytes(f(u)))
    };
    vec![
        Cell::text(if v.parent.is_some() { "c" } else { "" }),
        Cell::text(&v.name),
        Cell::Number(0),
        Cell::Bytes(v.size),
        used(|u| u.used),
        used(|u| u.shared),
        Cell::Time(v.created_ms),
        Cell::text(format!("{:06x}", v.id)),
        Cell::text(redundancy::show(v.redundancy.as_ref())),
        Cell::None,
        Cell::Bytes(v.object_size.into()),
        Cell::text(state(v)),
        Cell::text(v.session.as_ref().map(|s| short(&s.owner)).unwrap_or_default()),
        Cell::text(parent(v)),
        Cell::text(&v.uuid),
        attached(v),
        Cell::None,
    ]
}

fn snapshot(v: &Vdi, s: &sheepdog_client::pb::Snapshot) -> Vec<Cell> {
    vec![
        Cell::text("s"),
        Cell::text(&v.name),
        Cell::Number(s.id.into()),
        Cell::Bytes(s.size),
        s.used.map_or(Cell::None, Cell::Bytes),
        Cell::None,
        Cell::Time(s.created_ms),
        Cell::text(format!("{:06x}", v.id)),
        Cell::text(redundancy::show(v.redundancy.as_ref())),
        Cell::text(&s.tag),
        Cell::Bytes(v.object_size.into()),
        Cell::text("snapshot"),
        Cell::None,
        Cell::None,
        Cell::text(&v.uuid),
        Cell::None,
        Cell::Time(s.locked_until_ms),
    ]
}
