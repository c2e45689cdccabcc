//! Payloads of the options that carry one.

use crate::wire::{self, Reader};

/// `INFO` and `GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InfoRequest {
    pub(super) name: String,
    /// Bit per information type 0 to 15; types we do not know are dropped here, so the list needs no space.
    wanted: u16,
}

impl InfoRequest {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let mut r = Reader(payload);
        let name = r.string()?.to_owned();
        let mut wanted = 0;
        for _ in 0..r.u16()? {
            wanted |= 1u16.checked_shl(u32::from(r.u16()?)).unwrap_or(0);
        }
        r.is_empty().then_some(Self { name, wanted })
    }

    pub(super) fn wants(&self, kind: u16) -> bool {
        self.wanted & (1 << kind) != 0
    }
}

/// `LIST_META_CONTEXT` and `SET_META_CONTEXT`, reduced to what they mean for the one context we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MetaRequest {
    pub(super) name: String,
    /// A list with these queries shows `base:allocation`.
    pub(super) lists: bool,
    /// A set with these queries selects it.
    pub(super) sets: bool,
}

impl MetaRequest {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let mut r = Reader(payload);
        let name = r.string()?.to_owned();
        let count = r.u32()?;
        let (mut lists, mut sets) = (count == 0, false);
        // The count is not trusted: the loop ends with the payload.
        for _ in 0..count {
            let query = r.string()?;
            sets |= query == wire::BASE_ALLOCATION;
            lists |= query == wire::BASE_ALLOCATION || query == "base:";
        }
        r.is_empty().then_some(Self { name, lists, sets })
    }
}
