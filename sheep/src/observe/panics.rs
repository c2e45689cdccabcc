//! Panics: a bug ends the daemon at once, because a task that has silently gone is worse than a restart. Only libraries that panic over damaged files are
//! let, where we know that nothing of theirs is used afterwards.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic is written down and ends the process, unless it comes from `caught`.
pub fn end_the_process() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !EXPECTED.get() {
            say(info);
            std::process::abort();
        }
    }));
}

/// Run something that may panic over what it reads. Whatever it has made must be dropped when it did.
pub fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    let before = EXPECTED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    EXPECTED.set(before);
    result.map_err(|what| {
        let text = what.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| what.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_panics_is_an_error() {
        assert_eq!(caught(|| 7), Ok(7));
        assert_eq!(caught(|| -> u8 { panic!("no page {}", 9) }), Err("no page 9".into()));
    }
}
