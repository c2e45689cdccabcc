//! A client on a unix socket.

use bytes::{Bytes, BytesMut};
use sheepdog_nbd::client::{Completion, Connected, Failed, Handshake, Outcome, Replies, Step, Wishes};
use sheepdog_nbd::wire::{Broken, cmd};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// An attached export.
pub struct Client {
    pub stream: UnixStream,
    pub input: BytesMut,
    pub replies: Replies,
    pub export: Connected,
}

/// Attach, or say why not.
pub async fn attach(path: &Path, wishes: Wishes) -> Result<Client, Broken> {
    let mut stream = UnixStream::connect(path).await.unwrap();
    let mut machine = Handshake::new(wishes);
    let mut input = BytesMut::new();
    loop {
        let step = machine.step(&mut input)?;
        stream.write_all(&machine.take_output()).await.unwrap();
        match step {
            Step::Ready(export) => {
                return Ok(Client { stream, input, replies: Replies::new(export.structured), export });
            }
            Step::NeedInput => {
                if stream.read_buf(&mut input).await.unwrap() == 0 {
                    return Err(Broken::Unexpected("server hung up"));
                }
            }
            Step::Progress => {}
            other => panic!("{other:?}"),
        }
    }
}

impl Client {
    pub async fn vol(path: &Path) -> Self {
        attach(path, Wishes::attach("vol")).await.unwrap()
    }

    /// Send a request without waiting. Returns its cookie.
    pub async fn send(&mut self, kind: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        let mut out = BytesMut::new();
        let cookie = self.replies.submit(kind, flags, offset, len, &mut out);
        out.extend_from_slice(payload);
        self.stream.write_all(&out).await.unwrap();
        cookie
    }

    /// The next reply; `None` when the server has hung up.
    pub async fn receive(&mut self) -> Option<Completion> {
        loop {
            if let Some(c) = self.replies.receive(&mut self.input).unwrap() {
                return Some(c);
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub async fn call(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> Result<Outcome, Failed> {
        let cookie = self.send(kind, flags, offset, len, payload).await;
        let c = self.receive().await.expect("server hung up");
        assert_eq!(c.cookie, cookie);
        c.result
    }

    pub async fn read(&mut self, offset: u64, len: u32) -> Result<Bytes, Failed> {
        self.call(cmd::READ, 0, offset, len, &[]).await.map(|o| match o {
            Outcome::Data(d) => d,
            other => panic!("{other:?}"),
        })
    }

    pub async fn write(&mut self, offset: u64, data: &[u8]) -> Result<Outcome, Failed> {
        self.call(cmd::WRITE, 0, offset, data.len() as u32, data).await
    }
}
