//! A repository keeps what is put into it, tells what is damaged, and loses nothing that a backup needs.

use bytes::Bytes;
use sheepdog_backup::manifest::{Snapshot, VERSION, Volume};
use sheepdog_backup::repository::now_ms;
use sheepdog_backup::{Entry, Error, Id, Index, Manifest, Place, Repository, Stored};
use std::collections::BTreeMap;
use std::path::Path;

const CHUNK: u32 = 64 << 10;

fn run<T>(f: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(f)
}

async fn new(dir: &Path, password: Option<&[u8]>) -> Repository {
    Repository::create(Place::dir(dir), password, CHUNK).await.expect("made")
}

async fn open(dir: &Path, password: Option<&[u8]>) -> Result<Repository, Error> {
    Ok(Repository::open(Place::dir(dir), password).await?.expect("there"))
}

/// Contents of a volume: each chunk filled with one byte; 0 is a hole.
async fn back_up(r: &Repository, name: &str, id: u32, fill: &[u8]) -> Manifest {
    let size = fill.len() as u64 * u64::from(CHUNK);
    let mut index = Index::empty(size, CHUNK);
    for (n, byte) in fill.iter().enumerate().filter(|(_, b)| **b != 0) {
        let contents = vec![*byte; CHUNK as usize];
        let name = r.name(&contents);
        if !r.has(name).await.expect("answers") {
            r.put(name, Bytes::from(contents)).await.expect("put");
        }
        index.set(n, Entry::Data(name));
    }
    let manifest = Manifest {
        version: VERSION,
        id: format!("{id:032x}"),
        created_ms: now_ms() + u64::from(id),
        volume: Volume {
            uuid: name.into(),
            name: name.into(),
            size,
            redundancy: "3".into(),
            object_size: 4 << 20,
            attributes: BTreeMap::new(),
        },
        snapshot: Snapshot { id, tag: format!("t{id}"), created_ms: u64::from(id), own: false },
        chunk: CHUNK,
        pages: r.put_index(&index).await.expect("put"),
        data: index.data() * u64::from(CHUNK),
        added: 0,
        stored: 0,
        set: None,
        set_size: None,
    };
    let lock = r.lock("backup").await.expect("locks");
    r.commit(&lock, std::slice::from_ref(&manifest)).await.expect("committed");
    lock.release().await.expect("released");
    manifest
}

/// What is in it, as `back_up` was given it.
async fn contents(r: &Repository, m: &Manifest) -> Result<Vec<u8>, Error> {
    let index = r.index(m).await?;
    let mut out = Vec::new();
    for n in 0..index.len() {
        out.push(match index.get(n) {
            Entry::Hole => 0,
            Entry::Data(id) => r.get(id).await?[0],
        });
    }
    Ok(out)
}

fn files(dir: &Path, part: &str) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    let mut todo = vec![dir.join(part)];
    while let Some(d) = todo.pop() {
        for e in std::fs::read_dir(d).into_iter().flatten().flatten() {
            if e.path().is_dir() { todo.push(e.path()) } else { out.push(e.path()) }
        }
    }
    out.sort();
    out
}

#[test]
fn every_backup_is_complete_and_what_they_share_is_there_once() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let r = new(dir.path(), None).await;
        let (first, second) = ([1, 2, 0, 3, 1], [1, 2, 4, 0, 1, 5]);
        back_up(&r, "v", 1, &first).await;
        back_up(&r, "v", 2, &second).await;
        back_up(&r, "w", 3, &first).await;
        let r = open(dir.path(), None).await.expect("opens");
        let (all, bad) = r.backups().await.expect("listed");
        assert!(bad.is_empty());
        assert_eq!(all.iter().map(|m| m.snapshot.id).collect::<Vec<_>>(), [1, 2, 3]);
        for (m, want) in all.iter().zip([&first[..], &second, &first]) {
            assert_eq!(contents(&r, m).await.expect("reads"), want);
        }
        // Five contents, and two different indexes.
        assert_eq!(r.chunks().await.expect("listed").len(), 5 + 2);
        let find = |what: &str| Repository::find(&all, what).map(|m| m.snapshot.id);
        assert_eq!((find("v").ok(), find("v@t1").ok(), find("w").ok()), (Some(2), Some(1), Some(3)));
        assert_eq!(find(&all[1].id).ok(), Some(2));
        assert!(matches!(find("0000"), Err(Error::NotFound(_))), "several begin so");
        assert!(matches!(find("x"), Err(Error::NotFound(_))));
    });
}

/// Of the backups there, all stay.
fn none(_: &[Manifest]) -> Vec<String> {
    Vec::new()
}

#[test]
fn prune_takes_what_no_backup_needs_and_nothing_else() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let r = new(dir.path(), None).await;
        let gone = back_up(&r, "v", 1, &[1, 2, 3]).await;
        let kept = back_up(&r, "v", 2, &[1, 0, 4]).await;
        // Left behind by a backup that was broken off.
        r.put(r.name(b"half"), Bytes::from_static(b"half")).await.expect("put");
        let old = |all: &[Manifest]| vec![all[0].id.clone()];
        let would = r.prune(old, true).await.expect("counts");
        assert_eq!((would.backups, would.deleted, would.kept), (1, 4, 3), "2, 3, the index, the half one");
        assert_eq!(contents(&r, &gone).await.expect("reads"), [1, 2, 3], "only counted");
        assert_eq!(r.prune(old, false).await.expect("prunes"), would);
        assert_eq!(r.prune(none, false).await.expect("prunes").deleted, 0);
        assert_eq!(contents(&r, &kept).await.expect("reads"), [1, 0, 4]);
        // What is needed is not known while a backup cannot be read.
        let manifest = &files(dir.path(), "backups")[0];
        std::fs::write(manifest, b"x").expect("written");
        assert!(matches!(r.prune(none, false).await, Err(Error::Config(_))));
        assert_eq!(r.chunks().await.expect("listed").len(), 3);
        assert!(files(dir.path(), "locks").is_empty(), "locks are given back");
    });
}

#[test]
fn nobody_prunes_while_somebody_backs_up() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let r = new(dir.path(), None).await;
        let (one, two) = (r.lock("backup").await.expect("locks"), r.lock("backup").await.expect("locks"));
        let made = back_up(&r, "v", 1, &[1]).await;
        let all = |of: &[Manifest]| of.iter().map(|m| m.id.clone()).collect();
        assert!(matches!(r.prune(all, false).await, Err(Error::Locked(_))));
        one.release().await.expect("released");
        assert!(matches!(r.prune(all, false).await, Err(Error::Locked(_))));
        two.release().await.expect("released");
        assert_eq!(contents(&r, &made).await.expect("reads"), [1], "nothing went while it was refused");
        r.prune(none, false).await.expect("prunes");
        let prune = r.lock("prune").await.expect("locks");
        for kind in ["backup", "restore", "prune"] {
            assert!(matches!(r.lock(kind).await, Err(Error::Locked(_))), "{kind}");
        }
        prune.release().await.expect("released");
        // One that was left behind the day before yesterday.
        let old = (now_ms() - 48 * 3_600_000).to_string();
        r.place.put("locks/prune-old", Bytes::from(old)).await.expect("put");
        r.lock("backup").await.expect("locks").release().await.expect("released");
    });
}

#[test]
fn damage_is_named_whatever_file_it_is_in() {
    run(async {
        for password in [None, Some(&b"secret"[..])] {
            let dir = tempfile::tempdir().expect("a directory");
            let r = new(dir.path(), password).await;
            let m = back_up(&r, "v", 1, &[1, 2, 0, 3]).await;
            assert_eq!(contents(&r, &m).await.expect("reads"), [1, 2, 0, 3]);
            let all: Vec<_> = ["chunks", "backups"].iter().flat_map(|p| files(dir.path(), p)).collect();
            assert_eq!(all.len(), 3 + 1 + 1);
            for file in all {
                let whole = std::fs::read(&file).expect("reads");
                let mut flipped = whole.clone();
                flipped[whole.len() / 2] ^= 4;
                for bad in [Some(flipped), Some(whole[..whole.len() - 1].to_vec()), Some(Vec::new()), None] {
                    match &bad {
                        Some(b) => std::fs::write(&file, b).expect("written"),
                        None => std::fs::remove_file(&file).expect("removed"),
                    }
                    let (all, unread) = r.backups().await.expect("listed");
                    if file.starts_with(dir.path().join("backups")) {
                        assert_eq!((all.len(), unread.len()), (0, usize::from(bad.is_some())));
                    } else {
                        let e = contents(&r, &all[0]).await.expect_err("damaged");
                        let id = file.file_name().and_then(|n| Id::parse(n.to_str()?)).expect("a name");
                        assert!(e.is_damage() && e.to_string().contains(&id.to_string()), "{e}");
                    }
                    std::fs::write(&file, &whole).expect("written");
                }
            }
            assert_eq!(contents(&r, &m).await.expect("reads"), [1, 2, 0, 3]);
        }
    });
}

#[test]
fn an_encrypted_one_opens_with_its_password_only() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let r = new(dir.path(), Some(b"right")).await;
        let m = back_up(&r, "a-telling-name", 1, &[1, 2]).await;
        assert!(matches!(open(dir.path(), None).await, Err(Error::NoPassword)));
        assert!(matches!(open(dir.path(), Some(b"wrong")).await, Err(Error::Password)));
        let again = open(dir.path(), Some(b"right")).await.expect("opens");
        assert_eq!(contents(&again, &m).await.expect("reads"), [1, 2]);
        for file in ["chunks", "backups", "."].iter().flat_map(|p| files(dir.path(), p)) {
            let raw = std::fs::read(&file).expect("reads");
            assert!(!raw.windows(14).any(|w| w == b"a-telling-name"), "{}", file.display());
        }
        // Names of chunks tell nothing about contents.
        let plain = blake3::hash(&[1; CHUNK as usize]);
        assert!(!r.chunks().await.expect("listed").contains_key(&Id(*plain.as_bytes())));
    });
}

#[test]
fn what_is_no_repository_is_told_from_an_empty_place() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let at = || Place::dir(dir.path());
        assert!(Repository::open(at(), None).await.expect("looks").is_none());
        let config = dir.path().join("repo.json");
        new(dir.path(), None).await;
        let whole = std::fs::read_to_string(&config).expect("reads");
        for bad in [
            "",
            "{}",
            "[1]",
            &whole.replace("sheepdog-backup", "another"),
            &whole.replace("\"version\": 1", "\"version\": 99"),
            &whole.replace("65536", "0"),
            &whole.replace("65536", "4294967295"),
        ] {
            std::fs::write(&config, bad).expect("written");
            assert!(matches!(Repository::open(at(), None).await, Err(Error::Config(_))), "{bad}");
        }
        std::fs::write(&config, &whole).expect("written");
        let r = open(dir.path(), None).await.expect("opens");
        back_up(&r, "v", 1, &[1]).await;
        std::fs::remove_file(&config).expect("removed");
        assert!(
            matches!(Repository::open(at(), None).await, Err(Error::Config(_))),
            "not made anew over backups"
        );
    });
}

#[test]
fn one_file_holds_a_whole_repository() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("v.sheepdog");
        let out = std::fs::File::create(&path).expect("made");
        let r = Repository::create(Place::writer(Box::new(out)), Some(b"pw"), CHUNK).await.expect("made");
        let lock = r.lock("backup").await.expect("nobody else is there");
        back_up(&r, "v", 1, &[1, 0, 2]).await;
        lock.release().await.expect("released");
        r.place.finish().await.expect("finished");
        let read = |path: &Path| Place::reader(std::fs::File::open(path).expect("opens"));
        let r =
            Repository::open(read(&path).expect("reads"), Some(b"pw")).await.expect("opens").expect("there");
        let (all, bad) = r.backups().await.expect("listed");
        assert!(bad.is_empty());
        assert_eq!(contents(&r, &all[0]).await.expect("reads"), [1, 0, 2]);
        assert!(r.place.put("x", Bytes::new()).await.is_err() && r.place.delete("repo.json").await.is_err());
        // Cut short: the manifest comes last.
        let whole = std::fs::read(&path).expect("reads");
        for len in [0, 100, 600, whole.len() / 2] {
            std::fs::write(&path, &whole[..len]).expect("written");
            let opened = match read(&path) {
                Err(_) => continue,
                Ok(place) => Repository::open(place, Some(b"pw")).await,
            };
            if let Ok(Some(r)) = opened {
                assert!(r.backups().await.expect("listed").0.is_empty(), "{len}");
            }
        }
    });
}

#[test]
fn contents_are_named_and_stored_once() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let writer = Box::new(file.reopen().expect("opens"));
        let secret = Some(&b"secret"[..]);
        let sealed = dir.path().join("sealed");
        for (r, is_file) in [
            (new(dir.path(), None).await, false),
            (new(&sealed, secret).await, false),
            (Repository::create(Place::writer(writer), None, CHUNK).await.expect("made"), true),
        ] {
            let noise: Vec<u8> =
                (0..CHUNK).flat_map(|n| n.wrapping_mul(n ^ 0x9E37_79B9).to_le_bytes()).collect();
            let noise = Bytes::from(noise).slice(..CHUNK as usize);
            let even = Bytes::from(vec![7; CHUNK as usize]);
            let store =
                async |c: &Bytes, known: bool| r.store(c.clone(), move |_| known).await.expect("stored");

            assert_eq!(store(&Bytes::from(vec![0; 5]), false).await, Stored::Zeros);
            for contents in [&noise, &even] {
                let id = r.name(contents);
                assert_eq!(store(contents, true).await, Stored::There(id), "whoever knows is not doubted");
                let Stored::New { id: named, bytes } = store(contents, false).await else {
                    panic!("it is new")
                };
                assert_eq!(named, id);
                if is_file {
                    continue;
                }
                // What `put` has stored before is the same, and not stored again.
                assert_eq!(r.get(id).await.expect("there"), contents[..]);
                assert_eq!(r.chunks().await.expect("listed").get(&id), Some(&bytes));
                assert_eq!(store(contents, false).await, Stored::There(id));
                r.forget(id).await.expect("gone");
                assert_eq!(r.put(id, contents.clone()).await.expect("put"), bytes);
                assert_eq!(store(contents, false).await, Stored::There(id));
            }
        }
    });
}

#[test]
fn contents_are_as_small_as_was_asked_for() {
    run(async {
        let text: Vec<u8> =
            (0..60_000u32).flat_map(|n| format!("{:x} ", n.wrapping_mul(n)).into_bytes()).collect();
        let text = Bytes::from(text).slice(..CHUNK as usize);
        let mut sizes = Vec::new();
        for level in [0, 1, 19] {
            let dir = tempfile::tempdir().expect("a directory");
            let r = new(dir.path(), None).await.compressing(level);
            let Stored::New { id, bytes } = r.store(text.clone(), |_| false).await.expect("stored") else {
                panic!("it is new")
            };
            assert_eq!(r.get(id).await.expect("there"), text[..]);
            r.forget(id).await.expect("gone");
            assert_eq!(r.put(id, text.clone()).await.expect("put"), bytes);
            sizes.push(bytes);
        }
        assert!(sizes[0] > u64::from(CHUNK) && sizes[1] < sizes[0] && sizes[2] < sizes[1], "{sizes:?}");
    });
}
