//! What goes wrong, and the one mapping to the codes of the CSI specification.

use sheepdog_client::{Error, ErrorKind};
use tonic::{Code, Status};

/// Kinds of errors that callers act on differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request makes no sense, now or later.
    Invalid,
    /// No such volume, snapshot, node, path.
    NotFound,
    /// The name is taken by something else.
    Exists,
    /// A size that cannot be.
    OutOfRange,
    /// No space, or the node has all the volumes it takes.
    Exhausted,
    /// In use, or not in the state that the request needs.
    Precondition,
    /// Another operation on the same thing is under way.
    Aborted,
    /// The cluster cannot do it now; it may soon.
    Unavailable,
    /// Not something this driver does.
    Unimplemented,
    /// The credentials are not good for it.
    Denied,
    /// Anything else.
    Internal,
}

/// An error with its sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    /// Kind.
    pub kind: Kind,
    /// Says what happened and what to do.
    pub text: String,
}

/// What every operation answers.
pub type Outcome<T> = Result<T, Fault>;

impl Fault {
    /// Plain constructor.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
    /// The request makes no sense.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, text)
    }
    /// No such thing.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, text)
    }
    /// Not in the right state.
    pub fn precondition(text: impl Into<String>) -> Self {
        Self::new(Kind::Precondition, text)
    }
    /// Broken in a way that the caller can do nothing about.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(Kind::Internal, text)
    }
    /// The same with what was being done in front.
    pub fn during(self, what: &str) -> Self {
        Self { text: format!("{what}: {}", self.text), ..self }
    }
}

impl Kind {
    /// The code of the CSI specification.
    pub fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::Exists => Code::AlreadyExists,
            Self::OutOfRange => Code::OutOfRange,
            Self::Exhausted => Code::ResourceExhausted,
            Self::Precondition => Code::FailedPrecondition,
            Self::Aborted => Code::Aborted,
            Self::Unavailable => Code::Unavailable,
            Self::Unimplemented => Code::Unimplemented,
            Self::Denied => Code::PermissionDenied,
            Self::Internal => Code::Internal,
        }
    }
}

/// What an answer of a sheep means to a caller of the driver.
pub fn kind_of(kind: ErrorKind) -> Kind {
    match kind {
        ErrorKind::Exists => Kind::Exists,
        ErrorKind::Missing => Kind::NotFound,
        ErrorKind::Full => Kind::Exhausted,
        ErrorKind::Busy => Kind::Precondition,
        ErrorKind::Usage | ErrorKind::Unsupported => Kind::Invalid,
        ErrorKind::Moved => Kind::Aborted,
        ErrorKind::NotFormatted | ErrorKind::Cluster | ErrorKind::Unreachable => Kind::Unavailable,
        ErrorKind::Denied => Kind::Denied,
        ErrorKind::Internal => Kind::Internal,
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::new(kind_of(e.kind), e.message)
    }
}

impl From<Fault> for Status {
    fn from(f: Fault) -> Self {
        Status::new(f.kind.code(), f.text)
    }
}

/// An error of the operating system, with what was being done.
pub fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Fault {
    move |e| Fault::internal(format!("{what}: {e}"))
}

/// A field that a request must have.
pub fn given(what: &str, text: &str) -> Outcome<()> {
    match text {
        "" => Err(Fault::invalid(format!("a {what} is needed"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_client::error::ALL_KINDS;

    #[test]
    fn every_answer_of_a_sheep_has_a_code() {
        let codes: Vec<Code> = ALL_KINDS.iter().map(|k| kind_of(*k).code()).collect();
        use Code::*;
        assert_eq!(
            codes,
            [
                AlreadyExists,
                NotFound,
                ResourceExhausted,
                FailedPrecondition,
                InvalidArgument,
                Unavailable,
                Unavailable,
                Aborted,
                InvalidArgument,
                PermissionDenied,
                Unavailable,
                Internal
            ]
        );
    }
}
