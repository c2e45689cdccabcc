//! One connection from accept to close: handshake, TLS, then the session.

use super::inbound::Inbound;
use super::session::{self, Session};
use super::stats::{Connection, counted_as};
use super::{Server, TlsPolicy, error};
use crate::volume::{ExportInfo, Volume};
use bytes::{Bytes, BytesMut};
use sheepdog_nbd::Export;
use sheepdog_nbd::server::{Agreed, Handshake, Refusal, Step};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

/// How long a polite goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Any byte stream of the data thread.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Stream for T {}

/// Takes the connection out of the registry however its task ends.
struct Listed(Rc<Server>, Rc<Connection>);
impl Drop for Listed {
    fn drop(&mut self) {
        self.0.registry.remove(self.1.id);
    }
}

/// How a handshake ended.
enum End {
    /// Nothing to serve.
    Closed,
    /// Encrypt, go on.
    Tls,
    /// Serve this.
    Attached { name: String, volume: Rc<dyn Volume>, agreed: Agreed },
}

/// The task of one connection.
pub(super) async fn connection<S: Stream>(
    server: Rc<Server>,
    mut stream: S,
    policy: TlsPolicy,
    conn: Rc<Connection>,
    hung_up: Rc<dyn Fn() -> bool>,
) {
    let _listed = Listed(server.clone(), conn.clone());
    let machine = Handshake::new(policy);
    let (option, end) = (server.limits.handshake_idle, server.limits.handshake);
    let mut greeter = Greeter { server, machine, input: BytesMut::new(), opened: None, option, end, hung_up };
    let result = match greeter.run(&mut stream).await {
        Ok(End::Tls) => match greeter.encrypt(stream).await {
            Ok(mut stream) => {
                conn.tls.set(true);
                let end = greeter.run(&mut stream).await;
                serve(&mut greeter, stream, end, &conn).await
            }
            Err(e) => Err(e),
        },
        end => serve(&mut greeter, stream, end, &conn).await,
    };
    // Opened, but the client was gone before it heard of it.
    if let Some((_, volume)) = greeter.opened.take() {
        volume.close().await;
    }
    match result {
        Ok(()) => tracing::debug!(id = conn.id, "NBD connection closed"),
        Err(e) => {
            tracing::info!(id = conn.id, export = %conn.export.borrow(), error = %e, "NBD connection ended")
        }
    }
}

async fn serve<S: Stream>(
    greeter: &mut Greeter,
    mut stream: S,
    end: io::Result<End>,
    conn: &Rc<Connection>,
) -> io::Result<()> {
    let End::Attached { name, volume, agreed } = end? else { return goodbye(stream).await };
    let server = greeter.server.clone();
    let input = std::mem::take(&mut greeter.input);
    conn.export.replace(name.clone());
    // Attachments come and go; their volume stays.
    let stats = server.registry.export(counted_as(&name));
    stats.connections.set(stats.connections.get() + 1);
    tracing::debug!(id = conn.id, export = name, "NBD client attached");
    let inbound = Inbound::new(&input);
    drop(input);
    let mut session =
        Session::new(&mut stream, &server, conn, &stats, volume.clone(), agreed, inbound, session::run);
    let result = session.run().await;
    drop(session);
    // The rule of late writes: nothing of this connection is under way any more, so the next open may proceed.
    volume.close().await;
    stats.connections.set(stats.connections.get() - 1);
    let bye = goodbye(stream).await;
    result.and(bye)
}

async fn goodbye<S: Stream>(mut stream: S) -> io::Result<()> {
    // Whether the peer is still there to hear it does not matter.
    let _ = timeout(GOODBYE, stream.shutdown()).await;
    Ok(())
}

struct Greeter {
    server: Rc<Server>,
    machine: Handshake,
    input: BytesMut,
    /// From `Open` until the client has been told.
    opened: Option<(String, Rc<dyn Volume>)>,
    /// Waiting for the network that is left for the option under way, and for the handshake.
    option: Duration,
    end: Duration,
    hung_up: Rc<dyn Fn() -> bool>,
}

impl Greeter {
    async fn run<S: Stream>(&mut self, stream: &mut S) -> io::Result<End> {
        let mut step = Step::Progress;
        loop {
            self.flush(stream).await?;
            step = match step {
                Step::NeedInput => {
                    if !self.read(stream).await? {
                        return Ok(End::Closed);
                    }
                    self.step()?
                }
                Step::Progress => {
                    self.option = self.server.limits.handshake_idle;
                    self.step()?
                }
                Step::Closed => return Ok(End::Closed),
                Step::StartTls => return Ok(End::Tls),
                Step::List => self.list().await,
                Step::Describe(name) => self.describe(&name).await,
                Step::Open(name) => match self.open(name).await {
                    Ok((name, volume)) => {
                        let export = export(&name, &*volume);
                        volume.watch(self.hung_up.clone());
                        self.opened = Some((name, volume));
                        self.machine.found(&export)
                    }
                    Err(refusal) => self.machine.refused(&refusal),
                },
                Step::Ready(agreed) => match self.opened.take() {
                    Some((name, volume)) => return Ok(End::Attached { name, volume, agreed }),
                    None => return Ok(End::Closed),
                },
            };
        }
    }

    fn step(&mut self) -> io::Result<Step> {
        self.machine.step(&mut self.input).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    async fn flush<S: Stream>(&mut self, stream: &mut S) -> io::Result<()> {
        let out: Bytes = self.machine.take_output();
        if out.is_empty() {
            return Ok(());
        }
        let send = async {
            stream.write_all(&out).await?;
            stream.flush().await
        };
        self.patiently(send).await
    }

    /// Returns false when the client has gone, or the server is stopping.
    async fn read<S: Stream>(&mut self, stream: &mut S) -> io::Result<bool> {
        let drain = self.server.drain.clone();
        let mut input = std::mem::take(&mut self.input);
        input.reserve(4096);
        let n = tokio::select! {
            n = self.patiently(stream.read_buf(&mut input)) => n?,
            () = drain.cancelled() => 0,
        };
        self.input = input;
        Ok(n > 0)
    }

    /// Network I/O of the handshake, bounded in time.
    async fn patiently<T>(&mut self, io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let (began, patience) = (Instant::now(), self.option.min(self.end));
        let result = timeout(patience, io).await;
        let waited = began.elapsed();
        self.option = self.option.saturating_sub(waited);
        self.end = self.end.saturating_sub(waited);
        match result {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "client is too slow in the handshake")),
        }
    }

    async fn encrypt<S: Stream>(&mut self, stream: S) -> io::Result<tokio_rustls::server::TlsStream<S>> {
        let Some(tls) = self.server.tls.clone() else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "TLS is not configured"));
        };
        let stream = self.patiently(tls.accept(stream)).await?;
        self.machine.secured();
        Ok(stream)
    }

    async fn list(&mut self) -> Step {
        match self.server.source.list().await {
            Ok(rows) => self.machine.listed(rows.iter().map(|r| r.name.as_str())),
            Err(e) => self.machine.refused(&error::refusal(&e)),
        }
    }

    async fn describe(&mut self, name: &str) -> Step {
        match self.server.source.info(name).await {
            Ok(ExportInfo { name, size, read_only }) => {
                let description = describe(&name, read_only);
                self.machine.found(&Export { name, description, size, read_only })
            }
            Err(e) => self.machine.refused(&error::refusal(&e)),
        }
    }

    /// May take long: old connections to the same volume have to end first. It is not given up when the client leaves, so that
    /// what is opened is closed again in order.
    async fn open(&mut self, name: String) -> Result<(String, Rc<dyn Volume>), Refusal> {
        if self.server.drain.is_cancelled() {
            return Err(Refusal::Shutdown("the server is stopping".into()));
        }
        match self.server.source.open(&name).await {
            Ok(volume) => Ok((name, volume)),
            Err(e) => Err(error::refusal(&e)),
        }
    }
}

fn export(name: &str, volume: &dyn Volume) -> Export {
    let read_only = volume.read_only();
    Export { name: name.to_owned(), description: describe(name, read_only), size: volume.size(), read_only }
}

fn describe(name: &str, read_only: bool) -> String {
    match (name.contains('@'), read_only) {
        (true, _) => "Sheepdog snapshot".into(),
        (false, true) => "Sheepdog volume, read-only".into(),
        (false, false) => "Sheepdog volume".into(),
    }
}
