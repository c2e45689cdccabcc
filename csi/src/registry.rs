//! Which nodes run the driver. Each node plugin writes what it is into an attribute of a small VDI without data, and looks now and then whether it is still
//! there; the controller refuses to attach a volume to a node that it does not find. Kubernetes need not be asked, and a typing error in a node's name
//! is an error and not an attachment that nobody uses.

use crate::fault::{Fault, Kind, Outcome};
use crate::sheep::{Sheep, attr};
use serde::{Deserialize, Serialize};
use sheepdog_client::ErrorKind;
use sheepdog_client::pb::{CreateVdiRequest, Vdi};

/// Name of the VDI.
pub const NAME: &str = sheepdog_client::NODES_VDI;
/// Start of the attributes' keys.
const NODE: &str = "node/";
/// Bytes of the VDI, which nobody writes.
const SIZE: u64 = 4 << 20;
/// Longest name of a node: what CSI allows.
pub const MAX_NODE: usize = 192;

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Record {
    /// Id of the sheep it goes through.
    pub sheep: String,
    /// Zone of that sheep.
    pub zone: String,
    /// How volumes are attached there.
    pub backend: String,
    /// Version of the driver.
    pub version: String,
    /// Volumes it takes at a time; 0: no limit.
    pub max_volumes: u64,
}

/// Check a node's id.
pub fn check_node(id: &str) -> Outcome<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    match id {
        "" => Err(Fault::invalid("a node id is needed")),
        id if id.len() > MAX_NODE || !id.chars().all(good) => Err(Fault::invalid(format!(
            "the node id \"{}\" cannot be a node's: 1 to {MAX_NODE} letters, digits, \"-\", \".\" and \"_\"",
            id.escape_debug()
        ))),
        _ => Ok(()),
    }
}

async fn vdi(sheep: &Sheep) -> Outcome<Vdi> {
    if let Some(v) = sheep.named(NAME).await? {
        return Ok(v);
    }
    let uuid = uuid::Uuid::new_v4().to_string();
    let request = CreateVdiRequest { name: NAME.into(), size: SIZE, uuid, ..Default::default() };
    match sheep.client().create_vdi(request).await {
        Ok(v) => Ok(v),
        // Another node was faster.
        Err(e) if e.kind == ErrorKind::Exists => {
            let found = sheep.named(NAME).await?;
            found.ok_or_else(|| Fault::new(Kind::Unavailable, format!("VDI {NAME} was deleted meanwhile")))
        }
        Err(e) => Err(e.into()),
    }
}

fn read(v: &Vdi, node: &str) -> Option<Record> {
    serde_json::from_str(attr(v, &format!("{NODE}{node}"))?).ok()
}

/// Say what this node is; does nothing when it is known already.
pub async fn register(sheep: &Sheep, node: &str, record: &Record) -> Outcome<()> {
    check_node(node)?;
    let v = vdi(sheep).await?;
    if read(&v, node).as_ref() == Some(record) {
        return Ok(());
    }
    let text = serde_json::to_vec(record).map_err(|e| Fault::internal(e.to_string()))?;
    sheep.set(v.id, &format!("{NODE}{node}"), &text).await
}

/// What a node said.
pub async fn find(sheep: &Sheep, node: &str) -> Outcome<Option<Record>> {
    Ok(sheep.named(NAME).await?.and_then(|v| read(&v, node)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_nodes() {
        assert!(check_node("node-1.example.com").is_ok());
        for bad in ["", "a/b", "a b", "a#1", &"x".repeat(193)] {
            assert_eq!(check_node(bad).unwrap_err().kind, Kind::Invalid);
        }
    }

    #[test]
    fn a_record_of_another_version_is_read() {
        let r: Record = serde_json::from_str(r#"{"sheep":"a","colour":"red"}"#).unwrap();
        assert_eq!((r.sheep.as_str(), r.max_volumes), ("a", 0));
    }
}
