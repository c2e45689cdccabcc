//! A gzipped tar file (ustar), as every system unpacks it.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Write};

const BLOCK: usize = 512;

/// Write all files.
pub fn write(to: impl Write, seconds: u64, files: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut gz = GzEncoder::new(to, Compression::default());
    for (path, contents) in files {
        gz.write_all(&header(path, contents.len(), seconds)?)?;
        gz.write_all(contents)?;
        gz.write_all(&vec![0; contents.len().next_multiple_of(BLOCK) - contents.len()])?;
    }
    gz.write_all(&[0; 2 * BLOCK])?;
    gz.finish()?.flush()
}

fn header(path: &str, size: usize, seconds: u64) -> io::Result<[u8; BLOCK]> {
    let (prefix, name) = split(path).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is too long for a tar file"))
    })?;
    let mut h = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{seconds:011o}\0").as_bytes());
    // The sum is taken with blanks in its own place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
    h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(h)
}

/// Into at most 155 and at most 100 bytes, at a slash.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    let cut = path.char_indices().filter(|(_, c)| *c == '/').map(|(i, _)| i);
    cut.map(|i| (&path[..i], &path[i + 1..])).find(|(p, n)| p.len() <= 155 && n.len() <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn tar_unpacks_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.tar.gz");
        let deep = format!("b/{}/{}.log", "d".repeat(60), "f".repeat(90));
        let files = [
            ("b/empty".to_owned(), vec![]),
            ("b/text".to_owned(), b"hello".to_vec()),
            (deep.clone(), vec![b'x'; 10_000]),
        ];
        write(std::fs::File::create(&file).unwrap(), 1_000_000, &files).unwrap();
        let ran = Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(dir.path()).status().unwrap();
        assert!(ran.success());
        for (path, contents) in &files {
            assert_eq!(&std::fs::read(dir.path().join(path)).unwrap(), contents, "{path}");
        }
    }

    #[test]
    fn paths_that_do_not_fit_are_errors() {
        assert!(header(&"x".repeat(101), 0, 0).is_err());
        assert!(header(&format!("{}/x", "d".repeat(156)), 0, 0).is_err());
    }
}
