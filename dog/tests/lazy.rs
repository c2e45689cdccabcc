//! Volumes that are used while they are restored, by processes that are killed; and backups that are looked at as they lie there.

#![allow(clippy::unwrap_used)]

mod harness;
#[path = "harness/nbd.rs"]
mod nbd;

use harness::{Sheep, dog_with};
use nbd::{Client, Serving};
use sheepdog_nbd::wire::{cflag, cmd};
use std::path::PathBuf;
use std::process::{Command, Output};

const MIB: usize = 1 << 20;

/// A small generator: what a test does is the same each time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

struct Case {
    sheep: Sheep,
    contents: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Case {
    /// A cluster, and a repository with a backup of a volume `disk` of these contents.
    fn new(contents: Vec<u8>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("sheep");
        std::fs::create_dir(&home).unwrap();
        let sheep = Sheep::formatted(&home, &[], &[]);
        let case = Self { sheep, contents, dir };
        std::fs::write(case.path("raw"), &case.contents).unwrap();
        case.sheep.dog(&["vdi", "import", case.path("raw").to_str().unwrap(), "disk", "-f", "raw"]).ok();
        case.sheep.dog(&["vdi", "setattr", "disk", "owner", "somebody"]).ok();
        case.sheep.dog(&["vdi", "backup", "disk", &case.repo(), "--chunk", "64K"]).ok();
        case
    }
    /// The sheep is killed and comes back.
    fn restart(&mut self) {
        let (home, port) = (self.sheep.dir.clone(), self.sheep.port);
        self.sheep.kill();
        self.sheep = Sheep::start(&home, port, &[]);
        harness::until(|| self.sheep.dog(&["vdi", "list"]), |s| s.code == 0);
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn repo(&self) -> String {
        self.path("repo").to_str().unwrap().into()
    }
    fn lazy(&self, name: &str, more: &[&str]) -> Serving {
        let repo = self.repo();
        let words = [&["vdi", "restore", &repo, "disk", name, "--lazy"], more].concat();
        Serving::start(&words, self.sheep.port, &self.path(&format!("{name}.sock")))
    }
    fn is_restoring(&self, name: &str) -> bool {
        self.sheep.dog(&["vdi", "getattr", name, "dog.restoring"]).code == 0
    }
    fn read(&self, name: &str) -> Vec<u8> {
        self.sheep.dog(&["vdi", "read", name]).ok().bytes
    }
    /// The file of the chunk at this offset of the backup.
    fn chunk_at(&self, offset: usize) -> PathBuf {
        let data = &self.contents[offset..offset + (64 << 10)];
        let files = files(&self.path("repo/chunks"));
        let small = |p: &&PathBuf| {
            let stored = std::fs::read(p).unwrap();
            stored.len() > data.len() && stored[12..] == *data
        };
        files.iter().find(small).unwrap().clone()
    }
}

fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

/// Noise, holes large and small, and an end in the middle of a block.
fn mixed(dice: &mut Dice, len: usize) -> Vec<u8> {
    let mut out = vec![0; len + 512];
    let mut at = 0;
    while at < out.len() {
        let piece = match dice.below(8) {
            0 => 200_000,
            1 => 9_000,
            2 => 4096,
            _ => 400_000,
        };
        let end = (at + piece).min(out.len());
        if dice.below(3) > 0 {
            let noise = dice.bytes(end - at);
            out[at..end].copy_from_slice(&noise);
        }
        at = end;
    }
    out
}

fn text(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

fn run(program: &str, words: &[&str]) -> Output {
    Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// A change that was sent, and what is there after it.
struct Change {
    at: usize,
    after: Vec<u8>,
}

/// Some request of a client. Reads are compared; a change is sent, and answered unless `leave`.
fn act(dice: &mut Dice, client: &mut Client, model: &mut [u8], leave: bool) -> Option<Change> {
    let len = match dice.below(4) {
        0 => 1 + dice.below(300_000),
        1 => 4096 * (1 + dice.below(20)),
        _ => 1 + dice.below(9_000),
    };
    let at = match dice.below(2) {
        0 => dice.below(model.len()),
        _ => dice.below(model.len()) / 4096 * 4096,
    };
    let len = len.min(model.len() - at);
    let (kind, flags, data) = match dice.below(8) {
        0..=2 if !leave => {
            let got = client.read(at as u64, len as u32).unwrap().unwrap();
            assert!(got == model[at..at + len], "a read of {len} at {at}");
            return None;
        }
        0 | 3 => (cmd::WRITE_ZEROES, 0, vec![]),
        1 | 4 => (cmd::WRITE_ZEROES, cflag::NO_HOLE | cflag::FUA, vec![]),
        2 | 5 => (cmd::TRIM, 0, vec![]),
        6 => (cmd::WRITE, cflag::FUA, dice.bytes(len)),
        _ => (cmd::WRITE, 0, dice.bytes(len)),
    };
    let after = if kind == cmd::WRITE { data.clone() } else { vec![0; len] };
    client.begin(kind, flags, at as u64, len as u32, &data).unwrap();
    if leave {
        return Some(Change { at, after });
    }
    client.answer().unwrap().unwrap();
    model[at..at + len].copy_from_slice(&after);
    None
}

/// What came of a change that was not answered: of each block the old or the new contents, and so it stays.
fn settle(read: impl FnOnce(usize, usize) -> Vec<u8>, model: &mut [u8], change: &Change) {
    let range = change.at..change.at + change.after.len();
    let got = read(range.start, change.after.len());
    let mut at = range.start;
    while at < range.end {
        let end = ((at / 4096 + 1) * 4096).min(range.end);
        let (old, here) = (&model[at..end], at - range.start..end - range.start);
        assert!(got[here.clone()] == *old || got[here.clone()] == change.after[here], "the block at {at}");
        at = end;
    }
    model[range].copy_from_slice(&got);
}

#[test]
fn killed_again_and_again_it_loses_nothing() {
    let mut dice = Dice(0x5EED_0001);
    let case = Case::new(mixed(&mut dice, 96 * MIB));
    let mut model = case.contents.clone();
    let mut open: Option<Change> = None;
    for round in 0..12 {
        // So slow that it is not complete for a while; fast enough to be further each time.
        let mut dog = case.lazy("copy", &["--fill-rate", "8Mi"]);
        let mut client = dog.connect("copy").unwrap();
        assert_eq!(client.size, model.len() as u64);
        if let Some(change) = open.take() {
            settle(|at, len| client.read(at as u64, len as u32).unwrap().unwrap(), &mut model, &change);
        }
        for _ in 0..dice.below(10) + round * 4 {
            act(&mut dice, &mut client, &mut model, false);
        }
        open = act(&mut dice, &mut client, &mut model, true);
        dog.kill();
        assert!(case.is_restoring("copy"), "it was killed while it restored");
    }

    let mut dog = case.lazy("copy", &[]);
    let mut client = dog.connect("copy").unwrap();
    if let Some(change) = open.take() {
        settle(|at, len| client.read(at as u64, len as u32).unwrap().unwrap(), &mut model, &change);
    }
    for _ in 0..100 {
        act(&mut dice, &mut client, &mut model, false);
    }
    // Another program's view, and all of it.
    let out = case.path("out");
    let copied = run("nbdcopy", &[&dog.uri("copy"), out.to_str().unwrap()]);
    assert!(copied.status.success(), "{}", text(&copied));
    assert!(std::fs::read(&out).unwrap() == model);
    // All of it is there, and a client goes on.
    harness::until(|| case.is_restoring("copy"), |restoring| !restoring);
    for _ in 0..50 {
        act(&mut dice, &mut client, &mut model, false);
    }
    // Killed now, nothing is left to be done but to detach.
    open = act(&mut dice, &mut client, &mut model, true);
    dog.kill();
    case.sheep.dog_input(&["vdi", "write", "copy"], b"mine").fails(1, "dog vdi restore --lazy");
    let dog = case.lazy("copy", &[]);
    let ended = dog.wait();
    assert!(ended.status.success(), "{}", text(&ended));
    assert!(text(&ended).contains("all of copy is there"), "{}", text(&ended));
    let all = case.read("copy");
    if let Some(change) = open.take() {
        settle(|at, len| all[at..at + len].to_vec(), &mut model, &change);
    }
    assert!(all == model);
    // A plain volume, with its attributes, that anybody may write.
    let row = case.sheep.dog(&["vdi", "list", "copy", "-o", "json"]).json();
    assert_eq!(
        (&row[0]["attached"], row[0]["state"] == "restoring"),
        (&serde_json::Value::Null, false),
        "{row}"
    );
    assert_eq!(case.sheep.dog(&["vdi", "getattr", "copy", "owner"]).ok().out.trim(), "somebody");
    let attrs = case.sheep.dog(&["vdi", "listattr", "copy", "-o", "raw"]).ok().out;
    assert!(!attrs.contains("dog.restoring"), "{attrs}");
    case.sheep.dog_input(&["vdi", "write", "copy"], b"mine").ok();
    case.sheep.dog(&["vdi", "check", "copy"]).ok();
    // The same command does not begin again.
    let again = case.lazy("copy", &[]).wait();
    assert!(
        !again.status.success() && text(&again).contains("there is a VDI named copy already"),
        "{}",
        text(&again)
    );
    assert!(case.read("copy")[..4] == *b"mine");
}

#[test]
fn its_sheep_is_killed_and_clients_only_wait() {
    let mut dice = Dice(0x5EED_0005);
    let mut case = Case::new(mixed(&mut dice, 32 * MIB));
    let mut model = case.contents.clone();
    let mut dog = case.lazy("copy", &["--fill-rate", "4M"]);
    let mut client = dog.connect("copy").unwrap();
    for _ in 0..3 {
        for _ in 0..15 {
            act(&mut dice, &mut client, &mut model, false);
        }
        let change = act(&mut dice, &mut client, &mut model, true).unwrap();
        case.restart();
        client.answer().unwrap().unwrap();
        model[change.at..][..change.after.len()].copy_from_slice(&change.after);
    }
    assert!(case.is_restoring("copy"));
    let whole = client.read(0, 32 << 20).unwrap().unwrap();
    assert!(whole == model[..32 << 20]);
    // Both at once.
    let change = act(&mut dice, &mut client, &mut model, true).unwrap();
    dog.kill();
    case.restart();
    let mut dog = case.lazy("copy", &[]);
    let mut client = dog.connect("copy").unwrap();
    settle(|at, len| client.read(at as u64, len as u32).unwrap().unwrap(), &mut model, &change);
    for _ in 0..30 {
        act(&mut dice, &mut client, &mut model, false);
    }
    drop(client);
    let ended = dog.wait();
    assert!(ended.status.success(), "{}", text(&ended));
    assert!(case.read("copy") == model);
}

#[test]
fn meanwhile_nobody_else_writes_and_a_later_process_takes_over() {
    let mut dice = Dice(0x5EED_0002);
    let case = Case::new(mixed(&mut dice, 64 * MIB));
    let mut model = case.contents.clone();
    let mut first = case.lazy("copy", &["--fill-rate", "8M"]);
    let mut client = first.connect("copy").unwrap();
    let sheep = &case.sheep;
    let repo = case.repo();

    // Real programs beside each other, on what is not there yet.
    let uri = first.uri("copy");
    let said = run(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 0xab 1M 100000", "-c", "read -P 0xab 1M 100000", "-c", "flush", &uri],
    );
    assert!(said.status.success() && !String::from_utf8_lossy(&said.stdout).contains("failed"), "{said:?}");
    model[MIB..MIB + 100_000].fill(0xab);
    let said = run("nbdinfo", &[&uri]);
    assert!(said.status.success(), "{said:?}");
    client.write(5 * MIB as u64 + 100, b"acknowledged by the first").unwrap().unwrap();
    model[5 * MIB + 100..][..25].copy_from_slice(b"acknowledged by the first");

    sheep.dog_input(&["vdi", "write", "copy"], b"mine").fails(1, "dog vdi restore --lazy");
    sheep.dog(&["vdi", "delete", "copy", "--yes"]).fails(1, "");
    assert_eq!(sheep.dog(&["vdi", "list", "copy", "--fast", "-o", "json"]).json()[0]["state"], "restoring");
    sheep.dog(&["vdi", "restore", &repo, "disk", "copy"]).fails(3, "--lazy");
    sheep.dog(&["vdi", "snapshot", "copy", "-s", "half"]).ok();
    sheep.dog(&["vdi", "rollback", "copy@half", "--yes"]).fails(1, "not yet restored");
    sheep.dog(&["vdi", "backup", "copy", &repo]).fails(1, "not yet restored");
    sheep.dog(&["cluster", "snapshot", "save", &repo]).fails(1, "not yet restored");
    sheep.dog(&["vdi", "restore", &repo, "disk", "x", "--lazy"]).fails(64, "--listen");
    let socket = case.path("x.sock");
    let other =
        Serving::start(&["vdi", "restore", &repo, "disk", "disk", "--lazy"], sheep.port, &socket).wait();
    assert!(text(&other).contains("there is a VDI named disk already"), "{}", text(&other));

    let words = ["vdi", "restore", repo.as_str(), "disk", "copy", "--lazy"];
    let mut second = Serving::start(&words, sheep.port, &case.path("second.sock"));
    let mut theirs = second.connect("copy").unwrap();
    let got = theirs.read(5 * MIB as u64, 1000).unwrap().unwrap();
    assert!(got == model[5 * MIB..][..1000]);
    // What the first is still asked for does not take effect any more, and it ends.
    let late = client.write(5 * MIB as u64 + 100, b"sent to the first, later.");
    assert!(!matches!(late, Ok(Ok(()))), "{late:?}");
    drop(client);
    let ended = first.wait();
    assert!(text(&ended).contains("the same command goes on"), "{}", text(&ended));
    let got = theirs.read(5 * MIB as u64, 1000).unwrap().unwrap();
    assert!(got == model[5 * MIB..][..1000], "nothing of the first came later");
    for _ in 0..50 {
        act(&mut dice, &mut theirs, &mut model, false);
    }
    drop(theirs);
    let ended = second.wait();
    assert!(ended.status.success(), "{}", text(&ended));
    assert!(case.read("copy") == model);
}

#[test]
fn what_is_damaged_is_an_error_and_never_zeros() {
    let mut dice = Dice(0x5EED_0003);
    let case = Case::new(dice.bytes(4 * MIB));
    let mut model = case.contents.clone();
    let (at, gone) = (MIB, 3 * MIB);
    let victim = case.chunk_at(at);
    let good = std::fs::read(&victim).unwrap();
    let mut bad = good.clone();
    bad[500] ^= 1;
    std::fs::write(&victim, &bad).unwrap();
    std::fs::remove_file(case.chunk_at(gone)).unwrap();

    let mut dog = case.lazy("copy", &[]);
    let mut client = dog.connect("copy").unwrap();
    for (offset, what) in [(at, "damaged"), (gone, "missing")] {
        let failed = client.read(offset as u64 + 5, 100).unwrap().unwrap_err();
        assert!(
            failed.why.contains(what) && failed.why.contains(&format!("bytes {offset} to")),
            "{failed:?}"
        );
        // Nor is it merged with.
        assert!(client.write(offset as u64 + 5, b"small").unwrap().is_err());
        assert!(client.command(cmd::TRIM, 0, offset as u64 + 5, 100).unwrap().is_err());
    }
    // Whole blocks of it can be written, and are read.
    let block = dice.bytes(4096);
    client.write(at as u64 + 8192, &block).unwrap().unwrap();
    model[at + 8192..][..4096].copy_from_slice(&block);
    assert!(client.read(at as u64 + 8192, 4096).unwrap().unwrap() == block);
    assert!(client.read(at as u64 + 8191, 2).unwrap().is_err());
    let before = client.read(0, at as u32).unwrap().unwrap();
    assert!(before == model[..at]);
    // All of it: mended by that.
    let whole = dice.bytes(64 << 10);
    client.write(gone as u64, &whole).unwrap().unwrap();
    model[gone..][..64 << 10].copy_from_slice(&whole);
    assert!(client.read(gone as u64 + 1, 70_000).unwrap().unwrap() == model[gone + 1..][..70_000]);
    drop(client);
    let ended = dog.wait();
    let name = victim.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        text(&ended).contains("1 chunks of copy could not be had") && text(&ended).contains(&name),
        "{}",
        text(&ended)
    );
    case.sheep.dog_input(&["vdi", "write", "copy"], b"mine").fails(1, "restore --lazy");

    // Put back, it goes on and comes to its end.
    std::fs::write(&victim, &good).unwrap();
    let ended = case.lazy("copy", &[]).wait();
    assert!(ended.status.success(), "{}", text(&ended));
    assert!(case.read("copy") == model);
}

#[test]
fn a_backup_is_read_where_it_lies() {
    let mut dice = Dice(0x5EED_0004);
    let case = Case::new(mixed(&mut dice, 8 * MIB));
    let socket = case.path("b.sock");
    let mut dog = Serving::start(&["backup", "serve", &case.repo(), "disk"], 1, &socket);
    let mut client = dog.connect("disk").unwrap();
    let refused = client.write(0, b"x").unwrap().unwrap_err();
    assert_eq!(refused.errno, sheepdog_nbd::Errno::Perm, "{refused:?}");
    assert!(client.read(77, 3 * MIB as u32).unwrap().unwrap() == case.contents[77..][..3 * MIB]);
    assert!(Client::connect(&socket, "other").is_err());
    let raw = case.path("raw");
    let said =
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &dog.uri("disk"), raw.to_str().unwrap()]);
    assert!(said.status.success(), "{said:?}");
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &dog.uri("disk")]);
    let holes = String::from_utf8_lossy(&map.stdout).matches("\"zero\": true").count();
    assert!(holes > 0, "{map:?}");
    drop(client);
    dog.kill();
    dog_with(&["backup", "serve", &case.repo(), "disk", "--listen", "0.0.0.0:1"], &[], b"")
        .fails(64, "without encryption");
    dog_with(&["backup", "serve", &case.repo(), "nosuch", "--listen", "./x"], &[], b"")
        .fails(5, "dog backup list");
}
