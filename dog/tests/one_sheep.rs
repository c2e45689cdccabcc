//! dog against one real daemon.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Sheep, free_port};

fn names(sheep: &Sheep) -> Vec<String> {
    let rows = sheep.dog(&["vdi", "list", "-o", "json"]).json();
    rows.as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn before_and_after_format() {
    let dir = tempfile::tempdir().unwrap();
    let mut sheep = Sheep::start(dir.path(), free_port(), &[]);
    let info = harness::until(|| sheep.dog(&["cluster", "info", "-o", "json"]), |s| s.code == 0).json();
    assert_eq!(info["status"], "waiting for format");
    sheep.dog(&["vdi", "list"]).fails(2, "dog cluster format");
    sheep.dog(&["vdi", "create", "x", "1G"]).fails(2, "dog cluster format");
    sheep.dog(&["cluster", "format", "--copies", "1", "--min-copies", "2"]).fails(64, "");
    sheep.dog(&["cluster", "format", "--copies", "1"]).ok();
    sheep.dog(&["cluster", "format", "--copies", "1"]).fails(3, "formatted already");
    let info = || sheep.dog(&["cluster", "info", "-o", "json"]).json();
    let info = harness::until(info, |i| i["status"] == "ok");
    assert_eq!(
        (&info["status"], &info["nodes_up"], &info["copies"]),
        (&"ok".into(), &1.into(), &"1".into()),
        "{info}"
    );
    let events = sheep.dog(&["cluster", "events", "-o", "raw"]).ok();
    assert!(events.out.contains("formatted"), "{events:?}");

    let nodes = sheep.dog(&["node", "list", "-o", "json"]).json();
    assert_eq!((&nodes[0]["state"], &nodes[0]["role"]), (&"up".into(), &"leader".into()), "{nodes}");
    let id = nodes[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(sheep.dog(&["node", "info", &id, "-o", "json"]).json()["nodes"][0]["id"], id.as_str());
    assert_eq!(sheep.dog(&["node", "md", "info", "-o", "json"]).json()[0]["state"], "ok");
    assert_eq!(sheep.dog(&["node", "recovery", "-o", "json"]).json()[0]["state"], "complete");
    assert_eq!(sheep.dog(&["node", "stat", "-o", "json"]).json()[0]["errors"], 0);
    sheep.dog(&["node", "info", "feedbeef"]).fails(5, "dog node list");
    sheep.dog(&["node", "log", "level", "nonsense=loud=x"]).fails(64, "");
    assert!(sheep.dog(&["node", "log", "level", "debug"]).ok().out.contains("debug"));
    sheep.dog(&["node", "log", "level", "warn"]).ok();
    let limit = sheep.dog(&["node", "recovery", "throttle", "--max-bytes-per-s", "10M", "-o", "json"]).json();
    assert_eq!(limit["max_bytes_per_s"], 10 << 20);
    sheep.dog(&["cluster", "recover", "disable"]).ok();
    assert_eq!(sheep.dog(&["cluster", "info", "-o", "json"]).json()["recovery_enabled"], false);
    sheep.dog(&["cluster", "recover", "enable"]).ok();
    sheep.dog(&["node", "vnodes", &id, "256"]).ok();
    assert_eq!(sheep.dog(&["node", "list", "-o", "json"]).json()[0]["vnodes"], 256);
    sheep.dog(&["upgrade", "status"]).ok();

    let tar = dir.path().join("bundle.tar");
    sheep.dog(&["cluster", "support-bundle", "-f", tar.to_str().unwrap()]).ok();
    let listed = std::process::Command::new("tar").arg("tf").arg(&tar).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("sheepdog-support/vdis.json"));

    sheep.dog(&["cluster", "shutdown"]).fails(1, "not confirmed");
    sheep.dog_input(&["cluster", "shutdown"], b"yes\n").ok();
    assert!(sheep.ended(), "the daemon is still there");
}

#[test]
fn volumes_snapshots_clones() {
    let dir = tempfile::tempdir().unwrap();
    let sheep = Sheep::formatted(dir.path(), &[], &[]);
    let silent = sheep.dog(&["vdi", "create", "disk", "64M"]).ok();
    assert_eq!((silent.out.as_str(), silent.err.as_str()), ("", ""));
    sheep.dog(&["vdi", "create", "disk", "64M"]).fails(3, "disk");
    sheep.dog(&["vdi", "create", "a/b", "64M"]).fails(64, "name");
    sheep.dog(&["vdi", "create", "wide", "64M", "--copies", "3"]).fails(2, "3 copies");
    let made = sheep.dog(&["vdi", "create", "other", "1.5M", "-o", "json"]).json();
    assert_eq!((&made["size"], &made["copies"]), (&(3 << 19).into(), &"1".into()), "{made}");

    let table = sheep.dog(&["vdi", "list", "--fast"]).ok();
    assert!(
        table.out.lines().next().unwrap().contains("NAME") && table.out.contains("64.0 MiB"),
        "{table:?}"
    );
    let raw = sheep.dog(&["vdi", "list", "disk", "--fast", "-o", "raw"]).ok();
    let words: Vec<&str> = raw.out.trim_end().split(' ').collect();
    assert_eq!(words.len(), 10, "{raw:?}");
    assert_eq!(
        (words[0], words[1], words[2], words[3], words[8], words[9]),
        ("-", "disk", "0", "67108864", "1", "-")
    );
    assert!(sheep.dog(&["vdi", "list", "-o", "yaml"]).ok().out.contains("name: disk"));
    sheep.dog(&["vdi", "list", "nothere"]).fails(5, "nothere");

    sheep.dog_input(&["vdi", "write", "disk"], b"first").ok();
    sheep.dog(&["vdi", "snapshot", "disk", "-s", "one"]).ok();
    sheep.dog(&["vdi", "snapshot", "disk", "-s", "one"]).fails(3, "one");
    sheep.dog_input(&["vdi", "write", "disk"], b"later").ok();
    assert_eq!(sheep.dog(&["vdi", "read", "disk@one", "0", "5"]).ok().out, "first");
    assert_eq!(sheep.dog(&["vdi", "read", "disk", "0", "5"]).ok().out, "later");
    assert_eq!(sheep.dog(&["vdi", "read", "disk", "-s", "1", "0", "5"]).ok().out, "first");
    sheep.dog(&["vdi", "read", "disk@two"]).fails(5, "two");

    sheep.dog(&["vdi", "clone", "disk@one", "copy"]).ok();
    assert_eq!(sheep.dog(&["vdi", "read", "copy", "0", "5"]).ok().out, "first");
    sheep.dog(&["vdi", "clone", "disk", "now", "--size", "80M"]).ok();
    assert_eq!(sheep.dog(&["vdi", "read", "now", "0", "5"]).ok().out, "later");
    sheep.dog(&["vdi", "clone", "disk@one", "copy"]).fails(3, "copy");
    let tree = sheep.dog(&["vdi", "tree"]).ok();
    assert!(tree.out.contains("one (snapshot 1)") && tree.out.contains("`-- copy"), "{tree:?}");
    assert!(sheep.dog(&["vdi", "graph"]).ok().out.starts_with("digraph"));
    let rows = sheep.dog(&["vdi", "list", "copy", "-o", "json"]).json();
    assert_eq!((&rows[0]["kind"], &rows[0]["parent"]), (&"c".into(), &"disk@one".into()), "{rows}");

    sheep.dog(&["vdi", "rollback", "disk@one"]).fails(1, "not confirmed");
    assert_eq!(sheep.dog(&["vdi", "read", "disk", "0", "5"]).ok().out, "later");
    sheep.dog(&["vdi", "rollback", "disk@one", "--yes"]).ok();
    assert_eq!(sheep.dog(&["vdi", "read", "disk", "0", "5"]).ok().out, "first");
    sheep.dog(&["vdi", "snapshot-group", "disk", "other", "-s", "both"]).ok();
    let made = sheep.dog(&["vdi", "snapshot-group", "disk", "copy", "-o", "raw"]).ok();
    assert_eq!(made.out.lines().count(), 2, "{made:?}");
    sheep.dog(&["vdi", "snapshot-group", "disk", "nothere"]).fails(5, "nothere");

    sheep.dog(&["vdi", "rename", "other", "another"]).ok();
    sheep.dog(&["vdi", "delete", "another", "--yes"]).ok();
    assert!(names(&sheep).contains(&"another".into()), "its snapshot is left");
    sheep.dog(&["vdi", "delete", "another", "--yes"]).fails(5, "only snapshots");
    sheep.dog(&["vdi", "delete", "another", "--with-snapshots", "--yes"]).ok();
    assert!(!names(&sheep).contains(&"another".into()));
    sheep.dog(&["vdi", "delete", "another", "--yes"]).fails(5, "another");
    let tag = |t: &serde_json::Value| t["id"].as_str().is_some_and(|id| id.contains('@'));
    let held = sheep.dog(&["trash", "list", "-o", "json"]).json();
    assert_eq!(held.as_array().unwrap().iter().filter(|t| !tag(t)).count(), 1, "{held}");
}

#[test]
fn attributes_locks_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let sheep = Sheep::formatted(dir.path(), &[], &[]);
    sheep.dog(&["vdi", "create", "d", "8M"]).ok();
    sheep.dog(&["vdi", "setattr", "d", "color", "deep blue"]).ok();
    sheep.dog(&["vdi", "setattr", "d", "color", "red", "-x"]).fails(3, "color");
    assert_eq!(sheep.dog(&["vdi", "getattr", "d", "color"]).ok().out, "deep blue");
    sheep.dog_input(&["vdi", "setattr", "d", "binary"], &[0, 255, 10]).ok();
    assert_eq!(sheep.dog(&["vdi", "getattr", "d", "binary"]).ok().bytes, [0, 255, 10]);
    assert!(sheep.dog(&["vdi", "listattr", "d", "-o", "raw"]).ok().out.contains("color deep\\040blue\n"));
    sheep.dog(&["vdi", "setattr", "d", "color", "-d"]).ok();
    sheep.dog(&["vdi", "getattr", "d", "color"]).fails(5, "color");
    sheep.dog_input(&["vdi", "setattr", "d", "huge"], &vec![b'x'; 70_000]).fails(64, "64 KiB");

    sheep.dog(&["vdi", "lock", "take", "d", "--holder", "vm 1", "--exclusive"]).ok();
    sheep.dog(&["vdi", "lock", "take", "d", "--holder", "vm 2"]).fails(1, "vm 1");
    assert_eq!(sheep.dog(&["vdi", "lock", "list", "-o", "json"]).json()[0]["holder"], "vm 1");
    sheep.dog(&["vdi", "delete", "d", "--yes"]).fails(1, "locked by vm 1");
    sheep.dog(&["vdi", "lock", "unlock", "d"]).fails(1, "not confirmed");
    sheep.dog(&["vdi", "lock", "unlock", "d", "--holder", "vm 1"]).ok();

    sheep.dog(&["vdi", "resize", "d", "16M"]).ok();
    sheep.dog(&["vdi", "resize", "d", "4M"]).fails(64, "--shrink");
    sheep.dog(&["vdi", "resize", "d", "4M", "--shrink"]).fails(1, "not confirmed");
    sheep.dog(&["vdi", "resize", "d", "4M", "--shrink", "--yes"]).ok();
    assert_eq!(sheep.dog(&["vdi", "list", "d", "-o", "json"]).json()[0]["size"], 4 << 20);
    sheep.dog(&["vdi", "object", "location", "d", "1"]).fails(64, "objects 0 to 0");
    sheep.dog(&["vdi", "alter-copy", "d", "--copies", "4"]).fails(2, "4 copies");
}

#[test]
fn attachments() {
    let dir = tempfile::tempdir().unwrap();
    let sheep = Sheep::formatted(dir.path(), &[], &[]);
    sheep.dog(&["vdi", "create", "d", "8M"]).ok();
    sheep.dog(&["vdi", "create", "d#1", "8M"]).fails(64, "#");
    sheep.dog_input(&["vdi", "write", "d"], b"before").ok();
    let attach = |holder: &str, access: &str| {
        sheep.dog(&["vdi", "attach", "d", holder, "--access", access, "-o", "json"])
    };
    let first = attach("host 1", "single").json();
    assert_eq!((&first["holder"], &first["access"]), (&"host 1".into(), &"single".into()), "{first}");
    assert_eq!(first["export"], format!("d#{}", first["id"]));
    assert_eq!(attach("host 1", "single").json()["id"], first["id"]);
    attach("host 1", "shared").fails(3, "as single, not as shared");
    attach("host 2", "single").fails(1, "attached to host 1");
    sheep.dog(&["vdi", "attach", "d", ""]).fails(64, "1 to 256 bytes");
    sheep.dog(&["vdi", "attach", "nothere", "x"]).fails(5, "nothere");
    let list = sheep.dog(&["vdi", "list", "d", "-o", "json"]).json();
    assert_eq!(list[0]["attached"][0], format!("host 1 (#{}, single)", first["id"]), "{list}");
    assert!(sheep.dog(&["vdi", "list", "d", "-o", "wide"]).ok().out.contains("ATTACHED TO"));

    // Without an attachment it can be read and not written.
    assert_eq!(sheep.dog(&["vdi", "read", "d", "0", "6"]).ok().out, "before");
    sheep.dog_input(&["vdi", "write", "d"], b"after").fails(1, "attached to host 1");
    sheep.dog(&["vdi", "rename", "d", "e"]).fails(1, "attached to host 1");
    sheep.dog(&["vdi", "delete", "d", "--yes"]).fails(1, "--force");

    sheep.dog(&["vdi", "detach", "d"]).fails(64, "--all");
    sheep.dog(&["vdi", "detach", "d", "host 1"]).fails(1, "not confirmed");
    sheep.dog(&["vdi", "detach", "d", "host 1", "--yes"]).ok();
    sheep.dog(&["vdi", "detach", "d", "host 1", "--yes"]).ok();
    sheep.dog_input(&["vdi", "write", "d"], b"after").ok();
    for host in ["host 1", "host 2"] {
        attach(host, "read-only").ok();
    }
    sheep.dog_input(&["vdi", "write", "d"], b"again").fails(1, "host 1, host 2 (read-only)");
    sheep.dog(&["vdi", "detach", "d", "--all", "--yes"]).ok();
    attach("host 3", "shared").ok();
    sheep.dog(&["vdi", "delete", "d", "--force", "--yes"]).ok();
    assert!(names(&sheep).is_empty());
}

#[test]
fn contents_travel() {
    let dir = tempfile::tempdir().unwrap();
    let sheep = Sheep::formatted(dir.path(), &[], &[]);
    // Data, a hole of several objects, data up to an odd end.
    let mut image = vec![0u8; 21 * (1 << 20) + 777];
    for (i, b) in image.iter_mut().enumerate().take(3 << 20) {
        *b = (i / 7 % 251) as u8;
    }
    let tail = image.len() - 5000;
    image[tail..].fill(0xa5);
    let file = dir.path().join("in.raw");
    std::fs::write(&file, &image).unwrap();
    sheep.dog(&["vdi", "import", file.to_str().unwrap(), "img"]).ok();
    sheep.dog(&["vdi", "import", file.to_str().unwrap(), "img"]).fails(3, "img");
    sheep.dog(&["vdi", "import", file.to_str().unwrap(), "small", "--size", "1M"]).fails(64, "bytes");
    sheep.dog(&["vdi", "import", "/nonexistent", "x"]).fails(1, "/nonexistent");

    let out = dir.path().join("out.raw");
    sheep.dog(&["vdi", "export", "img", out.to_str().unwrap()]).ok();
    sheep.dog(&["vdi", "export", "img", out.to_str().unwrap()]).fails(3, "--force");
    let back = std::fs::read(&out).unwrap();
    assert_eq!(back.len(), image.len().next_multiple_of(512));
    assert!(back[..image.len()] == image[..], "export differs from import");
    let read = sheep.dog(&["vdi", "read", "img", "1000", "3M"]).ok();
    assert!(read.bytes == image[1000..1000 + (3 << 20)], "a part differs");

    sheep.dog_input(&["vdi", "write", "img", "4M"], &vec![7; 100_000]).ok();
    assert_eq!(sheep.dog(&["vdi", "read", "img", "4M", "100000"]).ok().bytes, vec![7; 100_000]);
    sheep.dog_input(&["vdi", "write", "img", "0", "10"], b"abc").fails(1, "after 3 of 10");
    sheep.dog_input(&["vdi", "write", "img", "22020000"], &[1; 4096]).fails(64, "beyond the end");
    sheep.dog(&["vdi", "read", "img", "1T"]).fails(64, "ends at");
    sheep.dog_input(&["vdi", "write", "nothere"], b"abc").fails(5, "nothere");

    let map = sheep.dog(&["vdi", "object", "map", "img", "-o", "json"]).json();
    assert_eq!(map[0]["index"], 0, "{map}");
    let place = sheep.dog(&["vdi", "object", "location", "img", "0", "-o", "json"]).json();
    assert_eq!(place["copies"][0]["state"], "present", "{place}");
    sheep.dog(&["vdi", "track", "img"]).ok();
    let checked = sheep.dog(&["vdi", "check", "img", "-o", "json"]).json();
    assert_eq!(checked["bad"], 0);
    assert_eq!(sheep.dog(&["cluster", "check", "-o", "json"]).json()[0]["bad"], 0);
    assert!(sheep.dog(&["vdi", "list", "img", "-o", "json"]).json()[0]["used"].as_u64() >= Some(3 << 20));
    let report = sheep
        .dog(&["benchmark", "io", "--size", "8M", "--seconds", "1", "--depth", "2", "-o", "json"])
        .json();
    assert!(report["operations"].as_u64() > Some(0), "{report}");
    assert_eq!(names(&sheep), ["img"], "the benchmark's VDI is gone");
    sheep.dog(&["vdi", "stat", "-o", "json"]).ok();
}

#[test]
fn limits() {
    let dir = tempfile::tempdir().unwrap();
    let sheep = Sheep::formatted(dir.path(), &[], &[]);
    sheep.dog(&["vdi", "create", "disk", "64M"]).ok();
    let shown = |words: &[&str]| sheep.dog(&[&["vdi", "limit", "disk", "-o", "json"], words].concat()).json();
    assert_eq!(shown(&[])["iops"], serde_json::Value::Null);
    let set = shown(&["--iops", "100", "--bandwidth", "1Mi"]);
    assert_eq!((&set["iops"], &set["iops_burst"]), (&100.into(), &100.into()), "{set}");
    assert_eq!(set["bandwidth"], 1 << 20);
    let set = shown(&["--iops", "0"]);
    assert_eq!(
        (&set["iops"], &set["bandwidth"]),
        (&serde_json::Value::Null, &(1 << 20).into()),
        "the other stays"
    );
    sheep.dog(&["vdi", "limit", "disk", "--bandwidth", "1K"]).fails(64, "looks like a fault");
    sheep.dog(&["vdi", "limit", "disk", "--iops-burst", "5"]).fails(64, "--iops");
    sheep.dog(&["vdi", "limit", "disk", "--none", "--iops", "5"]).fails(64, "--none");
    assert_eq!(shown(&["--none"])["bandwidth"], serde_json::Value::Null);
    sheep.dog(&["vdi", "limit", "nosuch"]).fails(5, "nosuch");
}
