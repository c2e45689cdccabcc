//! `dog cluster recover enable|disable|force`

use crate::commands::node::recovery_settings;
use crate::context::{Confirm, Context};
use crate::failure::Failure;
use crate::output::Output;
use clap::Subcommand;
use sheepdog_client::pb::{ForceRequest, SetRecoveryRequest};

/// Pause, resume or force recovery
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Data may be moved (the default)
    Enable,
    /// No data is moved until it is enabled again; redundancy stays reduced meanwhile
    Disable,
    /// Accept loss: whoever is up counts as complete, what only missing nodes have is given up
    Force {
        /// Why: it is kept and shown for ever
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        let client = ctx.client().await?;
        let enabled = match self {
            Self::Enable => true,
            Self::Disable => false,
            Self::Force { reason, confirm } => {
                confirm.ask("gives up everything that only nodes have which are not up now. Writes that were acknowledged may be lost.")?;
                client.force(ForceRequest { reason }).await?;
                return Ok(Output::Nothing);
            }
        };
        let request = SetRecoveryRequest { enabled: Some(enabled), ..Default::default() };
        Ok(Output::Done(recovery_settings(&client.set_recovery(request).await?)))
    }
}
