//! What every test of a simulated world begins with.

/// Run it to its end; time passes when nobody has anything to do.
pub fn simulate<F: Future>(scenario: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), scenario)
}
