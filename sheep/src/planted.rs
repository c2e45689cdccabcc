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
    /// Contents are given up for strips that were made before they were written.
    StaleSeal,
    /// Contents are given up for strips that nobody has kept.
    HastySeal,
    /// Writes go on after a snapshot before their owner knows of it.
    EarlyLetGo,
    /// A takeover compares copies before what is in them is durable.
    HastyFence,
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

#[cfg(feature = "planted-bugs")]
thread_local! {
    static HURRY: std::cell::Cell<u32> = const { std::cell::Cell::new(1) };
}

/// Background work that production does now and then is done so many times as often on this thread: a simulated life is short.
#[cfg(feature = "planted-bugs")]
pub fn hurry(factor: u32) {
    HURRY.with(|h| h.set(factor.max(1)));
}

/// Is it, on this thread? Then little things count as much as large ones in production.
#[cfg(feature = "planted-bugs")]
pub(crate) fn hurried() -> bool {
    HURRY.with(std::cell::Cell::get) > 1
}

/// Is it, on this thread?
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) fn hurried() -> bool {
    false
}

/// How long something takes here that takes so long in production.
#[cfg(feature = "planted-bugs")]
pub(crate) fn pace(usual: std::time::Duration) -> std::time::Duration {
    usual / HURRY.with(std::cell::Cell::get)
}

/// How long something takes here that takes so long in production.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) fn pace(usual: std::time::Duration) -> std::time::Duration {
    usual
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
