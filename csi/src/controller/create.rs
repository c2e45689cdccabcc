//! Making volumes: from nothing, from a snapshot, from another volume.
//!
//! The attribute [`names::ATTR_ORIGIN`] is written last, so a volume that has it is as it was asked for, and one that lacks it is finished by whoever asks again:
//!
//! ```text
//!   (snapshot of the source) ─► create or clone ─► limits ─► format of the source ─► (delete that snapshot) ─► origin
//! ```

use super::Controller;
use crate::capability::Use;
use crate::csi::*;
use crate::fault::{Fault, Kind, Outcome};
use crate::guard::Format;
use crate::names::{self, SnapshotId};
use crate::parameters::Parameters;
use crate::sheep::attr;
use crate::size::{Range, signed};
use serde::{Deserialize, Serialize};
use sheepdog_client::ErrorKind;
use sheepdog_client::pb::{CreateVdiRequest, DeleteVdiRequest, Limits, ResizeRequest, Vdi, VdiRef};
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// Keys of a volume's context, which never changes: what the node has to know and nobody may change.
pub mod context {
    /// File system where a claim names none.
    pub const FS: &str = "fsType";
    /// `true`: LUKS2.
    pub const ENCRYPTED: &str = "encrypted";
    /// `false`: no e2fsck.
    pub const CHECK: &str = "checkFilesystem";
}

/// Where a volume's contents come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    Blank,
    Snapshot { vdi: Uuid, number: u32 },
    Volume(Uuid),
}

/// How a volume was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    source: Source,
    #[serde(default)]
    context: BTreeMap<String, String>,
}

impl Origin {
    fn of(v: &Vdi) -> Option<Self> {
        serde_json::from_str(attr(v, names::ATTR_ORIGIN)?).ok()
    }
}

/// A request as it is meant.
#[derive(Debug)]
struct Wanted {
    name: String,
    range: Range,
    floor: u64,
    parameters: Parameters,
    origin: Origin,
}

impl Wanted {
    fn new(r: &CreateVolumeRequest) -> Outcome<Self> {
        let name = names::escape(&r.name)?;
        let parameters = Parameters::new(&r.parameters, &r.mutable_parameters)?;
        let uses = Use::all(&r.volume_capabilities, parameters.fs.unwrap_or(crate::capability::Fs::Ext4))?;
        let header = if parameters.encrypted { crate::luks::HEADER } else { 0 };
        let floor = uses.iter().map(Use::smallest).max().unwrap_or(0);
        let floor = if floor + header > crate::size::SMALLEST { floor + header } else { 0 };
        let mut context = BTreeMap::new();
        if let Some(fs) = parameters.fs {
            context.insert(context::FS.into(), fs.name().into());
        }
        if parameters.encrypted {
            context.insert(context::ENCRYPTED.into(), "true".into());
        }
        if parameters.unchecked {
            context.insert(context::CHECK.into(), "false".into());
        }
        let source = source(r.volume_content_source.as_ref())?;
        Ok(Self {
            name,
            range: Range::new(r.capacity_range.as_ref())?,
            floor,
            parameters,
            origin: Origin { source, context },
        })
    }

    /// Is this volume what was asked for?
    fn matches(&self, v: &Vdi, origin: &Origin) -> Outcome<()> {
        let exists =
            |why: String| Fault::new(Kind::Exists, format!("a volume named {} exists, {why}", self.name));
        if origin.source != self.origin.source {
            return Err(exists("made from another source".into()));
        }
        if !self.range.holds(v.size) {
            return Err(exists(format!("with {} bytes", v.size)));
        }
        Ok(())
    }
}

fn source(source: Option<&VolumeContentSource>) -> Outcome<Source> {
    use volume_content_source::Type;
    let Some(source) = source else { return Ok(Source::Blank) };
    match &source.r#type {
        None => Err(Fault::invalid("a content source is either a snapshot or a volume")),
        Some(Type::Snapshot(s)) => {
            let missing = || Fault::not_found(format!("there is no snapshot {}", s.snapshot_id));
            let id = SnapshotId::parse(&s.snapshot_id).ok_or_else(missing)?;
            Ok(Source::Snapshot { vdi: id.vdi, number: id.number })
        }
        Some(Type::Volume(v)) => {
            let missing = || Fault::not_found(format!("there is no volume {}", v.volume_id));
            Ok(Source::Volume(names::volume_id(&v.volume_id).ok_or_else(missing)?))
        }
    }
}

/// A volume as CSI tells of it: always the same for the same volume, but for its size when it was expanded.
pub(super) async fn describe(c: &Controller, v: &Vdi) -> Outcome<Volume> {
    use volume_content_source::{SnapshotSource, Type, VolumeSource};
    let origin = Origin::of(v);
    let content = match origin.as_ref().map(|o| o.source) {
        None | Some(Source::Blank) => None,
        Some(Source::Snapshot { vdi, number }) => {
            Some(Type::Snapshot(SnapshotSource { snapshot_id: SnapshotId { vdi, number }.to_string() }))
        }
        Some(Source::Volume(id)) => Some(Type::Volume(VolumeSource { volume_id: id.to_string() })),
    };
    let segments = HashMap::from([(super::TOPOLOGY_CLUSTER.to_owned(), c.cluster().await?.to_owned())]);
    Ok(Volume {
        capacity_bytes: signed(v.size),
        volume_id: v.uuid.clone(),
        volume_context: origin.map(|o| o.context.into_iter().collect()).unwrap_or_default(),
        content_source: content.map(|t| VolumeContentSource { r#type: Some(t) }),
        accessible_topology: vec![Topology { segments }],
    })
}

pub(super) async fn create(c: &Controller, r: CreateVolumeRequest) -> Outcome<CreateVolumeResponse> {
    let wanted = Wanted::new(&r)?;
    reachable(c, r.accessibility_requirements.as_ref()).await?;
    let (this, key) = (c.clone(), format!("volume {}", wanted.name));
    c.locks
        .run("creation", [key], async move {
            let v = make(&this, &wanted).await?;
            Ok(CreateVolumeResponse { volume: Some(describe(&this, &v).await?) })
        })
        .await
}

/// Volumes can be used wherever a sheep of this cluster runs; somewhere like that must be allowed.
async fn reachable(c: &Controller, r: Option<&TopologyRequirement>) -> Outcome<()> {
    let Some(r) = r.filter(|r| !r.requisite.is_empty()) else { return Ok(()) };
    let cluster = c.cluster().await?;
    let here = |t: &Topology| t.segments.get(super::TOPOLOGY_CLUSTER).is_none_or(|id| id == cluster);
    if r.requisite.iter().any(here) {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Exhausted,
        format!(
            "none of the nodes that are allowed runs a sheep of cluster {cluster}: check allowedTopologies of the storage class"
        ),
    ))
}

async fn make(c: &Controller, w: &Wanted) -> Outcome<Vdi> {
    if let Some(v) = c.sheep.named(&w.name).await? {
        return existing(c, w, v).await;
    }
    match begin(c, w).await {
        // Somebody else makes it at the same time.
        Err(f) if f.kind == Kind::Exists => match c.sheep.named(&w.name).await? {
            Some(v) => existing(c, w, v).await,
            None => Err(f),
        },
        Err(f) => Err(f),
        Ok(v) => finish(c, w, v).await,
    }
}

/// Something has the name.
async fn existing(c: &Controller, w: &Wanted, v: Vdi) -> Outcome<Vdi> {
    let exists = |why: &str| Fault::new(Kind::Exists, format!("the name {} is taken: {why}", w.name));
    if !v.working {
        return Err(exists("snapshots of a deleted volume with this name are left, delete them first"));
    }
    if let Some(origin) = Origin::of(&v) {
        w.matches(&v, &origin)?;
        return Ok(v);
    }
    // Without the last step it was either begun by a controller that died, or somebody else made it.
    match w.origin.source {
        Source::Blank if v.parent.is_some() || !c.sheep.is_blank(v.id, "").await? => {
            return Err(exists("a VDI with contents that this driver did not make"));
        }
        Source::Blank => w.matches(&v, &w.origin)?,
        Source::Snapshot { vdi, .. } | Source::Volume(vdi) => {
            let source = c.sheep.any(vdi).await?.map(|s| s.id);
            let parent = v.parent.as_ref().map(|p| p.vdi);
            if parent.is_none() || parent != source {
                return Err(exists("a VDI that was not made from this source"));
            }
        }
    }
    finish(c, w, v).await
}

async fn begin(c: &Controller, w: &Wanted) -> Outcome<Vdi> {
    let p = &w.parameters;
    let mut request = CreateVdiRequest {
        name: w.name.clone(),
        redundancy: p.redundancy,
        object_size: p.object_size.unwrap_or(0),
        uuid: Uuid::new_v4().to_string(),
        flatten: p.flatten,
        ..Default::default()
    };
    match w.origin.source {
        Source::Blank => {
            request.flatten = false;
            request.size = w.range.choose(w.floor)?;
        }
        Source::Snapshot { vdi, number } => {
            let missing = || Fault::not_found(format!("there is no snapshot {}", SnapshotId { vdi, number }));
            let source = c.sheep.any(vdi).await?.ok_or_else(missing)?;
            let s = source.snapshots.iter().find(|s| s.id == number).ok_or_else(missing)?;
            request.size = w.range.choose(w.floor.max(s.size))?;
            request.source_snapshot = names::word(&source, s)?;
            request.source = Some(VdiRef::id(source.id));
            same_objects(&request, &source)?;
        }
        Source::Volume(id) => {
            let source = c.sheep.the_volume(&id.to_string()).await?;
            request.size = w.range.choose(w.floor.max(source.size))?;
            same_objects(&request, &source)?;
            request.source = Some(VdiRef::id(source.id));
            request.source_snapshot = names::clone_tag(&w.name);
            let tag = &request.source_snapshot;
            if !source.snapshots.iter().any(|s| s.tag == *tag) {
                super::snapshot::take(c, &[&source], tag).await?;
            }
        }
    }
    request.object_size = if request.source.is_some() { 0 } else { request.object_size };
    Ok(c.sheep.client().create_vdi(request).await?)
}

/// A clone has its source's objects.
fn same_objects(r: &CreateVdiRequest, source: &Vdi) -> Outcome<()> {
    if r.object_size == 0 || r.object_size == source.object_size {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "objectSize is {}, the source has objects of {} bytes: a clone has those of its source",
        r.object_size, source.object_size
    )))
}

/// From a VDI that is there to a volume. Every step may be done twice.
async fn finish(c: &Controller, w: &Wanted, mut v: Vdi) -> Outcome<Vdi> {
    let size = w.range.choose(w.floor.max(v.size))?;
    if size > v.size {
        let request = ResizeRequest { vdi: Some(VdiRef::id(v.id)), size, shrink: false };
        v = c.sheep.client().resize(request).await?;
    }
    // What an earlier try with other limits left does not count.
    c.sheep.limit(&v, w.parameters.limits.on(Limits::default())).await?;
    if let Some(format) = inherited(c, w, &v).await? {
        c.sheep.set(v.id, names::ATTR_FORMAT, format.to_text()?.as_bytes()).await?;
    }
    if let Source::Volume(id) = w.origin.source {
        forget_clone_snapshot(c, id, &names::clone_tag(&w.name)).await?;
    }
    if let Some(claim) = &w.parameters.claim {
        c.sheep.set(v.id, names::ATTR_CLAIM, claim.as_bytes()).await?;
    }
    let origin = serde_json::to_string(&w.origin).map_err(|e| Fault::internal(e.to_string()))?;
    c.sheep.set(v.id, names::ATTR_ORIGIN, origin.as_bytes()).await?;
    let made = c.sheep.the_volume(&v.uuid).await?;
    tracing::info!(volume = made.uuid, name = made.name, size = made.size, "created");
    Ok(made)
}

/// What is known of a clone's file system: what is known of its source's, unless that was made after the snapshot; then the snapshot itself says.
async fn inherited(c: &Controller, w: &Wanted, v: &Vdi) -> Outcome<Option<Format>> {
    let (Source::Snapshot { vdi, .. } | Source::Volume(vdi)) = w.origin.source else { return Ok(None) };
    if attr(v, names::ATTR_FORMAT).is_some() {
        return Ok(None);
    }
    let Some(source) = c.sheep.any(vdi).await? else { return Ok(None) };
    let of = match &w.origin.source {
        Source::Snapshot { number, .. } => source.snapshots.iter().find(|s| s.id == *number),
        _ => source.snapshots.iter().find(|s| s.tag == names::clone_tag(&w.name)),
    };
    let format = Format::of(&source)?;
    let Some(of) = of else { return Ok(format) };
    let sure = format.as_ref().is_some_and(|f| f.is_made_before(of.created_ms));
    // Blankness is inherited along chains of clones: a clone of a clone of nothing says so itself.
    let own = source.parent.is_none() || matches!(format, Some(Format::Blank));
    if !sure && own && c.sheep.is_blank(source.id, &names::word(&source, of)?).await? {
        return Ok(Some(Format::Blank));
    }
    Ok(format.filter(|f| *f != Format::Blank))
}

async fn forget_clone_snapshot(c: &Controller, source: Uuid, tag: &str) -> Outcome<()> {
    let Some(source) = c.sheep.any(source).await? else { return Ok(()) };
    if !source.snapshots.iter().any(|s| s.tag == tag) {
        return Ok(());
    }
    let request = DeleteVdiRequest {
        vdi: Some(VdiRef::id(source.id)),
        snapshot: tag.into(),
        now: true,
        ..Default::default()
    };
    match c.sheep.client().delete_vdi(request).await {
        Err(e) if e.kind != ErrorKind::Missing => Err(e.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};

    fn request(fs: &str, required: i64, parameters: &[(&str, &str)]) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: "pvc-1".into(),
            capacity_range: Some(CapacityRange { required_bytes: required, limit_bytes: 0 }),
            volume_capabilities: vec![VolumeCapability {
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
                access_type: Some(AccessType::Mount(MountVolume {
                    fs_type: fs.into(),
                    ..Default::default()
                })),
            }],
            parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_volume_is_large_enough_for_its_file_system() {
        let size = |fs, required, p: &[(&str, &str)]| {
            let w = Wanted::new(&request(fs, required, p)).unwrap();
            w.range.choose(w.floor).unwrap()
        };
        assert_eq!(size("ext4", 1 << 30, &[]), 1 << 30);
        assert_eq!(size("ext4", 0, &[]), crate::size::DEFAULT);
        assert_eq!(size("xfs", 1 << 20, &[]), 300 << 20);
        assert_eq!(size("", 1 << 20, &[("fsType", "xfs"), ("encrypted", "true")]), 316 << 20);
    }

    #[test]
    fn a_name_belongs_to_one_wish() {
        let w = Wanted::new(&request("", 1 << 30, &[])).unwrap();
        let v = |size| Vdi { size, ..Default::default() };
        assert!(w.matches(&v(1 << 30), &w.origin).is_ok());
        assert_eq!(w.matches(&v(1 << 29), &w.origin).unwrap_err().kind, Kind::Exists);
        let other = Origin { source: Source::Volume(Uuid::nil()), context: BTreeMap::new() };
        assert_eq!(w.matches(&v(1 << 30), &other).unwrap_err().kind, Kind::Exists);
    }

    #[test]
    fn the_origin_reads_back() {
        for source in
            [Source::Blank, Source::Snapshot { vdi: Uuid::nil(), number: 3 }, Source::Volume(Uuid::nil())]
        {
            let o = Origin { source, context: BTreeMap::from([("a".into(), "b".into())]) };
            let v = Vdi {
                attrs: HashMap::from([(names::ATTR_ORIGIN.into(), serde_json::to_vec(&o).unwrap())]),
                ..Default::default()
            };
            assert_eq!(Origin::of(&v), Some(o));
        }
    }

    #[test]
    fn ids_that_cannot_be_are_not_found() {
        use volume_content_source::{SnapshotSource, Type, VolumeSource};
        let ask = |t| source(Some(&VolumeContentSource { r#type: Some(t) })).unwrap_err().kind;
        assert_eq!(ask(Type::Snapshot(SnapshotSource { snapshot_id: "x".into() })), Kind::NotFound);
        assert_eq!(ask(Type::Volume(VolumeSource { volume_id: "x".into() })), Kind::NotFound);
    }
}
