//! Strips of an object: systematic Reed-Solomon over GF(2^8).
//!
//! The code is frozen, because it is on disks: the field has the polynomial x^8+x^4+x^3+x^2+1 (0x11D); data strip `j` is the data itself, byte `i` of parity
//! strip `D + r` is the sum over `j` of `inv((D + r) ^ j)` times byte `i` of data strip `j` (a Cauchy matrix, the one of Intel's ISA-L). Any D of the D+P strips give
//! back all others (Plank, "A Tutorial on Reed-Solomon Coding for Fault-Tolerance in RAID-like Systems", 1997; Blömer et al., "An XOR-Based Erasure-Resilient Coding
//! Scheme", 1995). `tests/` has golden vectors and a second implementation that shares nothing with the engine used here.
//!
//! Knows neither objects nor nodes; `Shape` says which of an object's blocks lie in which strip.

mod shape;

pub use shape::Shape;

use rusty_erasure::{Coder, Matrix};

/// Most data strips.
pub const MAX_DATA: u8 = 16;
/// Most parity strips.
pub const MAX_PARITY: u8 = 15;

/// Why strips could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErasureError {
    /// Not a code we have.
    #[error("{0}:{1} is no erasure code: data strips are 1 to {MAX_DATA}, parity strips 1 to {MAX_PARITY}")]
    Policy(u8, u8),
    /// Fewer strips than are needed.
    #[error("{have} strips are left, {need} are needed")]
    TooFew {
        /// That are there.
        have: usize,
        /// That it takes.
        need: usize,
    },
    /// Strips of different lengths, or not as many as the code has.
    #[error("the strips do not fit each other")]
    Lengths,
}

/// The code of D data and P parity strips. Strips are numbered from 0: data first.
#[derive(Debug)]
pub struct Codec {
    coder: Coder,
}

impl Codec {
    /// Of so many strips.
    ///
    /// # Errors
    /// `Policy`.
    pub fn new(data: u8, parity: u8) -> Result<Self, ErasureError> {
        let policy = || ErasureError::Policy(data, parity);
        if !(1..=MAX_DATA).contains(&data) || !(1..=MAX_PARITY).contains(&parity) {
            return Err(policy());
        }
        let matrix = Matrix::cauchy(data.into(), parity.into()).map_err(|_| policy())?;
        Ok(Self { coder: rusty_erasure::coder(matrix).map_err(|_| policy())? })
    }

    /// All parity strips of these data strips, which have one length.
    ///
    /// # Errors
    /// `Lengths`.
    pub fn encode(&self, data: &[&[u8]]) -> Result<Vec<Vec<u8>>, ErasureError> {
        let len = data.first().map_or(0, |s| s.len());
        if data.len() != self.coder.k() || data.iter().any(|s| s.len() != len) {
            return Err(ErasureError::Lengths);
        }
        let mut parity = vec![vec![0; len]; self.coder.p()];
        let mut out: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        self.coder.encode(data, &mut out).map_err(|_| ErasureError::Lengths)?;
        Ok(parity)
    }

    /// Strips `wanted` from any D others; `strips` has one place for each strip of the code.
    ///
    /// # Errors
    /// `TooFew`, `Lengths`.
    pub fn rebuild(&self, strips: &[Option<&[u8]>], wanted: &[usize]) -> Result<Vec<Vec<u8>>, ErasureError> {
        let (need, have) = (self.coder.k(), strips.iter().flatten().count());
        if have < need {
            return Err(ErasureError::TooFew { have, need });
        }
        let len = strips.iter().flatten().next().map_or(0, |s| s.len());
        // The engine takes lengths for granted.
        if strips.len() != need + self.coder.p() || strips.iter().flatten().any(|s| s.len() != len) {
            return Err(ErasureError::Lengths);
        }
        if wanted.is_empty() || len == 0 {
            return Ok(vec![Vec::new(); wanted.len()]);
        }
        let mut found = vec![vec![0; len]; wanted.len()];
        let mut out: Vec<&mut [u8]> = found.iter_mut().map(Vec::as_mut_slice).collect();
        self.coder.recover(strips, wanted, &mut out).map_err(|_| ErasureError::Lengths)?;
        Ok(found)
    }
}
