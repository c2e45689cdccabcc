//! Small clusters, each broken in one way; what must be blamed.

mod claims;
mod pods;
mod snapshots;
mod world;

use super::facts::Sort;
use super::parse;
use super::{Kind, Target};
use world::{ask, broken, fine, well};

#[test]
fn nothing_blocks_what_is_well() {
    fine(&well(), "pod/app");
    fine(&well(), "pvc/data");
    fine(&well(), "pvc/free");
}

#[test]
fn the_facts_tell_the_way() {
    let v = ask(&well(), "pod/app");
    let all = v.facts.join("\n");
    for part in [
        "pod/app is Ready on n0",
        "pvc-data, Sheepdog volume uuid-pvc-data of cluster sd/main",
        "Available is True",
    ] {
        assert!(all.contains(part), "{part:?} is not in {all}");
    }
}

#[test]
fn what_cannot_be_read_is_said_and_blamed_on_nobody() {
    let sorts = [
        Sort::Nodes,
        Sort::CsiNodes,
        Sort::Attachments,
        Sort::Volumes,
        Sort::Classes,
        Sort::Clusters,
        Sort::System,
        Sort::Workloads,
        Sort::Events,
        Sort::Vdis,
        Sort::Drivers,
    ];
    for sort in sorts {
        let f = broken(|f| {
            f.unread.insert(sort, "no permission".into());
            match sort {
                Sort::Nodes => f.nodes.clear(),
                Sort::CsiNodes => f.csi_nodes.clear(),
                Sort::Attachments => f.attachments.clear(),
                Sort::Volumes => f.volumes.clear(),
                Sort::Classes => f.classes.clear(),
                Sort::Clusters => f.clusters.clear(),
                Sort::System => f.system.clear(),
                Sort::Workloads => f.daemonsets.clear(),
                Sort::Drivers => f.driver = None,
                _ => {}
            }
            f.pods[0] = world::waiting("app", "data", "n0");
        });
        let v = ask(&f, "pod/app");
        // The pod waits, so that something may be said of it, but not that what cannot be read is not there.
        if let Some(cause) = &v.cause {
            assert_eq!(cause.code, super::verdict::Code::BeingStarted, "{sort:?}: {}", v.text());
        }
    }
}

#[test]
fn unsure_is_not_fine() {
    let f = broken(|f| {
        f.unread.insert(Sort::Nodes, "no permission".into());
        f.nodes.clear();
    });
    assert_eq!(ask(&f, "pod/app").exit(), 2);
}

#[test]
fn targets_are_read() {
    let is = |text: &str, kind, name: &str| assert_eq!(parse(text), Ok(Target { kind, name: name.into() }));
    is("pvc/a", Kind::Claim, "a");
    is("PersistentVolumeClaim/a", Kind::Claim, "a");
    is("po/a", Kind::Pod, "a");
    is("volumesnapshot/a", Kind::Snapshot, "a");
    for bad in ["a", "pvc/", "pvc/a/b", "node/a", ""] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
