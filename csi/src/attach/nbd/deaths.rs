//! Which devices may have lost their connection. The kernel tells a multicast group of each that dies, and there is no asking it: of what died before
//! we listened, or when it told more than we took, every device is suspected. To offer a socket to one whose connection lives does nothing.

use super::message::{self, FAMILY};
use crate::fault::{Fault, Outcome, io};
use neli::consts::socket::{Msg, NlFamily};
use neli::router::synchronous::NlRouter;
use neli::socket::NlSocket;
use neli::utils::Groups;
use std::collections::BTreeSet;
use std::io::ErrorKind;

const GROUP: &str = "nbd_mc_group";
/// One message has 28 bytes.
const MESSAGE: usize = 256;

/// Numbers of devices under suspicion.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Suspects(BTreeSet<u32>);

impl Suspects {
    /// Those of `present` that are suspected; others are forgotten.
    pub(super) fn among(&mut self, present: &[u32]) -> Vec<u32> {
        self.0.retain(|i| present.contains(i));
        self.0.iter().copied().collect()
    }
    /// It is under suspicion.
    pub(super) fn suspect(&mut self, index: u32) {
        self.0.insert(index);
    }
    /// It is not any more.
    pub(super) fn clear(&mut self, index: u32) {
        self.0.remove(&index);
    }
    /// What the kernel told; nothing: anything may have happened.
    fn hear(&mut self, told: Option<u32>, present: &[u32]) {
        match told {
            Some(index) => self.suspect(index),
            None => self.0.extend(present),
        }
    }
}

/// Hears of deaths.
#[derive(Default)]
pub(super) struct Deaths {
    listener: Option<NlSocket>,
    suspects: Suspects,
}

impl std::fmt::Debug for Deaths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deaths").field("suspects", &self.suspects).finish_non_exhaustive()
    }
}

impl Deaths {
    /// Take in what the kernel told since the last time. Never waits.
    pub(super) fn look(&mut self, present: &[u32]) -> Outcome<&mut Suspects> {
        if self.listener.is_none() {
            self.listener = Some(listen()?);
            // After we listen, so that none dies in between.
            self.suspects.hear(None, present);
        }
        let mut bytes = [0; MESSAGE];
        while let Some(listener) = &self.listener {
            match listener.recv(&mut bytes[..], Msg::empty()) {
                Ok((len, _)) => {
                    if let Some(index) = message::dead_link(&bytes[..len]) {
                        self.suspects.hear(Some(index), present);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => self.suspects.hear(None, present),
                Err(e) => {
                    self.listener = None;
                    return Err(io("listen to the kernel's NBD")(e));
                }
            }
        }
        Ok(&mut self.suspects)
    }
}

fn listen() -> Outcome<NlSocket> {
    let failed = |e: String| Fault::internal(format!("listen to the kernel's NBD: {e}"));
    let connected = NlRouter::connect(NlFamily::Generic, None, Groups::empty());
    let (router, _) = connected.map_err(|e| failed(message::reason(&e)))?;
    let group = router.resolve_nl_mcast_group(FAMILY, GROUP).map_err(|e| failed(message::reason(&e)))?;
    let socket = NlSocket::connect(NlFamily::Generic, None, Groups::empty());
    let socket = socket.map_err(|e| failed(e.to_string()))?;
    let set = socket.add_mcast_membership(Groups::new_groups(&[group])).and_then(|()| socket.nonblock());
    set.map_err(|e| failed(e.to_string()))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_suspected() {
        let mut s = Suspects::default();
        assert!(s.among(&[1, 2]).is_empty());
        s.hear(Some(2), &[1, 2]);
        assert_eq!(s.among(&[1, 2]), [2]);
        s.clear(2);
        s.hear(None, &[1, 2, 5]);
        assert_eq!(s.among(&[1, 2, 5]), [1, 2, 5]);
        // Its number may be another device's tomorrow.
        assert_eq!(s.among(&[1, 5]), [1, 5]);
        assert_eq!(s.among(&[1, 2, 5]), [1, 5]);
    }
}
