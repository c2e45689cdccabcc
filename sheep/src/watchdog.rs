//! A process that can do nothing any more because of a disk must not look alive: some calls to the kernel wait in the thread that makes them (making a directory durable, giving space
//! back), and the control log is written by a thread of its own. When the data thread does not turn any more, or the log does not end what it has begun, for half a minute, the process ends.

use crate::work::health::hang::{LOOK, LOOKS, again};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Turns of a thread, or what is being done on it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Beat(Arc<AtomicU64>);

impl Beat {
    /// One more.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    /// How many.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    /// One more for every look, for as long as whoever polls this turns.
    pub async fn turn(self) {
        loop {
            tokio::time::sleep(LOOK / 2).await;
            self.beat();
        }
    }
}

/// Returns when so many looks found the same number. `None` counts as another one: there is nothing to wait for.
pub async fn stopped(look: impl Fn() -> Option<u64>) {
    let (mut last, mut looks) = (None, 0);
    while looks < LOOKS {
        tokio::time::sleep(LOOK).await;
        let now = look();
        looks = again(last, now, looks);
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn what_turns_is_left_alone() {
        let beat = Beat::default();
        let turning = tokio::spawn(beat.clone().turn());
        let watched = tokio::time::timeout(Duration::from_secs(600), stopped(|| Some(beat.count())));
        assert!(watched.await.is_err(), "it turned");
        turning.abort();
        let watched = tokio::time::timeout(LOOK * (LOOKS + 3), stopped(|| Some(beat.count())));
        assert!(watched.await.is_ok(), "it did not");
        let idle = tokio::time::timeout(Duration::from_secs(600), stopped(|| None));
        assert!(idle.await.is_err(), "there was nothing to do");
    }
}
