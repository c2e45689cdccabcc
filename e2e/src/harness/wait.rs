//! Waiting for a condition, never for luck.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How long anything may take that is not measured. Not a measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(50);
/// Asking costs something too: programs are started for it.
const LONGEST_STEP: Duration = Duration::from_millis(400);

/// Ask until there is a value. `Ok(None)` and errors both mean "not yet"; the last error is told when time is up.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut step = STEP;
    loop {
        let last = match ask() {
            Ok(Some(v)) => return Ok(v),
            Ok(None) => None,
            Err(e) => Some(e),
        };
        if Instant::now() >= deadline {
            match last {
                Some(e) => bail!("{what}: not within {} s: {e:#}", limit.as_secs()),
                None => bail!("{what}: not within {} s", limit.as_secs()),
            }
        }
        std::thread::sleep(step);
        step = (step * 5 / 4).min(LONGEST_STEP);
    }
}

/// Let the load run: the length of a phase is part of the scenario. Ends early when `over` says so.
pub fn phase(length: Duration, mut over: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + length;
    while Instant::now() < end && !over()? {
        std::thread::sleep(STEP.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}
