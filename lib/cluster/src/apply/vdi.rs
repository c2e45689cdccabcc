//! Volumes: names, sizes, attributes, locks.

use super::Outcome;
use super::lifecycle::{check_object_size, check_redundancy};
use crate::{
    ClusterState, CommandError, EventLevel, Family, Limits, Lock, Millis, NodeState, Redundancy, Reply,
    Session, Vdi, VdiState,
};
use sheepdog_proto::{Epoch, Generation, LayerId, MAX_PAYLOAD, MIN_BANDWIDTH, VdiId};
use std::collections::{BTreeMap, BTreeSet};

/// Attribute limits, bytes.
const MAX_KEY: usize = 256;
const MAX_VALUE: usize = 64 << 10;
/// Attributes of one VDI.
const MAX_ATTRS: usize = 1024;
/// Rings that are not settled yet at which the copies of no further VDI are changed: whoever asks where an object is looks at all of them.
const MAX_MOVES: usize = 8;

/// A name that can be an export, a file name and a command line word.
pub(super) fn check_name(name: &str) -> Result<(), CommandError> {
    let bad = |c: char| c.is_control() || matches!(c, '@' | '/' | '#');
    if name.is_empty() || name.len() > 255 || name.chars().any(bad) || name == "." || name == ".." {
        return Err(CommandError::Invalid(
            "a VDI name has 1 to 255 bytes, without \"@\", \"/\", \"#\" and control characters".into(),
        ));
    }
    Ok(())
}

pub(super) fn check_size(size: u64, object_size: u32) -> Result<(), CommandError> {
    let limit = (object_size as u64) << 32;
    if size == 0 || size > limit || !size.is_multiple_of(512) {
        return Err(CommandError::Invalid(format!(
            "the size must be a multiple of 512 bytes, more than 0 and at most {} TiB with this object size",
            limit >> 40
        )));
    }
    Ok(())
}

/// A strip travels in one message.
pub(super) fn check_strips(r: Redundancy, object_size: u32) -> Result<(), CommandError> {
    let Some((data, _)) = r.strips() else { return Ok(()) };
    let most = MAX_PAYLOAD as u32;
    if object_size / u32::from(data.max(1)) <= most {
        return Ok(());
    }
    Err(CommandError::Invalid(format!(
        "objects of {} MiB need at least {} data strips: ask for more (--copy-policy) or for smaller objects (--object-size)",
        object_size >> 20,
        object_size / most
    )))
}

impl ClusterState {
    /// Enough nodes (and, when strict, zones) for this redundancy.
    pub(super) fn check_width(&self, r: Redundancy) -> Result<(), CommandError> {
        check_redundancy(r)?;
        let width = r.spread();
        let less = match r {
            Redundancy::Copies(_) => "ask for fewer copies (--copies)",
            Redundancy::Erasure { .. } => "ask for fewer strips (--copy-policy)",
        };
        let need = if width == 1 { "needs" } else { "need" };
        let holders = || self.nodes.values().filter(|n| !n.gateway && n.state != NodeState::Out);
        if holders().take(width).count() < width {
            return Err(CommandError::NotEnough(format!(
                "{r} {need} {width} sheep that store data, there are {}: add sheep or {less}",
                holders().count()
            )));
        }
        if self.format.as_ref().is_some_and(|f| f.strict) {
            let mut zones = BTreeSet::new();
            // A node without a zone is its own.
            for n in holders() {
                zones.insert((n.zone.as_deref(), n.zone.is_none().then_some(n.id)));
                if zones.len() >= width {
                    return Ok(());
                }
            }
            return Err(CommandError::NotEnough(format!(
                "{r} {need} {width} zones in a strict cluster, there are {}",
                zones.len()
            )));
        }
        Ok(())
    }

    pub(super) fn check_free_name(&self, name: &str) -> Result<(), CommandError> {
        check_name(name)?;
        match self.names.get(name).and_then(|id| self.vdis.get(id)) {
            None => Ok(()),
            Some(v) if v.working().is_none() => Err(CommandError::Exists(format!(
                "snapshots of a deleted VDI named {name} are left: delete them first or choose another name"
            ))),
            Some(_) => Err(CommandError::Exists(format!("a VDI named {name} exists"))),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn insert_vdi(
        &mut self,
        now: Millis,
        name: &str,
        uuid: u128,
        size: u64,
        redundancy: Redundancy,
        object_size: u32,
        base: Option<sheepdog_proto::LayerId>,
    ) -> Result<VdiId, CommandError> {
        let root = self.take_id()?;
        let id = VdiId(root.0);
        self.families.insert(root, Family { redundancy, object_size, layers: 0 });
        self.add_layer(root, root, None, base, id);
        self.vdis.insert(
            id,
            Vdi {
                id,
                uuid,
                name: name.to_owned(),
                size,
                top: Some(root),
                family: root,
                snapshots: Vec::new(),
                next_snapshot: 1,
                created: now,
                attrs: BTreeMap::new(),
                locks: Vec::new(),
                session: Session::Closed,
                generation: Generation(0),
                flattening: false,
                gateways: BTreeMap::new(),
                attachments: Vec::new(),
                limits: Limits::default(),
                state: VdiState::Here,
            },
        );
        self.names.insert(name.to_owned(), id);
        Ok(id)
    }

    pub(super) fn vdi_create(
        &mut self,
        now: Millis,
        name: &str,
        uuid: u128,
        size: u64,
        redundancy: Option<Redundancy>,
        object_size: Option<u32>,
    ) -> Outcome {
        let format = self.format.as_ref().ok_or(CommandError::NotFormatted)?;
        let redundancy = redundancy.unwrap_or(format.redundancy);
        let object_size = object_size.unwrap_or(format.object_size);
        check_object_size(object_size)?;
        check_size(size, object_size)?;
        if let Some(v) = self.names.get(name).and_then(|id| self.vdis.get(id))
            && v.uuid == uuid
        {
            return Ok(Reply::Vdi(v.id));
        }
        self.check_free_name(name)?;
        self.check_width(redundancy)?;
        check_strips(redundancy, object_size)?;
        let id = self.insert_vdi(now, name, uuid, size, redundancy, object_size, None)?;
        Ok(Reply::Vdi(id))
    }

    pub(super) fn vdi_rename(&mut self, id: VdiId, name: &str) -> Outcome {
        let v = self.listed_mut(id)?;
        if v.name == name {
            return Ok(Reply::Done);
        }
        if !v.attachments.is_empty() {
            // Its holders find it again by its name.
            return Err(CommandError::Busy(v.attached_to()));
        }
        self.check_free_name(name)?;
        let v = self.vdi_mut(id)?;
        let old = std::mem::replace(&mut v.name, name.to_owned());
        self.names.remove(&old);
        self.names.insert(name.to_owned(), id);
        Ok(Reply::Done)
    }

    pub(super) fn vdi_resize(&mut self, id: VdiId, size: u64, generation: Option<Generation>) -> Outcome {
        self.check_generation(id, generation)?;
        let family = self.listed_mut(id)?.family;
        let object_size = self.families.get(&family).map_or(0, |f| f.object_size);
        check_size(size, object_size)?;
        self.vdi_mut(id)?.size = size;
        Ok(Reply::Done)
    }

    pub(super) fn alter_copies(
        &mut self,
        now: Millis,
        vdi: Option<VdiId>,
        redundancy: Redundancy,
    ) -> Outcome {
        self.check_width(redundancy)?;
        match vdi {
            None => {
                if let Some(f) = &mut self.format {
                    f.redundancy = redundancy;
                    f.min_copies = f.min_copies.filter(|m| *m as usize <= redundancy.width());
                }
                self.event(now, EventLevel::Info, format!("new VDIs get {redundancy} from now on"));
                Ok(Reply::Done)
            }
            Some(id) => {
                let v = self.listed_mut(id)?;
                let (family, name) = (v.family, v.name.clone());
                self.alter_family(now, family, &name, redundancy)
            }
        }
    }

    /// As a change of the ring: holders of before take part until those of now are complete.
    fn alter_family(&mut self, now: Millis, family: LayerId, name: &str, redundancy: Redundancy) -> Outcome {
        let Some(before) = self.redundancy(family) else {
            return Err(CommandError::NotFound(format!("VDI {name} has no objects' family")));
        };
        if before == redundancy {
            return Ok(Reply::Done);
        }
        check_strips(redundancy, self.families.get(&family).map_or(0, |f| f.object_size))?;
        if self.rings.len() >= MAX_MOVES {
            return Err(CommandError::Busy(
                "data is still being moved after earlier changes: wait (`dog node recovery --progress`), then try again".into(),
            ));
        }
        if self.lost.values().any(|l| l.families.contains(&family)) {
            return Err(CommandError::Busy(format!(
                "VDI {name} has lost a disk with its only copy: bring it back or accept the loss (`dog cluster recover force`) first"
            )));
        }
        let text = format!("VDI {name} gets {redundancy} instead of {before}");
        self.event(now, EventLevel::Info, text.clone());
        self.holders_changed(now, text);
        let steps = self.altered.entry(family).or_insert_with(|| vec![(Epoch(0), before)]);
        steps.push((self.epoch, redundancy));
        Ok(Reply::Done)
    }

    pub(super) fn set_limits(&mut self, id: VdiId, limits: Limits) -> Outcome {
        let Limits { iops, iops_burst, bandwidth, bandwidth_burst } = limits;
        if (iops == 0 && iops_burst > 0) || (bandwidth == 0 && bandwidth_burst > 0) {
            return Err(CommandError::Invalid("a burst belongs to a limit: give that, too".into()));
        }
        if bandwidth > 0 && bandwidth < MIN_BANDWIDTH {
            return Err(CommandError::Invalid(format!(
                "a bandwidth of less than {MIN_BANDWIDTH} bytes a second looks like a fault to whoever uses the volume"
            )));
        }
        self.listed_mut(id)?.limits = limits;
        Ok(Reply::Done)
    }

    pub(super) fn set_attr(
        &mut self,
        id: VdiId,
        key: &str,
        value: Option<&[u8]>,
        exclusive: bool,
    ) -> Outcome {
        if key.is_empty() || key.len() > MAX_KEY || value.is_some_and(|v| v.len() > MAX_VALUE) {
            return Err(CommandError::Invalid(
                "an attribute has a key of 1 to 256 bytes and a value of at most 64 KiB".into(),
            ));
        }
        let v = self.listed_mut(id)?;
        match value {
            None => match v.attrs.remove(key) {
                Some(_) => Ok(Reply::Done),
                None => Err(CommandError::NotFound(format!("VDI {} has no attribute {key}", v.name))),
            },
            Some(_) if exclusive && v.attrs.contains_key(key) => {
                Err(CommandError::Exists(format!("VDI {} has an attribute {key}", v.name)))
            }
            Some(_) if v.attrs.len() >= MAX_ATTRS && !v.attrs.contains_key(key) => {
                Err(CommandError::Invalid(format!("VDI {} has {MAX_ATTRS} attributes already", v.name)))
            }
            Some(value) => {
                v.attrs.insert(key.to_owned(), value.to_vec());
                Ok(Reply::Done)
            }
        }
    }

    pub(super) fn lock(&mut self, now: Millis, id: VdiId, holder: &str, exclusive: bool) -> Outcome {
        let v = self.listed_mut(id)?;
        let others = v.locks.iter().find(|l| l.holder != holder && (exclusive || l.exclusive));
        if let Some(l) = others {
            return Err(CommandError::Busy(format!("VDI {} is locked by {}", v.name, l.holder)));
        }
        v.locks.retain(|l| l.holder != holder);
        v.locks.push(Lock { holder: holder.to_owned(), exclusive, since: now });
        Ok(Reply::Done)
    }

    pub(super) fn unlock(&mut self, id: VdiId, holder: Option<&str>) -> Outcome {
        let v = self.listed_mut(id)?;
        match holder {
            None => v.locks.clear(),
            Some(h) => {
                let before = v.locks.len();
                v.locks.retain(|l| l.holder != h);
                if v.locks.len() == before {
                    return Err(CommandError::NotFound(format!("VDI {} is not locked by {h}", v.name)));
                }
            }
        }
        Ok(Reply::Done)
    }
}
