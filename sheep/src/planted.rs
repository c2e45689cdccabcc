//! Bugs that the simulator plants, to see whether it would find them. Without the feature `planted-bugs`, which no release has, `is` is
//! constantly false and nothing of this is left in the program.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A takeover does not fence, and holders take writes of any generation.
    SkippedFence,
    /// A holder answers reads for objects that it cannot vouch for.
    StaleRead,
    /// A write is acknowledged before it is in the journal.
    AckBeforeJournal,
    /// Changes are carried out whatever attachment they were sent under.
    LateDetached,
    /// What was read while it was overwritten stays in the cache.
    StaleCache,
    /// Reads tell of changes that may be carried out once more.
    UncertainRead,
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plant a bug in everything that runs on this thread.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.with(|p| p.set(bug));
}

/// Is it planted?
#[cfg(feature = "planted-bugs")]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.with(|p| p.get() == Some(bug))
}

/// Is it planted?
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) fn is(_: Bug) -> bool {
    false
}
