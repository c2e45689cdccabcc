//! Loop devices, by their backing file. Their numbers belong to the whole machine and mean nothing.

use crate::fault::{Fault, Kind, Outcome, io};
use std::fs::{File, OpenOptions};
use std::io::Error;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Logical block: what kernel NBD has too, so that a volume may move between nodes.
const BLOCK: u32 = 512;
/// Others take free devices at the same time.
const TRIES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

// As the kernel's headers have them.
const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

fn open(path: &Path, write: bool) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_CLOEXEC).open(path)
}

/// The device over a file.
pub fn find(backing: &Path) -> Outcome<Option<PathBuf>> {
    Ok(all()?.into_iter().find(|(file, _)| file == backing).map(|(_, device)| device))
}

/// Backing files and their devices.
pub fn all() -> Outcome<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").map_err(io("list block devices"))? {
        let name = entry.map_err(io("list block devices"))?.file_name();
        let Some(name) = name.to_str().filter(|n| n.starts_with("loop")) else { continue };
        let file = Path::new("/sys/block").join(name).join("loop/backing_file");
        // Not there: no file is behind it.
        if let Ok(text) = std::fs::read_to_string(file) {
            found.push((PathBuf::from(text.trim_end_matches('\n')), Path::new("/dev").join(name)));
        }
    }
    Ok(found)
}

/// Make a device over a file, past the page cache of that file.
pub fn make(backing: &Path, label: &str, read_only: bool) -> Outcome<PathBuf> {
    let file = open(backing, !read_only).map_err(io(backing.display()))?;
    let control = open(Path::new("/dev/loop-control"), true).map_err(io("/dev/loop-control"))?;
    let mut config = Config {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: BLOCK,
        info: Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_DIRECT_IO | if read_only { LO_FLAGS_READ_ONLY } else { 0 },
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    let label = &label.as_bytes()[..label.len().min(63)];
    config.info.file_name[..label.len()].copy_from_slice(label);
    for _ in 0..TRIES {
        // SAFETY: takes no argument, answers a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        if number < 0 {
            return Err(Fault::internal(format!("no free loop device: {}", Error::last_os_error())));
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path, !read_only).map_err(io(path.display()))?;
        // SAFETY: `config` is laid out as `struct loop_config` and outlives the call; both descriptors are open.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
        if done == 0 {
            return Ok(path);
        }
        let e = Error::last_os_error();
        if e.raw_os_error() != Some(libc::EBUSY) {
            return Err(Fault::internal(format!("make {}: {e}", path.display())));
        }
    }
    Err(Fault::new(Kind::Aborted, "others took every free loop device: try again"))
}

/// The file has another size: look at it again.
pub fn resize(device: &Path) -> Outcome<()> {
    let file = open(device, false).map_err(io(device.display()))?;
    // SAFETY: takes no argument.
    if unsafe { libc::ioctl(file.as_raw_fd(), LOOP_SET_CAPACITY as _) } == 0 {
        return Ok(());
    }
    Err(io(device.display())(Error::last_os_error()))
}

/// Take the file away from a device. While others have it open that happens when they close it.
pub fn clear(device: &Path) -> Outcome<()> {
    let file = open(device, false).map_err(io(device.display()))?;
    // SAFETY: takes no argument.
    if unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CLR_FD as _) } == 0 {
        return Ok(());
    }
    match Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        e => Err(io(device.display())(e)),
    }
}
