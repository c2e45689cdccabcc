//! `kubectl sheepdog dog` on a terminal: questions and their answers, the window's size, Ctrl-C, and a terminal that is given back.

use super::{NAMESPACE, PATIENCE, PLUGIN, Plugin};
use crate::harness::proc::run as command;
use crate::harness::terminal::{Size, Terminal};
use crate::harness::wait::until;
use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use std::path::PathBuf;

const WINDOW: Size = (40, 123);
const LARGER: Size = (50, 132);
/// The same command runs nowhere else.
const WATCH: [&str; 4] = ["node", "stat", "--watch", "--interval=1"];

pub fn run(p: &Plugin<'_>) -> Result<()> {
    asked(p)?;
    watched(p)?;
    ended(p)?;
    apart(p)
}

/// The plugin on a terminal.
fn on_terminal(p: &Plugin<'_>, script: &str, dog: &[&str]) -> Result<Terminal> {
    let args = [&["dog", "-n", NAMESPACE], dog].concat();
    Terminal::start("kubectl-sheepdog", &p.s.k.control.shell_command(&p.lab.bin, script, &args)?, WINDOW)
}

/// What dog does in the pod while it watches.
fn in_pod() -> Result<Option<PathBuf>> {
    let wanted = [&["dog"], WATCH.as_slice()].concat().join("\0") + "\0";
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        if std::fs::read(path.join("cmdline")).is_ok_and(|line| line == wanted.as_bytes()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// dog's own terminal has this size.
fn has_size(size: Size) -> Result<()> {
    let wanted = format!("{} {}\n", size.0, size.1);
    until(&format!("dog has a window of {wanted}"), PATIENCE, || {
        let dog = in_pod()?.context("dog does not run")?;
        let terminal = dog.join("fd/0").display().to_string();
        let is = command("stty", &["-F", &terminal, "size"])?;
        ensure!(is == wanted, "it is {is}");
        Ok(Some(()))
    })
}

/// Nothing is left in the pod.
fn gone() -> Result<()> {
    until("dog is gone from the pod", PATIENCE, || {
        let left = in_pod()?;
        ensure!(left.is_none(), "it runs: {left:?}");
        Ok(Some(()))
    })
}

/// A question is asked, and only yes deletes.
fn asked(p: &Plugin<'_>) -> Result<()> {
    p.says(&["dog", "vdi", "create", "asked", "64M"], 0, &[])?;
    for (answer, code) in [("no\r", 1), ("yes\r", 0)] {
        let mut t = on_terminal(p, PLUGIN, &["vdi", "delete", "asked"])?;
        t.shows("Type yes to go on: ", PATIENCE)?;
        t.press(answer)?;
        let (ended, screen) = t.ends(PATIENCE)?;
        ensure!(ended == code, "{answer}: exit code {ended}: {screen}");
    }
    let (code, screen) = on_terminal(p, PLUGIN, &["vdi", "list", "asked"])?.ends(PATIENCE)?;
    ensure!(code == 5 && screen.contains("asked"), "exit code {code}: {screen}");
    p.lab.proved(
        "dog on a terminal: it asks before it deletes, no leaves the VDI; exit codes 0, 1 and 5 come through",
    );
    Ok(())
}

/// The window's size, also when it changes, and Ctrl-C.
fn watched(p: &Plugin<'_>) -> Result<()> {
    let mut t = on_terminal(p, PLUGIN, &WATCH)?;
    t.shows("READ/S", PATIENCE)?;
    ensure!(t.is_raw()?, "keys do not go to dog one by one");
    has_size(WINDOW)?;
    t.resize(LARGER)?;
    has_size(LARGER)?;
    t.press("\x03")?;
    let (code, screen) = t.ends(PATIENCE)?;
    ensure!(code == 130, "Ctrl-C: exit code {code}: {screen}");
    gone()?;
    p.lab.proved("dog on a terminal: the window's size arrives, also when it changes; Ctrl-C ends dog in the pod, with exit code 130, and the terminal is as before");
    Ok(())
}

/// The plugin is ended from outside.
fn ended(p: &Plugin<'_>) -> Result<()> {
    let watching = || -> Result<Terminal> {
        let mut t = on_terminal(p, PLUGIN, &WATCH)?;
        t.shows("READ/S", PATIENCE)?;
        Ok(t)
    };
    let t = watching()?;
    t.signal(Signal::TERM)?;
    let (code, screen) = t.ends(PATIENCE)?;
    ensure!(code == 143, "SIGTERM: exit code {code}: {screen}");
    gone()?;
    let code = watching()?.hangs_up(PATIENCE)?;
    ensure!(code == 129, "a closed window: exit code {code}");
    gone()?;
    p.lab.proved("the plugin is ended by SIGTERM or a closed window: the terminal is as before, nothing is left in the pod");
    Ok(())
}

/// Errors that go to a file are not on the terminal.
fn apart(p: &Plugin<'_>) -> Result<()> {
    let file = p.lab.dir.join("errors");
    let script = format!("exec kubectl sheepdog \"$@\" 2>{}", file.display());
    let (code, screen) = on_terminal(p, &script, &["vdi", "list", "nothing"])?.ends(PATIENCE)?;
    let errors = std::fs::read_to_string(&file)?;
    ensure!(code == 5 && screen.is_empty() && errors.contains("nothing"), "{code}: {screen}; {errors}");
    p.lab.proved("dog on a terminal, its errors in a file: they are in the file, and nowhere else");
    Ok(())
}
