//! What can go wrong, and what to do about it.

use crate::seal::Id;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The place cannot be read or written.
    #[error("{what}: {why}")]
    Place {
        /// Name of what was to be read or written.
        what: String,
        /// As the system or the server says it.
        why: String,
    },
    /// Something that should be there is not.
    #[error("{0} is missing from the repository")]
    Missing(String),
    /// A chunk that is there is not what it was.
    #[error("chunk {id} is damaged: {why}")]
    Damaged {
        /// Its name.
        id: Id,
        /// What does not fit.
        why: String,
    },
    /// Not a repository, or one that this program does not understand.
    #[error("{0}")]
    Config(String),
    /// The repository is encrypted, and the password is not its.
    #[error("the repository is encrypted and this is not its password")]
    Password,
    /// The repository is encrypted.
    #[error("the repository is encrypted: give --password-file")]
    NoPassword,
    /// Somebody else is at it.
    #[error("{0}")]
    Locked(String),
    /// No such backup, or several.
    #[error("{0}")]
    NotFound(String),
}

impl Error {
    pub(crate) fn place(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Place { what: what.into(), why: why.to_string() }
    }
    /// Does it name a chunk that is damaged or gone? Others may be whole.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing(_))
    }
}
