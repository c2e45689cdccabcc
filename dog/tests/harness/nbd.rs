//! An NBD client that blocks, and a `dog` that serves.

#![allow(dead_code, clippy::unwrap_used)]

use bytes::BytesMut;
use sheepdog_nbd::client::{Failed, Handshake, Outcome, Replies, Step, Wishes};
use sheepdog_nbd::wire::cmd;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A connection. An outer error: it broke.
pub struct Client {
    stream: UnixStream,
    input: BytesMut,
    replies: Replies,
    pub size: u64,
}

fn broken(why: impl ToString) -> std::io::Error {
    std::io::Error::other(why.to_string())
}

impl Client {
    pub fn connect(socket: &Path, name: &str) -> std::io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let (mut machine, mut input) = (Handshake::new(Wishes::attach(name)), BytesMut::new());
        loop {
            let step = machine.step(&mut input).map_err(broken)?;
            stream.write_all(&machine.take_output())?;
            match step {
                Step::Ready(got) => {
                    let (replies, size) = (Replies::new(got.structured), got.size);
                    return Ok(Self { stream, input, replies, size });
                }
                Step::NeedInput => more(&mut stream, &mut input)?,
                Step::Progress => {}
                other => return Err(broken(format!("{other:?}"))),
            }
        }
    }
    /// Send a request and do not wait for its answer.
    pub fn begin(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> std::io::Result<()> {
        let mut out = BytesMut::new();
        self.replies.submit(kind, flags, offset, len, &mut out);
        out.extend_from_slice(data);
        self.stream.write_all(&out)
    }
    pub fn answer(&mut self) -> std::io::Result<Result<Outcome, Failed>> {
        loop {
            if let Some(done) = self.replies.receive(&mut self.input).map_err(broken)? {
                return Ok(done.result);
            }
            more(&mut self.stream, &mut self.input)?;
        }
    }
    pub fn read(&mut self, offset: u64, len: u32) -> std::io::Result<Result<Vec<u8>, Failed>> {
        self.begin(cmd::READ, 0, offset, len, &[])?;
        Ok(self.answer()?.map(|o| match o {
            Outcome::Data(d) => d.to_vec(),
            other => panic!("{other:?}"),
        }))
    }
    pub fn write(&mut self, offset: u64, data: &[u8]) -> std::io::Result<Result<(), Failed>> {
        self.begin(cmd::WRITE, 0, offset, data.len() as u32, data)?;
        Ok(self.answer()?.map(drop))
    }
    pub fn command(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        len: u32,
    ) -> std::io::Result<Result<Outcome, Failed>> {
        self.begin(kind, flags, offset, len, &[])?;
        self.answer()
    }
}

fn more(stream: &mut UnixStream, input: &mut BytesMut) -> std::io::Result<()> {
    let mut buffer = [0; 64 << 10];
    match stream.read(&mut buffer)? {
        0 => Err(broken("the server closed the connection")),
        n => {
            input.extend_from_slice(&buffer[..n]);
            Ok(())
        }
    }
}

/// A `dog` that serves on a socket. Killed when it is dropped.
pub struct Serving {
    child: Option<Child>,
    pub socket: PathBuf,
}

impl Serving {
    pub fn start(words: &[&str], port: u16, socket: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_dog"))
            .args(words)
            .args(["--listen", socket.to_str().unwrap()])
            .env("DOG_PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child: Some(child), socket: socket.into() }
    }
    /// As soon as it listens; `None`: it has ended before.
    pub fn connect(&mut self, name: &str) -> Option<Client> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(client) = Client::connect(&self.socket, name) {
                return Some(client);
            }
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < end, "it does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket.display())
    }
    /// With SIGKILL.
    pub fn kill(mut self) -> Output {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait_with_output().unwrap()
    }
    /// Until it ends by itself.
    pub fn wait(mut self) -> Output {
        self.child.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
