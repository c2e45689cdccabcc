//! What scrubbing finds on a real disk, as users see it: dog against one real daemon.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::Sheep;
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

fn object_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let is_object = path.components().any(|c| c.as_os_str() == "obj");
            match path.is_dir() {
                true => dirs.push(path),
                false if is_object => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

fn flip(file: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, at).unwrap();
}

fn sum(report: &Value, column: &str) -> u64 {
    report["rows"].as_array().unwrap().iter().map(|row| row[column].as_u64().unwrap()).sum()
}

#[test]
fn damage_is_found_told_and_mended_as_far_as_one_copy_allows() {
    let dir = tempfile::tempdir().unwrap();
    let sheep = Sheep::formatted(dir.path(), &[], &[]);
    sheep.dog(&["vdi", "create", "disk", "16M"]).ok();
    sheep.dog_input(&["vdi", "write", "disk"], &vec![0x5a; 12 << 20]).ok();
    harness::until(
        || object_files(dir.path()),
        |files| files.len() == 3 && files.iter().all(|f| std::fs::metadata(f).unwrap().len() > 4 << 20),
    );
    let start = ["cluster", "check", "--start", "--wait", "-o", "json"];
    let whole = sheep.dog(&start).json();
    assert_eq!((&whole["found"], sum(&whole, "objects")), (&0.into(), 3), "{whole}");
    assert_eq!(whole["rows"][0]["vdi"], "disk", "{whole}");

    // Both headers: memory knows what they were.
    let files = object_files(dir.path());
    flip(&files[0], 100);
    flip(&files[0], 8192 + 100);
    std::fs::copy(&files[0], files[0].with_file_name("0000000100000fff")).unwrap();
    sheep.dog(&start);
    let mended =
        harness::until(|| sheep.dog(&["cluster", "check", "--status", "-o", "json"]), |s| s.code == 0).json();
    assert_eq!((&mended["found"], &mended["mended"]), (&2.into(), &2.into()), "{mended}");
    let said = mended["findings"].to_string();
    assert!(said.contains("header") && said.contains("a file that no object has"), "{said}");
    let table = sheep.dog(&["cluster", "check", "--status"]).ok();
    assert!(table.out.contains("By VDI and disk") && table.out.contains("LAST ENDED"), "{table:?}");

    // A block: of one copy nobody has another.
    flip(&files[1], 16384 + 5000);
    let failed = sheep.dog(&start);
    let failed = failed.fails(1, "not mended");
    assert!(failed.out.contains("1 damaged blocks"), "{failed:?}");
    sheep.dog(&["cluster", "check", "--wait"]).fails(64, "--start");

    // All of it is there after a restart, but for the block.
    assert!(sheep.dog(&["vdi", "read", "disk", "0", "4M"]).ok().bytes.iter().all(|b| *b == 0x5a));
}
