//! One operation at a time on one thing: a volume, a name, a path. Whoever comes second is told to come again.

use crate::fault::{Fault, Kind, Outcome};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What is busy, and with what.
#[derive(Clone, Default, Debug)]
pub struct Locks {
    busy: Arc<Mutex<BTreeMap<String, &'static str>>>,
}

/// Held while an operation runs.
#[derive(Debug)]
pub struct Held {
    locks: Locks,
    keys: Vec<String>,
}

impl Locks {
    /// Take all keys, or none and be told to come again.
    pub fn take(&self, doing: &'static str, keys: impl IntoIterator<Item = String>) -> Outcome<Held> {
        let mut keys: Vec<String> = keys.into_iter().collect();
        keys.sort();
        keys.dedup();
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, with)) = keys.iter().find_map(|k| busy.get(k).map(|w| (k, w))) {
            return Err(Fault::new(
                Kind::Aborted,
                format!("{with} of {key} is under way: try again when it is done"),
            ));
        }
        for k in &keys {
            busy.insert(k.clone(), doing);
        }
        drop(busy);
        Ok(Held { locks: self.clone(), keys })
    }

    /// Run an operation under its locks. It goes on when the caller leaves, so that nothing is cut off in the middle, and the locks are
    /// given back when it is over, however it ends.
    pub async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        keys: impl IntoIterator<Item = String>,
        operation: impl Future<Output = Outcome<T>> + Send + 'static,
    ) -> Outcome<T> {
        let held = self.take(doing, keys)?;
        let task = tokio::spawn(async move {
            let _held = held;
            operation.await
        });
        task.await.unwrap_or_else(|e| Err(Fault::internal(format!("{doing} broke off: {e}"))))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut busy = self.locks.busy.lock().unwrap_or_else(PoisonError::into_inner);
        for k in &self.keys {
            busy.remove(k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_is_told_to_come_again_also_when_the_first_caller_left() {
        let locks = Locks::default();
        let (tx, rx) = tokio::sync::oneshot::channel::<()>();
        let slow = locks.run("staging", ["v".to_owned()], async move {
            rx.await.ok();
            Ok(1)
        });
        // The caller gives up.
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), slow).await.is_err());
        let again = locks.run("staging", ["w".into(), "v".into()], async { Ok(2) }).await;
        let again = again.unwrap_err();
        assert_eq!(again.kind, Kind::Aborted);
        assert!(again.text.contains("staging of v"), "{again}");
        // None of the keys of the one that was refused is held.
        assert_eq!(locks.run("staging", ["w".to_owned()], async { Ok(3) }).await, Ok(3));
        tx.send(()).unwrap();
        for _ in 0..100 {
            match locks.run("staging", ["v".to_owned()], async { Ok(4) }).await {
                Ok(n) => return assert_eq!(n, 4),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
        panic!("never given back");
    }

    #[tokio::test]
    async fn an_operation_that_panics_gives_its_locks_back() {
        let locks = Locks::default();
        let broken = locks.run::<()>("staging", ["v".to_owned()], async { panic!("on purpose") }).await;
        assert_eq!(broken.unwrap_err().kind, Kind::Internal);
        assert!(locks.take("staging", ["v".to_owned()]).is_ok());
    }
}
