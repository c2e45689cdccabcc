//! `dog node log level`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use clap::Subcommand;
use sheepdog_client::pb::LogLevelRequest;

/// Log level of a running sheep
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show or set the log level
    Level {
        /// error, warn, info, debug, trace, or a list like info,sheep::peer=debug; shows it if left out
        level: Option<String>,
        /// Node; the one that dog talks to if left out
        #[arg(short, long, default_value = "")]
        node: String,
    },
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        let Self::Level { level, node } = self;
        let request = LogLevelRequest { node, level: level.unwrap_or_default() };
        let reply = ctx.client().await?.log_level(request).await?;
        Ok(Output::Record(Record::default().field("level", "Level", Cell::text(reply.level))))
    }
}
