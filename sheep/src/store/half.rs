//! Objects of which a fill was begun and has not ended: neither what they were nor what they are to be, whatever their version says.
//!
//! The mark is in the object's header, so it outlives the process that was filling. It is kept here as well, because every read has to ask.

use super::Store;
use super::disk::Disk;
use sheepdog_proto::ObjectId;
use std::collections::BTreeSet;

impl Disk {
    /// An object is half filled now, or is not.
    pub(super) fn note_half(&self, oid: ObjectId, filling: bool) {
        // A strip that is half made is none: it is made again.
        if !oid.is_data() {
            return;
        }
        let mut half = self.half.borrow_mut();
        match filling {
            true => half.insert(oid),
            false => half.remove(&oid),
        };
    }
}

impl Store {
    /// Of one disk. What is being made there of an object that moves is nobody's copy yet.
    fn half_on<'a>(
        &'a self,
        d: &'a Disk,
        half: &'a BTreeSet<ObjectId>,
    ) -> impl Iterator<Item = ObjectId> + 'a {
        half.iter().copied().filter(|oid| !self.moves.hides(d.id, *oid))
    }
    /// Is there any?
    pub fn has_half_filled(&self) -> bool {
        self.disks.borrow().iter().any(|d| self.half_on(d, &d.half.borrow()).next().is_some())
    }
    /// Is this one?
    pub fn is_half_filled(&self, oid: ObjectId) -> bool {
        self.disks.borrow().iter().any(|d| d.half.borrow().contains(&oid) && !self.moves.hides(d.id, oid))
    }
    /// All of them.
    pub fn half_filled(&self) -> Vec<ObjectId> {
        let mut all = Vec::new();
        for d in self.disks.borrow().iter() {
            all.extend(self.half_on(d, &d.half.borrow()));
        }
        all
    }
}
