//! LUKS2 on the node: what leaves it is encrypted. The passphrase comes with the request (a node stage secret), goes to cryptsetup by its standard input, and
//! is never written or logged.

use crate::exec::{self, LONG, SHORT};
use crate::fault::{Fault, Outcome};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokio::sync::Semaphore;
use uuid::Uuid;

/// Room for the header, bytes.
pub const HEADER: u64 = 16 << 20;
/// What a probe calls it.
pub const SIGNATURE: &str = "crypto_LUKS";
/// Key of the secret.
pub const SECRET: &str = "encryptionPassphrase";
/// Memory that deriving a key from the passphrase takes, KiB. By itself cryptsetup takes up to half of the machine's, and the node plugin's pod has a limit.
const PBKDF_MEMORY: &str = "131072";
/// One at a time takes it.
static DERIVING: Semaphore = Semaphore::const_new(1);

/// The passphrase of a request.
pub fn passphrase(secrets: &HashMap<String, String>) -> Outcome<&str> {
    match secrets.get(SECRET).map(String::as_str) {
        Some(p) if (1..=512).contains(&p.len()) => Ok(p),
        Some(_) => Err(Fault::invalid(format!("the secret's {SECRET} has 1 to 512 bytes"))),
        None => Err(Fault::invalid(format!(
            "the volume is encrypted and needs a secret with the key {SECRET}: set csi.storage.k8s.io/node-stage-secret-name and -namespace in the storage class"
        ))),
    }
}

/// Name of the mapping, which says whose it is.
pub fn name(volume: Uuid) -> String {
    format!("sheepdog-{volume}")
}

/// Where the plain device appears.
pub fn device(volume: Uuid) -> PathBuf {
    Path::new("/dev/mapper").join(name(volume))
}

fn text(path: &Path) -> Outcome<&str> {
    path.to_str().ok_or_else(|| Fault::internal("a device with an odd name"))
}

async fn cryptsetup(args: &[&str], passphrase: &str) -> Outcome<()> {
    let _one = DERIVING.acquire().await.map_err(|e| Fault::internal(e.to_string()))?;
    let ended = exec::run_with("cryptsetup", args, Some(passphrase.as_bytes()), LONG).await?;
    match ended.code {
        0 => Ok(()),
        2 => Err(Fault::invalid("the passphrase in the secret does not open this volume")),
        _ => Err(exec::failed("cryptsetup", args, &ended)),
    }
}

/// Make the container on a blank device.
pub async fn make(backing: &Path, passphrase: &str) -> Outcome<()> {
    let kind = ["-q", "luksFormat", "--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", PBKDF_MEMORY];
    cryptsetup(&[&kind[..], &["--key-file", "-", text(backing)?]].concat(), passphrase).await
}

/// Open it; nothing to do when it is open.
pub async fn open(volume: Uuid, backing: &Path, read_only: bool, passphrase: &str) -> Outcome<PathBuf> {
    let device = device(volume);
    if device.exists() {
        return Ok(device);
    }
    let name = name(volume);
    let mut args = vec!["-q", "open", "--type", "luks2", "--allow-discards", "--key-file", "-"];
    if read_only {
        args.push("--readonly");
    }
    args.extend([text(backing)?, &name]);
    cryptsetup(&args, passphrase).await?;
    Ok(device)
}

/// The passphrase of a request to grow.
pub fn passphrase_to_grow(secrets: &HashMap<String, String>) -> Outcome<&str> {
    passphrase(secrets).map_err(|_| {
        Fault::invalid(format!(
            "growing an encrypted volume needs its secret, with the key {SECRET}: set csi.storage.k8s.io/node-expand-secret-name and -namespace in the storage class"
        ))
    })
}

/// Let it have all of its device.
pub async fn grow(volume: Uuid, passphrase: &str) -> Outcome<()> {
    let name = name(volume);
    let args = ["-q", "resize", "--key-file", "-", &name];
    cryptsetup(&args, passphrase).await
}

/// Close it; nothing to do when it is closed.
pub async fn close(volume: Uuid) -> Outcome<()> {
    if !device(volume).exists() {
        return Ok(());
    }
    exec::succeed("cryptsetup", &["-q", "close", &name(volume)], SHORT).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_needed_and_not_shown() {
        let with = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        let good = with(SECRET, "s3cret");
        assert_eq!(passphrase(&good).unwrap(), "s3cret");
        assert!(passphrase(&with(SECRET, "")).is_err());
        let e = passphrase(&with("password", "s3cret")).unwrap_err();
        assert!(e.text.contains(SECRET) && !e.text.contains("s3cret"), "{e}");
        assert_eq!(passphrase_to_grow(&good).unwrap(), "s3cret");
        let e = passphrase_to_grow(&HashMap::new()).unwrap_err();
        assert!(e.text.contains("node-expand-secret-name"), "{e}");
    }

    #[tokio::test]
    async fn a_container_is_made_and_found() {
        use crate::guard::{self, Probe};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::fs::File::create(&path).unwrap().set_len(32 << 20).unwrap();
        assert_eq!(guard::probe(&path).await.unwrap(), Probe::Nothing);
        make(&path, "s3cret").await.unwrap();
        assert_eq!(guard::probe(&path).await.unwrap(), Probe::Found(SIGNATURE.into()));
        assert!(!guard::ends_are_zeros(&path).await.unwrap());
        let test = ["-q", "open", "--test-passphrase", "--key-file", "-", path.to_str().unwrap()];
        cryptsetup(&test, "s3cret").await.unwrap();
        let e = cryptsetup(&test, "wrong").await.unwrap_err();
        assert!(e.text.contains("does not open") && !e.text.contains("wrong"), "{e}");
    }
}
