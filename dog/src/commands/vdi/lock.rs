//! `dog vdi lock list|take|unlock`

use crate::context::{Confirm, Context, vdi};
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use clap::Subcommand;
use sheepdog_client::pb::{GetVdiRequest, LockRequest, UnlockRequest};

/// Locks that users took
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Locks of all VDIs, or of one
    List {
        /// VDI
        name: Option<String>,
    },
    /// Take a lock: a locked VDI cannot be deleted
    Take {
        /// VDI
        name: String,
        /// Who, in words
        #[arg(long)]
        holder: String,
        /// Nobody else may hold one
        #[arg(long)]
        exclusive: bool,
    },
    /// Give a lock back, or break all of a VDI
    Unlock {
        /// VDI
        name: String,
        /// Only this holder's
        #[arg(long)]
        holder: Option<String>,
        #[command(flatten)]
        confirm: Confirm,
    },
}

const COLUMNS: &[Column] = &[
    Column("name", "NAME", false),
    Column("holder", "HOLDER", false),
    Column("exclusive", "EXCLUSIVE", false),
    Column("since", "SINCE", false),
];

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        let client = ctx.client().await?;
        match self {
            Self::List { name } => {
                let vdis = match name {
                    Some(n) => vec![client.get_vdi(GetVdiRequest { vdi: vdi(&n), usage: false }).await?],
                    None => client.all_vdis("", false).await?,
                };
                let mut table = Table::new(COLUMNS);
                for v in &vdis {
                    for l in &v.locks {
                        table.row(vec![
                            Cell::text(&v.name),
                            Cell::text(&l.holder),
                            Cell::Bool(l.exclusive),
                            Cell::Time(l.since_ms),
                        ]);
                    }
                }
                Ok(Output::Table(table))
            }
            Self::Take { name, holder, exclusive } => {
                client.lock(LockRequest { vdi: vdi(&name), holder, exclusive }).await?;
                Ok(Output::Nothing)
            }
            Self::Unlock { name, holder, confirm } => {
                let holder = holder.unwrap_or_default();
                if holder.is_empty() {
                    confirm.ask(&format!(
                        "breaks every lock of VDI {name}: its holders believe they still have it."
                    ))?;
                }
                client.unlock(UnlockRequest { vdi: vdi(&name), holder }).await?;
                Ok(Output::Nothing)
            }
        }
    }
}
