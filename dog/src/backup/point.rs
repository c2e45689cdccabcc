//! A backup as an image that can be read.

use super::chunks::Chunks;
use crate::nbd::{Answer, Fault, Image};
use bytes::{Bytes, BytesMut};
use sheepdog_nbd::Errno;
use sheepdog_nbd::wire::state;

/// See the module.
pub struct Point(pub Chunks);

impl Image for Point {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_only(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, len: u32) -> Answer<'_, Bytes> {
        Box::pin(async move {
            let (mut at, end) = (offset, offset + u64::from(len));
            let mut out = BytesMut::with_capacity(len as usize);
            while at < end {
                let number = (at / self.0.chunk()) as usize;
                let range = self.0.range(number);
                let stop = range.end.min(end);
                if self.0.is_hole(number) {
                    out.resize(out.len() + (stop - at) as usize, 0);
                } else {
                    let data = self.0.get(number).await?;
                    out.extend_from_slice(&data[(at - range.start) as usize..(stop - range.start) as usize]);
                }
                at = stop;
            }
            Ok(out.freeze())
        })
    }
    fn write(&self, _: u64, _: Bytes) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Err(Fault::new(Errno::Perm, "a backup does not change"))))
    }
    fn zero(&self, _: u64, _: u64, _: bool) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Err(Fault::new(Errno::Perm, "a backup does not change"))))
    }
    fn status(&self, offset: u64, len: u64) -> Answer<'_, Vec<(u64, u32)>> {
        let (mut at, end) = (offset, offset + len);
        let mut runs = Vec::new();
        while at < end {
            let number = (at / self.0.chunk()) as usize;
            let stop = self.0.range(number).end.min(end);
            runs.push((stop - at, if self.0.is_hole(number) { state::HOLE | state::ZERO } else { 0 }));
            at = stop;
        }
        Box::pin(std::future::ready(Ok(runs)))
    }
}
