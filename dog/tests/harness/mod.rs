//! Runs `dog` and real daemons. A daemon is this test program started again as `harness::daemon`, so that it can be stopped and killed alone.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ARGS: &str = "DOG_TEST_SHEEP_ARGS";

/// Not a test: the daemon's process.
#[test]
#[ignore = "started by the other tests"]
fn daemon() {
    let Ok(args) = std::env::var(ARGS) else { return };
    // Ends with the test program, however that ends.
    let words = std::iter::once("sheep".to_owned()).chain(args.split('\n').map(str::to_owned));
    let args = sheep::cli::Args::load(words.map(Into::into)).unwrap();
    sheep::daemon::run(&args).unwrap();
}

/// What a `dog` said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub bytes: Vec<u8>,
}

impl Said {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
    #[track_caller]
    pub fn fails(self, code: i32, with: &str) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(with), "wanted {with:?}: {self:?}");
        self
    }
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let said = self.ok();
        serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"))
    }
}

/// A `dog` with these words, nothing inherited, and this on its standard input.
pub fn dog_with(words: &[&str], envs: &[(&str, &str)], input: &[u8]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dog"));
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("DOG_") || n.starts_with("SHEEP_")) {
        command.env_remove(name);
    }
    command.args(words).envs(envs.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        // A dog that ends before it has read everything is not this thread's business.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        bytes: output.stdout,
    }
}

/// Two neighbouring free ports.
pub fn free_port() -> u16 {
    sheepdog_testing::ports(2).expect("ports")
}

/// A daemon.
pub struct Sheep {
    pub dir: PathBuf,
    pub port: u16,
    child: Child,
}

impl Sheep {
    pub fn start(dir: &Path, port: u16, more: &[&str]) -> Self {
        let port_text = port.to_string();
        let mut words = vec![dir.to_str().unwrap(), "-p", &port_text, "-l", "warn"];
        words.extend(more);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["harness::daemon", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ARGS, words.join("\n"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { dir: dir.into(), port, child }
    }
    /// One that is up, in a cluster of its own; with further options of sheep, and of `dog cluster format`.
    pub fn formatted(dir: &Path, more: &[&str], format: &[&str]) -> Self {
        let sheep = Self::start(dir, free_port(), more);
        until(|| sheep.dog(&["cluster", "info", "-o", "raw"]), |s| s.code == 0);
        sheep.dog(&[&["cluster", "format", "--copies", "1"], format].concat()).ok();
        sheep
    }
    /// `dog` towards this sheep.
    pub fn dog(&self, words: &[&str]) -> Said {
        self.dog_input(words, b"")
    }
    pub fn dog_input(&self, words: &[&str], input: &[u8]) -> Said {
        let port = self.port.to_string();
        dog_with(words, &[("DOG_PORT", &port)], input)
    }
    /// With SIGKILL; its ports are free when this returns.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
    /// Waits until the process has ended by itself.
    pub fn ended(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Sheep {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ask until the answer is right.
#[track_caller]
pub fn until<T: std::fmt::Debug>(mut ask: impl FnMut() -> T, good: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = ask();
        if good(&answer) {
            return answer;
        }
        assert!(Instant::now() < end, "still: {answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
