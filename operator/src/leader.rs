//! Leader election by a Lease: one operator acts, others wait.
//!
//! What holds: a process that could not renew its lease for [`GIVE_UP`] ends, and that is before [`DURATION`] has passed and another one may act. Times of others are
//! never compared with our clock: a lease is over when it has not changed for its duration while we watched. Data does not depend on any of this: two
//! operators at once would only repeat each other's requests, all of which may be repeated.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use std::time::{Duration, Instant};

/// How long a lease holds after it was renewed.
pub const DURATION: Duration = Duration::from_secs(15);
/// A leader that was not heard by the API server for so long ends.
pub const GIVE_UP: Duration = Duration::from_secs(10);
/// Between two tries.
pub const RETRY: Duration = Duration::from_secs(2);

/// For one try: a connection may hang.
const TRY: Duration = Duration::from_secs(4);

/// What to do about a lease.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is none: make it.
    Create,
    /// It is ours, free, or over: write it.
    Take,
    /// Somebody else's.
    Wait,
}

/// What is known about somebody else's lease.
#[derive(Debug, Default)]
pub struct Watched {
    version: String,
    since: Option<Instant>,
}

impl Watched {
    /// Decide. `me`: our identity.
    pub fn turn(&mut self, lease: Option<&Lease>, me: &str, now: Instant) -> Turn {
        let Some(lease) = lease else { return Turn::Create };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == me {
            return Turn::Take;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if version != self.version || self.since.is_none() {
            *self = Self { version, since: Some(now) };
            return Turn::Wait;
        }
        let seconds =
            spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(DURATION.as_secs());
        let unchanged = self.since.map_or(Duration::ZERO, |s| now.duration_since(s));
        if unchanged > Duration::from_secs(seconds) { Turn::Take } else { Turn::Wait }
    }
}

/// A lease that this process holds, or tries to.
pub struct Leader {
    api: Api<Lease>,
    name: String,
    me: String,
    watched: Watched,
}

impl Leader {
    /// Nothing is held yet.
    pub fn new(api: Api<Lease>, name: &str, me: &str) -> Self {
        Self { api, name: name.into(), me: me.into(), watched: Watched::default() }
    }

    /// Wait until it is ours.
    pub async fn acquire(&mut self) {
        loop {
            match tokio::time::timeout(TRY, self.step()).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the lease cannot be read or written"),
                Err(_) => tracing::warn!("the API server does not answer"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Keep it; returns when it is lost.
    pub async fn keep(&mut self) -> String {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY).await;
            let left = GIVE_UP.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left.min(TRY), self.step()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return "another operator has taken the lease".into(),
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be renewed"),
                Err(_) => tracing::warn!("the API server does not answer"),
            }
            if renewed.elapsed() >= GIVE_UP {
                return format!("the lease could not be renewed for {GIVE_UP:?}");
            }
        }
    }

    /// Give it back, so that the next one need not wait.
    pub async fn release(&mut self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.me) {
            return Ok(());
        }
        spec.holder_identity = None;
        self.api.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
    }

    async fn step(&mut self) -> Result<bool, kube::Error> {
        let there = self.api.get_opt(&self.name).await?;
        let now = MicroTime(Timestamp::now());
        let written = match self.watched.turn(there.as_ref(), &self.me, Instant::now()) {
            Turn::Wait => return Ok(false),
            Turn::Create => {
                let lease = Lease {
                    metadata: ObjectMeta { name: Some(self.name.clone()), ..Default::default() },
                    spec: Some(self.ours(None, &now)),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
            Turn::Take => {
                let mut lease = there.unwrap_or_default();
                lease.spec = Some(self.ours(lease.spec.take(), &now));
                // The version that was read is replaced, or nothing is.
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // Somebody else was faster.
            Err(kube::Error::Api(s)) if s.code == 409 => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn ours(&self, old: Option<LeaseSpec>, now: &MicroTime) -> LeaseSpec {
        let old = old.unwrap_or_default();
        let kept = old.holder_identity.as_deref() == Some(&self.me);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if kept { old.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now.clone()),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!kept)),
            ..old
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.into()), ..Default::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(15),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn a_lease_is_over_when_it_has_not_changed_for_its_duration() {
        let mut w = Watched::default();
        let t0 = Instant::now();
        let at = |s| t0 + Duration::from_secs(s);
        assert_eq!(w.turn(None, "me", at(0)), Turn::Create);
        assert_eq!(w.turn(Some(&lease("me", "1")), "me", at(0)), Turn::Take);
        assert_eq!(w.turn(Some(&lease("", "1")), "me", at(0)), Turn::Take);
        assert_eq!(w.turn(Some(&lease("other", "5")), "me", at(0)), Turn::Wait);
        assert_eq!(w.turn(Some(&lease("other", "5")), "me", at(14)), Turn::Wait);
        assert_eq!(w.turn(Some(&lease("other", "6")), "me", at(16)), Turn::Wait, "renewed");
        assert_eq!(w.turn(Some(&lease("other", "6")), "me", at(31)), Turn::Wait);
        assert_eq!(w.turn(Some(&lease("other", "6")), "me", at(32)), Turn::Take);
    }

    #[test]
    fn a_leader_gives_up_before_another_may_begin() {
        assert!(GIVE_UP + RETRY < DURATION);
    }
}
