//! A program on a terminal, as whoever sits there has it: keys, a window that has a size, what is on the screen.

use super::proc::Proc;
use super::wait::until;
use anyhow::{Context as _, Result, ensure};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;
use std::time::Duration;

/// A window's rows and columns.
pub type Size = (u16, u16);

/// See the module.
#[derive(Debug)]
pub struct Terminal {
    /// Our end: keys in, the screen out.
    control: OwnedFd,
    /// The program's end; open here too, so that its state outlives the program.
    user: File,
    at_first: Termios,
    program: Proc,
    screen: String,
}

impl Terminal {
    /// Start it in a session of its own, whose terminal this is.
    pub fn start(name: &str, cmd: &Command, size: Size) -> Result<Self> {
        let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&control)?;
        unlockpt(&control)?;
        fcntl_setfl(&control, fcntl_getfl(&control)? | OFlags::NONBLOCK)?;
        resize(&control, size)?;
        let path = ptsname(&control, Vec::new())?.into_string()?;
        let no_ctty = OFlags::NOCTTY.bits().cast_signed();
        let user = File::options().read(true).write(true).custom_flags(no_ctty).open(&path)?;
        let at_first = tcgetattr(&user)?;
        let mut all = Command::new("setsid");
        all.arg("--ctty").arg(cmd.get_program()).args(cmd.get_args());
        for (key, value) in cmd.get_envs() {
            match value {
                Some(v) => all.env(key, v),
                None => all.env_remove(key),
            };
        }
        all.stdin(user.try_clone()?).stdout(user.try_clone()?).stderr(user.try_clone()?);
        let program = Proc::spawn(name, all)?;
        Ok(Self { control, user, at_first, program, screen: String::new() })
    }

    /// Give the window another size.
    pub fn resize(&self, size: Size) -> Result<()> {
        resize(&self.control, size)
    }

    /// Press keys.
    pub fn press(&self, keys: &str) -> Result<()> {
        let sent = rustix::io::write(&self.control, keys.as_bytes())?;
        ensure!(sent == keys.len(), "the terminal takes no more keys");
        Ok(())
    }

    /// Wait until this is on the screen, further down than what was waited for before.
    pub fn shows(&mut self, text: &str, limit: Duration) -> Result<()> {
        until(&format!("the terminal shows {text}"), limit, || {
            self.read()?;
            let at = self.screen.find(text).with_context(|| format!("it shows: {}", self.screen))?;
            self.screen.drain(..at + text.len());
            Ok(Some(()))
        })
    }

    /// Keys go to the program one by one, and none of them is the terminal's own.
    pub fn is_raw(&self) -> Result<bool> {
        let own = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        Ok(!tcgetattr(&self.user)?.local_modes.intersects(own))
    }

    /// Send the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.program.signal(signal)
    }

    /// The window is closed; wait for the end.
    pub fn hangs_up(self, limit: Duration) -> Result<i32> {
        let Self { control, user, mut program, .. } = self;
        drop((control, user));
        program.wait(limit)?.code().context("ended by a signal")
    }

    /// Wait for the end; the exit code and what came on the screen since it was last looked at. The terminal must be as it was before.
    pub fn ends(mut self, limit: Duration) -> Result<(i32, String)> {
        let ended = until("the program on the terminal ends", limit, || {
            let ended = (!self.program.running()?).then_some(());
            self.read()?;
            ended.with_context(|| format!("it shows: {}", self.screen)).map(Some)
        });
        ended?;
        let code = self.program.wait(limit)?.code().context("ended by a signal")?;
        let now = tcgetattr(&self.user)?;
        let modes = |t: &Termios| (t.input_modes, t.output_modes, t.control_modes, t.local_modes);
        ensure!(modes(&now) == modes(&self.at_first), "it leaves the terminal in another state: {now:?}");
        Ok((code, self.screen))
    }

    /// What there is by now.
    fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.control, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN | Errno::IO) => return Ok(()),
                Ok(n) => self.screen += &String::from_utf8_lossy(&buffer[..n]),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn resize(control: &OwnedFd, (rows, columns): Size) -> Result<()> {
    Ok(tcsetwinsize(control, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_keys_a_screen_and_a_size() {
        let mut cmd = Command::new("sh");
        cmd.args(["-c", "stty size; read word; echo \"<$word>\"; stty -icanon -echo -isig; echo raw; read again; stty $OLD; exit 7"]);
        cmd.env("OLD", "icanon echo isig");
        let limit = Duration::from_secs(60);
        let mut t = Terminal::start("sh", &cmd, (20, 70)).unwrap();
        t.shows("20 70", limit).unwrap();
        assert!(!t.is_raw().unwrap());
        t.press("hello\n").unwrap();
        t.shows("<hello>", limit).unwrap();
        t.shows("raw", limit).unwrap();
        assert!(t.is_raw().unwrap());
        t.press("\n").unwrap();
        assert_eq!(t.ends(limit).unwrap().0, 7);
        // One that leaves it as nobody can use it.
        cmd = Command::new("stty");
        cmd.arg("-echo");
        let t = Terminal::start("stty", &cmd, (20, 70)).unwrap();
        assert!(t.ends(limit).unwrap_err().to_string().contains("another state"));
    }
}
