//! How a command fails: an exit code, what happened, and what to try.

use sheepdog_client::{CredentialsError, Error, ErrorKind};
use std::fmt::Display;

/// Exit codes, the same since the first `dog`.
pub mod code {
    /// Anything not below.
    pub const FAILED: u8 = 1;
    /// The cluster or this host cannot do it.
    pub const CLUSTER: u8 = 2;
    /// There is no such thing.
    pub const MISSING: u8 = 5;
    /// The command line makes no sense.
    pub const USAGE: u8 = 64;
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// What happened.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
}

impl Failure {
    /// With one of the codes.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }
    /// A command line that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(code::USAGE, message)
    }
    /// Add what to try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// A file or stream of this host.
    pub fn io(what: impl Display, e: &std::io::Error) -> Self {
        Self::new(code::FAILED, format!("{what}: {e}"))
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let f = Self::new(e.kind.exit_code(), e.message);
        match e.kind {
            ErrorKind::Unreachable => f.hint(
                "is a sheep running there? Say where with -a HOST and -p PORT (or DOG_ADDR, DOG_PORT), and give --secret-file if the cluster has credentials",
            ),
            ErrorKind::Moved => f.hint("the volume changed hands meanwhile: try again"),
            _ => f,
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(s: tonic::Status) -> Self {
        Error::from(s).into()
    }
}

impl From<CredentialsError> for Failure {
    fn from(e: CredentialsError) -> Self {
        let code = match e {
            CredentialsError::Exists { .. } => ErrorKind::Exists.exit_code(),
            _ => code::CLUSTER,
        };
        Self::new(code, e.to_string())
    }
}
