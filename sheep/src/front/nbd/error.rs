//! What a `VolumeError` means to an NBD client: once in the handshake, once for a request.

use crate::volume::VolumeError;
use sheepdog_nbd::Errno;
use sheepdog_nbd::server::Refusal;

/// Why an export cannot be listed, described or opened.
pub(super) fn refusal(e: &VolumeError) -> Refusal {
    let text = e.to_string();
    match e {
        VolumeError::NotFound(_) => Refusal::Unknown(text),
        VolumeError::Gone(_) | VolumeError::Fenced | VolumeError::ShuttingDown => Refusal::Shutdown(text),
        VolumeError::OutOfRange
        | VolumeError::ReadOnly
        | VolumeError::NotAttached(_)
        | VolumeError::Busy(_)
        | VolumeError::NotFast
        | VolumeError::Io(_) => Refusal::Policy(text),
    }
}

/// How a request fails. `None`: not at all; the connection ends without an answer, so that the client connects again and
/// repeats it (clients turn an `ESHUTDOWN` into an I/O error of the guest, which a restart must never cause).
pub(super) fn errno(e: &VolumeError) -> Option<Errno> {
    match e {
        VolumeError::Gone(_)
        | VolumeError::Fenced
        | VolumeError::NotAttached(_)
        | VolumeError::ShuttingDown => None,
        VolumeError::NotFound(_) | VolumeError::OutOfRange => Some(Errno::Inval),
        VolumeError::ReadOnly | VolumeError::Busy(_) => Some(Errno::Perm),
        VolumeError::NotFast => Some(Errno::NotSup),
        VolumeError::Io(_) => Some(Errno::Io),
    }
}
