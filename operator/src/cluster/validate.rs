//! What the schema cannot say: features that this release's engine does not have, and mistakes across fields. Pure.

use crate::quantity::bytes;
use k8s_openapi::api::core::v1::ResourceRequirements;
use sheepdog_crds::{SheepdogCluster, SheepdogClusterSpec};

/// Longest time that the engine's trash keeps something, milliseconds: 10 years.
const MOST_KEPT: u64 = 3_650 * 86_400_000;

/// Reason and sentence, when the spec cannot be carried out.
pub fn validate(c: &SheepdogCluster) -> Option<(&'static str, String)> {
    let spec = &c.spec;
    if spec.redundancy.copies.is_none() && spec.redundancy.erasure_coding.is_none() {
        return Some(("InvalidRedundancy", "spec.redundancy says nothing: write copies: 3".into()));
    }
    if let Some(t) = &spec.trash
        && crate::quantity::millis(&t.keep).is_none_or(|ms| ms > MOST_KEPT)
    {
        return Some(("InvalidTrash", format!("spec.trash.keep is {}: it is at most 3650d", t.keep)));
    }
    if let Some(text) = cache_too_large(spec) {
        return Some(("InvalidCache", text));
    }
    for (i, g) in spec.node_groups.iter().enumerate() {
        if spec.node_groups[..i].iter().any(|other| other.name == g.name) {
            return Some(("DuplicateGroup", format!("two node groups are named {}", g.name)));
        }
        if let Some(j) = &g.journal
            && g.directories.contains(&j.directory)
        {
            return Some((
                "InvalidJournal",
                format!("group {}: the journal must not lie in one of the data directories", g.name),
            ));
        }
        if let Some(j) = &g.journal {
            let size = bytes(&j.size).unwrap_or(0);
            if !(32 << 20..=1 << 40).contains(&size) {
                return Some((
                    "InvalidJournal",
                    format!("group {}: journal.size is {}: it must be from 32Mi to 1024Gi", g.name, j.size),
                ));
            }
        }
    }
    None
}

/// A cache that its container may not have: the sheep would be killed when it is full.
fn cache_too_large(spec: &SheepdogClusterSpec) -> Option<String> {
    let (said, cache) = spec.cache.as_deref().and_then(|c| Some((c, bytes(c)?)))?;
    let limit = |r: Option<&ResourceRequirements>| Some(r?.limits.as_ref()?.get("memory")?.0.clone());
    let groups = spec.node_groups.iter().map(|g| {
        let resources = g.resources.as_ref().or(spec.resources.as_ref());
        (format!("group {}", g.name), limit(resources))
    });
    let gateways = spec.gateways.enabled.then(|| limit(spec.gateways.resources.as_ref())).flatten();
    let mut all = groups.chain([("gateways".to_owned(), gateways)]);
    let (who, limit) =
        all.find_map(|(who, l)| l.filter(|l| bytes(l).is_some_and(|n| n <= cache)).map(|l| (who, l)))?;
    Some(format!(
        "spec.cache is {said}, and the memory of sheep is limited to {limit} ({who}): make the limit larger, by some hundred Mi, or the cache smaller"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster(spec: serde_json::Value) -> SheepdogCluster {
        serde_json::from_value(json!({
            "apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster", "metadata": {"name": "c"}, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn refused_with_a_sentence() {
        let group = json!([{"name": "default"}]);
        assert_eq!(validate(&cluster(json!({"nodeGroups": group}))), None);
        let good = json!({"nodeGroups": group, "trash": {"keep": "3650d"}, "cache": "1Gi", "resources": {"limits": {"memory": "2Gi"}},
            "gateways": {"enabled": false, "resources": {"limits": {"memory": "64Mi"}}}});
        assert_eq!(validate(&cluster(good)), None);
        for (spec, word) in [
            (json!({"nodeGroups": group, "redundancy": {}}), "spec.redundancy says nothing"),
            (json!({"nodeGroups": [{"name": "a"}, {"name": "a"}]}), "two node groups are named a"),
            (
                json!({"nodeGroups": [{"directories": ["/d"], "journal": {"directory": "/d"}}]}),
                "must not lie in one of the data",
            ),
            (
                json!({"nodeGroups": [{"journal": {"directory": "/j", "size": "16Mi"}}]}),
                "from 32Mi to 1024Gi",
            ),
            (
                json!({"nodeGroups": group, "trash": {"keep": "3651d"}}),
                "trash.keep is 3651d: it is at most 3650d",
            ),
            (
                json!({"nodeGroups": group, "cache": "1Gi", "resources": {"limits": {"memory": "1Gi"}}}),
                "limited to 1Gi (group default)",
            ),
            (
                json!({"nodeGroups": [{"resources": {"limits": {"memory": "512Mi"}}}], "cache": "1Gi", "resources": {"limits": {"memory": "8Gi"}}}),
                "limited to 512Mi (group default)",
            ),
            (
                json!({"nodeGroups": group, "cache": "1Gi", "gateways": {"resources": {"limits": {"memory": "1Gi"}}}}),
                "limited to 1Gi (gateways)",
            ),
        ] {
            let (_, text) = validate(&cluster(spec)).expect("refused");
            assert!(text.contains(word), "{text}");
        }
    }
}
