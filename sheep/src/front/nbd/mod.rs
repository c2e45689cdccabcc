//! NBD server on sockets.
