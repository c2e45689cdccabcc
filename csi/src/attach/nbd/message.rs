//! Messages of the kernel's `nbd` family. Numbers as in `linux/nbd-netlink.h`.

use crate::fault::{Fault, Kind, Outcome};
use neli::FromBytes as _;
use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::err::RouterError;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder};
use neli::nl::{NlPayload, Nlmsghdr};
use neli::router::synchronous::NlRouter;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;
use std::io::Cursor;
use std::os::fd::{AsRawFd as _, OwnedFd};

pub(super) const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
const LINK_DEAD: u8 = 4;

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// Logical block of the device.
const BLOCK: u64 = 512;
/// Transmission flags that the kernel knows: has-flags, read-only, flush, FUA, trim, multi-connection.
const KNOWN_FLAGS: u16 = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x100;
const READ_ONLY: u16 = 0x2;

type Attr = Nlattr<u16, Buffer>;
type Message = Genlmsghdr<u8, u16>;

fn built<E: std::fmt::Display>(e: E) -> Fault {
    Fault::internal(format!("a message for the kernel's NBD: {e}"))
}

/// A new device.
#[derive(Debug, Clone)]
pub(super) struct Connect {
    pub(super) size: u64,
    /// As sheep said them.
    pub(super) flags: u16,
    pub(super) read_only: bool,
    pub(super) dead_conn_timeout: u64,
    pub(super) backend: String,
}

fn attr<P: neli::Size + neli::ToBytes>(kind: u16, payload: P) -> Outcome<Attr> {
    let kind = AttrTypeBuilder::default().nla_type(kind).build().map_err(built)?;
    NlattrBuilder::default().nla_type(kind).nla_payload(payload).build().map_err(built)
}

fn nest(kind: u16, inside: &[Attr]) -> Outcome<Attr> {
    let kind = AttrTypeBuilder::default().nla_nested(true).nla_type(kind).build().map_err(built)?;
    let nest =
        NlattrBuilder::default().nla_type(kind).nla_payload(Vec::<u8>::new()).build().map_err(built)?;
    inside.iter().try_fold(nest, |nest, a| nest.nest(a).map_err(built))
}

fn socket(fd: i32) -> Outcome<Attr> {
    nest(SOCKETS, &[nest(SOCK_ITEM, &[attr(SOCK_FD, fd.cast_unsigned())?])?])
}

fn message(command: u8, attrs: Vec<Attr>) -> Outcome<Message> {
    let attrs = attrs.into_iter().collect::<GenlBuffer<_, _>>();
    GenlmsghdrBuilder::default().cmd(command).version(VERSION).attrs(attrs).build().map_err(built)
}

fn connect_message(c: &Connect, fd: i32) -> Outcome<Message> {
    let read_only = if c.read_only { READ_ONLY } else { 0 };
    let flags = u64::from((c.flags & KNOWN_FLAGS) | read_only);
    message(
        CONNECT,
        vec![
            attr(SIZE_BYTES, c.size)?,
            attr(BLOCK_SIZE_BYTES, BLOCK)?,
            attr(SERVER_FLAGS, flags)?,
            // With a single connection: never. A request that takes long is logged and waited for, and sent again when its socket was replaced.
            attr(TIMEOUT, 0u64)?,
            attr(DEAD_CONN_TIMEOUT, c.dead_conn_timeout)?,
            attr(BACKEND_IDENTIFIER, c.backend.as_str())?,
            socket(fd)?,
        ],
    )
}

fn reconnect_message(index: u32, backend: &str, dead_conn_timeout: u64, fd: i32) -> Outcome<Message> {
    message(
        RECONFIGURE,
        vec![
            attr(INDEX, index)?,
            attr(BACKEND_IDENTIFIER, backend)?,
            attr(DEAD_CONN_TIMEOUT, dead_conn_timeout)?,
            socket(fd)?,
        ],
    )
}

fn resize_message(index: u32, size: u64, backend: &str) -> Outcome<Message> {
    let size = attr(SIZE_BYTES, size)?;
    message(RECONFIGURE, vec![attr(INDEX, index)?, attr(BACKEND_IDENTIFIER, backend)?, size])
}

/// Netlink's own texts are whole messages; its errors are errors of the system.
pub(super) fn reason<T: std::fmt::Debug, P: std::fmt::Debug>(e: &RouterError<T, P>) -> String {
    match e {
        RouterError::Nlmsgerr(refused) => {
            std::io::Error::from_raw_os_error(refused.error().saturating_abs()).to_string()
        }
        other => other.to_string(),
    }
}

/// Number of the family; also whether the kernel has NBD.
pub fn family() -> Result<u16, String> {
    let (router, _) = NlRouter::connect(NlFamily::Generic, None, Groups::empty()).map_err(|e| reason(&e))?;
    router.resolve_genl_family(FAMILY).map_err(|e| reason(&e))
}

/// Send, and hear what the kernel says: for a new device its number.
fn send(what: &str, m: Message) -> Outcome<Option<u32>> {
    let failed = |why: String| Fault::internal(format!("{what} (kernel NBD): {why}"));
    let connected = NlRouter::connect(NlFamily::Generic, None, Groups::empty());
    let (router, _) = connected.map_err(|e| failed(reason(&e)))?;
    let family = router.resolve_genl_family(FAMILY).map_err(|e| {
        let why = reason(&e);
        Fault::new(Kind::Precondition, format!("the kernel has no NBD ({why}): load it with `modprobe nbd`"))
    })?;
    let answers = router
        .send::<_, _, u16, Message>(family, NlmF::ACK, NlPayload::Payload(m))
        .map_err(|e| failed(reason(&e)))?;
    let mut index = None;
    for answer in answers {
        let answer = answer.map_err(|e| failed(reason(&e)))?;
        if let Some(payload) = answer.get_payload() {
            index = payload.attrs().get_attr_handle().get_attr_payload_as::<u32>(INDEX).ok().or(index);
        }
    }
    Ok(index)
}

/// Number of the device of which this message of the kernel's says that its connection died.
pub(super) fn dead_link(bytes: &[u8]) -> Option<u32> {
    let m = Nlmsghdr::<u16, Message>::from_bytes(&mut Cursor::new(bytes)).ok()?;
    let payload = m.get_payload().filter(|p| *p.cmd() == LINK_DEAD)?;
    payload.attrs().get_attr_handle().get_attr_payload_as::<u32>(INDEX).ok()
}

/// Make a device; its number.
pub(super) fn connect(c: &Connect, socket: &OwnedFd) -> Outcome<u32> {
    let index = send("connect", connect_message(c, socket.as_raw_fd())?)?;
    index.ok_or_else(|| Fault::internal("the kernel did not say which NBD device it made"))
}

/// Replace the device's socket if it is dead; does nothing, without an error, while it lives.
pub(super) fn reconnect(index: u32, backend: &str, timeout: u64, socket: &OwnedFd) -> Outcome<()> {
    send("reconnect", reconnect_message(index, backend, timeout, socket.as_raw_fd())?).map(drop)
}

/// Another size.
pub(super) fn resize(index: u32, size: u64, backend: &str) -> Outcome<()> {
    send("resize", resize_message(index, size, backend)?).map(drop)
}

/// Take a device away; its I/O fails.
pub(super) fn disconnect(index: u32) -> Outcome<()> {
    send("disconnect", message(DISCONNECT, vec![attr(INDEX, index)?])?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use neli::ToBytes as _;

    fn bytes(m: &Message) -> Vec<u8> {
        let mut out = std::io::Cursor::new(Vec::new());
        m.to_bytes(&mut out).unwrap();
        out.into_inner()
    }

    /// Length, type, payload, padding.
    fn plain(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = (payload.len() as u16 + 4).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(payload);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn nested(kind: u16, inside: &[u8]) -> Vec<u8> {
        plain(kind | 0x8000, inside)
    }

    #[test]
    fn messages_are_as_the_kernel_reads_them() {
        let c = Connect {
            size: 1 << 30,
            flags: !READ_ONLY,
            read_only: false,
            dead_conn_timeout: 300,
            backend: "a/7".into(),
        };
        let one = nested(SOCK_ITEM, &plain(SOCK_FD, &9u32.to_ne_bytes()));
        let want = [
            vec![CONNECT, VERSION, 0, 0],
            plain(SIZE_BYTES, &(1u64 << 30).to_ne_bytes()),
            plain(BLOCK_SIZE_BYTES, &512u64.to_ne_bytes()),
            plain(SERVER_FLAGS, &0x12du64.to_ne_bytes()),
            plain(TIMEOUT, &0u64.to_ne_bytes()),
            plain(DEAD_CONN_TIMEOUT, &300u64.to_ne_bytes()),
            plain(BACKEND_IDENTIFIER, b"a/7\0"),
            nested(SOCKETS, &one),
        ];
        assert_eq!(bytes(&connect_message(&c, 9).unwrap()), want.concat());

        let want = [
            vec![RECONFIGURE, VERSION, 0, 0],
            plain(INDEX, &3u32.to_ne_bytes()),
            plain(BACKEND_IDENTIFIER, b"a/7\0"),
            plain(DEAD_CONN_TIMEOUT, &300u64.to_ne_bytes()),
            nested(SOCKETS, &one),
        ];
        assert_eq!(bytes(&reconnect_message(3, "a/7", 300, 9).unwrap()), want.concat());

        let want = [
            vec![RECONFIGURE, VERSION, 0, 0],
            plain(INDEX, &3u32.to_ne_bytes()),
            plain(BACKEND_IDENTIFIER, b"a/7\0"),
            plain(SIZE_BYTES, &4096u64.to_ne_bytes()),
        ];
        assert_eq!(bytes(&resize_message(3, 4096, "a/7").unwrap()), want.concat());
    }
    #[test]
    fn the_kernels_word_of_a_dead_link() {
        let message = |command: u8| {
            let inside = [vec![command, 0, 0, 0], plain(INDEX, &7u32.to_ne_bytes())].concat();
            let header = [
                (inside.len() as u32 + 16).to_ne_bytes().to_vec(),
                // Family, flags, sequence, port.
                30u16.to_ne_bytes().to_vec(),
                vec![0; 10],
            ];
            [header.concat(), inside].concat()
        };
        assert_eq!(dead_link(&message(LINK_DEAD)), Some(7));
        assert_eq!(dead_link(&message(RECONFIGURE)), None);
        for len in 0..28 {
            assert_eq!(dead_link(&message(LINK_DEAD)[..len]), None, "{len} bytes");
        }
    }
}
