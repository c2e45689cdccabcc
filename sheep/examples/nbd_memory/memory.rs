//! Volumes in memory: sparse, with holes, snapshots and growth. For tests of front-ends and for their ceilings.
//!
//! Also a handle to make requests wait, which is how tests act out a parked cluster.

use bytes::Bytes;
use sheep::buf::{AlignedBuf, zeros};
use sheep::volume::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::sync::watch;

/// Bytes per allocation unit.
const PAGE: u64 = 64 << 10;

type Pages = BTreeMap<u64, Rc<RefCell<AlignedBuf>>>;

/// One VDI or snapshot.
pub struct Store {
    name: String,
    size: Cell<u64>,
    read_only: bool,
    pages: RefCell<Pages>,
    /// While true, every request waits.
    parked: watch::Sender<bool>,
    /// True: whoever has it open has lost the right to.
    pub taken_away: watch::Sender<bool>,
    /// Opens that are not closed.
    pub open: Cell<usize>,
    /// Requests that have ended.
    pub finished: Cell<u64>,
    /// What every request shall fail with.
    pub fault: RefCell<Option<VolumeError>>,
    /// Every payload so far was aligned in memory.
    pub aligned: Cell<bool>,
}

impl Store {
    fn new(name: &str, size: u64, read_only: bool, pages: Pages) -> Rc<Self> {
        Rc::new(Self {
            name: name.into(),
            size: Cell::new(size),
            read_only,
            pages: RefCell::new(pages),
            parked: watch::Sender::new(false),
            taken_away: watch::Sender::new(false),
            open: Cell::new(0),
            finished: Cell::new(0),
            fault: RefCell::default(),
            aligned: Cell::new(true),
        })
    }
    /// Make requests wait, or let them go.
    pub fn park(&self, yes: bool) {
        self.parked.send_replace(yes);
    }
    /// Grow or shrink.
    pub fn resize(&self, size: u64) {
        self.size.set(size);
    }
    fn info(&self) -> ExportInfo {
        ExportInfo { name: self.name.clone(), size: self.size.get(), read_only: self.read_only }
    }
}

/// The table.
#[derive(Default)]
pub struct MemorySource {
    stores: RefCell<BTreeMap<String, Rc<Store>>>,
}

impl MemorySource {
    /// A new empty VDI.
    pub fn create(&self, name: &str, size: u64) -> Rc<Store> {
        self.insert(Store::new(name, size, false, Pages::new()))
    }
    /// Freeze what `name` holds now as `name@tag`.
    pub fn snapshot(&self, name: &str, tag: &str) -> Rc<Store> {
        let of = self.stores.borrow()[name].clone();
        let copy = |p: &Rc<RefCell<AlignedBuf>>| Rc::new(RefCell::new(AlignedBuf::copy_of(&p.borrow())));
        let pages = of.pages.borrow().iter().map(|(k, p)| (*k, copy(p))).collect();
        self.insert(Store::new(&format!("{name}@{tag}"), of.size.get(), true, pages))
    }
    fn insert(&self, s: Rc<Store>) -> Rc<Store> {
        self.stores.borrow_mut().insert(s.name.clone(), s.clone());
        s
    }
    fn find(&self, name: &str) -> Result<Rc<Store>, VolumeError> {
        let stores = self.stores.borrow();
        stores.get(name).cloned().ok_or_else(|| VolumeError::NotFound(format!("no volume named '{name}'")))
    }
}

impl VolumeSource for MemorySource {
    fn list(&self) -> LocalFut<'_, Result<Vec<ExportInfo>, VolumeError>> {
        Box::pin(async { Ok(self.stores.borrow().values().map(|s| s.info()).collect()) })
    }
    fn info(&self, name: &str) -> LocalFut<'_, Result<ExportInfo, VolumeError>> {
        let found = self.find(name);
        Box::pin(async move { Ok(found?.info()) })
    }
    fn open(&self, name: &str) -> LocalFut<'_, Result<Rc<dyn Volume>, VolumeError>> {
        let found = self.find(name);
        Box::pin(async move {
            let store = found?;
            store.open.set(store.open.get() + 1);
            Ok(Rc::new(Open { store, busy: watch::Sender::new(0) }) as Rc<dyn Volume>)
        })
    }
}

/// One open.
struct Open {
    store: Rc<Store>,
    busy: watch::Sender<usize>,
}

impl Open {
    /// The frame of every request: wait while parked, fail when told to, count.
    async fn gate<T>(&self, work: impl FnOnce(&Store) -> Result<T, VolumeError>) -> Result<T, VolumeError> {
        self.busy.send_modify(|n| *n += 1);
        if *self.store.parked.borrow() {
            let mut parked = self.store.parked.subscribe();
            let _ = parked.wait_for(|p| !*p).await;
        }
        let fault = self.store.fault.borrow().clone();
        let result = fault.map_or_else(|| work(&self.store), Err);
        self.store.finished.set(self.store.finished.get() + 1);
        self.busy.send_modify(|n| *n -= 1);
        result
    }
}

/// Cut a range at page borders: page, offset in it, length.
fn cuts(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let n = (PAGE - at % PAGE).min(end - at);
        let cut = (at / PAGE, (at % PAGE) as usize, n as usize);
        at += n;
        (n > 0).then_some(cut)
    })
}

impl Store {
    fn check(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size.get() => Ok(()),
            _ => Err(VolumeError::OutOfRange),
        }
    }
    fn read(&self, offset: u64, len: u32) -> Result<Vec<Bytes>, VolumeError> {
        self.check(offset, len.into())?;
        let pages = self.pages.borrow();
        let part = |(page, at, n): (u64, usize, usize)| match pages.get(&page) {
            Some(p) => AlignedBuf::copy_of(&p.borrow()[at..at + n]).freeze(),
            None => zeros(n),
        };
        Ok(cuts(offset, len.into()).map(part).collect())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.check(offset, data.len() as u64)?;
        if self.read_only {
            return Err(VolumeError::ReadOnly);
        }
        self.aligned.set(self.aligned.get() && (data.as_ptr() as usize).is_multiple_of(4096));
        let mut pages = self.pages.borrow_mut();
        let mut done = 0;
        for (page, at, n) in cuts(offset, data.len() as u64) {
            let fresh = || Rc::new(RefCell::new(AlignedBuf::zeroed(PAGE as usize)));
            let p = pages.entry(page).or_insert_with(fresh);
            p.borrow_mut()[at..at + n].copy_from_slice(&data[done..done + n]);
            done += n;
        }
        Ok(())
    }
    fn clear(&self, offset: u64, len: u64, keep: bool) -> Result<(), VolumeError> {
        self.check(offset, len)?;
        if self.read_only {
            return Err(VolumeError::ReadOnly);
        }
        let mut pages = self.pages.borrow_mut();
        for (page, at, n) in cuts(offset, len) {
            if n as u64 == PAGE && !keep {
                pages.remove(&page);
            } else if let Some(p) = pages.get(&page) {
                p.borrow_mut()[at..at + n].fill(0);
            } else if keep {
                pages.insert(page, Rc::new(RefCell::new(AlignedBuf::zeroed(PAGE as usize))));
            }
        }
        Ok(())
    }
    fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, VolumeError> {
        self.check(offset, len)?;
        let pages = self.pages.borrow();
        let mut out: Vec<Extent> = Vec::new();
        for (page, _, n) in cuts(offset, len) {
            let hole = !pages.contains_key(&page);
            let full = out.len() == max;
            match out.last_mut() {
                Some(e) if e.hole == hole => e.len += n as u64,
                _ if full => break,
                _ => out.push(Extent { len: n as u64, hole, zero: hole }),
            }
        }
        Ok(out)
    }
}

impl Volume for Open {
    fn size(&self) -> u64 {
        self.store.size.get()
    }
    fn read_only(&self) -> bool {
        self.store.read_only
    }
    fn read(&self, offset: u64, len: u32) -> LocalFut<'_, Result<Vec<Bytes>, VolumeError>> {
        Box::pin(self.gate(move |s| s.read(offset, len)))
    }
    fn write(&self, offset: u64, data: Bytes) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(self.gate(move |s| s.write(offset, &data)))
    }
    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(self.gate(move |s| s.clear(offset, len, flags.no_hole)))
    }
    fn trim(&self, offset: u64, len: u64) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(self.gate(move |s| s.clear(offset, len, false)))
    }
    fn flush(&self) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(self.gate(|_| Ok(())))
    }
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max: usize,
    ) -> LocalFut<'_, Result<Vec<Extent>, VolumeError>> {
        Box::pin(self.gate(move |s| s.extents(offset, len, max)))
    }
    fn revoked(&self) -> LocalFut<'_, ()> {
        Box::pin(async {
            let _ = self.store.taken_away.subscribe().wait_for(|yes| *yes).await;
        })
    }
    fn close(&self) -> LocalFut<'_, ()> {
        Box::pin(async {
            let _ = self.busy.subscribe().wait_for(|n| *n == 0).await;
            self.store.open.set(self.store.open.get() - 1);
        })
    }
}
