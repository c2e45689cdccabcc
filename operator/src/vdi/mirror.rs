//! Shows every VDI of a cluster as a `Vdi` object, and keeps the status of all of them. One question to the cluster per round, however many there are; what has not
//! changed is not written.

use super::view::{self, Known};
use crate::apply::delete;
use crate::cluster::seen::{Engine, Seen};
use crate::condition::{Said, merge};
use crate::context::{Context, Failure};
use crate::names::{LISTED, Names};
use crate::quantity;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};
use sheepdog_client::{Client, NODES_VDI, pb};
use sheepdog_crds::{DRIVER, SheepdogCluster, Vdi, VdiStatus};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(15);
/// Between two rounds that ask for space, which every sheep has to add up.
const USAGE: Duration = Duration::from_secs(120);
/// Objects that are made for VDIs, per cluster: each is kept by the API server.
const MOST: usize = 5_000;
/// Changes of one round: the next one goes on.
const CHANGES: usize = 500;
const PAGE: u32 = 500;

/// When each cluster was looked at.
#[derive(Default)]
pub struct Rounds {
    last: Mutex<HashMap<String, (Instant, Option<Instant>)>>,
}

impl Rounds {
    /// Is it time? If so, whether to ask for space too.
    fn due(&self, cluster: &str, now: Instant) -> Option<bool> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, usage_at) = last.get(cluster).copied().unzip();
        if at.is_some_and(|at| now.duration_since(at) < ROUND) {
            return None;
        }
        let usage = usage_at.flatten().is_none_or(|at| now.duration_since(at) >= USAGE);
        let usage_at = if usage { Some(now) } else { usage_at.flatten() };
        last.insert(cluster.to_owned(), (now, usage_at));
        Some(usage)
    }
}

/// A change to the objects.
#[derive(Debug, PartialEq)]
pub enum Change {
    /// Make an object for a VDI.
    Create(Box<Vdi>),
    /// Follow a VDI that somebody else changed: the size that it has; and what the object asked for and is not so any more is taken out of it, or it would
    /// be carried out once more when the object changes.
    Follow {
        /// Object.
        name: String,
        /// As it was looked at: what somebody writes into it meanwhile counts.
        version: Option<String>,
        /// What changes in its spec.
        spec: Value,
    },
    /// The status differs.
    Status {
        /// Object.
        object: Box<Vdi>,
        /// New status.
        status: Box<VdiStatus>,
    },
    /// The VDI of an object that we made is gone.
    Remove {
        /// Object.
        name: String,
    },
}

/// What a round knows.
pub struct Round<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its VDIs.
    pub vdis: &'a [pb::Vdi],
    /// Objects of the namespace that name it.
    pub objects: &'a [Vdi],
    /// Space was asked for.
    pub usage: bool,
    /// Claims by volume handle.
    pub claims: &'a BTreeMap<String, String>,
    /// Kubernetes nodes by sheep.
    pub hosts: &'a BTreeMap<String, String>,
    /// Make objects for VDIs that have none.
    pub list: bool,
}

/// Decide. Pure.
pub fn changes(r: &Round<'_>, now: Timestamp) -> Vec<Change> {
    let by_name: HashMap<&str, &Vdi> = r.objects.iter().map(|o| (o.vdi_name(), o)).collect();
    let by_uuid: HashMap<&str, &Vdi> =
        r.objects.iter().filter(|o| !is_listed(o)).filter_map(|o| Some((uuid_of(o)?, o))).collect();
    let mut taken: HashSet<String> = r.objects.iter().map(ResourceExt::name_any).collect();
    let known: HashSet<&str> = r.vdis.iter().filter(|v| v.working).map(|v| v.name.as_str()).collect();
    let mut all = Vec::new();
    for o in r.objects.iter().filter(|o| is_listed(o) && !known.contains(o.vdi_name())) {
        all.push(Change::Remove { name: o.name_any() });
    }
    let uuids: HashSet<&str> = r.vdis.iter().map(|v| v.uuid.as_str()).collect();
    for o in r.objects.iter().filter(|o| !is_listed(o)) {
        if uuid_of(o).is_some_and(|u| !uuids.contains(u)) && crate::condition::holds(&conditions(o), "Ready")
        {
            let said = [Said::new("Ready", false, "Gone", super::GONE)];
            let mut status = o.status.clone().unwrap_or_default();
            status.conditions = merge(&status.conditions, &said, o.metadata.generation, now);
            all.push(Change::Status { object: Box::new(o.clone()), status: Box::new(status) });
        }
    }
    let mut listed = r.objects.iter().filter(|o| is_listed(o)).count();
    for v in r.vdis.iter().filter(|v| v.working) {
        let named = || {
            by_name.get(v.name.as_str()).filter(|o| is_listed(o) || uuid_of(o).is_none_or(|u| u == v.uuid))
        };
        let Some(object) = by_uuid.get(v.uuid.as_str()).or_else(named) else {
            if r.list && listed < MOST {
                let name = view::object_name(v, |n| taken.contains(n));
                taken.insert(name.clone());
                all.push(Change::Create(Box::new(view::listed(r.cluster, r.namespace, &name, v))));
                listed += 1;
            }
            continue;
        };
        if object.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let mut follow = left_behind(object, v);
        if is_listed(object) && quantity::bytes(&object.spec.size).is_none_or(|b| b < v.size) {
            follow.insert("size".into(), json!(quantity::exact(v.size)));
            all.push(following(object, follow));
            continue;
        }
        let old = object.status.clone().unwrap_or_default();
        let used = v.usage.as_ref().filter(|_| r.usage).map(|u| quantity::human(u.used));
        let known = Known {
            used: used.or(old.used.clone()),
            claim: r.claims.get(&v.uuid).cloned(),
            hosts: r.hosts.clone(),
            carried_out: super::is_done(object) || super::is_as_asked(object, v),
        };
        let status = view::status(object, v, &known, now);
        if status != old {
            all.push(Change::Status { object: Box::new((*object).clone()), status: Box::new(status) });
        } else if !follow.is_empty() {
            // The status has been this for a round: it is not the VDI that was looked at just before the object was carried out.
            all.push(following(object, follow));
        }
    }
    all.truncate(CHANGES);
    all
}

/// What an object that was made for a VDI asked for, got, and is not so any more: somebody else has changed it since, and whoever uses the VDI decides.
fn left_behind(object: &Vdi, v: &pb::Vdi) -> Map<String, Value> {
    let mut spec = Map::new();
    if is_listed(object) && super::is_done(object) {
        if !super::has_redundancy(object, v) {
            spec.insert("redundancy".into(), Value::Null);
        }
        if !super::has_limits(object, v) {
            spec.insert("limits".into(), Value::Null);
        }
    }
    spec
}

fn following(object: &Vdi, spec: Map<String, Value>) -> Change {
    Change::Follow { name: object.name_any(), version: object.resource_version(), spec: spec.into() }
}

fn uuid_of(o: &Vdi) -> Option<&str> {
    o.status.as_ref()?.uuid.as_deref()
}

fn conditions(o: &Vdi) -> Vec<Condition> {
    o.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default()
}

fn is_listed(o: &Vdi) -> bool {
    o.labels().get(LISTED).is_some_and(|v| v == "true")
}

/// A round, if it is time. What fails is tried again in the next one.
pub async fn mirror_if_due(c: &SheepdogCluster, ctx: &Context, client: Option<&Client>, seen: &Seen) {
    let (Some(client), false) = (client, c.spec.paused) else { return };
    let names = Names::of(c);
    let Some(usage) = ctx.rounds.due(&names.cluster, Instant::now()) else { return };
    if let Err(error) = round(c, ctx, client, seen, usage).await {
        tracing::warn!(cluster = names.cluster, %error, "VDIs could not be listed as objects");
    }
}

async fn round(
    c: &SheepdogCluster,
    ctx: &Context,
    client: &Client,
    seen: &Seen,
    usage: bool,
) -> Result<(), Failure> {
    let names = Names::of(c);
    let mut vdis = client.all_vdis("", usage).await?;
    vdis.retain(|v| v.name != NODES_VDI);
    let objects = objects(ctx, &names.cluster).await?;
    let claims = claims(ctx).await?;
    let hosts = hosts(seen, c.spec.ports.client);
    let round = Round {
        cluster: &names.cluster,
        namespace: &names.namespace,
        vdis: &vdis,
        objects: &objects,
        usage,
        claims: &claims,
        hosts: &hosts,
        list: c.spec.list_vdis,
    };
    for change in changes(&round, Timestamp::now()) {
        make(ctx, change).await?;
    }
    Ok(())
}

async fn make(ctx: &Context, change: Change) -> Result<(), Failure> {
    let api = ctx.api::<Vdi>();
    match change {
        Change::Create(object) => match api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            // Of that name there is an object of another cluster of this namespace.
            Err(kube::Error::Api(s)) if s.code == 409 => {
                match api.create(&PostParams::default(), &renamed(*object)).await {
                    Err(kube::Error::Api(s)) if s.code == 409 => Ok(()),
                    Err(e) => Err(e.into()),
                    Ok(_) => Ok(()),
                }
            }
            Err(e) => Err(e.into()),
        },
        Change::Follow { name, version, spec } => {
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": spec});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                // Somebody changed it meanwhile, or deleted it: the next round looks again.
                Err(kube::Error::Api(s)) if s.code == 409 || s.code == 404 => Ok(()),
                other => Ok(other.map(drop)?),
            }
        }
        Change::Status { object, status } => super::write_status(&object, ctx, *status).await,
        Change::Remove { name } => Ok(delete(&api, &name).await?),
    }
}

/// The same under a name that says the cluster's too.
fn renamed(mut object: Vdi) -> Vdi {
    object.spec.vdi_name = Some(object.vdi_name().to_owned());
    object.metadata.name = Some(format!("{}-{}", object.spec.cluster, object.name_any()));
    object
}

/// All `Vdi` objects of the cluster. Those of others in the namespace count as taken names when one is made: the API server says so.
async fn objects(ctx: &Context, cluster: &str) -> Result<Vec<Vdi>, kube::Error> {
    let mut params = ListParams::default().fields(&format!("spec.cluster={cluster}")).limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = ctx.api::<Vdi>().list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|t| !t.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// Claims of our driver's volumes, by volume handle.
async fn claims(ctx: &Context) -> Result<BTreeMap<String, String>, kube::Error> {
    let api = Api::<PersistentVolume>::all(ctx.kube.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut all = BTreeMap::new();
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items.iter().filter_map(claim));
        match page.metadata.continue_.filter(|t| !t.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

fn claim(pv: &PersistentVolume) -> Option<(String, String)> {
    let spec = pv.spec.as_ref()?;
    let csi = spec.csi.as_ref().filter(|c| c.driver == DRIVER)?;
    let claim = spec.claim_ref.as_ref()?;
    let name = format!("{}/{}", claim.namespace.as_deref()?, claim.name.as_deref()?);
    Some((csi.volume_handle.clone(), name))
}

/// Kubernetes node of each sheep.
fn hosts(seen: &Seen, port: u16) -> BTreeMap<String, String> {
    let Engine::Formatted(f) = &seen.engine else { return BTreeMap::new() };
    let by_ip: BTreeMap<&str, &String> =
        seen.nodes.iter().filter_map(|(name, n)| Some((n.ip.as_deref()?, name))).collect();
    let here = f.nodes.iter().filter(|n| n.client_port == u32::from(port));
    here.filter_map(|n| Some((n.id.clone(), (*by_ip.get(n.host.as_str())?).clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vdi(name: &str, size: u64) -> pb::Vdi {
        pb::Vdi { name: name.into(), uuid: format!("uuid-{name}"), size, working: true, ..Default::default() }
    }

    fn run(vdis: &[pb::Vdi], objects: &[Vdi]) -> Vec<Change> {
        let (claims, hosts) = (BTreeMap::new(), BTreeMap::new());
        let r = Round {
            cluster: "main",
            namespace: "ns",
            vdis,
            objects,
            usage: true,
            claims: &claims,
            hosts: &hosts,
            list: true,
        };
        changes(&r, Timestamp::from_second(7).unwrap())
    }

    #[test]
    fn made_followed_and_removed() {
        let a = vdi("a", 1 << 30);
        let made = run(std::slice::from_ref(&a), &[]);
        let [Change::Create(object)] = &made[..] else { panic!("{made:?}") };
        // Then its status is written, once.
        let told = run(std::slice::from_ref(&a), &[(**object).clone()]);
        let [Change::Status { status, .. }] = &told[..] else { panic!("{told:?}") };
        let mut shown = (**object).clone();
        shown.status = Some((**status).clone());
        assert_eq!(run(std::slice::from_ref(&a), std::slice::from_ref(&shown)), vec![]);
        // It grows.
        let grown = run(&[vdi("a", 2 << 30)], std::slice::from_ref(&shown));
        assert_eq!(grown, vec![follow(json!({"size": "2Gi"}))]);
        // It is gone.
        assert_eq!(run(&[], std::slice::from_ref(&shown)), vec![Change::Remove { name: "a".into() }]);
    }

    fn follow(spec: Value) -> Change {
        Change::Follow { name: "a".into(), version: None, spec }
    }

    /// An object with its status as the next round would leave it.
    fn settled(v: &pb::Vdi, mut object: Vdi) -> Vdi {
        while let [Change::Status { status, .. }] =
            &run(std::slice::from_ref(v), std::slice::from_ref(&object))[..]
        {
            object.status = Some((**status).clone());
        }
        object
    }

    /// A claim of the CSI driver gets another VolumeAttributesClass: nothing that an object of ours says is carried out against it.
    #[test]
    fn what_a_class_changes_is_not_changed_back() {
        let mut v = vdi("a", 1 << 30);
        let limits = |iops| Some(pb::Limits { iops, iops_burst: iops, ..Default::default() });
        // Nobody said anything in the object: there is nothing to fight with.
        let plain = settled(&v, view::listed("main", "ns", "a", &v));
        v.limits = limits(500);
        let told = run(std::slice::from_ref(&v), std::slice::from_ref(&plain));
        let [Change::Status { status, .. }] = &told[..] else { panic!("{told:?}") };
        assert_eq!(status.limits.as_deref(), Some("500 IOPS"));
        // Somebody did, and it was carried out; then a class says something else.
        let mut asks = plain;
        asks.metadata.generation = Some(2);
        asks.spec.limits = Some(sheepdog_crds::Limits { iops: Some(500), ..Default::default() });
        asks.spec.redundancy = Some(sheepdog_crds::Redundancy::copies(2));
        v.redundancy = Some(pb::Redundancy { copies: 2, ..Default::default() });
        let asks = settled(&v, asks);
        assert!(super::super::is_done(&asks));
        v.limits = limits(1000);
        // First it is shown, and in the next round the object says nothing of it any more.
        let told = run(std::slice::from_ref(&v), std::slice::from_ref(&asks));
        assert!(matches!(&told[..], [Change::Status { .. }]), "{told:?}");
        let shown = settled(&v, asks.clone());
        assert_eq!(
            run(std::slice::from_ref(&v), std::slice::from_ref(&shown)),
            vec![follow(json!({"limits": null}))]
        );
        // When it grows at the same time the object is carried out once more: at once, then.
        v.size = 2 << 30;
        v.redundancy = Some(pb::Redundancy { copies: 3, ..Default::default() });
        assert_eq!(
            run(std::slice::from_ref(&v), std::slice::from_ref(&asks)),
            vec![follow(json!({"size": "2Gi", "limits": null, "redundancy": null}))]
        );
        // An object that a person made keeps what it says.
        let mut own = shown;
        own.metadata.labels = None;
        v.size = 1 << 30;
        assert_eq!(run(std::slice::from_ref(&v), &[settled(&v, own)]), vec![]);
    }

    /// A change of the object that is not carried out yet is neither taken back nor said to be done.
    #[test]
    fn what_is_asked_for_waits_until_it_is_carried_out() {
        let v = vdi("a", 1 << 30);
        let mut asks = settled(&v, view::listed("main", "ns", "a", &v));
        asks.metadata.generation = Some(2);
        asks.spec.limits = Some(sheepdog_crds::Limits { iops: Some(500), ..Default::default() });
        let asks = settled(&v, asks);
        assert_eq!(run(std::slice::from_ref(&v), std::slice::from_ref(&asks)), vec![]);
        assert!(!super::super::is_done(&asks));
        // Somebody else has done it.
        let limits = Some(pb::Limits { iops: 500, iops_burst: 500, ..Default::default() });
        assert!(super::super::is_done(&settled(&pb::Vdi { limits, ..v }, asks)));
    }

    #[test]
    fn objects_of_people_are_not_removed_nor_grown() {
        let mut own = view::listed("main", "ns", "a", &vdi("a", 1 << 30));
        own.metadata.labels = None;
        assert_eq!(run(&[], std::slice::from_ref(&own)), vec![]);
        let told = run(&[vdi("a", 2 << 30)], std::slice::from_ref(&own));
        assert!(matches!(&told[..], [Change::Status { .. }]), "{told:?}");
    }

    #[test]
    fn a_vdi_that_is_gone_is_said_to_be_once() {
        let v = vdi("a", 1 << 30);
        let mut own = view::listed("main", "ns", "a", &v);
        own.metadata.labels = None;
        let [Change::Status { status, .. }] = &run(std::slice::from_ref(&v), std::slice::from_ref(&own))[..]
        else {
            panic!("no status")
        };
        own.status = Some((**status).clone());
        // Another VDI has its name meanwhile: that one gets an object of its own.
        let mut other = vdi("a", 1 << 30);
        other.uuid = "0123456789abcdef".into();
        let told = run(std::slice::from_ref(&other), std::slice::from_ref(&own));
        let [Change::Status { status, .. }, Change::Create(listed)] = &told[..] else { panic!("{told:?}") };
        assert!(status.conditions.iter().any(|c| c.reason == "Gone"));
        assert_eq!(listed.metadata.name.as_deref(), Some("a-0123456789ab"));
        own.status = Some((**status).clone());
        assert_eq!(run(&[], std::slice::from_ref(&own)), vec![]);
    }

    #[test]
    fn a_vdi_of_which_only_snapshots_are_left_has_no_object() {
        let mut gone = vdi("a", 1 << 30);
        gone.working = false;
        assert_eq!(run(&[gone], &[]), vec![]);
    }

    #[test]
    fn a_round_is_bounded() {
        let many: Vec<pb::Vdi> = (0..6_000).map(|i| vdi(&format!("v{i}"), 4096)).collect();
        assert_eq!(run(&many, &[]).len(), CHANGES);
    }

    #[test]
    fn rounds_are_apart() {
        let r = Rounds::default();
        let t = Instant::now();
        let at = |s| t + Duration::from_secs(s);
        assert_eq!(r.due("a", at(0)), Some(true));
        assert_eq!(r.due("a", at(5)), None);
        assert_eq!(r.due("a", at(15)), Some(false));
        assert_eq!(r.due("b", at(15)), Some(true));
        assert_eq!(r.due("a", at(121)), Some(true));
    }
}
