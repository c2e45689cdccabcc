//! `kubectl sheepdog bundle`: one file with everything that helps to find a fault, and nothing that must not leave the house: no Secret is read, no volume's contents,
//! no pods but our own. What could not be had, or was too long, is listed in its README.

mod archive;
mod collect;
mod plain;

use crate::choose;
use crate::connect::Connected;
use crate::failure::Failure;
use crate::read::Trouble;
use k8s_openapi::jiff::Timestamp;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// Write everything that helps to find a fault into one file
///
/// SheepdogClusters, Vdis, our pods with their logs, events, nodes, volumes, claims and attachments of our driver, and what dog says of the cluster. No secrets, no contents of
/// volumes, no pods of others. Names of namespaces, claims, nodes and images are in it: look before you hand it on.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The file to write; never overwritten (default: sheepdog-bundle-TIME.tar.gz)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Lines of each container's log, current and previous
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    log_lines: u32,
}

/// Collect, pack, write.
pub async fn run(c: &Connected, args: &Args) -> Result<u8, Failure> {
    let now = Timestamp::now();
    let stamp: String = now.to_string().chars().take(19).filter(char::is_ascii_alphanumeric).collect();
    let path = args.output.clone().unwrap_or_else(|| format!("sheepdog-bundle-{stamp}.tar.gz").into());
    // First: nobody wants to hear that afterwards.
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
    let written = fill(c, args, file, now).await;
    if written.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    let (files, bytes, notes) = written?;
    println!("{}: {files} files, {bytes} bytes before packing", path.display());
    for note in &notes {
        eprintln!("left out: {note}");
    }
    Ok(0)
}

async fn fill(
    c: &Connected,
    args: &Args,
    file: std::fs::File,
    now: Timestamp,
) -> Result<(usize, usize, Vec<String>), Failure> {
    let mut parts = collect::Parts::new();
    let clusters = match choose::list(c).await {
        Ok(all) => all,
        Err(t @ Trouble::Unreachable(_)) => return Err(Failure::of("nothing can be collected", &t)),
        // A broken installation is what bundles are for.
        Err(t) => {
            parts.note(format!("sheepdogclusters.json: {t}"));
            Vec::new()
        }
    };
    collect::all(c, &clusters, args.log_lines, &mut parts).await;
    parts.readme(now);
    let failed = |e: std::io::Error| Failure::new(format!("the bundle cannot be written: {e}"));
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    archive::write(file, seconds, parts.files()).map_err(failed)?;
    Ok((parts.files().len(), parts.bytes(), parts.notes().to_vec()))
}
