//! Errors as callers see them, and their two mappings: to gRPC and to exit codes.
//!
//! A kind travels as one word in the metadata key `sheepdog-error`; the status code is the nearest one gRPC has, for clients in other languages.

use tonic::{Code, Status};

/// Metadata key that carries `ErrorKind::word`.
pub const ERROR_KEY: &str = "sheepdog-error";

/// What went wrong, as far as a program can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The name is taken.
    Exists,
    /// No such VDI, snapshot, node, disk.
    Missing,
    /// No space.
    Full,
    /// In use, locked, or in the middle of something.
    Busy,
    /// An argument is out of range or makes no sense.
    Usage,
    /// The cluster waits for format.
    NotFormatted,
    /// The cluster cannot do it now: no majority, too few nodes, a node does not answer.
    Cluster,
    /// The session's owner changed meanwhile: ask again.
    Moved,
    /// Not part of this release.
    Unsupported,
    /// The credentials are not good for it.
    Denied,
    /// The sheep could not be reached or the connection broke.
    Unreachable,
    /// Anything else.
    Internal,
}

/// Every kind, for tables and tests.
pub const ALL_KINDS: [ErrorKind; 12] = [
    ErrorKind::Exists,
    ErrorKind::Missing,
    ErrorKind::Full,
    ErrorKind::Busy,
    ErrorKind::Usage,
    ErrorKind::NotFormatted,
    ErrorKind::Cluster,
    ErrorKind::Moved,
    ErrorKind::Unsupported,
    ErrorKind::Denied,
    ErrorKind::Unreachable,
    ErrorKind::Internal,
];

impl ErrorKind {
    /// The word in the metadata and in `dog explain`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Exists => "exists",
            Self::Missing => "missing",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Usage => "usage",
            Self::NotFormatted => "not-formatted",
            Self::Cluster => "cluster",
            Self::Moved => "moved",
            Self::Unsupported => "unsupported",
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
            Self::Internal => "internal",
        }
    }
    /// From its word.
    pub fn from_word(word: &str) -> Option<Self> {
        ALL_KINDS.into_iter().find(|k| k.word() == word)
    }
    /// The nearest gRPC code.
    pub fn code(self) -> Code {
        match self {
            Self::Exists => Code::AlreadyExists,
            Self::Missing => Code::NotFound,
            Self::Full => Code::ResourceExhausted,
            Self::Busy | Self::NotFormatted => Code::FailedPrecondition,
            Self::Usage => Code::InvalidArgument,
            Self::Cluster | Self::Unreachable => Code::Unavailable,
            Self::Moved => Code::Aborted,
            Self::Unsupported => Code::Unimplemented,
            Self::Denied => Code::PermissionDenied,
            Self::Internal => Code::Internal,
        }
    }
    /// Of `dog`: 1 failed, 2 cluster or host problem, 3 exists, 4 full, 5 missing, 64 usage.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Exists => 3,
            Self::Full => 4,
            Self::Missing => 5,
            Self::Usage => 64,
            Self::NotFormatted | Self::Cluster | Self::Unreachable | Self::Denied => 2,
            Self::Busy | Self::Moved | Self::Unsupported | Self::Internal => 1,
        }
    }
    fn from_code(code: Code) -> Self {
        match code {
            Code::AlreadyExists => Self::Exists,
            Code::NotFound => Self::Missing,
            Code::ResourceExhausted => Self::Full,
            Code::FailedPrecondition => Self::Busy,
            Code::InvalidArgument | Code::OutOfRange => Self::Usage,
            // A connection that breaks in the middle of a request, or a server that speaks TLS to a client that does not, has no better code.
            Code::Unavailable | Code::Unknown => Self::Unreachable,
            Code::DeadlineExceeded => Self::Cluster,
            Code::Aborted => Self::Moved,
            Code::Unimplemented => Self::Unsupported,
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied,
            _ => Self::Internal,
        }
    }
}

/// An error with its text for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Kind.
    pub kind: ErrorKind,
    /// Says what happened and what to do.
    pub message: String,
}

impl Error {
    /// Plain constructor.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
    /// As a gRPC status.
    pub fn to_status(&self) -> Status {
        let mut s = Status::new(self.kind.code(), self.message.clone());
        s.metadata_mut().insert(ERROR_KEY, tonic::metadata::MetadataValue::from_static(self.kind.word()));
        s
    }
}

impl From<Error> for Status {
    fn from(e: Error) -> Self {
        e.to_status()
    }
}

impl From<Status> for Error {
    fn from(s: Status) -> Self {
        let word = s.metadata().get(ERROR_KEY).and_then(|v| v.to_str().ok());
        match word.and_then(ErrorKind::from_word) {
            Some(kind) => Self::new(kind, s.message()),
            // Without our word the status was made by a transport, on this side or the other.
            // A source is a connection's error, whatever code tonic found nearest.
            None if std::error::Error::source(&s).is_some() => {
                Self::new(ErrorKind::Unreachable, transport_text(&s))
            }
            None => Self::new(ErrorKind::from_code(s.code()), transport_text(&s)),
        }
    }
}

/// Transport errors hide their reason in their sources.
fn transport_text(s: &Status) -> String {
    let mut text = s.message().to_owned();
    let mut source = std::error::Error::source(s);
    while let Some(e) = source {
        let more = e.to_string();
        if !text.contains(&more) && more != "transport error" {
            text =
                if text.is_empty() || text == "transport error" { more } else { format!("{text}: {more}") };
        }
        source = e.source();
    }
    if text.is_empty() { s.code().description().to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ALL_KINDS {
            let e = Error::new(kind, "because");
            assert_eq!(Error::from(e.to_status()), e);
            assert_eq!(ErrorKind::from_word(kind.word()), Some(kind));
        }
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let code = |k: ErrorKind| k.exit_code();
        assert_eq!(code(ErrorKind::Internal), 1);
        assert_eq!(code(ErrorKind::Cluster), 2);
        assert_eq!(code(ErrorKind::Unreachable), 2);
        assert_eq!(code(ErrorKind::Exists), 3);
        assert_eq!(code(ErrorKind::Full), 4);
        assert_eq!(code(ErrorKind::Missing), 5);
        assert_eq!(code(ErrorKind::Usage), 64);
    }
}
