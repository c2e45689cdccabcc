//! A very small NBD client of our own, one request at a time: for histories, where it matters when each request began and ended.

use anyhow::{Context as _, Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const IHAVEOPT: u64 = 0x4948_4156_454F_5054;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// A connection.
#[derive(Debug)]
pub struct Nbd {
    socket: UnixStream,
    handle: u64,
}

/// Asked from time to time while nothing comes: true means give up.
pub type Enough<'a> = &'a dyn Fn() -> bool;

impl Nbd {
    /// Connect to an export.
    pub fn open(path: &Path, export: &str, enough: Enough<'_>) -> Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut me = Self { socket, handle: 0 };
        let mut hello = [0; 18];
        me.read_exact(&mut hello, enough)?;
        ensure!(&hello[..8] == b"NBDMAGIC" && hello[8..16] == IHAVEOPT.to_be_bytes(), "not an NBD server");
        let mut out = 3u32.to_be_bytes().to_vec();
        out.extend(IHAVEOPT.to_be_bytes());
        out.extend(1u32.to_be_bytes());
        out.extend((export.len() as u32).to_be_bytes());
        out.extend(export.as_bytes());
        me.socket.write_all(&out)?;
        let mut size_and_flags = [0; 10];
        me.read_exact(&mut size_and_flags, enough).context("export")?;
        Ok(me)
    }

    fn read_exact(&mut self, buf: &mut [u8], enough: Enough<'_>) -> Result<()> {
        let mut at = 0;
        while at < buf.len() {
            match self.socket.read(&mut buf[at..]) {
                Ok(0) => bail!("closed"),
                Ok(n) => at += n,
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    ensure!(!enough(), "given up");
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn request(
        &mut self,
        kind: u16,
        offset: u64,
        len: usize,
        data: &[u8],
        enough: Enough<'_>,
    ) -> Result<u32> {
        self.handle += 1;
        let mut out = REQUEST.to_be_bytes().to_vec();
        out.extend(0u16.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend(self.handle.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend((len as u32).to_be_bytes());
        out.extend(data);
        self.socket.write_all(&out)?;
        let mut head = [0; 16];
        self.read_exact(&mut head, enough)?;
        ensure!(
            head[..4] == REPLY.to_be_bytes() && head[8..] == self.handle.to_be_bytes(),
            "not a reply: {head:?}"
        );
        Ok(u32::from_be_bytes([head[4], head[5], head[6], head[7]]))
    }

    /// Read. An inner error is the server's.
    pub fn read(&mut self, offset: u64, buf: &mut [u8], enough: Enough<'_>) -> Result<Result<(), u32>> {
        match self.request(0, offset, buf.len(), &[], enough)? {
            0 => self.read_exact(buf, enough).map(Ok),
            errno => Ok(Err(errno)),
        }
    }

    /// Many reads of one size at once; the answers come in any order and are not looked at.
    pub fn read_all(&mut self, offsets: &[u64], len: usize, enough: Enough<'_>) -> Result<()> {
        let mut out = Vec::with_capacity(offsets.len() * 28);
        for offset in offsets {
            self.handle += 1;
            out.extend(REQUEST.to_be_bytes());
            out.extend([0; 4]);
            out.extend(self.handle.to_be_bytes());
            out.extend(offset.to_be_bytes());
            out.extend((len as u32).to_be_bytes());
        }
        self.socket.write_all(&out)?;
        let mut answer = vec![0; 16 + len];
        for _ in offsets {
            self.read_exact(&mut answer, enough)?;
            ensure!(answer[..4] == REPLY.to_be_bytes(), "not a reply");
            ensure!(answer[4..8] == [0; 4], "a read failed: {:?}", &answer[4..8]);
        }
        Ok(())
    }

    /// Write. An inner error is the server's.
    pub fn write(&mut self, offset: u64, data: &[u8], enough: Enough<'_>) -> Result<Result<(), u32>> {
        let errno = self.request(1, offset, data.len(), data, enough)?;
        Ok(if errno == 0 { Ok(()) } else { Err(errno) })
    }
}
