//! Backups of real daemons' volumes, and what comes back.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Sheep, dog_with};
use std::path::PathBuf;

const MIB: usize = 1 << 20;

/// Two clusters and room for files.
struct Case {
    here: Sheep,
    there: Sheep,
    // Goes after those who use it.
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sheep = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            Sheep::formatted(&path, &[], &[])
        };
        let (here, there) = (sheep("here"), sheep("there"));
        Self { here, there, dir }
    }
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

fn write(sheep: &Sheep, vdi: &str, offset: usize, bytes: &[u8]) {
    sheep.dog_input(&["vdi", "write", vdi, &offset.to_string()], bytes).ok();
}

fn read(sheep: &Sheep, image: &str) -> Vec<u8> {
    sheep.dog(&["vdi", "read", image]).ok().bytes
}

/// Something that does not repeat itself.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

fn files(dir: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut todo = vec![PathBuf::from(dir)];
    while let Some(d) = todo.pop() {
        for e in std::fs::read_dir(d).unwrap() {
            let path = e.unwrap().path();
            if path.is_dir() { todo.push(path) } else { out.push(path) }
        }
    }
    out
}

#[test]
fn every_increment_comes_back_in_another_cluster() {
    let case = Case::new();
    let (here, there, repo) = (&case.here, &case.there, case.path("repo"));
    here.dog(&["vdi", "create", "disk", "24M"]).ok();
    here.dog(&["vdi", "setattr", "disk", "owner", "somebody"]).ok();
    write(here, "disk", 0, &noise(1, 8 * MIB));
    let mut points = Vec::new();
    for n in 0..5u64 {
        write(here, "disk", (3 + 4 * n as usize) * MIB + 77, &noise(10 + n, 100_000));
        if n == 2 {
            // What is gone is gone in the backup, too; and the volume grows.
            write(here, "disk", 0, &vec![0; 2 * MIB]);
            here.dog(&["vdi", "resize", "disk", "32M"]).ok();
        }
        let made = here.dog(&["vdi", "backup", "disk", &repo, "-o", "json"]).json();
        points.push((made, read(here, "disk")));
    }
    let added: Vec<u64> = points.iter().map(|(m, _)| m["added"].as_u64().unwrap()).collect();
    assert!(added[0] >= 8 * MIB as u64 && added[1..].iter().all(|a| *a <= 3 * MIB as u64), "{added:?}");
    let rows =
        |sheep: &Sheep| sheep.dog(&["vdi", "list", "disk", "-o", "json"]).json().as_array().unwrap().len();
    assert_eq!(rows(here), 2, "the volume and the snapshot of its last backup");
    assert_eq!(here.dog(&["trash", "list", "-o", "raw"]).ok().out, "", "what dog made, it really deletes");
    for (n, (made, contents)) in points.iter().enumerate() {
        let (id, name) = (made["id"].as_str().unwrap(), format!("r{n}"));
        there.dog(&["vdi", "restore", &repo, id, &name]).ok();
        assert!(read(there, &name) == *contents, "point {n}");
    }
    there.dog(&["vdi", "restore", &repo, "disk", "r0"]).fails(3, "r0");
    there.dog(&["vdi", "restore", &repo, "disk"]).ok();
    assert!(read(there, "disk") == points[4].1, "its latest, under its own name");
    assert_eq!(there.dog(&["vdi", "getattr", "disk", "owner"]).ok().out.trim(), "somebody");
    // A snapshot of a user's is backed up as it is, and stays.
    here.dog(&["vdi", "snapshot", "disk", "-s", "mine"]).ok();
    write(here, "disk", 0, &noise(99, MIB));
    let again = here.dog(&["vdi", "backup", "disk@mine", &repo, "-o", "json"]).json();
    assert_eq!(again["added"], 0, "nothing had changed");
    assert_eq!(rows(here), 3);
    here.dog(&["vdi", "backup", "disk@mine", &repo]).ok();
    let listed = dog_with(&["backup", "list", &repo, "-o", "json"], &[], b"").json();
    assert_eq!(listed.as_array().unwrap().len(), 6, "not twice");

    // Old ones go, and what only they needed.
    let before = files(&repo).len();
    let pruned = dog_with(&["backup", "prune", &repo, "--keep-last", "2", "-o", "json"], &[], b"").json();
    assert_eq!(pruned["backups"], 4, "{pruned}");
    assert!(pruned["chunks"].as_u64().unwrap() > 0 && files(&repo).len() < before);
    dog_with(&["backup", "verify", &repo], &[], b"").ok();
    there.dog(&["vdi", "restore", &repo, "disk@mine", "after"]).ok();
    assert!(read(there, "after") == points[4].1);
}

#[test]
fn damage_is_named_and_nothing_half_stays() {
    let case = Case::new();
    let (here, there, repo) = (&case.here, &case.there, case.path("repo"));
    here.dog(&["vdi", "create", "disk", "8M"]).ok();
    write(here, "disk", 0, &noise(1, 4 * MIB));
    here.dog(&["vdi", "backup", "disk", &repo]).ok();
    let largest = |dir: &str| files(dir).into_iter().max_by_key(|p| p.metadata().unwrap().len()).unwrap();
    let victim = largest(&repo);
    let mut bytes = std::fs::read(&victim).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&victim, &bytes).unwrap();
    let name = victim.file_name().unwrap().to_str().unwrap();
    let said = dog_with(&["backup", "verify", &repo], &[], b"").fails(1, name);
    assert!(said.err.contains("1 of 4 chunks"), "{said:?}");
    there.dog(&["vdi", "restore", &repo, "disk"]).fails(1, "of the volume: chunk");
    assert_eq!(there.dog(&["vdi", "list", "-o", "raw"]).ok().out, "", "nothing half stays");
    there.dog(&["vdi", "restore", &repo, "disk", "--keep-going"]).fails(1, "1048576 bytes read as zeros");
    let (was, is) = (read(here, "disk"), read(there, "disk"));
    let differ: Vec<usize> = (0..8).filter(|n| was[n * MIB..][..MIB] != is[n * MIB..][..MIB]).collect();
    assert_eq!(differ.len(), 1);
    assert!(is[differ[0] * MIB..][..MIB].iter().all(|b| *b == 0));
    // The volume still has the contents.
    std::fs::remove_file(&victim).unwrap();
    here.dog(&["vdi", "backup", "disk", &repo, "--full"]).ok();
    dog_with(&["backup", "verify", &repo], &[], b"").ok();
}

#[test]
fn pipes_files_passwords() {
    let case = Case::new();
    let (here, there) = (&case.here, &case.there);
    here.dog(&["vdi", "create", "disk", "4M"]).ok();
    write(here, "disk", MIB, &noise(1, MIB));
    here.dog(&["vdi", "snapshot", "disk", "-s", "one"]).ok();
    write(here, "disk", 0, &noise(2, MIB));
    let (before, after) = (read(here, "disk@one"), read(here, "disk"));
    let (file, password, other) = (case.path("disk.sheepdog"), case.path("password"), case.path("other"));
    std::fs::write(&password, "secret\n").unwrap();
    std::fs::write(&other, "another\n").unwrap();

    let piped = here.dog(&["vdi", "backup", "disk@one", "-"]).ok().bytes;
    there.dog_input(&["vdi", "restore", "-", "disk", "piped"], &piped).ok();
    assert!(read(there, "piped") == before);
    there.dog_input(&["vdi", "restore", "-"], &piped[..piped.len() / 2]).fails(64, "several");
    there.dog_input(&["vdi", "restore", "-"], b"nonsense").fails(1, "is it one that dog vdi backup wrote");

    here.dog(&["vdi", "backup", "disk", &file, "--password-file", &password]).ok();
    here.dog(&["vdi", "backup", "disk", &file, "--password-file", &password])
        .fails(3, "one file holds one backup");
    there.dog(&["vdi", "restore", &file]).fails(1, "--password-file");
    there.dog(&["vdi", "restore", &file, "--password-file", &other]).fails(1, "not its password");
    there.dog(&["vdi", "restore", &file, "disk", "sealed", "--password-file", &password]).ok();
    assert!(read(there, "sealed") == after);

    let repo = case.path("repo");
    here.dog(&["vdi", "backup", "disk", &repo, "--chunk", "100K"]).fails(64, "power of two");
    here.dog(&["vdi", "backup", "disk", &repo, "--chunk", "4Mi", "--password-file", &password]).ok();
    here.dog(&["vdi", "backup", "disk", &repo]).fails(1, "--password-file");
    there.dog(&["vdi", "restore", &repo, "disk", "large", "--password-file", &password]).ok();
    assert!(read(there, "large") == after);
    dog_with(&["backup", "delete", &repo, "disk", "--password-file", &password], &[], b"no\n")
        .fails(1, "not confirmed");
    dog_with(&["backup", "delete", &repo, "disk", "--yes", "--password-file", &password], &[], b"").ok();
    there
        .dog(&["vdi", "restore", &repo, "disk", "x", "--password-file", &password])
        .fails(5, "dog backup list");

    here.dog(&["vdi", "backup", "nosuch", &repo]).fails(5, "nosuch");
    here.dog(&["vdi", "backup", "disk@nosuch", &repo]).fails(5, "no snapshot");
    there.dog(&["vdi", "restore", &case.path("nothing"), "disk"]).fails(5, "no repository");
    dog_with(&["backup", "list", "s3://"], &[], b"").fails(1, "s3://BUCKET/PREFIX");
}

#[test]
fn a_whole_cluster_comes_back() {
    let case = Case::new();
    let (here, there, repo) = (&case.here, &case.there, case.path("repo"));
    here.dog(&["cluster", "snapshot", "save", &repo]).fails(1, "no VDI");
    here.dog(&["vdi", "create", "a", "8M"]).ok();
    here.dog(&["vdi", "create", "b", "4M"]).ok();
    let mut wanted = Vec::new();
    for n in 0..3u64 {
        write(here, "a", n as usize * 2 * MIB, &noise(n, MIB + 5));
        let tag = format!("t{n}");
        here.dog(&["vdi", "snapshot", "a", "-s", &tag]).ok();
        wanted.push((format!("a@{tag}"), read(here, "a")));
    }
    write(here, "a", 0, &vec![0; MIB]);
    write(here, "b", MIB, &noise(9, MIB));
    here.dog(&["vdi", "clone", "a@t1", "c"]).ok();
    write(here, "c", 7 * MIB, b"of the clone");
    for image in ["a", "b", "c"] {
        wanted.push((image.into(), read(here, image)));
    }
    let first = here.dog(&["cluster", "snapshot", "save", &repo, "-o", "json"]).json();
    assert_eq!(first["backups"], 6, "{first}");
    write(here, "b", 0, b"later");
    let second = here.dog(&["cluster", "snapshot", "save", &repo, "-o", "json"]).json();
    assert!(second["added"].as_u64().unwrap() <= MIB as u64, "{second}");
    let sets = dog_with(&["cluster", "snapshot", "list", &repo, "-o", "json"], &[], b"").json();
    assert_eq!(sets.as_array().unwrap().len(), 2);
    assert_eq!((&sets[0]["vdis"], &sets[0]["snapshots"]), (&3.into(), &3.into()), "{sets}");
    let set = first["set"].as_str().unwrap();
    let shown = dog_with(&["cluster", "snapshot", "show", &repo, set, "-o", "json"], &[], b"").json();
    assert_eq!(shown.as_array().unwrap().len(), 6);

    there.dog(&["vdi", "create", "b", "4M"]).ok();
    there.dog(&["cluster", "snapshot", "load", &repo, set]).fails(3, "named b is there");
    there.dog(&["vdi", "delete", "b", "--yes"]).ok();
    there.dog(&["cluster", "snapshot", "load", &repo, "nosuch"]).fails(5, "snapshot list");
    there.dog(&["cluster", "snapshot", "load", &repo, set]).ok();
    for (image, contents) in &wanted {
        assert!(read(there, image) == *contents, "{image}");
    }
    let rows = there.dog(&["vdi", "list", "-o", "json"]).json();
    assert_eq!(rows.as_array().unwrap().len(), 6, "no snapshots but those of users: {rows}");
}

#[test]
fn sizes_that_are_no_multiple_of_a_chunk() {
    let case = Case::new();
    let (here, there, repo) = (&case.here, &case.there, case.path("repo"));
    let sizes = [2_500 << 10, 3_700 << 10, 3_700 << 10, 2_300 << 10, (4 << 20) + 512];
    here.dog(&["vdi", "create", "odd", &sizes[0].to_string()]).ok();
    write(here, "odd", 0, &noise(1, sizes[0]));
    let mut points = Vec::new();
    for (n, size) in sizes.iter().enumerate() {
        here.dog(&["vdi", "resize", "odd", &size.to_string(), "--shrink", "--yes"]).ok();
        if n == 2 {
            write(here, "odd", size - 700, &noise(2, 700));
        }
        here.dog(&["vdi", "snapshot", "odd", "-s", &format!("t{n}")]).ok();
        points.push(read(here, "odd"));
        assert_eq!(points[n].len(), *size);
        here.dog(&["vdi", "backup", &format!("odd@t{n}"), &repo]).ok();
    }
    here.dog(&["cluster", "snapshot", "save", &repo]).ok();
    for (n, contents) in points.iter().enumerate() {
        there.dog(&["vdi", "restore", &repo, &format!("odd@t{n}"), &format!("r{n}")]).ok();
        assert!(read(there, &format!("r{n}")) == *contents, "point {n}");
    }
    there.dog(&["cluster", "snapshot", "load", &repo]).ok();
    for (n, contents) in points.iter().enumerate() {
        assert!(read(there, &format!("odd@t{n}")) == *contents, "point {n} of the cluster");
    }
    assert!(read(there, "odd") == points[4]);
}
