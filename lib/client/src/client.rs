//! The async client: one HTTP/2 connection to one of several sheep, made on demand, made again when it breaks.
//!
//! Addresses are tried in order, starting with the one that worked last; a name may stand for many addresses. Requests that read, or that may be repeated,
//! are repeated once after a broken connection; others report it, since they may have taken effect. Every unary request has a deadline.

use crate::credentials::{Credentials, CredentialsError, Role, SERVER_NAME};
use crate::error::{Error, ErrorKind};
use crate::pb::cluster_service_client::ClusterServiceClient;
use crate::pb::node_service_client::NodeServiceClient;
use crate::pb::vdi_service_client::VdiServiceClient;
use crate::pb::{self, *};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_stream::Stream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Metadata key of requests that one sheep passes on to another: they are not passed on again.
pub const FORWARDED_KEY: &str = "sheepdog-forwarded";
/// Largest data of one chunk of a read or write stream, bytes.
pub const MAX_CHUNK: usize = 1 << 20;
/// Largest message either side takes, bytes.
pub const MAX_MESSAGE: usize = 8 << 20;
/// Bytes of one HTTP/2 frame that either side takes: with the 16 KiB that are usual most of the time of a stream of contents goes into frames.
pub const MAX_FRAME: u32 = 256 << 10;
/// Deadline of a unary request unless told otherwise: longer than a sheep looks for a leader.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// For one of the addresses of a name: a host that is gone does not say so.
const CONNECT_EACH: Duration = Duration::from_secs(2);
/// What was sent and is not acknowledged for so long ends the connection: the host behind it is gone.
const SILENCE: Duration = Duration::from_secs(5);

/// How to reach a cluster.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `host:port` of sheep, any of them will do.
    pub addrs: Vec<String>,
    /// TLS, or plaintext.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// For one address.
    pub connect_timeout: Duration,
    /// For one unary request.
    pub deadline: Duration,
}

impl ConnectOptions {
    /// Plaintext with the default times.
    pub fn new(addrs: Vec<String>) -> Self {
        Self { addrs, tls: None, connect_timeout: Duration::from_secs(5), deadline: DEFAULT_DEADLINE }
    }
    /// With credentials.
    pub fn credentials(mut self, credentials: &Credentials, role: &Role) -> Result<Self, CredentialsError> {
        self.tls = Some(credentials.client_config(role)?);
        Ok(self)
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

struct Dialer {
    options: ConnectOptions,
    /// Index of the address that worked last.
    last: AtomicUsize,
}

impl Dialer {
    async fn dial(&self) -> io::Result<TokioIo<Box<dyn Io>>> {
        let n = self.options.addrs.len();
        let first = self.last.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for i in (0..n).map(|i| (first + i) % n) {
            let addr = &self.options.addrs[i];
            let tried = tokio::time::timeout(self.options.connect_timeout, self.dial_one(addr)).await;
            match tried {
                Ok(Ok(io)) => {
                    self.last.store(i, Ordering::Relaxed);
                    return Ok(TokioIo::new(io));
                }
                Ok(Err(e)) => failures.push(format!("{addr}: {}", describe(&e))),
                Err(_) => failures.push(format!("{addr}: no answer in {:?}", self.options.connect_timeout)),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotConnected, failures.join("; ")))
    }

    async fn dial_one(&self, addr: &str) -> io::Result<Box<dyn Io>> {
        let tcp = connect_any(tokio::net::lookup_host(addr).await?).await?;
        tcp.set_nodelay(true)?;
        rustix::net::sockopt::set_tcp_user_timeout(&tcp, SILENCE.as_millis() as u32)?;
        match &self.options.tls {
            None => Ok(Box::new(tcp) as Box<dyn Io>),
            Some(config) => self.shake(tcp, config).await,
        }
    }

    async fn shake(&self, tcp: TcpStream, config: &Arc<rustls::ClientConfig>) -> io::Result<Box<dyn Io>> {
        let name = rustls::pki_types::ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        let tls = tokio_rustls::TlsConnector::from(config.clone()).connect_with(name, tcp, |c| {
            c.set_buffer_limit(Some(1 << 20));
        });
        Ok(Box::new(tls.await?))
    }
}

/// The first that answers.
async fn connect_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for a in addresses {
        match tokio::time::timeout(CONNECT_EACH, TcpStream::connect(a)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(e)) => last = e,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{a} does not answer")),
        }
    }
    Err(last)
}

fn describe(e: &io::Error) -> String {
    let tls = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS: the sheep there runs without credentials (leave out --secret-file), or the port is another program's"
                .into()
        }
        Some(rustls::Error::InvalidCertificate(_)) => {
            "it belongs to another cluster: its certificate was not made from this secret file".into()
        }
        Some(rustls::Error::AlertReceived(_)) => format!("it refused our credentials ({e}): is this its cluster's secret file?"),
        _ => e.to_string(),
    }
}

/// Marks requests that one sheep passes on.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    forwarded: bool,
}

impl Interceptor for Hop {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if self.forwarded {
            request.metadata_mut().insert(FORWARDED_KEY, MetadataValue::from_static("1"));
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Hop>;

/// See the module. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    hop: Hop,
    dialer: Arc<Dialer>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.dialer.options.addrs.join(", "))
    }
}

/// A request that is answered once. `again`: it may be repeated after a broken connection.
macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident = $service:ident . $method:ident ($request:ty) -> $reply:ty, again $again:literal;)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: $request) -> Result<$reply, Error> {
            let mut tries = if $again { 2 } else { 1 };
            loop {
                tries -= 1;
                match self.$service().$method(self.request(request.clone())).await {
                    Ok(reply) => return Ok(reply.into_inner()),
                    Err(status) => {
                        let e = self.explain(status);
                        if tries == 0 || e.kind != ErrorKind::Unreachable {
                            return Err(e);
                        }
                    }
                }
            }
        })*
    };
}

/// A request that is answered by a stream.
macro_rules! stream {
    ($($(#[$doc:meta])* $name:ident = $service:ident . $method:ident ($request:ty) -> $reply:ty;)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: $request) -> Result<Streaming<$reply>, Error> {
            let reply = self.$service().$method(Request::new(request)).await;
            reply.map(tonic::Response::into_inner).map_err(|s| self.explain(s))
        })*
    };
}

impl Client {
    /// Connect to the first address that answers.
    pub async fn connect(options: ConnectOptions) -> Result<Self, Error> {
        let client = Self::lazy(options)?;
        // Dialled once by hand so that the error is the socket's and not the transport's.
        let probe = client.dialer.dial().await;
        probe.map(|_| ()).map_err(|e| client.unreachable(&e.to_string()))?;
        Ok(client)
    }

    /// Connect when the first request is made. Must be called on a tokio runtime.
    pub fn lazy(options: ConnectOptions) -> Result<Self, Error> {
        if options.addrs.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "no address of a sheep was given"));
        }
        let total = options.connect_timeout * options.addrs.len() as u32 + Duration::from_secs(1);
        let endpoint = Endpoint::from_static("http://sheepdog")
            .connect_timeout(total)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(MAX_FRAME)
            .user_agent(concat!("sheepdog-client/", env!("CARGO_PKG_VERSION")))
            .map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        let dialer = Arc::new(Dialer { options, last: AtomicUsize::new(0) });
        let dial = dialer.clone();
        let channel =
            endpoint.connect_with_connector_lazy(tower::service_fn(move |_: tonic::transport::Uri| {
                let dial = dial.clone();
                async move { dial.dial().await }
            }));
        Ok(Self { channel, hop: Hop { forwarded: false }, dialer })
    }

    /// The same connection, for requests that must not be passed on again.
    pub fn forwarded(&self) -> Self {
        Self { hop: Hop { forwarded: true }, ..self.clone() }
    }

    /// The same connection, for requests that may be passed on.
    pub fn original(&self) -> Self {
        Self { hop: Hop { forwarded: false }, ..self.clone() }
    }

    /// Address that answered last.
    pub fn addr(&self) -> &str {
        let i = self.dialer.last.load(Ordering::Relaxed);
        &self.dialer.options.addrs[i]
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut r = Request::new(message);
        r.set_timeout(self.dialer.options.deadline);
        r
    }

    fn unreachable(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unreachable, format!("cannot reach a sheep: {why}"))
    }

    /// What a status means, with the address when it was made by the transport.
    pub fn explain(&self, status: Status) -> Error {
        let e = Error::from(status);
        match e.kind {
            ErrorKind::Unreachable => self.unreachable(&e.message),
            _ => e,
        }
    }

    /// The generated client, for what has no method here.
    pub fn vdi(&self) -> VdiServiceClient<Service> {
        VdiServiceClient::with_interceptor(self.channel.clone(), self.hop)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
    /// The generated client, for what has no method here.
    pub fn node(&self) -> NodeServiceClient<Service> {
        NodeServiceClient::with_interceptor(self.channel.clone(), self.hop)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
    /// The generated client, for what has no method here.
    pub fn cluster(&self) -> ClusterServiceClient<Service> {
        ClusterServiceClient::with_interceptor(self.channel.clone(), self.hop)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    unary! {
        /// Make a VDI or a clone. Give it a uuid: then it may be repeated.
        create_vdi = vdi.create(CreateVdiRequest) -> Vdi, again true;
        /// One VDI.
        get_vdi = vdi.get(GetVdiRequest) -> Vdi, again true;
        /// One page of the table.
        list_vdis = vdi.list(ListVdisRequest) -> ListVdisReply, again true;
        /// Delete.
        delete_vdi = vdi.delete(DeleteVdiRequest) -> DeleteVdiReply, again false;
        /// One page of what was deleted.
        list_trash = vdi.list_trash(ListTrashRequest) -> ListTrashReply, again true;
        /// Bring something back.
        restore_trash = vdi.restore_trash(RestoreTrashRequest) -> Vdi, again false;
        /// Really delete.
        purge_trash = vdi.purge_trash(PurgeTrashRequest) -> Done, again false;
        /// Keep a snapshot from being deleted.
        lock_snapshot = vdi.lock_snapshot(LockSnapshotRequest) -> Snapshot, again true;
        /// Rename.
        rename_vdi = vdi.rename(RenameVdiRequest) -> Done, again true;
        /// Snapshot.
        snapshot = vdi.snapshot(SnapshotRequest) -> SnapshotReply, again false;
        /// Roll back to a snapshot.
        rollback = vdi.rollback(RollbackRequest) -> Done, again true;
        /// Resize.
        resize = vdi.resize(ResizeRequest) -> Vdi, again true;
        /// Change the number of copies of a VDI.
        alter_vdi_copies = vdi.alter_copies(AlterVdiCopiesRequest) -> Done, again true;
        /// How fast a VDI may be used.
        set_limits = vdi.set_limits(SetLimitsRequest) -> Done, again true;
        /// Set or delete an attribute.
        set_attr = vdi.set_attr(SetAttrRequest) -> Done, again false;
        /// Take a lock.
        lock = vdi.lock(LockRequest) -> Done, again true;
        /// Give a lock back.
        unlock = vdi.unlock(UnlockRequest) -> Done, again false;
        /// Let somebody use a VDI.
        attach = vdi.attach(AttachRequest) -> Attachment, again true;
        /// Let somebody use a VDI no longer.
        detach = vdi.detach(DetachRequest) -> Done, again true;
        /// Where one object is.
        locate = vdi.locate(LocateRequest) -> LocateReply, again true;
        /// Where one object belonged over time.
        track = vdi.track(TrackRequest) -> TrackReply, again true;
        /// Between sheep.
        hold = vdi.hold(HoldRequest) -> HoldReply, again false;
        /// All nodes.
        list_nodes = node.list(ListNodesRequest) -> ListNodesReply, again true;
        /// Space and disks.
        node_info = node.info(NodeInfoRequest) -> NodeInfoReply, again true;
        scrub = node.scrub(ScrubRequest) -> ScrubReply, again true;
        /// Take a disk into use.
        plug_disk = node.plug_disk(PlugDiskRequest) -> NodeDisk, again false;
        /// Take a disk out of use.
        unplug_disk = node.unplug_disk(UnplugDiskRequest) -> Done, again false;
        /// Stop a node for good.
        kill_node = node.kill(KillNodeRequest) -> Done, again false;
        /// Start or cancel emptying a node.
        drain_node = node.drain(DrainNodeRequest) -> Done, again true;
        /// Log level.
        log_level = node.log_level(LogLevelRequest) -> LogLevelReply, again true;
        /// Weight or virtual nodes.
        set_weight = node.set_weight(SetWeightRequest) -> Done, again true;
        /// Does the sheep serve?
        health = node.health(HealthRequest) -> HealthReply, again true;
        /// The cluster at a glance.
        cluster_info = cluster.info(ClusterInfoRequest) -> ClusterInfo, again true;
        /// Make a cluster.
        format = cluster.format(FormatRequest) -> ClusterInfo, again false;
        /// Stop all sheep.
        shutdown = cluster.shutdown(ShutdownRequest) -> Done, again false;
        /// Default redundancy.
        alter_copies = cluster.alter_copies(AlterCopiesRequest) -> Done, again true;
        /// Recovery switches; an empty request reads them.
        set_recovery = cluster.set_recovery(SetRecoveryRequest) -> RecoverySettings, again true;
        /// How long the trash keeps things; an empty request reads it.
        set_trash = cluster.set_trash(SetTrashRequest) -> TrashSettings, again true;
        /// Accept loss.
        force = cluster.force(ForceRequest) -> Done, again false;
        /// A cluster from its disks.
        rebuild = cluster.rebuild(RebuildRequest) -> ClusterInfo, again false;
    }

    stream! {
        /// Make a clone stand alone.
        flatten = vdi.flatten(FlattenRequest) -> Progress;
        /// Allocate everything.
        preallocate = vdi.preallocate(PreallocateRequest) -> Progress;
        /// Contents.
        read = vdi.read(ReadRequest) -> Chunk;
        /// Compare copies.
        check = vdi.check(CheckRequest) -> CheckReport;
        /// Objects that exist.
        map = vdi.map(MapRequest) -> MapEntry;
        /// Changed ranges.
        diff = vdi.diff(DiffRequest) -> DiffRange;
        /// Counters of VDIs.
        stat_vdi = vdi.stat(StatVdiRequest) -> StatVdiReply;
        /// What is still to be moved.
        recovery = node.recovery(RecoveryRequest) -> RecoveryReply;
        /// Counters of nodes.
        stat_node = node.stat(StatNodeRequest) -> StatNodeReply;
        /// What happened.
        events = cluster.events(EventsRequest) -> pb::Event;
    }

    /// Write a stream of chunks; the acknowledgements come while it runs.
    pub async fn write(
        &self,
        vdi: VdiRef,
        chunks: impl Stream<Item = Chunk> + Send + 'static,
    ) -> Result<Streaming<WriteAck>, Error> {
        self.write_attached(vdi, 0, chunks).await
    }

    /// The same under an attachment of the VDI (`Attachment::id`; 0: none). Fails as soon as that is over.
    pub async fn write_attached(
        &self,
        vdi: VdiRef,
        attachment: u64,
        chunks: impl Stream<Item = Chunk> + Send + 'static,
    ) -> Result<Streaming<WriteAck>, Error> {
        use tokio_stream::StreamExt;
        use write_request::Message;
        let first = tokio_stream::once(WriteRequest { message: Some(Message::Vdi(vdi)), attachment });
        let rest = chunks.map(|c| WriteRequest { message: Some(Message::Chunk(c)), attachment: 0 });
        let reply = self.vdi().write(Request::new(first.chain(rest))).await;
        reply.map(tonic::Response::into_inner).map_err(|s| self.explain(s))
    }

    /// Every VDI, all pages.
    pub async fn all_vdis(&self, prefix: &str, usage: bool) -> Result<Vec<Vdi>, Error> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListVdisRequest { prefix: prefix.into(), page_size: 0, page_token, usage };
            let mut page = self.list_vdis(request).await?;
            all.append(&mut page.vdis);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }
}

impl Client {
    /// All that is in the trash, all pages, and the nodes that did not tell how much space it takes.
    pub async fn all_trash(&self, usage: bool) -> Result<(Vec<TrashItem>, Vec<String>), Error> {
        let (mut all, mut missing) = (Vec::new(), Vec::new());
        let mut page_token = String::new();
        loop {
            let mut page = self.list_trash(ListTrashRequest { page_size: 0, page_token, usage }).await?;
            all.append(&mut page.items);
            missing.append(&mut page.missing_nodes);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                missing.sort();
                missing.dedup();
                return Ok((all, missing));
            }
        }
    }
}

impl VdiRef {
    /// By name.
    pub fn name(name: impl Into<String>) -> Self {
        Self { by: Some(vdi_ref::By::Name(name.into())) }
    }
    /// By UUID.
    pub fn uuid(uuid: impl Into<String>) -> Self {
        Self { by: Some(vdi_ref::By::Uuid(uuid.into())) }
    }
    /// By id.
    pub fn id(id: u32) -> Self {
        Self { by: Some(vdi_ref::By::Id(id)) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    /// A name of several hosts, of which the first is gone.
    #[tokio::test]
    async fn an_address_that_does_not_answer_is_passed_over() {
        // With a full queue that nobody empties, the kernel drops what arrives, as if there were no host.
        let gone =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
                .unwrap();
        rustix::net::bind(&gone, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        rustix::net::listen(&gone, 0).unwrap();
        let gone = TcpListener::from(gone);
        let at = gone.local_addr().unwrap();
        let mut queue = Vec::new();
        loop {
            let one = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(at)).await;
            match one {
                Ok(tcp) => queue.push(tcp.unwrap()),
                Err(_) => break,
            }
        }
        let there = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let found = connect_any([at, there.local_addr().unwrap()].into_iter()).await.unwrap();
        assert_eq!(found.peer_addr().unwrap(), there.local_addr().unwrap());
        let none = connect_any([at].into_iter()).await.unwrap_err();
        assert!(none.to_string().contains("does not answer"), "{none}");
    }
}
