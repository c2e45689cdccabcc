//! What goes into a bundle, and how much of it.

use super::plain::strip;
use crate::choose;
use crate::connect::Connected;
use crate::exec::Place;
use crate::read::{self, limited};
use crate::status;
use crate::why::{Kind, Target, ask};
use crate::words::{name, namespace};
use futures::AsyncReadExt as _;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, LogParams};
use serde::Serialize;
use serde_json::json;
use sheepdog_crds::{DRIVER, SheepdogCluster, Vdi, VdiSnapshot};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// Directory in the archive.
const TOP: &str = "sheepdog-bundle";
/// Bytes of one file.
const FILE: usize = 8 << 20;
/// Bytes of one log: the end of it.
const LOG: usize = 1 << 20;
/// Bytes of a log that are read for that.
const LOG_READ: i64 = 16 << 20;
/// Bytes of everything: it has to fit into a ticket.
const ALL: usize = 256 << 20;
/// How long one answer of dog, or one log, may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Claims about which `why` is asked.
const WHYS: usize = 10;

/// What dog is asked, as in its own support bundle.
const DOG: [(&str, &str); 9] = [
    ("cluster-info.json", "cluster info --history 1000 -o json"),
    ("events.json", "cluster events -o json"),
    ("nodes.json", "node list -o json"),
    ("space.json", "node info -o json"),
    ("disks.json", "node md info -o json"),
    ("recovery.json", "node recovery -o json"),
    ("counters.json", "node stat -o json"),
    ("vdis.json", "vdi list -o json"),
    ("vdi-counters.json", "vdi stat -o json"),
];

/// Files, and what is not among them.
pub struct Parts {
    files: Vec<(String, Vec<u8>)>,
    bytes: usize,
    notes: Vec<String>,
}

impl Parts {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { files: Vec::new(), bytes: 0, notes: Vec::new() }
    }
    /// By path.
    pub fn files(&self) -> &[(String, Vec<u8>)] {
        &self.files
    }
    /// Of all files.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// What was left out.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Leave something out.
    pub fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }

    fn add(&mut self, path: &str, mut contents: Vec<u8>) {
        if contents.len() > FILE {
            self.note(format!("{path}: all but the first {FILE} of {} bytes", contents.len()));
            contents.truncate(FILE);
        }
        if self.bytes + contents.len() > ALL {
            self.note(format!("{path}: the bundle has {ALL} bytes already"));
            return;
        }
        self.bytes += contents.len();
        self.files.push((format!("{TOP}/{path}"), contents));
    }

    /// Objects of one kind, as a List.
    fn objects<K: Serialize>(&mut self, path: &str, all: &[K]) {
        let items: Vec<_> = all
            .iter()
            .filter_map(|o| serde_json::to_value(o).ok())
            .map(|mut v| {
                strip(&mut v);
                v
            })
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.add(path, serde_json::to_vec_pretty(&list).unwrap_or_default());
    }

    /// Objects of one kind, or a note.
    fn listed<K: Serialize>(&mut self, path: &str, read: Result<Vec<K>, read::Trouble>) -> Vec<K> {
        match read {
            Ok(all) => {
                self.objects(path, &all);
                all
            }
            Err(why) => {
                self.note(format!("{path}: {why}"));
                Vec::new()
            }
        }
    }

    /// Last of all: what this is.
    pub fn readme(&mut self, now: Timestamp) {
        let mut text = format!(
            "Support bundle of kubectl sheepdog {}, {now}.\n\nObjects are as kubectl get -o json shows them, without managedFields. No Secret was read. There are no contents of volumes\nand no pods but Sheepdog's own. logs/NAMESPACE/POD/CONTAINER.log are the ends of logs, *.previous.log those of containers that ended.\n\nLeft out:\n",
            env!("CARGO_PKG_VERSION")
        );
        if self.notes.is_empty() {
            text += "  nothing\n";
        }
        for n in &self.notes {
            let _ = writeln!(text, "  {n}");
        }
        self.files.insert(0, (format!("{TOP}/README.txt"), text.into_bytes()));
    }
}

/// Everything, one after the other: nobody is in a hurry, and the API server has other work.
pub async fn all(c: &Connected, clusters: &[SheepdogCluster], log_lines: u32, p: &mut Parts) {
    p.objects("sheepdogclusters.json", clusters);
    if clusters.is_empty() {
        p.note("dog: there is no SheepdogCluster");
    }
    let mut namespaces: BTreeSet<String> = clusters.iter().map(namespace).collect();
    let pods = ours(c, &namespaces, p).await;
    namespaces.extend(pods.iter().map(namespace));
    cluster_wide(c, p).await;
    for ns in &namespaces {
        in_namespace(c, ns, p).await;
    }
    for cluster in clusters {
        dog(c, cluster, p).await;
    }
    judged(c, clusters, p).await;
    for pod in &pods {
        logs(c, pod, log_lines, p).await;
    }
}

async fn ours(c: &Connected, namespaces: &BTreeSet<String>, p: &mut Parts) -> Vec<Pod> {
    let labels = || ListParams::default().labels("app.kubernetes.io/name=sheepdog");
    let everywhere = read::list(&Api::<Pod>::all(c.client.clone()), labels()).await;
    if let Ok(all) = everywhere {
        p.objects("pods.json", &all);
        return all;
    }
    let mut some = Vec::new();
    for ns in namespaces {
        match read::list(&Api::<Pod>::namespaced(c.client.clone(), ns), labels()).await {
            Ok(all) => some.extend(all),
            Err(why) => p.note(format!("pods of {ns}: {why}")),
        }
    }
    p.objects("pods.json", &some);
    some
}

async fn cluster_wide(c: &Connected, p: &mut Parts) {
    let client = || c.client.clone();
    let all = ListParams::default;
    p.listed("nodes.json", read::list(&Api::<Node>::all(client()), all()).await);
    p.listed("csinodes.json", read::list(&Api::<CSINode>::all(client()), all()).await);
    p.listed("storageclasses.json", read::list(&Api::<StorageClass>::all(client()), all()).await);
    p.listed("csidrivers.json", read::list(&Api::<CSIDriver>::all(client()), all()).await);
    let attachments = read::list(&Api::<VolumeAttachment>::all(client()), all()).await;
    let mine = |a: &VolumeAttachment| a.spec.attacher == DRIVER;
    p.listed("volumeattachments.json", attachments.map(|all| all.into_iter().filter(mine).collect()));
    let volumes = read::list(&Api::<PersistentVolume>::all(client()), all()).await;
    let mine = |v: &PersistentVolume| {
        v.spec.as_ref().and_then(|s| s.csi.as_ref()).is_some_and(|c| c.driver == DRIVER)
    };
    let volumes: Vec<PersistentVolume> =
        p.listed("persistentvolumes.json", volumes.map(|all| all.into_iter().filter(mine).collect()));
    let bound: BTreeSet<String> = volumes.iter().map(name).collect();
    let classes = read::list(&Api::<StorageClass>::all(client()), all()).await.unwrap_or_default();
    let classes: BTreeSet<String> = classes.iter().filter(|c| c.provisioner == DRIVER).map(name).collect();
    let mine = |c: &PersistentVolumeClaim| {
        let spec = c.spec.as_ref();
        let volume = spec.and_then(|s| s.volume_name.as_ref());
        let class = spec.and_then(|s| s.storage_class_name.as_ref());
        volume.is_some_and(|v| bound.contains(v)) || class.is_some_and(|c| classes.contains(c))
    };
    let claims = read::list(&Api::<PersistentVolumeClaim>::all(client()), all()).await;
    let claims: Vec<PersistentVolumeClaim> =
        p.listed("persistentvolumeclaims.json", claims.map(|all| all.into_iter().filter(mine).collect()));
    let claims: BTreeSet<(String, String)> = claims.iter().map(|c| (namespace(c), name(c))).collect();
    // Of claims and of ours; events of other pods may say anything.
    let of = ListParams::default().fields("involvedObject.kind=PersistentVolumeClaim");
    let events = read::list(&Api::<Event>::all(client()), of).await;
    let mine = |e: &Event| {
        let o = &e.involved_object;
        let of = (o.namespace.clone().unwrap_or_default(), o.name.clone().unwrap_or_default());
        claims.contains(&of)
    };
    p.listed("events-of-claims.json", events.map(|all| all.into_iter().filter(mine).collect()));
}

async fn in_namespace(c: &Connected, ns: &str, p: &mut Parts) {
    let client = || c.client.clone();
    let all = ListParams::default;
    let labels = || all().labels("app.kubernetes.io/name=sheepdog");
    let path = |what: &str| format!("{ns}/{what}.json");
    p.listed(&path("vdis"), read::list(&Api::<Vdi>::namespaced(client(), ns), all()).await);
    p.listed(&path("vdisnapshots"), read::list(&Api::<VdiSnapshot>::namespaced(client(), ns), all()).await);
    p.listed(&path("daemonsets"), read::list(&Api::<DaemonSet>::namespaced(client(), ns), labels()).await);
    p.listed(&path("deployments"), read::list(&Api::<Deployment>::namespaced(client(), ns), labels()).await);
    p.listed(&path("events"), read::list(&Api::<Event>::namespaced(client(), ns), all()).await);
}

/// What the sheep say themselves.
async fn dog(c: &Connected, cluster: &SheepdogCluster, p: &mut Parts) {
    let (me, ns) = (name(cluster), namespace(cluster));
    let pod = match choose::sheep(c, cluster).await {
        Ok(pod) => pod,
        Err(f) => return p.note(format!("{ns}/dog-{me}: {}", f.message)),
    };
    let place = Place { connected: c, namespace: &ns, pod: &name(&pod) };
    for (file, line) in DOG {
        let path = format!("{ns}/dog-{me}/{file}");
        let command: Vec<&str> = std::iter::once("dog").chain(line.split(' ')).collect();
        match place.output(&command, FILE + 1, PATIENCE).await {
            Ok(out) => p.add(&path, out),
            Err(f) => p.note(format!("{path}: {}", f.message)),
        }
    }
}

/// What this program makes of it.
async fn judged(c: &Connected, clusters: &[SheepdogCluster], p: &mut Parts) {
    let seen = status::fetch::fetch(c, clusters).await;
    let reports: Vec<_> = clusters.iter().map(|c| status::Report::of(c, &seen)).collect();
    p.add("status.json", serde_json::to_vec_pretty(&reports).unwrap_or_default());
    for claim in status::unhappy(&seen).iter().take(WHYS) {
        let path = format!("why/{}/{}.txt", claim.namespace, claim.name);
        let target = Target { kind: Kind::Claim, name: claim.name.clone() };
        match ask(c, &claim.namespace, &target).await {
            Ok(verdict) => p.add(&path, verdict.text().into_bytes()),
            Err(f) => p.note(format!("{path}: {}", f.message)),
        }
    }
}

/// The end of each container's log, and of the one before it.
async fn logs(c: &Connected, pod: &Pod, lines: u32, p: &mut Parts) {
    let (me, ns) = (name(pod), namespace(pod));
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let main = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    for container in init.iter().chain(main) {
        let state = container.state.as_ref();
        let begun = state.is_some_and(|s| s.running.is_some() || s.terminated.is_some());
        let ended_before = container.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
        for (previous, there) in [(false, begun), (true, ended_before)] {
            if !there {
                continue;
            }
            let kind = if previous { "previous.log" } else { "log" };
            let path = format!("logs/{ns}/{me}/{}.{kind}", container.name);
            let params = LogParams {
                container: Some(container.name.clone()),
                previous,
                tail_lines: Some(lines.into()),
                limit_bytes: Some(LOG_READ),
                timestamps: true,
                ..LogParams::default()
            };
            let api: Api<Pod> = Api::namespaced(c.client.clone(), &ns);
            match tokio::time::timeout(PATIENCE, log(&api, &me, &params)).await {
                Ok(Ok((text, cut))) => {
                    if cut > 0 {
                        p.note(format!("{path}: {cut} bytes before its last {LOG}"));
                    }
                    p.add(&path, text);
                }
                Ok(Err(why)) => p.note(format!("{path}: {why}")),
                Err(_) => p.note(format!("{path}: not read within {} s", PATIENCE.as_secs())),
            }
        }
    }
}

/// Its end, and how many bytes before that were read and dropped.
async fn log(api: &Api<Pod>, pod: &str, params: &LogParams) -> Result<(Vec<u8>, usize), read::Trouble> {
    let mut stream = limited(api.log_stream(pod, params)).await?;
    let (mut kept, mut cut) = (Vec::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => kept.extend_from_slice(&buffer[..n]),
            Err(e) => return Err(read::Trouble::Other(e.to_string())),
        }
        // Not at every read, which would move everything each time.
        if kept.len() > 2 * LOG {
            cut += kept.len() - LOG;
            kept.drain(..kept.len() - LOG);
        }
    }
    if kept.len() > LOG {
        cut += kept.len() - LOG;
        kept.drain(..kept.len() - LOG);
    }
    Ok((kept, cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_bounded_and_says_what_it_left_out() {
        let mut p = Parts::new();
        p.add("long", vec![b'x'; FILE + 5]);
        assert_eq!(p.bytes(), FILE);
        for i in 0..ALL / FILE {
            p.add(&i.to_string(), vec![b'x'; FILE]);
        }
        assert!(p.bytes() <= ALL);
        p.readme(Timestamp::from_second(0).unwrap());
        let (path, text) = &p.files()[0];
        assert_eq!(path, "sheepdog-bundle/README.txt");
        let text = String::from_utf8_lossy(text);
        assert!(text.contains("long: all but the first") && text.contains("bytes already"), "{text}");
    }
}
