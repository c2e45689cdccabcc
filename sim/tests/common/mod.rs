//! What every test of a simulated world begins with.

/// Run it to its end; time passes when nobody has anything to do.
pub fn simulate<F: Future>(scenario: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    // What tokio leaves to chance is the same in every run.
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(b"tests"));
    tokio::task::LocalSet::new().block_on(&builder.build().expect("a runtime"), scenario)
}
