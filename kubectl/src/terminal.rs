//! Our terminal, while a program in a pod has it: every key goes there, Ctrl-C too, and it knows how large the window is.

use crate::failure::Failure;
use futures::SinkExt as _;
use futures::channel::mpsc::Sender;
use kube::api::TerminalSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

/// Somebody sits there. A stream that goes elsewhere stays a stream of its own: a terminal has only one for both kinds of output.
pub fn there() -> bool {
    isatty(std::io::stdin()) && isatty(std::io::stdout()) && isatty(std::io::stderr())
}

/// Passed on key by key until this is dropped.
pub struct Terminal {
    before: Termios,
}

impl Terminal {
    /// From now on.
    pub fn take() -> Result<Self, Failure> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).map_err(|e| failed(&e))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(|e| failed(&e))?;
        Ok(Self { before })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

fn failed(e: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("the terminal cannot be used: {e}"))
}

/// Tell the size of the window, now and whenever it changes; for as long as somebody wants to know.
pub async fn sizes(mut to: Sender<TerminalSize>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        // One that has none, as a serial line, keeps what the other end takes for granted.
        if let Ok(size) = tcgetwinsize(std::io::stdout())
            && size.ws_col > 0
            && size.ws_row > 0
            && to.send(TerminalSize { width: size.ws_col, height: size.ws_row }).await.is_err()
        {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// A signal that ends us, as a shell's exit code: the terminal has to be given back first.
pub async fn ending() -> Result<u8, Failure> {
    let on = |kind| signal(kind).map_err(|e| failed(&e));
    let (mut hangup, mut interrupt) = (on(SignalKind::hangup())?, on(SignalKind::interrupt())?);
    let (mut quit, mut terminate) = (on(SignalKind::quit())?, on(SignalKind::terminate())?);
    let number = tokio::select! {
        _ = hangup.recv() => 1,
        _ = interrupt.recv() => 2,
        _ = quit.recv() => 3,
        _ = terminate.recv() => 15,
    };
    Ok(128 + number)
}
