//! What a backup says of itself.

use crate::seal::Id;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the form.
pub const VERSION: u32 = 1;

/// One backup of one volume: complete, whatever else is in the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `VERSION`.
    pub version: u32,
    /// Its name in the repository: 32 hexadecimal digits.
    pub id: String,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// Of which volume.
    pub volume: Volume,
    /// Of which instant.
    pub snapshot: Snapshot,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// Pages of the index, in order; nothing for those without contents.
    pub pages: Vec<Option<Id>>,
    /// Bytes of contents, holes not counted.
    pub data: u64,
    /// Those that had to be stored for this one, before compression.
    pub added: u64,
    /// The same after it, as they are stored.
    pub stored: u64,
    /// Backups that were made together (`dog cluster snapshot save`): the name they share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// How many these are: fewer are not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_size: Option<u32>,
}

/// A volume, as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// UUID.
    pub uuid: String,
    /// Name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Copies, as dog writes them.
    pub redundancy: String,
    /// Bytes of an object.
    pub object_size: u32,
    /// Attributes; values in hexadecimal.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Number.
    pub id: u32,
    /// Tag.
    pub tag: String,
    /// When it was taken, milliseconds since 1970.
    pub created_ms: u64,
    /// It was taken for this backup.
    pub own: bool,
}
