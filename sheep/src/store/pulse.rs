//! Does a disk still answer? One that has stopped returns no error, so nothing else notices: every look asks for a block of its journal and of its identity, and what look after look
//! still waits for shows it. How long is too long is decided in `work/health/hang`.

use super::Store;
use super::disk::Disk;
use super::fs::{File, OpenHow};
use super::open::IDENTITY;
use sheepdog_proto::{BLOCK_SIZE, DiskId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Looks at one disk.
#[derive(Default)]
pub(super) struct Pulse {
    asked: Cell<u64>,
    answered: Cell<u64>,
    /// Open from the first look on: opening may itself have to wait for the disk.
    identity: RefCell<Option<Rc<dyn File>>>,
}

/// What a disk has under way, by number: the same at two looks is the same request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owing {
    /// The read that an earlier look asked for.
    pub look: Option<u64>,
    /// The oldest batch that is being written to its journal.
    pub batch: Option<u64>,
}

impl Disk {
    fn look(self: &Rc<Self>) -> Owing {
        let asked = self.pulse.asked.get();
        let look = (asked != self.pulse.answered.get()).then_some(asked);
        if look.is_none() {
            self.pulse.asked.set(asked + 1);
            let this = self.clone();
            tokio::task::spawn_local(async move {
                if let Err(e) = this.read_something().await {
                    this.fail(e.to_string());
                }
                this.pulse.answered.set(asked + 1);
            });
        }
        Owing { look, batch: self.journal.oldest() }
    }

    async fn read_something(&self) -> std::io::Result<()> {
        let known = self.pulse.identity.borrow().clone();
        let file = match known {
            Some(file) => file,
            None => {
                let how = OpenHow { create: false, direct: true };
                let file = self.fs.open(&self.path.join(IDENTITY), how)?;
                self.pulse.identity.borrow_mut().insert(file).clone()
            }
        };
        self.journal.read_something().await?;
        file.read_at(0, BLOCK_SIZE).await.map(drop)
    }

    /// Whoever waits for it need not.
    fn give_up(&self, why: &str) {
        self.journal.give_up(why);
        self.gave_up.notify_waiters();
    }
}

impl Store {
    /// Ask every disk in use for a block, unless it owes the last one, and tell what each has under way.
    pub fn look(&self) -> Vec<(DiskId, Owing)> {
        let disks: Vec<Rc<Disk>> = self.disks.borrow().clone();
        disks.iter().filter(|d| d.check().is_ok()).map(|d| (d.id, d.look())).collect()
    }

    /// A disk answers nothing any more: it has failed, and whoever waits for it is told so.
    pub fn give_up(&self, disk: DiskId, why: &str) {
        let found = self.disks.borrow().iter().find(|d| d.id == disk).cloned();
        if let Some(d) = found {
            d.fail(why.to_owned());
            d.give_up(why);
        }
    }

    /// The same of all disks, but nobody is told that they have failed: the process ends, and what is on them may be there when it is started again.
    pub fn give_up_all(&self, why: &str) {
        let disks: Vec<Rc<Disk>> = self.disks.borrow().clone();
        for d in disks {
            d.out_of_use(why);
            d.give_up(why);
        }
    }
}
