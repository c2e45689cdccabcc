//! How fast the clients of this gateway may use a volume (`dog vdi limit`).
//!
//! Requests wait here before anything else knows of them: nothing is held up by one that waits, not a snapshot, not a detach, not the next open. What waits is what front-ends take from
//! their clients, which is bounded. A change of the limits counts at once, also for those that wait.

use crate::control::Control;
use crate::volume::VolumeError;
use sheepdog_cluster::Limits;
use sheepdog_proto::{ControlIndex, VdiId};
use sheepdog_volume::{Limiter, Rate};
use std::cell::{Cell, RefCell};
use std::time::Duration;
use tokio::time::Instant;

/// How often somebody who waits looks whether he still has to.
const LOOK: Duration = Duration::from_millis(250);

/// See the module.
pub(super) struct Pace {
    began: Instant,
    /// The limits are those of this position.
    seen: Cell<Option<ControlIndex>>,
    limits: Cell<Limits>,
    limiter: RefCell<Limiter>,
    /// Counts changes of the limits.
    version: Cell<u64>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            seen: Cell::new(None),
            limits: Cell::default(),
            limiter: RefCell::default(),
            version: Cell::new(0),
        }
    }

    /// Wait until a request of so many bytes may go. `gone`: whoever asked is not there any more.
    ///
    /// # Errors
    /// He is not.
    pub(super) async fn admit(
        &self,
        control: &Control,
        vdi: VdiId,
        bytes: u64,
        gone: impl Fn() -> bool,
    ) -> Result<(), VolumeError> {
        loop {
            self.follow(control, vdi);
            if self.limiter.borrow().is_open() {
                return Ok(());
            }
            let version = self.version.get();
            let now = self.began.elapsed().as_nanos() as u64;
            let wait = self.limiter.borrow_mut().admit(now, bytes);
            let until = Instant::now() + wait.min(Duration::from_secs(365 * 24 * 3600));
            while version == self.version.get() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(());
                }
                if gone() {
                    return Err(VolumeError::Gone("closed".into()));
                }
                tokio::time::sleep(left.min(LOOK)).await;
                self.follow(control, vdi);
            }
        }
    }

    fn follow(&self, control: &Control, vdi: VdiId) {
        let index = control.applied().index;
        if self.seen.replace(Some(index)) == Some(index) {
            return;
        }
        let limits = control.read(|s| s.vdis.get(&vdi).map_or_else(Limits::default, |v| v.limits));
        if self.limits.replace(limits) == limits {
            return;
        }
        let rate = |per_second, burst| (per_second > 0).then_some(Rate { per_second, burst });
        let Limits { iops, iops_burst, bandwidth, bandwidth_burst } = limits;
        *self.limiter.borrow_mut() = Limiter::new(rate(iops, iops_burst), rate(bandwidth, bandwidth_burst));
        self.version.set(self.version.get() + 1);
    }
}
