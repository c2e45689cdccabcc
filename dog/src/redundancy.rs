//! `--copies N` and `--copy-policy D:P`.

use clap::Args;
use sheepdog_client::pb;

/// Redundancy of something that is made; neither: the cluster's default.
#[derive(Args, Debug, Clone, Default)]
#[group(multiple = false)]
pub struct Copies {
    /// Full copies
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub copies: Option<u8>,
    /// Data and parity strips (erasure coding)
    #[arg(long, value_name = "D:P", value_parser = policy)]
    pub copy_policy: Option<(u8, u8)>,
}

fn policy(text: &str) -> Result<(u8, u8), String> {
    let bad = || "write D:P, data and parity strips, for example 4:2 (at most 16:15)".to_owned();
    let (d, p) = text.split_once(':').ok_or_else(bad)?;
    let (d, p) = (d.parse::<u8>().map_err(|_| bad())?, p.parse::<u8>().map_err(|_| bad())?);
    if (1..=16).contains(&d) && (1..=15).contains(&p) { Ok((d, p)) } else { Err(bad()) }
}

impl Copies {
    /// As the admin interface wants it.
    pub fn to_pb(&self) -> Option<pb::Redundancy> {
        match (self.copies, self.copy_policy) {
            (Some(n), _) => Some(pb::Redundancy { copies: n.into(), ..Default::default() }),
            (_, Some((d, p))) => Some(pb::Redundancy { copies: 0, data: d.into(), parity: p.into() }),
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
