//! Attach and detach: one committed command, and then the proof that it is in force wherever the volume is used.
//!
//! Both may be repeated: the command changes nothing the second time, and the proof is made again.

use super::convert::{access_in, attachment};
use super::service::{Admin, usage};
use super::vdi::odd;
use sheepdog_client::pb::{AttachRequest, Attachment, DetachRequest, detach_request};
use sheepdog_client::{Error, ErrorKind};
use sheepdog_cluster::{AttachmentRef, Command, Reply};
use sheepdog_proto::{AttachmentId, VdiId};
use std::time::Duration;

/// How long the proof may take at least; it is two leases and this much more when those are long. An owner that does not answer is declared down after five quarters of one.
const PATIENCE: Duration = Duration::from_secs(10);

impl Admin {
    pub(super) async fn attach(&self, r: AttachRequest) -> Result<Attachment, Error> {
        let vdi = self.vdi_id(&r.vdi)?;
        let access = access_in(r.access)?;
        let id = match self.propose(Command::Attach { vdi, holder: r.holder, access }).await? {
            Reply::Attached(id) => id,
            other => return Err(odd(&other)),
        };
        self.enforce(vdi, "attached").await?;
        let made = self.control().read(|s| s.vdis.get(&vdi)?.attachment(id).map(attachment));
        made.ok_or_else(|| Error::new(ErrorKind::Busy, "the VDI was detached meanwhile: attach it again"))
    }

    pub(super) async fn detach(&self, r: DetachRequest) -> Result<(), Error> {
        use detach_request::Which;
        let vdi = self.vdi_id(&r.vdi)?;
        let which = match r.which {
            Some(Which::Holder(holder)) if !holder.is_empty() => AttachmentRef::Holder(holder),
            Some(Which::Id(id)) if id > 0 => AttachmentRef::Id(AttachmentId(id)),
            Some(Which::All(true)) => AttachmentRef::All,
            _ => return Err(usage("say whom to detach: a holder, the id of an attachment, or all")),
        };
        self.detach_all(vdi, which).await
    }

    /// Those that are meant; with the answer nothing of them can take effect any more.
    pub(super) async fn detach_all(&self, vdi: VdiId, which: AttachmentRef) -> Result<(), Error> {
        self.propose(Command::Detach { vdi, which }).await?;
        self.enforce(vdi, "detached").await
    }

    async fn enforce(&self, vdi: VdiId, what: &str) -> Result<(), Error> {
        let lease = self.control().read(|s| s.format.as_ref().map_or(0, |f| f.timing.lease));
        let patience = PATIENCE.max(Duration::from_millis(lease.saturating_mul(2)) + Duration::from_secs(2));
        if self.data().enforced(vdi, patience).await? {
            return Ok(());
        }
        let seconds = patience.as_secs();
        let why = match self.owner(vdi) {
            Some(owner) => format!(
                "node {}, which orders its writes, has not said within {seconds} s that nothing of former users is under way there: \
                 it may wait for other sheep or a full disk",
                owner.id.short()
            ),
            None => format!(
                "not every sheep has said within {seconds} s that it takes no more writes of its last owner"
            ),
        };
        let text = format!("the VDI is {what}, but {why} (`dog cluster info`). Ask again");
        Err(Error::new(ErrorKind::Cluster, text))
    }
}
