//! `--copies N` and `--copy-policy D:P`.

use clap::Args;
use sheepdog_client::{Policy, pb};

/// Redundancy of something that is made; neither: the cluster's default.
#[derive(Args, Debug, Clone, Default)]
#[group(multiple = false)]
pub struct Copies {
    /// Full copies
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub copies: Option<u8>,
    /// Data and parity strips (erasure coding)
    #[arg(long, value_name = "D:P", value_parser = clap::value_parser!(Policy))]
    pub copy_policy: Option<Policy>,
}

impl Copies {
    /// As the admin interface wants it.
    pub fn to_pb(&self) -> Option<pb::Redundancy> {
        match (self.copies, self.copy_policy) {
            (Some(n), _) => Some(pb::Redundancy { copies: n.into(), ..Default::default() }),
            (_, Some(policy)) => Some(policy.into()),
            _ => None,
        }
    }
}

/// For people and scripts: `3` or `4:2`.
pub fn show(r: Option<&pb::Redundancy>) -> String {
    match r {
        None => String::new(),
        Some(r) if r.copies > 0 => r.copies.to_string(),
        Some(r) => format!("{}:{}", r.data, r.parity),
    }
}
