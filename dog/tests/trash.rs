//! Deleted and brought back, as users see it: dog against one real daemon.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Sheep, free_port};
use serde_json::Value;
use std::process::Command;

fn trash(sheep: &Sheep) -> Vec<Value> {
    sheep.dog(&["trash", "list", "-o", "json"]).json().as_array().unwrap().clone()
}

fn held(sheep: &Sheep) -> Vec<String> {
    trash(sheep)
        .iter()
        .map(|t| format!("{} {}", t["kind"].as_str().unwrap(), t["id"].as_str().unwrap()))
        .collect()
}

/// `-P` compares each byte, as a client of the volume over NBD.
fn qemu_io(port: u16, export: &str, command: &str) {
    let at = format!("nbd://127.0.0.1:{port}/{export}");
    let said = Command::new("qemu-io")
        .args(["-r", "-f", "raw", "-c", command, &at][usize::from(command.starts_with("write"))..].iter())
        .output();
    // Where there is none, `dog vdi read` has compared the same bytes.
    let Ok(said) = said else { return };
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && !text.contains("failed") && !text.contains("rror"), "{command}: {text}");
}

#[test]
fn a_volume_comes_back_with_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let nbd = free_port();
    let sheep = Sheep::formatted(dir.path(), &["--nbd", "--nbd-port", &nbd.to_string()], &[]);
    sheep.dog(&["vdi", "create", "disk", "16M"]).ok();
    sheep.dog_input(&["vdi", "write", "disk"], &vec![0x5a; 1 << 20]).ok();
    qemu_io(nbd, "disk", "write -P 0xa5 8M 64k");
    sheep.dog(&["vdi", "snapshot", "disk", "-s", "one"]).ok();
    sheep.dog_input(&["vdi", "write", "disk"], b"later").ok();
    let gone = sheep.dog(&["vdi", "delete", "disk", "--with-snapshots", "--yes", "-o", "json"]).json();
    assert!(gone["until"].as_str().is_some(), "{gone}");

    let row = &trash(&sheep)[0];
    assert_eq!(
        (&row["kind"], &row["name"], &row["size"]),
        (&"vdi".into(), &"disk".into(), &(16 << 20).into())
    );
    assert_eq!((&row["snapshots"], &row["until"]), (&1.into(), &gone["until"]), "{row}");
    assert!(row["used"].as_u64() >= Some(1 << 20), "{row}");
    let raw = sheep.dog(&["trash", "list", "-o", "raw"]).ok();
    assert_eq!(raw.out.trim_end().split(' ').count(), 8, "{raw:?}");
    let table = sheep.dog(&["trash", "list", "--fast"]).ok();
    assert!(table.out.starts_with("KIND") && table.out.contains("UNTIL"), "{table:?}");
    let info = sheep.dog(&["cluster", "info", "-o", "json"]).json();
    assert_eq!((&info["trash_items"], &info["vdis"]), (&1.into(), &0.into()), "{info}");
    assert!(sheep.dog(&["node", "list"]).ok().err.contains("trash"));
    assert_eq!(sheep.dog(&["node", "list", "-o", "raw"]).ok().err, "");

    sheep.dog(&["vdi", "read", "disk"]).fails(5, "dog trash restore disk");
    sheep.dog(&["vdi", "clone", "disk@one", "x"]).fails(5, "dog trash restore disk");
    sheep.dog(&["vdi", "create", "disk", "4M"]).ok();
    sheep.dog(&["trash", "restore", "disk"]).fails(3, "--as");
    sheep.dog(&["trash", "restore", "nothere"]).fails(5, "nothere");
    sheep.dog(&["trash", "restore", "disk", "--as", "back"]).ok();
    assert!(held(&sheep).is_empty());
    let back = sheep.dog(&["vdi", "read", "back", "0", "1M"]).ok().bytes;
    assert!(back[..5] == *b"later" && back[5..].iter().all(|b| *b == 0x5a));
    assert!(sheep.dog(&["vdi", "read", "back@one", "0", "1M"]).ok().bytes.iter().all(|b| *b == 0x5a));
    qemu_io(nbd, "back", "read -P 0xa5 8M 64k");
    qemu_io(nbd, "back", "write -P 0x11 8M 64k");
    qemu_io(nbd, "back@one", "read -P 0xa5 8M 64k");
}

#[test]
fn names_and_ids() {
    let dir = tempfile::tempdir().unwrap();
    let sheep = Sheep::formatted(dir.path(), &[], &[]);
    for byte in [b"first", b"other", b"third"] {
        sheep.dog(&["vdi", "create", "d", "4M"]).ok();
        sheep.dog_input(&["vdi", "write", "d"], byte).ok();
        sheep.dog(&["vdi", "delete", "d", "-y"]).ok();
    }
    let ids: Vec<String> = trash(&sheep).iter().map(|t| t["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 3);
    sheep.dog(&["trash", "purge", "d", "-y"]).fails(1, &ids[0]);
    let newest = sheep.dog(&["trash", "restore", "d"]).ok();
    assert!(newest.err.contains(&ids[0]) && newest.err.contains(&ids[1]), "{newest:?}");
    assert_eq!(sheep.dog(&["vdi", "read", "d", "0", "5"]).ok().out, "third");
    sheep.dog(&["trash", "restore", &ids[0], "--as", "e"]).ok();
    assert_eq!(sheep.dog(&["vdi", "read", "e", "0", "5"]).ok().out, "first");
    sheep.dog(&["trash", "purge", "d"]).fails(1, "not confirmed");
    sheep.dog_input(&["trash", "purge", "d"], b"yes\n").ok();
    assert!(held(&sheep).is_empty());
    sheep.dog(&["vdi", "delete", "e", "-y", "--now"]).ok();
    assert!(held(&sheep).is_empty());
    sheep.dog(&["vdi", "delete", "d", "-y"]).ok();
    sheep.dog(&["trash", "purge"]).fails(64, "--all");
    sheep.dog(&["trash", "purge", "d", "--all"]).fails(64, "--all");
    sheep.dog(&["trash", "purge", "--all", "-f"]).ok();
    assert!(held(&sheep).is_empty());
}

#[test]
fn snapshots_and_their_locks() {
    let dir = tempfile::tempdir().unwrap();
    let sheep = Sheep::formatted(dir.path(), &[], &[]);
    sheep.dog(&["vdi", "create", "d", "4M"]).ok();
    sheep.dog_input(&["vdi", "write", "d"], b"first").ok();
    sheep.dog(&["vdi", "snapshot", "d", "-s", "one"]).ok();
    sheep.dog_input(&["vdi", "write", "d"], b"later").ok();
    sheep.dog(&["vdi", "delete", "d@one", "-y"]).ok();
    assert_eq!(held(&sheep), ["snapshot 000001@1"]);
    assert_eq!(trash(&sheep)[0]["tag"], "one");
    sheep.dog(&["vdi", "read", "d@one"]).fails(5, "one");
    sheep.dog(&["vdi", "rollback", "d@one", "-y"]).fails(5, "one");
    sheep.dog(&["trash", "restore", "d@one", "--as", "two"]).ok();
    assert_eq!(sheep.dog(&["vdi", "read", "d@two", "0", "5"]).ok().out, "first");

    for words in [
        &["vdi", "lock-snapshot", "d", "--until", "1h"][..],
        &["vdi", "lock-snapshot", "d@two"],
        &["vdi", "lock-snapshot", "d@two", "--until", "tomorrow"],
        &["vdi", "lock-snapshot", "d@two", "--until", "2001-01-01"],
        &["vdi", "lock-snapshot", "d@two", "--until", "9999-01-01"],
    ] {
        sheep.dog(words).fails(64, "");
    }
    sheep.dog(&["vdi", "lock-snapshot", "d@two", "--until", "30d"]).ok();
    let until = sheep.dog(&["vdi", "list", "d", "-o", "json"]).json()[1]["locked_until"].clone();
    let until = until.as_str().unwrap();
    sheep.dog(&["vdi", "lock-snapshot", "d@two", "--until", "29d"]).fails(1, until);
    sheep.dog(&["vdi", "delete", "d@two", "-y"]).fails(1, until);
    sheep.dog(&["vdi", "delete", "d", "--with-snapshots", "--now", "-y"]).fails(1, until);
    assert_eq!(
        sheep.dog(&["vdi", "read", "d", "0", "5"]).ok().out,
        "later",
        "refused, and nothing was deleted"
    );
    sheep.dog(&["vdi", "delete", "d", "--with-snapshots", "-y"]).ok();
    assert_eq!(trash(&sheep)[0]["until"], until, "as long as the lock");
    sheep.dog(&["trash", "purge", "d", "-y"]).fails(1, until);
    sheep.dog(&["trash", "purge", "--all", "-y"]).fails(1, until);
    sheep.dog(&["trash", "restore", "d"]).ok();
    assert_eq!(sheep.dog(&["vdi", "read", "d@two", "0", "5"]).ok().out, "first");
}

#[test]
fn the_clusters_time() {
    let dir = tempfile::tempdir().unwrap();
    let sheep = Sheep::formatted(dir.path(), &[], &["--trash-keep", "0"]);
    let keep = |words: &[&str]| sheep.dog(&[&["cluster", "trash", "-o", "json"], words].concat()).json();
    assert_eq!(keep(&[])["keep"], "0");
    sheep.dog(&["vdi", "create", "d", "4M"]).ok();
    sheep.dog(&["vdi", "delete", "d", "-y"]).ok();
    assert!(held(&sheep).is_empty());
    assert_eq!(keep(&["--keep", "2s"])["keep"], "2s");
    sheep.dog(&["cluster", "trash", "--keep", "2"]).fails(64, "24h");
    sheep.dog(&["cluster", "trash", "--keep", "9999w"]).fails(64, "10 years");
    sheep.dog(&["vdi", "create", "d", "4M"]).ok();
    sheep.dog(&["vdi", "delete", "d", "-y"]).ok();
    assert_eq!(held(&sheep).len(), 1);
    harness::until(|| held(&sheep), Vec::is_empty);
    assert!(sheep.dog(&["cluster", "events", "-o", "raw"]).ok().out.contains("trash"));
    assert_eq!(keep(&["--keep", "24h"])["items"], 0);
}
