//! Directories that are still there after a power cut.

use std::io;
use std::path::Path;

/// Make a directory and the parents that it lacks. Each new name is on stable storage when this returns: what is written into the directory later may be
/// acknowledged.
pub fn make(path: &Path) -> io::Result<()> {
    make_by(path, &mut sync)
}

/// Is another file system, or another part of one, mounted there? Nothing is there: no.
pub fn is_mount_point(path: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let looked = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
    looked.is_ok_and(|s| s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The names in a directory are on stable storage.
pub fn sync(path: &Path) -> io::Result<()> {
    // The parent of a relative path of one word.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    std::fs::File::open(path)?.sync_all()
}

fn make_by(path: &Path, sync: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Where the parent is there nothing can be made in it (/proc).
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty() && !p.is_dir());
            let Some(parent) = parent else { return Err(e) };
            make_by(parent, sync)?;
            make_by(path, sync)
        }
        Err(_) if path.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_of_every_new_directory_is_synced() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let (a, b, c) = (tmp.path().join("a"), tmp.path().join("a/b"), tmp.path().join("a/b/c"));
        let mut synced = Vec::new();
        let mut note = |p: &Path| {
            synced.push(p.to_owned());
            sync(p)
        };
        make_by(&c, &mut note).expect("makes");
        make_by(&c, &mut note).expect("is there");
        make_by(&b.join("d"), &mut note).expect("makes");
        assert_eq!(synced, [tmp.path().to_owned(), a, b.clone(), b.clone()]);
        std::fs::write(b.join("file"), b"x").expect("writes");
        assert!(make(&b.join("file")).is_err() && make(&b.join("file/e")).is_err());
        assert!(
            make(Path::new("/proc/nowhere")).is_err() && make(Path::new("/proc/nowhere/at/all")).is_err()
        );
        // Where the parent cannot be synced nothing may count on the new directory.
        make_by(&b.join("e"), &mut |_| Err(io::ErrorKind::Other.into())).expect_err("not durable");
    }
}
