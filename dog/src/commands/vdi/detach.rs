//! `dog vdi detach`

use crate::context::{Confirm, Context, vdi};
use crate::failure::Failure;
use crate::output::Output;
use sheepdog_client::pb::{DetachRequest, detach_request::Which};

/// Let a node or client use a VDI no longer, whatever has become of it
///
/// When this returns without an error, nothing that the holder has sent or still sends can change the VDI. Its connections are cut: what it has not written yet is
/// lost. After an error, repeat it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    /// Whom: as it was named when it was attached
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    holder: Option<String>,
    /// All its holders
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    confirm: Confirm,
}

/// Ask, detach.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let whom = args.holder.as_deref().unwrap_or("all its holders");
    let name = &args.name;
    args.confirm.ask(&format!(
        "takes VDI {name} away from {whom}: what is open there loses what it has not written."
    ))?;
    let which = Some(args.holder.map_or(Which::All(true), Which::Holder));
    ctx.client().await?.detach(DetachRequest { vdi: vdi(name), which }).await?;
    Ok(Output::Nothing)
}
