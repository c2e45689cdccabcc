//! `dog vdi setattr`, `getattr`, `listattr`

use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use sheepdog_client::pb::{GetVdiRequest, SetAttrRequest, Vdi};
use std::io::{Read, Write};

/// Set or delete an attribute
///
/// A key has 1 to 256 bytes, a value at most 64 KiB. Attributes belong to the VDI and survive snapshots and rollback.
#[derive(clap::Args, Debug)]
pub struct SetArgs {
    /// VDI
    name: String,
    /// Key
    key: String,
    /// Value; read from standard input if left out
    value: Option<String>,
    /// Delete it
    #[arg(short, long, conflicts_with_all = ["value", "exclusive"])]
    delete: bool,
    /// Fail if it is there already
    #[arg(short = 'x', long)]
    exclusive: bool,
}

/// Print an attribute's value
#[derive(clap::Args, Debug)]
pub struct GetArgs {
    /// VDI
    name: String,
    /// Key
    key: String,
}

/// Attributes of a VDI
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// VDI
    name: String,
}

const COLUMNS: &[Column] =
    &[Column("key", "KEY", false), Column("value", "VALUE", false), Column("bytes", "BYTES", true)];

/// Set.
pub async fn set(ctx: &Context, args: SetArgs) -> Result<Output, Failure> {
    let value = match (args.delete, args.value) {
        (true, _) => None,
        (_, Some(v)) => Some(v.into_bytes()),
        _ => {
            let mut v = Vec::new();
            let limited = std::io::stdin().lock().take((64 << 10) + 1).read_to_end(&mut v);
            limited.map_err(|e| Failure::io("standard input", &e))?;
            Some(v)
        }
    };
    let request = SetAttrRequest { vdi: vdi(&args.name), key: args.key, value, exclusive: args.exclusive };
    ctx.client().await?.set_attr(request).await?;
    Ok(Output::Nothing)
}

async fn fetch(ctx: &Context, name: &str) -> Result<Vdi, Failure> {
    Ok(ctx.client().await?.get_vdi(GetVdiRequest { vdi: vdi(name), usage: false }).await?)
}

/// Get: the bytes as they are.
pub async fn get(ctx: &Context, args: GetArgs) -> Result<Output, Failure> {
    let v = fetch(ctx, &args.name).await?;
    let Some(value) = v.attrs.get(&args.key) else {
        return Err(Failure::new(5, format!("VDI {} has no attribute {}", args.name, args.key)));
    };
    let mut out = std::io::stdout().lock();
    out.write_all(value).and_then(|()| out.flush()).map_err(|e| Failure::io("standard output", &e))?;
    Ok(Output::Nothing)
}

/// List.
pub async fn list(ctx: &Context, args: ListArgs) -> Result<Output, Failure> {
    let v = fetch(ctx, &args.name).await?;
    let mut attrs: Vec<_> = v.attrs.iter().collect();
    attrs.sort();
    let mut table = Table::new(COLUMNS);
    for (key, value) in attrs {
        table.row(vec![
            Cell::text(key),
            Cell::text(String::from_utf8_lossy(value)),
            Cell::Bytes(value.len() as u64),
        ]);
    }
    Ok(Output::Table(table))
}
