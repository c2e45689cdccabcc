//! Programs of others: mkfs, fsck, mount, blkid, cryptsetup. Each has a time limit and is ended with whoever waits for it; one that hangs in the kernel
//! is left behind rather than waited for.

use crate::fault::{Fault, Kind, Outcome, io};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// For what should take a moment.
pub const SHORT: Duration = Duration::from_secs(60);
/// For what may read or write a whole file system.
pub const LONG: Duration = Duration::from_secs(1800);
/// What we keep of what a program says, bytes.
const MAX_TEXT: usize = 2048;

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// The end of standard error, or of standard output when it is empty.
    pub said: String,
}

/// Run to the end.
pub async fn run(program: &str, args: &[&str], limit: Duration) -> Outcome<Ended> {
    run_with(program, args, None, limit).await
}

/// Run to the end with something to read, which is never logged.
pub async fn run_with(program: &str, args: &[&str], input: Option<&[u8]>, limit: Duration) -> Outcome<Ended> {
    tracing::debug!("{program} {}", args.join(" "));
    let mut command = Command::new(program);
    command
        .args(args)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| {
        Fault::internal(format!("cannot run {program}: {e}: is it in the node plugin's image?"))
    })?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input).await.map_err(io(format!("give {program} its input")))?;
    }
    let Ok(done) = tokio::time::timeout(limit, child.wait_with_output()).await else {
        return Err(Fault::new(
            Kind::Unavailable,
            format!(
                "{program} did not end within {} s and was killed: is the volume's I/O parked?",
                limit.as_secs()
            ),
        ));
    };
    let out = done.map_err(io(program))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let said = if stderr.trim().is_empty() { &stdout } else { &stderr };
    let said = said.trim();
    let from = said.ceil_char_boundary(said.len().saturating_sub(MAX_TEXT));
    Ok(Ended {
        code: out.status.code().unwrap_or(-1),
        said: said[from..].to_owned(),
        stdout: stdout.into_owned(),
    })
}

/// Run to the end; anything but success is an error with what it said.
pub async fn succeed(program: &str, args: &[&str], limit: Duration) -> Outcome<Ended> {
    let ended = run(program, args, limit).await?;
    if ended.code == 0 {
        return Ok(ended);
    }
    Err(failed(program, args, &ended))
}

/// The error of a program that failed.
pub fn failed(program: &str, args: &[&str], ended: &Ended) -> Fault {
    Fault::internal(format!("{program} {}: exit code {}: {}", args.join(" "), ended.code, ended.said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_answer_or_are_ended() {
        let ok = run_with("cat", &[], Some(b"hello"), SHORT).await.unwrap();
        assert_eq!((ok.code, ok.stdout.as_str()), (0, "hello"));
        let bad = succeed("sh", &["-c", "echo no >&2; exit 3"], SHORT).await.unwrap_err();
        assert!(bad.text.contains("exit code 3: no"), "{bad}");
        let hangs = run("sleep", &["60"], Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(hangs.kind, Kind::Unavailable);
        assert!(run("no-such-program", &[], SHORT).await.unwrap_err().text.contains("cannot run"));
    }
}
