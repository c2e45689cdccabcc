//! The life of a cluster, with real daemons. Every look is that of an operator that has just been started: whatever it does, it could have died before and after.

#![allow(clippy::unwrap_used)]

mod world;

use serde_json::json;
use sheepdog_client::Client;
use sheepdog_client::pb::{
    CreateVdiRequest, GetVdiRequest, Limits, Redundancy, SetLimitsRequest, SetTrashRequest, VdiRef,
    node::State,
};
use sheepdog_crds::{Vdi, VdiSnapshot};
use std::sync::Arc;
use world::{NS, World, cluster_path, is};

const STORAGE: world::Labels = &[("storage", "yes")];

fn spec(more: serde_json::Value) -> serde_json::Value {
    let mut spec = json!({
        "nodeGroups": [{"nodeSelector": {"storage": "yes"}}],
        "redundancy": {"copies": 2},
        "logLevel": "warn",
    });
    for (k, v) in more.as_object().unwrap() {
        spec[k] = v.clone();
    }
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_made_updated_shrunk_and_ended() {
    let mut w = World::new(&[
        ("n1", "127.40.0.1", STORAGE),
        ("n2", "127.40.0.2", STORAGE),
        ("n3", "127.40.0.3", STORAGE),
        ("g1", "127.40.0.9", &[]),
    ]);
    w.apply("main", spec(json!({})));
    w.until("main", "made", |w| is(w, "main", "Available") && !is(w, "main", "Degraded")).await;
    w.until("main", "everybody is there", |w| {
        let s = w.cluster("main").and_then(|c| c.status).unwrap_or_default();
        s.sheep.as_deref() == Some("3/3") && s.gateways.as_deref() == Some("1/1")
    })
    .await;
    let status = w.cluster("main").unwrap().status.unwrap();
    assert!(is(&w, "main", "QuorumHeld"));
    assert!(status.nodes.iter().all(|n| n.state == "up"), "{:?}", status.nodes);
    let id = status.cluster_id.clone().unwrap();
    // The same credentials for ever.
    let secret = w.api.get(&format!("/api/v1{NS}/secrets/main-secret")).unwrap();
    assert!(w.api.get("/apis/storage.k8s.io/v1/storageclasses/main").is_some());
    vdis(&mut w).await;
    trash(&mut w).await;
    update(&mut w).await;
    shrink(&mut w).await;
    assert_eq!(w.cluster("main").unwrap().status.unwrap().cluster_id, Some(id.clone()));
    assert_eq!(w.api.get(&format!("/api/v1{NS}/secrets/main-secret")).unwrap(), secret);

    // It ends, and what it was stays.
    w.api.delete(&cluster_path("main"));
    w.until("main", "ended", |w| w.cluster("main").is_none()).await;
    assert!(w.api.get("/apis/storage.k8s.io/v1/storageclasses/main").is_none());
    for _ in 0..4 {
        w.tick("main").await;
    }
    assert!(w.api.list(&format!("/api/v1{NS}/pods")).is_empty());
    assert_eq!(w.api.get(&format!("/api/v1{NS}/secrets/main-secret")).unwrap(), secret);

    // Made again it is the same cluster, with its volumes.
    w.apply("main", spec(json!({})));
    w.until("main", "back", |w| is(w, "main", "Available")).await;
    let status = w.cluster("main").unwrap().status.unwrap();
    assert_eq!(status.cluster_id, Some(id));
    assert_eq!(status.vdis, Some(2));
}

/// Objects become VDIs, and VDIs objects.
async fn vdis(w: &mut World) {
    let path = format!("/apis/sheepdog.io/v1alpha1{NS}/vdis/disk");
    let object = json!({
        "apiVersion": "sheepdog.io/v1alpha1", "kind": "Vdi", "metadata": {"name": "disk", "namespace": "sheepdog"},
        "spec": {"cluster": "main", "size": "10Mi", "deletionPolicy": "Delete"},
    });
    w.api.put(&path, object);
    let get = |w: &World| -> Vdi { serde_json::from_value(w.api.get(&path).unwrap()).unwrap() };
    for _ in 0..2 {
        sheepdog_operator::vdi::reconcile(Arc::new(get(w)), w.operator()).await.unwrap();
    }
    let made = get(w);
    let status = made.status.unwrap();
    assert_eq!((status.size_bytes, status.redundancy.as_deref()), (Some(10 << 20), Some("2 copies")));
    assert_eq!(status.uuid.as_deref(), made.metadata.uid.as_deref());
    // It grows.
    w.api.edit(&path, |v| v["spec"]["size"] = json!("20Mi"));
    sheepdog_operator::vdi::reconcile(Arc::new(get(w)), w.operator()).await.unwrap();
    assert_eq!(get(w).status.unwrap().size_bytes, Some(20 << 20));
    limits(w, &path).await;
    // A snapshot, once.
    let snap = format!("/apis/sheepdog.io/v1alpha1{NS}/vdisnapshots/s1");
    let object = json!({
        "apiVersion": "sheepdog.io/v1alpha1", "kind": "VdiSnapshot", "metadata": {"name": "s1", "namespace": "sheepdog"},
        "spec": {"cluster": "main", "vdi": "disk"},
    });
    w.api.put(&snap, object);
    for _ in 0..2 {
        let s: VdiSnapshot = serde_json::from_value(w.api.get(&snap).unwrap()).unwrap();
        sheepdog_operator::snapshot::reconcile(Arc::new(s), w.operator()).await.unwrap();
    }
    let client = w.operator().client_of("main").await.unwrap();
    let all = client.all_vdis("", false).await.unwrap();
    assert_eq!((all.len(), all[0].snapshots.len()), (1, 1));
    // One that somebody else made is shown.
    let request = CreateVdiRequest { name: "Of dog".into(), size: 1 << 20, ..Default::default() };
    client.create_vdi(request).await.unwrap();
    let vdis = format!("/apis/sheepdog.io/v1alpha1{NS}/vdis");
    w.until("main", "listed", |w| w.api.list(&vdis).len() == 2).await;
    let listed = w.api.list(&vdis);
    let listed = listed.iter().find(|v| v["metadata"]["name"] != "disk").unwrap();
    assert_eq!(
        (&listed["spec"]["vdiName"], &listed["spec"]["deletionPolicy"]),
        (&json!("Of dog"), &json!("Retain"))
    );
}

/// An object's limits are carried out once; then they are anybody's who uses the volume.
async fn limits(w: &mut World, path: &str) {
    let get = |w: &World| -> Vdi { serde_json::from_value(w.api.get(path).unwrap()).unwrap() };
    let client = w.operator().client_of("main").await.unwrap();
    let has = async |client: &Client| {
        let request = GetVdiRequest { vdi: Some(VdiRef::name("disk")), usage: false };
        client.get_vdi(request).await.unwrap().limits.unwrap()
    };
    w.api.edit(path, |v| v["spec"]["limits"] = json!({"iops": 500, "bandwidth": "1Mi"}));
    sheepdog_operator::vdi::reconcile(Arc::new(get(w)), w.operator()).await.unwrap();
    let mut want = Limits { iops: 500, iops_burst: 500, bandwidth: 1 << 20, bandwidth_burst: 1 << 20 };
    assert_eq!(has(&client).await, want);
    assert_eq!(get(w).status.unwrap().limits.as_deref(), Some("500 IOPS, 1Mi/s"));
    // A class of the CSI driver, say, changes one of them: it is not changed back, and it is shown.
    want = Limits { iops: 700, iops_burst: 900, ..want };
    let request = SetLimitsRequest { vdi: Some(VdiRef::name("disk")), limits: Some(want) };
    client.set_limits(request).await.unwrap();
    let shown = Some("700 IOPS (burst 900), 1Mi/s");
    w.until("main", "shown", |w| get(w).status.unwrap().limits.as_deref() == shown).await;
    sheepdog_operator::vdi::reconcile(Arc::new(get(w)), w.operator()).await.unwrap();
    assert_eq!(has(&client).await, want);
    // What is taken out of the object stays, 0 takes it away.
    w.api.edit(path, |v| v["spec"]["limits"] = json!({"bandwidth": "0"}));
    sheepdog_operator::vdi::reconcile(Arc::new(get(w)), w.operator()).await.unwrap();
    assert_eq!(has(&client).await, Limits { bandwidth: 0, bandwidth_burst: 0, ..want });
}

/// As long as the object says how long the trash keeps things, it is so; otherwise it is as dog has set it.
async fn trash(w: &mut World) {
    let client = w.operator().client_of("main").await.unwrap();
    let keep = async |keep_ms| client.set_trash(SetTrashRequest { keep_ms }).await.unwrap().keep_ms;
    assert_eq!(keep(None).await, 86_400_000);
    w.apply("main", spec(json!({"trash": {"keep": "0s"}})));
    w.tick("main").await;
    assert_eq!(keep(None).await, 0);
    w.apply("main", spec(json!({"trash": {"keep": "7d"}})));
    w.tick("main").await;
    assert_eq!(keep(Some(5)).await, 5);
    w.tick("main").await;
    assert_eq!(keep(None).await, 604_800_000);
    w.apply("main", spec(json!({})));
    w.tick("main").await;
    assert_eq!(keep(Some(86_400_000)).await, 86_400_000);
    w.tick("main").await;
    assert_eq!(keep(None).await, 86_400_000);
}

/// New options reach the sheep one by one.
async fn update(w: &mut World) {
    let revisions = |w: &World| -> Vec<String> {
        let pods = w.api.list(&format!("/api/v1{NS}/pods"));
        let of = |p: &serde_json::Value| p["metadata"]["annotations"]["sheepdog.io/revision"].to_string();
        let mut all: Vec<String> = pods.iter().map(of).collect();
        all.sort();
        all.dedup();
        all
    };
    let before = revisions(w);
    w.most_away = 0;
    w.apply("main", spec(json!({"logLevel": "error", "cache": "16Mi"})));
    w.tick("main").await;
    w.until("main", "updated", |w| {
        let now = revisions(w);
        now.len() == before.len() && now.iter().all(|r| !before.contains(r)) && !is(w, "main", "Progressing")
    })
    .await;
    assert!(w.most_away <= 1, "{} sheep were away at a time", w.most_away);
}

/// A node that loses its label is emptied first.
async fn shrink(w: &mut World) {
    w.api.edit("/api/v1/nodes/n3", |n| n["metadata"]["labels"] = json!({}));
    w.until("main", "emptied", |w| {
        let status = w.cluster("main").and_then(|c| c.status).unwrap_or_default();
        status.nodes.len() == 2 && status.sheep.as_deref() == Some("2/2")
    })
    .await;
    let client = w.operator().client_of("main").await.unwrap();
    let nodes = client.list_nodes(Default::default()).await.unwrap().nodes;
    let n3 = nodes.iter().find(|n| n.host == "127.40.0.3" && !n.gateway).unwrap();
    assert_eq!(n3.state(), State::Out);
    // A gateway takes its place, so that pods there still reach their volumes.
    w.until("main", "gateway on the emptied node", |w| {
        w.cluster("main").and_then(|c| c.status).and_then(|s| s.gateways).as_deref() == Some("2/2")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_said_and_nothing_is_formatted() {
    let mut w = World::new(&[("n1", "127.41.0.1", STORAGE)]);
    w.apply("few", spec(json!({})));
    w.until("few", "too few nodes", |w| {
        let s = w.cluster("few").and_then(|c| c.status).unwrap_or_default();
        s.conditions.iter().any(|c| {
            c.type_ == "Available" && c.reason == "TooFewNodes" && c.message.contains("1 of at least 2")
        })
    })
    .await;
    w.apply("few", spec(json!({"redundancy": {"erasureCoding": {"data": 2, "parity": 1}}})));
    w.until("few", "too few nodes for strips", |w| {
        let s = w.cluster("few").and_then(|c| c.status).unwrap_or_default();
        s.conditions.iter().any(|c| c.reason == "TooFewNodes" && c.message.contains("1 of at least 3"))
    })
    .await;
    // Never formatted: nothing holds its end.
    w.api.delete(&cluster_path("few"));
    w.until("few", "ended", |w| w.cluster("few").is_none()).await;
    // Paused: nothing is made at all.
    w.api.changes();
    w.apply("few", spec(json!({"paused": true})));
    for _ in 0..3 {
        w.tick("few").await;
    }
    let made = w.api.changes();
    let made: Vec<&String> =
        made.iter().filter(|c| !c.contains("sheepdogclusters") && !c.contains("events")).collect();
    assert!(made.is_empty(), "{made:?}");
}

/// Disks leave and come by editing the object: empty and out of use before the pod goes without them, and one at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_are_taken_away_and_added() {
    let nodes = [
        ("n1", "127.44.0.1", &[("n", "1")] as world::Labels),
        ("n2", "127.44.0.2", &[("n", "2")]),
        ("n3", "127.44.0.3", &[("n", "3")]),
    ];
    let mut w = World::new(&nodes);
    // One group for each: its directories are those of its node.
    let places: Vec<String> = nodes.iter().map(|(name, ..)| w.node_dir(name).display().to_string()).collect();
    let with = |disks: &[&str]| {
        let group = |(i, place): (usize, &String)| {
            let directories: Vec<String> = disks.iter().map(|d| format!("{place}{d}")).collect();
            json!({"name": format!("g{}", i + 1), "nodeSelector": {"n": (i + 1).to_string()}, "directories": directories})
        };
        spec(json!({"nodeGroups": places.iter().enumerate().map(group).collect::<Vec<_>>()}))
    };
    let well =
        |w: &World| is(w, "main", "Available") && !is(w, "main", "Degraded") && !is(w, "main", "Progressing");
    w.apply("main", with(&["/d1", "/d2"]));
    w.until("main", "made", well).await;
    let client = w.operator().client_of("main").await.unwrap();
    for (name, copies) in [("two", 2), ("one", 1)] {
        let redundancy = Some(Redundancy { copies, data: 0, parity: 0 });
        let request =
            CreateVdiRequest { name: name.into(), size: 16 << 20, redundancy, ..Default::default() };
        client.create_vdi(request).await.unwrap();
    }
    // Also of the volume that has one copy nothing is missing at any moment: what is on a disk moves before the disk goes.
    w.apply("main", with(&["/d1", "/d3"]));
    w.most_away = 0;
    w.until("main", "exchanged", |w| {
        let pods = w.api.list(&format!("/api/v1{NS}/pods"));
        pods.iter().filter(|p| p.to_string().contains("/d3\"")).count() == 3 && well(w)
    })
    .await;
    assert!(w.most_away <= 1, "{} sheep were away at a time", w.most_away);
    let client = w.operator().client_of("main").await.unwrap();
    assert_eq!(disks(&client).await, ["/d1 ok", "/d3 ok"].repeat(3));
    let (mut emptied, mut lost) = (0, Vec::new());
    let mut events = client.events(Default::default()).await.unwrap();
    while let Some(e) = events.message().await.unwrap() {
        emptied += usize::from(e.text.contains("was emptied and is out of use"));
        lost.extend(Some(e.text).filter(|t| t.contains("was retired") || t.contains("without its disk")));
    }
    assert_eq!((emptied, lost), (3, Vec::new()));
    assert!(!is(&w, "main", "DiskTrouble"), "what nobody wants any more is no trouble");
}

/// Path below its node's directory, and state, of every disk.
async fn disks(client: &sheepdog_client::Client) -> Vec<String> {
    use sheepdog_client::pb::node_disk::State;
    let reply = client.node_info(Default::default()).await.unwrap();
    let mut all: Vec<(String, String)> = Vec::new();
    for (row, disk) in reply.nodes.iter().flat_map(|n| n.disks.iter().map(move |d| (n, d))) {
        let state = match disk.state() {
            State::Ok => "ok",
            State::Full => "full",
            State::Failed => "failed",
            State::Retired => "retired",
            State::Leaving => "leaving",
            State::Suspect => "suspect",
        };
        let name = disk.path.rsplit('/').next().unwrap_or_default();
        all.push((row.node.as_ref().unwrap().host.clone(), format!("/{name} {state}")));
    }
    all.sort();
    all.into_iter().map(|(_, d)| d).collect()
}
