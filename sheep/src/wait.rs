//! Waiting for a condition of the data thread.

use tokio::sync::Notify;

/// Look until there is something, again whenever `changed` tells all its waiters. Whoever changes what is looked at calls `notify_waiters` afterwards.
pub async fn until<T>(changed: &Notify, mut look: impl FnMut() -> Option<T>) -> T {
    // Most of the time nobody has to wait.
    if let Some(found) = look() {
        return found;
    }
    loop {
        let told = changed.notified();
        tokio::pin!(told);
        told.as_mut().enable();
        if let Some(found) = look() {
            return found;
        }
        told.await;
    }
}
