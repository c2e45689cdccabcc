//! What a VDI says of being restored on demand: attributes. None of them decides what its contents are, but for `UNTIL`, which only says what holds for ever.

use crate::failure::{Failure, code};
use serde::{Deserialize, Serialize};
use sheepdog_client::pb::{SetAttrRequest, Vdi, VdiRef};
use sheepdog_client::{Client, ErrorKind};
use std::time::Duration;
use tokio::time::Instant;

/// Of which backup it is made, as long as not all of it is there.
const RESTORING: &str = "dog.restoring";
/// And then the number of an attachment: chunks before this number were all there. One for each process that worked at it, so that one which believes that it still does takes
/// nothing back; the largest counts.
const UNTIL: &str = "dog.restoring.until.";
/// Of which backup it was made.
const RESTORED: &str = "dog.restored";

/// As whom the process that restores a volume has it attached.
pub const HOLDER: &str = "dog vdi restore --lazy";

/// While the connection to the sheep is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before it is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// Which backup. As an attribute it is JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Id of the repository.
    pub repository: String,
    /// Id of the backup in it.
    pub backup: String,
}

/// Is this attribute one of those here? They are about this volume, not about its contents, and are not restored.
pub fn is_ours(key: &str) -> bool {
    key == RESTORING || key == RESTORED || key.starts_with(UNTIL)
}

/// Is it being restored?
pub fn is_restoring(vdi: &Vdi) -> bool {
    vdi.attrs.contains_key(RESTORING)
}

/// Whoever wants to keep contents of a VDI has to wait until they are there.
///
/// # Errors
/// It is being restored.
pub fn refuse(vdi: &Vdi) -> Result<(), Failure> {
    if !is_restoring(vdi) {
        return Ok(());
    }
    let text = format!(
        "{} is not yet restored (dog vdi restore --lazy): it has zeros where its backup has contents",
        vdi.name
    );
    Err(Failure::new(code::FAILED, text).hint("wait until all of it is there"))
}

impl Mark {
    /// What is being restored into a VDI.
    pub fn restoring(vdi: &Vdi) -> Option<Self> {
        serde_json::from_slice(vdi.attrs.get(RESTORING)?).ok()
    }
    /// What was restored into a VDI.
    pub fn restored(vdi: &Vdi) -> Option<Self> {
        serde_json::from_slice(vdi.attrs.get(RESTORED)?).ok()
    }

    fn value(&self) -> Vec<u8> {
        serde_json::json!({ "repository": self.repository, "backup": self.backup }).to_string().into_bytes()
    }

    /// From now on.
    ///
    /// # Errors
    /// As the sheep says it.
    pub async fn begin(&self, client: &Client, vdi: u32) -> Result<(), Failure> {
        set(client, vdi, RESTORING.into(), Some(self.value())).await
    }

    /// All of it is there.
    ///
    /// # Errors
    /// As the sheep says it.
    pub async fn end(&self, client: &Client, vdi: &Vdi) -> Result<(), Failure> {
        set(client, vdi.id, RESTORED.into(), Some(self.value())).await?;
        set(client, vdi.id, RESTORING.into(), None).await?;
        let request = sheepdog_client::pb::GetVdiRequest { vdi: Some(VdiRef::id(vdi.id)), usage: false };
        for key in client.get_vdi(request).await?.attrs.into_keys().filter(|k| k.starts_with(UNTIL)) {
            set(client, vdi.id, key, None).await?;
        }
        Ok(())
    }
}

/// Chunks before this one are all there.
pub fn until(vdi: &Vdi) -> usize {
    let values = vdi.attrs.iter().filter(|(k, _)| k.starts_with(UNTIL));
    values.filter_map(|(_, v)| std::str::from_utf8(v).ok()?.parse().ok()).max().unwrap_or(0)
}

/// The same, from now on.
///
/// # Errors
/// As the sheep says it.
pub async fn set_until(client: &Client, vdi: u32, attachment: u64, chunk: usize) -> Result<(), Failure> {
    set(client, vdi, format!("{UNTIL}{attachment}"), Some(chunk.to_string().into_bytes())).await
}

/// Set or delete. Again when the answer was lost: there is nobody else who sets it.
async fn set(client: &Client, vdi: u32, key: String, value: Option<Vec<u8>>) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let (key, value) = (key.clone(), value.clone());
        let gone = value.is_none();
        let request = SetAttrRequest { vdi: Some(VdiRef::id(vdi)), key, value, exclusive: false };
        match client.set_attr(request).await {
            Ok(_) => return Ok(()),
            Err(e) if gone && e.kind == ErrorKind::Missing => return Ok(()),
            Err(e) if e.kind == ErrorKind::Unreachable && Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_counts_and_nonsense_does_not() {
        let mut vdi = Vdi::default();
        assert_eq!((until(&vdi), is_restoring(&vdi)), (0, false));
        for (key, value) in [("7", "12"), ("9", "30"), ("11", "25"), ("12", "x"), ("13", "-99")] {
            vdi.attrs.insert(format!("{UNTIL}{key}"), value.as_bytes().to_vec());
        }
        assert_eq!(until(&vdi), 30);
        vdi.attrs.insert(RESTORING.into(), b"nonsense".to_vec());
        assert_eq!((is_restoring(&vdi), Mark::restoring(&vdi)), (true, None));
        let mark = Mark { repository: "a".into(), backup: "b".into() };
        vdi.attrs.insert(RESTORING.into(), mark.value());
        assert_eq!(Mark::restoring(&vdi), Some(mark));
        assert!(vdi.attrs.keys().all(|k| is_ours(k)) && !is_ours("dog.restoringly") && !is_ours("owner"));
    }
}
