//! Image files that are not raw: told by their first bytes, read and written by `qemu-img`, which talks to this process over NBD on a private socket. There is no copy in
//! between, and holes stay holes.
//!
//! What a file says of itself may have been written by a guest: whoever has a raw disk may put the header of another format on it. So `qemu-img` never guesses: it is told the
//! format, and a file that names others (a backing file, external data, extents) is refused unless that was asked for: a guest could name any file of this host.

mod format;

pub use format::{Format, LOOK, detect};

use crate::failure::{Failure, code};
use crate::nbd::{Address, Image, Listener, serve};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use tokio::process::Command;
use tokio::sync::watch;

/// Of what `qemu-img` says on its standard error this much is passed on, bytes.
const SAID: usize = 2000;

/// What `qemu-img info` says of a file that may be read.
pub struct Info {
    /// Absolute, so that no part of it is taken for a protocol.
    path: PathBuf,
    format: Format,
    /// Bytes of the disk in it.
    pub size: u64,
}

impl Info {
    /// Ask, and refuse what reads other files, unless `others` says that it may.
    ///
    /// # Errors
    /// There is no `qemu-img`, or the file is not what it should be.
    pub async fn of(path: &Path, head: &[u8], format: Format, others: bool) -> Result<Self, Failure> {
        let refuse = |what: &str| {
            let text = format!("{} names {what}, which would be read as well", path.display());
            Failure::new(code::FAILED, text).hint(
                "whoever wrote the image has chosen that file. Where you trust it: --follow. An image that a guest wrote as a raw disk: --format raw",
            )
        };
        // Before anything opens it.
        if let Some(what) = format.others(head).filter(|_| !others) {
            return Err(refuse(what));
        }
        let path = path.canonicalize().map_err(|e| Failure::io(path.display(), &e))?;
        let mut command = qemu_img();
        command.args(["info", "--output=json", "-f", format.name()]).arg(&path);
        let output = finish(command.output().await)?;
        let odd = |e: &dyn std::fmt::Display| Failure::new(code::FAILED, format!("qemu-img info: {e}"));
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|e| odd(&e))?;
        if let Some(what) = format::others_of(&info, &path).filter(|_| !others) {
            return Err(refuse(&what));
        }
        whole(&path, format, head).await?;
        let size = info["virtual-size"].as_u64().ok_or_else(|| odd(&"it tells no size"))?;
        Ok(Self { path, format, size })
    }

    /// Its contents go into an image that has nothing yet.
    ///
    /// # Errors
    /// As `qemu-img` says it.
    pub async fn import(&self, into: Arc<dyn Image>) -> Result<(), Failure> {
        with_socket(into, |uri| {
            let mut words: Vec<OsString> = ["convert", "-n", "-W", "-f"].map(Into::into).into();
            words.extend([self.format.name(), "-O", "raw"].map(Into::into));
            words.extend([self.path.clone().into(), uri]);
            words
        })
        .await
    }
}

/// `qemu-img` reads what lies behind the end of a file that was cut short as zeros: it is asked to look for that first.
async fn whole(path: &Path, format: Format, head: &[u8]) -> Result<(), Failure> {
    let cut = |f: Failure| {
        let message = format!("{} is damaged or cut short: {}", path.display(), f.message);
        Failure { message, ..f }
            .hint("compare it with where it came from; qemu-img check names what is wrong")
    };
    let length = std::fs::metadata(path).map_err(|e| Failure::io(path.display(), &e))?.len();
    if format.needs(head).is_some_and(|needed| length < needed) {
        return Err(cut(Failure::new(code::FAILED, format!("it has {length} bytes"))));
    }
    let output = qemu_img().args(["check", "-q", "-f", format.name()]).arg(path).output().await;
    match output.as_ref().ok().and_then(|o| o.status.code()) {
        // Clusters that nobody uses; a format that cannot be checked.
        Some(3 | 63) => Ok(()),
        _ => finish(output).map(drop).map_err(cut),
    }
}

/// An image becomes a file of this format. The file is there already, and empty.
///
/// # Errors
/// There is no `qemu-img`, or as it says it.
pub async fn export(image: Arc<dyn Image>, format: Format, file: &Path) -> Result<(), Failure> {
    let file = file.canonicalize().map_err(|e| Failure::io(file.display(), &e))?;
    with_socket(image, |uri| {
        let mut words: Vec<OsString> = ["convert", "-f", "raw", "-O", format.name()].map(Into::into).into();
        words.extend([uri, file.into()]);
        words
    })
    .await
}

/// Is there a `qemu-img`? Asked before anything is made.
///
/// # Errors
/// What to install.
pub async fn present() -> Result<(), Failure> {
    finish(qemu_img().arg("--version").output().await).map(drop)
}

/// Serve the image on a socket that only this user reaches, as long as `qemu-img` runs.
async fn with_socket(
    image: Arc<dyn Image>,
    words: impl FnOnce(OsString) -> Vec<OsString>,
) -> Result<(), Failure> {
    let dir = tempfile::tempdir().map_err(|e| Failure::io("a temporary directory", &e))?;
    let listener = Listener::bind(&Address::Unix(dir.path().join("nbd"))).await?;
    let mut command = qemu_img();
    command.args(words(listener.uri("").into()));
    if std::io::stderr().is_terminal() {
        command.arg("-p").stdout(Stdio::from(std::io::stderr()));
    }
    let (clients, _) = watch::channel(0);
    tokio::select! {
        output = command.output() => finish(output).map(drop),
        broken = serve(&listener, "", image, &clients) => Err(broken),
    }
}

fn qemu_img() -> Command {
    let mut command = Command::new("qemu-img");
    // Who gives up this future gives up the work.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn finish(output: std::io::Result<Output>) -> Result<Output, Failure> {
    let output = output.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(code::CLUSTER, "qemu-img is needed for images that are not raw, and is not installed here")
                .hint("install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, openSUSE), or run dog with --address on a host that has it")
        }
        _ => Failure::io("qemu-img", &e),
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("qemu-img: ");
    let mut end = said.len().min(SAID);
    while !said.is_char_boundary(end) {
        end -= 1;
    }
    let said = if said.is_empty() { output.status.to_string() } else { said[..end].to_owned() };
    Err(Failure::new(code::FAILED, format!("qemu-img: {said}")))
}
