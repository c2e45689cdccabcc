//! Keeping a copy of the control plane's state on every data disk: a cluster can be rebuilt from its disks alone.

use crate::control::Control;
use crate::store::Store;
use bytes::Bytes;
use sheepdog_cluster::ClusterState;
use std::rc::Rc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Name of the value on each disk.
pub const NAME: &str = "cluster-state";
/// Changes are written at most this often.
const PAUSE: Duration = Duration::from_millis(500);
/// Versions of the encoding.
const VERSION: u8 = 1;
/// Larger states are written less often, so that this never costs more than a little.
const LARGE: usize = 1 << 20;

/// State to bytes.
pub fn encode(state: &ClusterState) -> Vec<u8> {
    // Answers to repeated requests and events matter only to the running cluster.
    let mut slim = state.clone();
    slim.recent.clear();
    let mut out = vec![VERSION];
    out.extend(sheepdog_proto::peer::encode(&slim));
    out
}

/// Bytes to state.
pub fn decode(data: &[u8]) -> Option<ClusterState> {
    let (version, rest) = data.split_first()?;
    (*version == VERSION).then(|| sheepdog_proto::peer::decode(rest).ok()).flatten()
}

/// Write the state whenever volumes, layers or members changed. Sessions alone do not count: they are unclean after a rebuild anyway, but the highest
/// generation must be known, so it is written along with whatever else changes and raised well above at a rebuild.
pub async fn run(control: Control, store: Rc<Store>, stop: CancellationToken) {
    let mut watch = control.watch();
    let mut written = None;
    loop {
        watch.borrow_and_update();
        let key = control.read(|s| {
            (
                s.format.is_some(),
                s.epoch,
                s.layers_revision,
                s.names.len(),
                s.last_id,
                s.vdis.values().map(|v| v.size).sum::<u64>(),
            )
        });
        let mut size = 0;
        if key.0 && written != Some(key) {
            let data = control.read(encode);
            size = data.len();
            written = match store.put_blob(NAME, Bytes::from(data)).await {
                Ok(()) => Some(key),
                Err(e) => {
                    tracing::warn!(error = %e, "the cluster state cannot be kept on all disks");
                    None
                }
            };
        }
        let pause = PAUSE * (1 + size / LARGE) as u32;
        tokio::select! { biased; () = stop.cancelled() => return, () = tokio::time::sleep(pause) => {} }
        tokio::select! { biased; () = stop.cancelled() => return, r = watch.changed() => if r.is_err() { return } }
    }
}
