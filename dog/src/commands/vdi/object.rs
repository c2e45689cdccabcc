//! `dog vdi object map|location`

use crate::commands::node::short;
use crate::context::{Context, Image};
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Record, Table};
use clap::Subcommand;
use sheepdog_client::pb::{LocateRequest, MapRequest, Replica, replica};

/// Objects of a VDI
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Objects that exist, and the nodes they belong on
    Map {
        /// NAME or NAME@TAG
        #[arg(value_parser = Image::parse)]
        vdi: Image,
    },
    /// Where one object should be, and where it is
    Location {
        /// NAME or NAME@TAG
        #[arg(value_parser = Image::parse)]
        vdi: Image,
        /// Which: offset / object size
        index: u32,
    },
}

const MAP: &[Column] = &[
    Column("index", "INDEX", false),
    Column("object", "OBJECT", false),
    Column("bytes", "DATA", false),
    Column("nodes", "NODES", false),
];

const LOCATION: &[Column] = &[
    Column("node", "NODE", false),
    Column("address", "ADDRESS", false),
    Column("placed", "PLACED HERE", false),
    Column("state", "STATE", false),
    Column("version", "VERSION", false),
    Column("bytes", "DATA", false),
    Column("disk", "DISK", true),
];

fn state(r: &Replica) -> &'static str {
    match r.state() {
        replica::State::Unknown => "unknown",
        replica::State::Absent => "absent",
        replica::State::Present => "present",
        replica::State::Filling => "filling",
        replica::State::Corrupt => "corrupt",
    }
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        let client = ctx.client().await?;
        match self {
            Self::Map { vdi } => {
                let request = MapRequest { vdi: vdi.vdi(), snapshot: vdi.snapshot };
                let mut entries = client.map(request).await?;
                let mut table = Table::new(MAP);
                while let Some(e) = entries.message().await? {
                    table.row(vec![
                        Cell::Number(e.index.into()),
                        Cell::text(&e.object),
                        Cell::Bytes(e.bytes),
                        Cell::List(e.nodes.iter().map(|n| short(n)).collect()),
                    ]);
                }
                Ok(Output::Table(table))
            }
            Self::Location { vdi, index } => {
                let request = LocateRequest { vdi: vdi.vdi(), snapshot: vdi.snapshot, index };
                let reply = client.locate(request).await?;
                let mut table = Table::new(LOCATION);
                for r in &reply.replicas {
                    let here = matches!(
                        r.state(),
                        replica::State::Present | replica::State::Filling | replica::State::Corrupt
                    );
                    table.row(vec![
                        Cell::text(short(&r.node)),
                        Cell::text(format!("{}:{}", r.host, r.port)),
                        Cell::Bool(r.target),
                        Cell::text(state(r)),
                        Cell::text(&r.version),
                        if here { Cell::Bytes(r.bytes) } else { Cell::None },
                        Cell::text(&r.disk),
                    ]);
                }
                Ok(Output::Record(
                    Record::default()
                        .field("object", "Object", Cell::text(&reply.object))
                        .field("epoch", "Epoch", Cell::Number(reply.epoch))
                        .section("copies", "Copies", table),
                ))
            }
        }
    }
}
