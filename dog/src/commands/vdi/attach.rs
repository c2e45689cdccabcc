//! `dog vdi attach`

use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use sheepdog_client::pb::{AttachRequest, attachment};

/// Let a node or client use a VDI, and nobody else change it
///
/// While a VDI is attached, it is changed only through its NBD exports NAME#ID, one for each attachment; connections that were opened without one and can write are
/// cut. NAME@TAG and NAME#ro can be read by all. The same holder gets the same attachment again.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    /// Who: the name of a node or client
    holder: String,
    /// What it may do, and who else
    #[arg(long, value_enum, default_value_t)]
    access: Access,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Access {
    /// Read and write, nobody else
    #[default]
    Single,
    /// Read and write, with others of this kind
    Shared,
    /// Read, with others of this kind
    ReadOnly,
}

impl Access {
    fn to_pb(self) -> attachment::Access {
        match self {
            Self::Single => attachment::Access::Single,
            Self::Shared => attachment::Access::Shared,
            Self::ReadOnly => attachment::Access::ReadOnly,
        }
    }
}

/// As `--access` takes it.
pub fn word(access: attachment::Access) -> &'static str {
    match access {
        attachment::Access::Single => "single",
        attachment::Access::Shared => "shared",
        attachment::Access::ReadOnly => "read-only",
    }
}

/// Attach; what came of it is the answer.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let Args { name, holder, access } = args;
    let request = AttachRequest { vdi: vdi(&name), holder, access: access.to_pb().into() };
    let made = ctx.client().await?.attach(request).await?;
    let record = Record::default()
        .field("id", "Attachment", Cell::Number(made.id))
        .field("export", "NBD export", Cell::text(format!("{name}#{}", made.id)))
        .field("holder", "Holder", Cell::text(&made.holder))
        .field("access", "Access", Cell::text(word(made.access())))
        .field("since", "Since", Cell::Time(made.since_ms));
    Ok(Output::Record(record))
}
