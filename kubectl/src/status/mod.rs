//! `kubectl sheepdog status`: [`fetch`] reads, [`report`] says what it means, [`show`] is for people.

pub mod fetch;
mod report;
mod show;

pub use report::{Report, unhappy};

use crate::choose;
use crate::connect::Connected;
use crate::failure::Failure;
use crate::why::{Format, print};
use crate::words::name;

/// A cluster on one screen: conditions, sheep, space, versions, nodes, volumes, claims that wait
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Name of the SheepdogCluster (default: all there are)
    cluster: Option<String>,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// Read, decide, print.
pub async fn run(c: &Connected, args: &Args) -> Result<u8, Failure> {
    let clusters = match &args.cluster {
        Some(wanted) => vec![choose::one(c, Some(wanted)).await?],
        None => choose::clusters(c).await?,
    };
    if clusters.is_empty() {
        return Err(Failure::new("there is no SheepdogCluster").hint(
            "-n NAMESPACE says where to look (default: everywhere); docs/kubernetes.md says how one is made",
        ));
    }
    let seen = fetch::fetch(c, &clusters).await;
    let mut sorted = clusters;
    sorted.sort_by_key(name);
    let reports: Vec<Report> = sorted.iter().map(|c| Report::of(c, &seen)).collect();
    match args.output {
        Format::Json => print(&(serde_json::to_string_pretty(&reports).unwrap_or_default() + "\n"))?,
        Format::Text => {
            let texts: Vec<String> = reports.iter().map(show::text).collect();
            print(&texts.join("\n"))?;
        }
    }
    Ok(0)
}
