//! From contents to what is stored, and back.
//!
//! ```text
//! 0   magic        "SDB1"
//! 4   compression  0 none, 1 zstd
//! 5   encryption   0 none, 1 XChaCha20-Poly1305
//! 6   zeros        2 bytes
//! 8   length       of the contents, 4 bytes, little endian
//! 12  body         encrypted: 24 bytes of nonce, then ciphertext and tag; the 12 bytes above and the name are authenticated with it
//! ```
//! A chunk's name is the BLAKE3 hash of its contents; in an encrypted repository it is keyed, so that names tell nothing about contents. Keys come from a password through
//! Argon2id.

use crate::error::Error;
use crate::hex::{hex, unhex};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fmt;

const MAGIC: &[u8; 4] = b"SDB1";
/// Bytes in front of the body.
pub const HEAD: usize = 12;
const NONCE: usize = 24;
/// Contents of one chunk or page at most, bytes.
pub const MAX: usize = 64 << 20;
/// Zstandard's: the fastest there is, and most of what there is to gain. 0 leaves contents as they are.
pub const LEVEL: i32 = 1;
/// The highest: smaller, and a hundred times slower.
pub const LEVELS: i32 = 19;
/// Bytes that are tried first.
const SAMPLE: usize = 32 << 10;

/// Name of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id(pub [u8; 32]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Id {
    /// From the 64 digits that `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(unhex(text)?.try_into().ok()?))
    }
}

/// How a key is made of a password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derivation {
    /// "argon2id".
    pub name: String,
    /// 16 random bytes, in hexadecimal.
    pub salt: String,
    /// Memory, KiB.
    pub memory: u32,
    /// Passes.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Derivation {
    /// For a new repository: what RFC 9106 recommends where memory is scarce.
    pub fn new() -> Self {
        let salt = uuid::Uuid::new_v4().simple().to_string();
        Self { name: "argon2id".into(), salt, memory: 64 << 10, passes: 3, lanes: 4 }
    }
}

impl Default for Derivation {
    fn default() -> Self {
        Self::new()
    }
}

/// Keys of an encrypted repository.
#[derive(Clone)]
pub struct Key {
    naming: [u8; 32],
    cipher: XChaCha20Poly1305,
}

impl Key {
    /// From a password. Takes a moment, and memory, on purpose.
    ///
    /// # Errors
    /// Parameters that make no sense.
    pub fn derive(password: &[u8], how: &Derivation) -> Result<Self, Error> {
        let bad = |why: &dyn fmt::Display| Error::Config(format!("the key derivation in repo.json: {why}"));
        // Bounded, because the file says how much memory is taken.
        if how.name != "argon2id" || how.memory > 4 << 20 || how.passes > 64 || how.lanes > 64 {
            return Err(bad(&"not known to this version of dog"));
        }
        let params = argon2::Params::new(how.memory, how.passes, how.lanes, Some(32)).map_err(|e| bad(&e))?;
        let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut root = [0; 32];
        argon.hash_password_into(password, how.salt.as_bytes(), &mut root).map_err(|e| bad(&e))?;
        let naming = blake3::derive_key("sheepdog backup 1: names of chunks", &root);
        let contents = blake3::derive_key("sheepdog backup 1: contents of chunks", &root);
        Ok(Self { naming, cipher: XChaCha20Poly1305::new(&contents.into()) })
    }
}

/// Name of these contents.
pub fn name(key: Option<&Key>, contents: &[u8]) -> Id {
    let hash = match key {
        None => blake3::hash(contents),
        Some(key) => blake3::keyed_hash(&key.naming, contents),
    };
    Id(*hash.as_bytes())
}

thread_local! {
    /// Tables for compressing, which cost as much to make as to use, and room for what comes of it.
    static PACKER: RefCell<Option<Packer>> = const { RefCell::new(None) };
}

struct Packer {
    level: i32,
    compressor: zstd::bulk::Compressor<'static>,
    out: Vec<u8>,
}

impl Packer {
    fn new(level: i32) -> Option<Self> {
        let compressor = zstd::bulk::Compressor::new(level).ok()?;
        Some(Self { level, compressor, out: Vec::new() })
    }
    fn shrinks(&mut self, of: &[u8]) -> bool {
        self.out.clear();
        self.out.reserve(zstd::zstd_safe::compress_bound(of.len()));
        self.compressor.compress_to_buffer(of, &mut self.out).is_ok_and(|n| n < of.len() - of.len() / 32)
    }
}

/// Smaller, if that is worth it: then `use_it` gets it. What does not shrink in the middle, as encrypted or compressed contents do not, is not tried as a whole.
fn compressed<T>(contents: &[u8], level: i32, use_it: impl FnOnce(Option<&[u8]>) -> T) -> T {
    if level == 0 {
        return use_it(None);
    }
    PACKER.with_borrow_mut(|kept| {
        if kept.as_ref().is_none_or(|p| p.level != level) {
            *kept = Packer::new(level);
        }
        let Some(packer) = kept else { return use_it(None) };
        let middle = contents.len() / 2;
        let sample = contents.get(middle..middle + SAMPLE).unwrap_or_default();
        let worth = (sample.is_empty() || packer.shrinks(sample)) && packer.shrinks(contents);
        use_it(worth.then_some(&packer.out[..]))
    })
}

/// As they are stored: a head, and the body that follows it, which are handed to `use_it`. `level`: see `LEVEL`. Deterministic without a key.
///
/// # Errors
/// Longer than `MAX`.
pub fn sealed<T>(
    key: Option<&Key>,
    id: Id,
    contents: &[u8],
    level: i32,
    use_it: impl FnOnce(&[u8; HEAD], &[u8]) -> T,
) -> Result<T, Error> {
    if contents.len() > MAX {
        return Err(Error::Config(format!(
            "{} bytes in one chunk: at most {MAX} are stored",
            contents.len()
        )));
    }
    compressed(contents, level, |packed| {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(MAGIC);
        head[4..6].copy_from_slice(&[u8::from(packed.is_some()), u8::from(key.is_some())]);
        head[8..].copy_from_slice(&(contents.len() as u32).to_le_bytes());
        let body = packed.unwrap_or(contents);
        match key {
            None => Ok(use_it(&head, body)),
            Some(key) => Ok(use_it(&head, &encrypt(key, id, &head, body)?)),
        }
    })
}

/// Nonce, ciphertext, tag.
fn encrypt(key: &Key, id: Id, head: &[u8; HEAD], body: &[u8]) -> Result<Vec<u8>, Error> {
    let mut nonce = [0; NONCE];
    nonce[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    nonce[16..].copy_from_slice(&uuid::Uuid::new_v4().as_bytes()[..8]);
    let aad = [&head[..], &id.0].concat();
    let sealed = key.cipher.encrypt(XNonce::from_slice(&nonce), Payload { msg: body, aad: &aad });
    let mut sealed = sealed.map_err(|_| Error::Config("encryption failed".into()))?;
    sealed.splice(..0, nonce);
    Ok(sealed)
}

/// The same as one.
///
/// # Errors
/// Longer than `MAX`.
pub fn seal(key: Option<&Key>, id: Id, contents: &[u8]) -> Result<Vec<u8>, Error> {
    seal_at(key, id, contents, LEVEL)
}

/// The same at another level.
///
/// # Errors
/// Longer than `MAX`.
pub fn seal_at(key: Option<&Key>, id: Id, contents: &[u8], level: i32) -> Result<Vec<u8>, Error> {
    sealed(key, id, contents, level, |head, body| [head, body].concat())
}

/// Contents again, which are what was stored under this name.
///
/// # Errors
/// `Damaged`, `NoPassword`.
pub fn open(key: Option<&Key>, id: Id, stored: &[u8]) -> Result<Vec<u8>, Error> {
    let damaged = |why: &str| Error::Damaged { id, why: why.into() };
    let Some((head, body)) = stored.split_at_checked(HEAD) else { return Err(damaged("it is cut short")) };
    let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
    if head[..4] != *MAGIC || head[6..8] != [0, 0] || len > MAX {
        return Err(damaged("its head makes no sense"));
    }
    let decrypted;
    let packed = match (head[5], key) {
        (0, None) => body,
        (1, Some(key)) => {
            let Some((nonce, sealed)) = body.split_at_checked(NONCE) else {
                return Err(damaged("it is cut short"));
            };
            let aad = [head, &id.0].concat();
            let opened = key.cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: &aad });
            decrypted = opened.map_err(|_| damaged("it was changed, or sealed with another key"))?;
            &decrypted[..]
        }
        (1, None) => return Err(Error::NoPassword),
        _ => return Err(damaged("it is not encrypted as the repository is")),
    };
    let contents = match head[4] {
        0 => packed.to_vec(),
        1 => zstd::bulk::decompress(packed, len).map_err(|_| damaged("it cannot be decompressed"))?,
        _ => return Err(damaged("it is compressed in a way that is not known here")),
    };
    if contents.len() != len || name(key, &contents) != id {
        return Err(damaged("its contents are not those that were stored"));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(password: &str) -> Key {
        let quick = Derivation { memory: 8, passes: 1, lanes: 1, salt: "0".repeat(32), ..Derivation::new() };
        Key::derive(password.as_bytes(), &quick).expect("a key")
    }

    #[test]
    fn contents_come_back_and_nothing_else_does() {
        let k = key("a");
        for key in [None, Some(&k)] {
            for contents in
                [vec![], vec![7; 100_000], (0..5000u32).flat_map(|n| (n * n).to_le_bytes()).collect()]
            {
                let id = name(key, &contents);
                let stored = seal(key, id, &contents).expect("seals");
                assert_eq!(open(key, id, &stored).expect("opens"), contents);
                for at in (0..stored.len()).step_by(stored.len() / 40 + 1) {
                    let mut bad = stored.clone();
                    bad[at] ^= 1;
                    // A head that means the same does no harm.
                    assert!(
                        open(key, id, &bad).is_ok_and(|c| c == contents)
                            == (contents.is_empty() && at == 4 && key.is_none()),
                        "byte {at}"
                    );
                    assert!(open(key, id, &stored[..at]).is_err(), "cut at {at}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let mut x = 1u64;
        let mut noise = |n: usize| -> Vec<u8> {
            let mut next = || {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x as u8
            };
            (0..n).map(|_| next()).collect()
        };
        let (random, zeros) = (noise(1 << 20), vec![0; 1 << 20]);
        for (contents, small) in
            [(random.clone(), false), ([&random[..1 << 19], &zeros].concat(), true), (zeros, true)]
        {
            let id = name(None, &contents);
            let stored = seal(None, id, &contents).expect("seals");
            assert_eq!(stored.len() < contents.len(), small, "{}", stored.len());
            assert!(stored.len() <= contents.len() + HEAD);
            assert_eq!(open(None, id, &stored).expect("opens"), contents);
        }
    }

    #[test]
    fn names_and_contents_need_the_key() {
        let (a, b) = (key("a"), key("b"));
        let id = name(Some(&a), b"contents");
        assert_ne!(id, name(Some(&b), b"contents"));
        assert_ne!(id, name(None, b"contents"));
        let stored = seal(Some(&a), id, b"contents").expect("seals");
        assert!(matches!(open(Some(&b), id, &stored), Err(Error::Damaged { .. })));
        assert!(matches!(open(None, id, &stored), Err(Error::NoPassword)));
        assert!(!stored.windows(8).any(|w| w == b"contents"));
        // What was not encrypted is not taken for what was.
        let plain = seal(None, name(None, b"contents"), b"contents").expect("seals");
        assert!(matches!(open(Some(&a), id, &plain), Err(Error::Damaged { .. })));
    }

    #[test]
    fn the_format_is_fixed() {
        let id = name(None, &[5; 4096]);
        assert_eq!(id.to_string(), "a54391d7a8d382c1b10f7d7ae7a78c71c98d9ec26e2f5a85fa3663200b99db61");
        let stored = seal(None, id, b"").expect("seals");
        assert_eq!(stored, [b'S', b'D', b'B', b'1', 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Id::parse(&id.to_string()), Some(id));
        assert_eq!(Id::parse("xy"), None);
    }

    proptest! {
        #[test]
        fn anything_may_be_stored_there(stored in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = open(None, Id([0; 32]), &stored);
            let mut whole = b"SDB1\x01\0\0\0\xff\xff\xff\x03".to_vec();
            whole.extend(stored);
            prop_assert!(open(None, Id([0; 32]), &whole).is_err());
        }
    }
}
