//! `dog explain CODE`

use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};

/// Without CODE: list all codes
#[derive(clap::Args, Debug)]
pub struct Args {
    /// An exit code (0 1 2 3 4 5 64) or an error's word (exists, missing, full, busy, usage, not-formatted, cluster, moved, unsupported, denied, unreachable)
    code: Option<String>,
}

/// Exit code, word, one line, what to do.
const PAGES: &[(u8, &str, &str, &str)] = &[
    (0, "ok", "It was done.", "Changes are durable and known to a majority of voters when dog returns."),
    (
        1,
        "failed",
        "It was refused or failed for a reason not below.",
        "The message says why. With -v dog says more; `dog cluster events` shows what the cluster noticed.",
    ),
    (
        1,
        "busy",
        "The volume, snapshot or disk is in use, locked, or in the middle of something.",
        "See who: `dog vdi list -o wide` shows the node that owns an open volume, `dog vdi lock list` its locks. Detach the client, or wait for\nflattening to finish.",
    ),
    (1, "moved", "The volume changed hands while the request ran.", "Nothing is wrong: try again."),
    (
        1,
        "unsupported",
        "This release does not have it.",
        "Upgrade all sheep, or use another way: the message names one where there is one.",
    ),
    (
        2,
        "cluster",
        "The cluster cannot do it now: no majority of voters, too few nodes or zones, or a node does not answer.",
        "See `dog node list` and `dog cluster info`. A request that was not answered may still be carried out later.",
    ),
    (
        2,
        "unreachable",
        "No sheep could be reached, or the connection broke.",
        "Is the daemon running, is the address right (-a, -p, DOG_ADDR, DOG_PORT), does a firewall stand between? A sheep without credentials\nlistens on loopback only. With credentials give --secret-file or DOG_SECRET_FILE.",
    ),
    (
        2,
        "not-formatted",
        "The sheep waits for format.",
        "Run `dog cluster format --copies N` once, on one of the sheep.",
    ),
    (
        2,
        "denied",
        "The credentials are not good for this.",
        "Use the cluster's secret file, not an NBD client's certificate.",
    ),
    (
        3,
        "exists",
        "There is one of that name already.",
        "Choose another name, or delete the old one. Snapshots of a deleted volume keep its name taken.",
    ),
    (
        4,
        "full",
        "There is no space left for it.",
        "See `dog node info` and `dog node md info`. Add a disk (`dog node md plug`), add a sheep, or delete volumes and snapshots and then\npurge the trash (`dog trash purge`). Writes of\nclients wait meanwhile, they do not fail.",
    ),
    (
        5,
        "missing",
        "There is no such volume, snapshot, node or disk.",
        "See `dog vdi list`, `dog node list`, `dog node md info`. Names are case-sensitive. What was deleted by mistake may be in the trash: `dog trash list`.",
    ),
    (64, "usage", "The command line makes no sense.", "`dog COMMAND --help` shows what is possible."),
];

const COLUMNS: &[Column] = &[
    Column("exit_code", "EXIT CODE", false),
    Column("word", "WORD", false),
    Column("meaning", "MEANING", false),
];

/// One page, or the list.
pub fn run(args: &Args) -> Result<Output, Failure> {
    let Some(code) = &args.code else {
        let mut table = Table::new(COLUMNS);
        for (exit, word, meaning, _) in PAGES {
            table.row(vec![Cell::Number((*exit).into()), Cell::text(*word), Cell::text(*meaning)]);
        }
        return Ok(Output::Table(table));
    };
    let wanted = code.to_ascii_lowercase();
    let pages: Vec<String> = PAGES
        .iter()
        .filter(|(exit, word, ..)| exit.to_string() == wanted || *word == wanted)
        .map(|(exit, word, meaning, what)| {
            format!("{word} (exit code {exit})\n  {meaning}\n  {}\n", what.replace('\n', "\n  "))
        })
        .collect();
    if pages.is_empty() {
        return Err(Failure::new(5, format!("there is no code {code}")).hint("`dog explain` lists them"));
    }
    Ok(Output::Text(pages.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_client::error::ALL_KINDS;

    #[test]
    fn every_error_has_a_page_with_its_exit_code() {
        for kind in ALL_KINDS {
            let word = if kind.word() == "internal" { "failed" } else { kind.word() };
            let page = PAGES.iter().find(|p| p.1 == word);
            assert_eq!(page.map(|p| p.0), Some(kind.exit_code()), "{word}");
        }
    }
}
