//! `dog completion SHELL`

use super::Cli;
use crate::output::Output;
use clap::CommandFactory;

/// For example: `dog completion bash > /etc/bash_completion.d/dog`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// The script.
pub fn run(args: &Args) -> Output {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dog", &mut script);
    Output::Text(String::from_utf8_lossy(&script).into_owned())
}
