//! How fast a volume may be used. The rules hold for a `Vdi` and for a VolumeAttributesClass alike.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A limit of bytes a second. The engine refuses less than 64Ki, which looks like a fault to whoever uses the volume.
pub(crate) const BANDWIDTH: &str = "isQuantity(self) && (quantity(self).compareTo(quantity('0')) == 0 || quantity(self).compareTo(quantity('64Ki')) >= 0)";
pub(crate) const BANDWIDTH_SAYS: &str = "bandwidth is a quantity of bytes a second, at least 64Ki: write for example 50Mi; \"0\" takes the limit away";
pub(crate) const BURST: &str = "isQuantity(self) && quantity(self).compareTo(quantity('0')) >= 0";
pub(crate) const BURST_SAYS: &str = "bandwidthBurst is a quantity of bytes: write for example 100Mi";
pub(crate) const IOPS_HAS_BURST: &str = "!has(self.iopsBurst) || (has(self.iops) && self.iops > 0)";
pub(crate) const IOPS_HAS_BURST_SAYS: &str = "iopsBurst belongs to a limit: write iops, too, and more than 0";
pub(crate) const BANDWIDTH_HAS_BURST: &str = "!has(self.bandwidthBurst) || (has(self.bandwidth) && (!isQuantity(self.bandwidth) || quantity(self.bandwidth).isGreaterThan(quantity('0'))))";
pub(crate) const BANDWIDTH_HAS_BURST_SAYS: &str =
    "bandwidthBurst belongs to a limit: write bandwidth, too, and more than 0";

/// How fast a volume may be used, at each gateway that has it open. What is not named stays as `dog vdi limit` or a VolumeAttributesClass has set it.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(IOPS_HAS_BURST).message(IOPS_HAS_BURST_SAYS),
    validation = Rule::new(BANDWIDTH_HAS_BURST).message(BANDWIDTH_HAS_BURST_SAYS)
)]
pub struct Limits {
    /// Requests a second; 0 takes the limit away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub iops: Option<u32>,
    /// Requests that may go at once after a pause. Default: a second's worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub iops_burst: Option<u32>,
    /// Bytes a second, for example 50Mi; "0" takes the limit away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = Rule::new(BANDWIDTH).message(BANDWIDTH_SAYS))]
    pub bandwidth: Option<String>,
    /// Bytes that may go at once after a pause, for example 100Mi. Default: a second's worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = Rule::new(BURST).message(BURST_SAYS))]
    pub bandwidth_burst: Option<String>,
}
