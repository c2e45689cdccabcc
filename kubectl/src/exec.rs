//! A program in a pod's container: its streams and its exit code.

use crate::connect::Connected;
use crate::failure::Failure;
use crate::read::Trouble;
use crate::terminal::{self, Terminal};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::AttachParams;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;

/// What a sheep's container is called.
pub const CONTAINER: &str = "sheep";
/// Bytes between us and the connection.
const BUFFER: usize = 64 << 10;
/// For Ctrl-C to end the program in the pod when we are ended; then we go anyway.
const LEAVE: Duration = Duration::from_secs(3);

/// Where it runs.
pub struct Place<'a> {
    /// Connection.
    pub connected: &'a Connected,
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Pod.
    pub pod: &'a str,
}

impl Place<'_> {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.connected.client.clone(), self.namespace)
    }

    fn failed(&self, e: kube::Error) -> Failure {
        let trouble = Trouble::from(e);
        let f =
            Failure::of(&format!("cannot run a program in pod {}/{}", self.namespace, self.pod), &trouble);
        match trouble {
            Trouble::Forbidden(_) => f.hint("you need the right to create pods/exec in that namespace"),
            _ => f,
        }
    }

    /// Run it with our own standard streams; returns its exit code, or that of the signal that ended us.
    pub async fn foreground(&self, command: &[String]) -> Result<u8, Failure> {
        let tty = terminal::there();
        let params = AttachParams::default()
            .container(CONTAINER)
            .stdin(true)
            .stdout(true)
            .stderr(!tty)
            .tty(tty)
            .max_stdin_buf_size(BUFFER)
            .max_stdout_buf_size(BUFFER)
            .max_stderr_buf_size(BUFFER);
        let mut process = self.api().exec(self.pod, command, &params).await.map_err(|e| self.failed(e))?;
        // Not before: while a connection is made, Ctrl-C is for us.
        let terminal = if tty { Some(Terminal::take()?) } else { None };
        let status = process.take_status();
        let sizes = process.terminal_size().map(|to| tokio::spawn(terminal::sizes(to)));
        let (leave, left) = oneshot::channel::<()>();
        let input = process.stdin().map(|to| {
            let from = tokio::io::stdin();
            tokio::spawn(async move { if tty { keys(from, to, left).await } else { pass(from, to).await } })
        });
        let out = process.stdout().map(|from| show(from, tty));
        let err = process.stderr().map(|from| pass(from, tokio::io::stderr()));
        let mut ended = pin!(async {
            let (_, _, status) = tokio::join!(wait(out), wait(err), wait(status));
            exit_code(status.flatten().as_ref())
        });
        let code = tokio::select! {
            code = &mut ended => code,
            signal = terminal::ending(), if tty => {
                drop(leave);
                let _ = tokio::time::timeout(LEAVE, ended).await;
                signal
            }
        };
        for task in [sizes, input].into_iter().flatten() {
            task.abort();
        }
        drop(terminal);
        code
    }

    /// Run it without input, for so long, and keep at most so many bytes of its output; an exit code other than 0 is an error.
    pub async fn output(
        &self,
        command: &[&str],
        limit: usize,
        patience: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let run = async {
            let params = AttachParams::default()
                .container(CONTAINER)
                .stdin(false)
                .max_stdout_buf_size(BUFFER)
                .max_stderr_buf_size(BUFFER);
            let ran = self.api().exec(self.pod, command.iter().copied(), &params).await;
            let mut process = ran.map_err(|e| self.failed(e))?;
            let status = process.take_status();
            let out = process.stdout().map(|from| keep(from, limit));
            let err = process.stderr().map(|from| keep(from, BUFFER));
            let (out, err, status) = tokio::join!(wait(out), wait(err), wait(status));
            match exit_code(status.flatten().as_ref())? {
                0 => Ok(out.unwrap_or_default()),
                code => {
                    let said = String::from_utf8_lossy(&err.unwrap_or_default()).trim().to_owned();
                    Err(Failure::new(format!("{} ended with exit code {code}: {said}", command.join(" "))))
                }
            }
        };
        let late =
            || Failure::new(format!("{} did not end within {} s", command.join(" "), patience.as_secs()));
        tokio::time::timeout(patience, run).await.unwrap_or_else(|_| Err(late()))
    }
}

async fn wait<T>(f: Option<impl Future<Output = T>>) -> Option<T> {
    match f {
        Some(f) => Some(f.await),
        None => None,
    }
}

/// Pass bytes on as they come, and the end. Who does not want them any more ends it.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Standard output. What a terminal that has gone cannot show is read all the same: Ctrl-C has to get through.
async fn show(mut from: impl AsyncRead + Unpin, tty: bool) {
    pass(&mut from, tokio::io::stdout()).await;
    if tty {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
}

/// What is typed. When nobody types any more, because the terminal has gone or we are leaving, Ctrl-C: Kubernetes ends nothing in a pod because nobody looks at it.
async fn keys(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    left: oneshot::Receiver<()>,
) {
    tokio::select! {
        _ = tokio::io::copy(&mut from, &mut to) => {}
        _ = left => {}
    }
    if to.write_all(b"\x03").await.is_ok() {
        let _ = to.flush().await;
        // Closing it would close the connection of an older server, before it has read this.
        std::future::pending::<()>().await;
    }
}

/// Read to the end, keep the beginning.
async fn keep(mut from: impl AsyncRead + Unpin, limit: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; BUFFER];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let room = limit.saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(&buffer[..room]);
    }
    kept
}

/// What the API server says of its end.
fn exit_code(status: Option<&Status>) -> Result<u8, Failure> {
    let Some(s) = status else {
        return Err(Failure::new("the connection to the pod broke: what became of the command is not known"));
    };
    if s.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = s.details.as_ref().and_then(|d| d.causes.as_deref()).unwrap_or_default();
    let code = causes.iter().find(|c| c.reason.as_deref() == Some("ExitCode"));
    // A program that a signal ended has 128 and more.
    match code.and_then(|c| c.message.as_deref()?.parse::<u8>().ok()) {
        Some(code) => Ok(code),
        None => Err(Failure::new(format!(
            "the command could not be run in the pod: {}",
            s.message.as_deref().unwrap_or("no reason was given")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn exit_codes_come_through() {
        let of = |v| exit_code(Some(&serde_json::from_value::<Status>(v).unwrap()));
        assert_eq!(of(json!({"status": "Success"})), Ok(0));
        let five = json!({"status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "5"}]}});
        assert_eq!(of(five), Ok(5));
        let broken = of(json!({"status": "Failure", "message": "container not found"}));
        assert!(broken.unwrap_err().message.contains("container not found"));
        assert!(exit_code(None).unwrap_err().message.contains("broke"));
    }

    #[tokio::test]
    async fn streams_are_passed_on_and_output_is_bounded() {
        let (mut write, read) = tokio::io::duplex(8);
        let (to, mut out) = tokio::io::duplex(1 << 20);
        let passing = tokio::spawn(pass(read, to));
        write.write_all(&[7; 1000]).await.unwrap();
        drop(write);
        let mut got = Vec::new();
        out.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, vec![7; 1000]);
        passing.await.unwrap();
        let (mut write, read) = tokio::io::duplex(8);
        let (to, mut typed) = tokio::io::duplex(64);
        let (leave, left) = oneshot::channel();
        let typing = tokio::spawn(keys(read, to, left));
        write.write_all(b"no").await.unwrap();
        let mut got = [0; 3];
        typed.read_exact(&mut got[..2]).await.unwrap();
        drop(leave);
        typed.read_exact(&mut got[2..]).await.unwrap();
        assert_eq!(&got, b"no\x03");
        typing.abort();
        assert_eq!(keep(&[1u8; 100][..], 10).await, vec![1; 10]);
    }
}
