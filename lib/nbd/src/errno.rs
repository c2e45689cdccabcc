//! The errors a request can end with, on the wire.

/// Errors of the transmission phase. The numbers are Linux's, on every platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: read-only, or locked by someone else.
    Perm = 1,
    /// The data cannot be read or written.
    Io = 5,
    /// The server lacks memory.
    NoMem = 12,
    /// The request makes no sense.
    Inval = 22,
    /// A write beyond the end, or no space.
    NoSpace = 28,
    /// The reply would not fit the way it was asked for.
    Overflow = 75,
    /// Not possible in the way it was asked for (`FAST_ZERO`).
    NotSup = 95,
    /// The server is stopping.
    Shutdown = 108,
}

impl Errno {
    /// Every one, for tables.
    pub const ALL: [Self; 8] = [
        Self::Perm,
        Self::Io,
        Self::NoMem,
        Self::Inval,
        Self::NoSpace,
        Self::Overflow,
        Self::NotSup,
        Self::Shutdown,
    ];

    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// From the wire. The protocol text says to treat unknown numbers as `EINVAL`.
    pub fn from_code(code: u32) -> Self {
        Self::ALL.into_iter().find(|e| e.code() == code).unwrap_or(Self::Inval)
    }

    /// Its name as C programmers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perm => "EPERM",
            Self::Io => "EIO",
            Self::NoMem => "ENOMEM",
            Self::Inval => "EINVAL",
            Self::NoSpace => "ENOSPC",
            Self::Overflow => "EOVERFLOW",
            Self::NotSup => "ENOTSUP",
            Self::Shutdown => "ESHUTDOWN",
        }
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
