use super::*;
use sheepdog_proto::peer::BlockState;
use sheepdog_proto::*;
use std::future::Future;
use std::ops::Range;
type R<T> = Result<T, StoreError>;
pub struct Store;
impl Store {
    pub fn write(&self, _op: WriteOp) -> impl Future<Output = R<WriteOutcome>> + 'static + use<> {
        async { unimplemented!() }
    }
    pub async fn info(&self, _oid: ObjectId) -> R<Option<ObjectInfo>> {
        unimplemented!()
    }
    pub fn layers_at(&self, _key: PlacementKey) -> Vec<LayerId> {
        unimplemented!()
    }
    pub async fn read(&self, _chain: &[LayerId], _key: PlacementKey, _blocks: Range<u32>) -> R<ReadResult> {
        unimplemented!()
    }
    pub async fn status(
        &self,
        _chain: &[LayerId],
        _key: PlacementKey,
        _blocks: Range<u32>,
    ) -> R<Vec<(Range<u32>, BlockState)>> {
        unimplemented!()
    }
    pub fn tail(&self, _vdi: VdiId) -> Vec<TailEntry> {
        unimplemented!()
    }
    pub fn tail_vdis(&self) -> Vec<VdiId> {
        unimplemented!()
    }
    pub fn set_watermark(&self, _vdi: VdiId, _g: Generation, _seq: u64) {}
    pub fn fill(
        &self,
        _oid: ObjectId,
        _key: PlacementKey,
        _vdi: VdiId,
        _size: u32,
        _ops: Vec<FillOp>,
    ) -> impl Future<Output = R<()>> + 'static + use<> {
        async { unimplemented!() }
    }
    pub fn finish_fill(
        &self,
        _oid: ObjectId,
        _v: Version,
        _e: Epoch,
        _d: BlockMap,
        _s: Option<Epoch>,
    ) -> impl Future<Output = R<()>> + 'static + use<> {
        async { unimplemented!() }
    }
    pub async fn digest(&self, _oid: ObjectId) -> R<Option<u64>> {
        unimplemented!()
    }
    pub async fn verify(&self, _oid: ObjectId) -> R<Vec<Range<u32>>> {
        unimplemented!()
    }
    pub async fn remove(&self, _oid: ObjectId) -> R<()> {
        unimplemented!()
    }
    pub async fn remove_layer(&self, _l: LayerId) -> R<u64> {
        unimplemented!()
    }
    pub async fn merge(&self, _f: ObjectId, _i: ObjectId) -> R<()> {
        unimplemented!()
    }
    pub fn list(&self, _after: Option<ObjectId>, _limit: usize) -> Vec<ObjectSummary> {
        unimplemented!()
    }
}
