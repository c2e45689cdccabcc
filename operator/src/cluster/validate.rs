//! What the schema cannot say: features that this release's engine does not have, and mistakes across fields. Pure.

use sheepdog_crds::SheepdogCluster;

/// Reason and sentence, when the spec cannot be carried out.
pub fn validate(c: &SheepdogCluster) -> Option<(&'static str, String)> {
    let spec = &c.spec;
    if spec.redundancy.copies.is_none() && spec.redundancy.erasure_coding.is_none() {
        return Some(("InvalidRedundancy", "spec.redundancy says nothing: write copies: 3".into()));
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
            let size = crate::quantity::bytes(&j.size).unwrap_or(0);
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
        ] {
            let (_, text) = validate(&cluster(spec)).expect("refused");
            assert!(text.contains(word), "{text}");
        }
    }
}
