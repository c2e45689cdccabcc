//! `D:P` as people write it, wherever they may. Pure.

use crate::pb::Redundancy;

/// Most data strips.
pub const MAX_DATA: u8 = 16;
/// Most parity strips.
pub const MAX_PARITY: u8 = 15;

/// It is no D:P. Callers say in front of it where it stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write D:P, data and parity strips, for example 4:2 (at most {MAX_DATA}:{MAX_PARITY})")]
pub struct NoPolicy;

/// Data and parity strips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// 1 to [`MAX_DATA`].
    pub data: u8,
    /// 1 to [`MAX_PARITY`].
    pub parity: u8,
}

impl std::str::FromStr for Policy {
    type Err = NoPolicy;
    fn from_str(text: &str) -> Result<Self, NoPolicy> {
        let number = |s: &str| s.parse().ok().filter(|_| s.bytes().all(|b| b.is_ascii_digit()));
        let (data, parity) = text.split_once(':').ok_or(NoPolicy)?;
        match (number(data), number(parity)) {
            (Some(data @ 1..=MAX_DATA), Some(parity @ 1..=MAX_PARITY)) => Ok(Self { data, parity }),
            _ => Err(NoPolicy),
        }
    }
}

impl From<Policy> for Redundancy {
    fn from(p: Policy) -> Self {
        Self { copies: 0, data: p.data.into(), parity: p.parity.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_what_there_is() {
        for (text, data, parity) in [("1:1", 1, 1), ("4:2", 4, 2), ("16:15", 16, 15)] {
            assert_eq!(text.parse(), Ok(Policy { data, parity }), "{text}");
        }
        for text in
            ["", ":", "4", "4:", ":2", "0:1", "4:0", "17:1", "1:16", "4:2:1", "-4:2", "+4:2", "4 :2", "256:1"]
        {
            assert_eq!(text.parse::<Policy>(), Err(NoPolicy), "{text}");
        }
        assert!(NoPolicy.to_string().ends_with("for example 4:2 (at most 16:15)"));
    }
}
