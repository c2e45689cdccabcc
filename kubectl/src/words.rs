//! Small questions to Kubernetes' objects, and how answers are worded. Pure.

use k8s_openapi::api::core::v1::{
    Event, Node, NodeSelectorRequirement, PersistentVolumeClaim, Pod, PodSpec, Taint, Volume,
};
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;

/// Its name.
pub fn name(k: &impl Resource) -> String {
    k.meta().name.clone().unwrap_or_default()
}

/// Its namespace.
pub fn namespace(k: &impl Resource) -> String {
    k.meta().namespace.clone().unwrap_or_default()
}

/// Its labels.
pub fn labels(k: &impl Resource) -> &BTreeMap<String, String> {
    ResourceExt::labels(k)
}

/// Is it being deleted?
pub fn going(k: &impl Resource) -> bool {
    k.meta().deletion_timestamp.is_some()
}

/// Its finalizers.
pub fn finalizers(k: &impl Resource) -> &[String] {
    k.meta().finalizers.as_deref().unwrap_or_default()
}

/// How long ago, for people.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let s = now.as_second().saturating_sub(then.as_second()).max(0);
    match s {
        0..120 => format!("{s} s"),
        120..7_200 => format!("{} min", s / 60),
        7_200..172_800 => format!("{} h", s / 3_600),
        _ => format!("{} days", s / 86_400),
    }
}

/// How old it is, for people.
pub fn age(k: &impl Resource, now: Timestamp) -> String {
    k.meta().creation_timestamp.as_ref().map_or_else(|| "a while".into(), |t| ago(t.0, now))
}

/// The node a pod is on.
pub fn node_of(p: &Pod) -> Option<&str> {
    p.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// Status of a pod's condition.
pub fn pod_condition<'a>(p: &'a Pod, kind: &str) -> Option<(&'a str, &'a str)> {
    let all = p.status.as_ref()?.conditions.as_deref()?;
    let found = all.iter().find(|c| c.type_ == kind)?;
    Some((found.status.as_str(), found.message.as_deref().unwrap_or_default()))
}

/// Is a pod Ready, and stays?
pub fn is_ready(p: &Pod) -> bool {
    !going(p) && pod_condition(p, "Ready").is_some_and(|(status, _)| status == "True")
}

/// Has a pod done what it had to, or given up?
pub fn has_ended(p: &Pod) -> bool {
    matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Claims that a pod names, also those made for it.
pub fn claims_of(p: &Pod) -> Vec<String> {
    let volumes = p.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let claim = |v: &Volume| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(c), _) => Some(c.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", name(p), v.name)),
        (None, None) => None,
    };
    volumes.iter().filter_map(claim).collect()
}

/// A container that does not run as it should: its name, and why.
pub fn trouble(p: &Pod) -> Option<(String, String)> {
    let status = p.status.as_ref()?;
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let main = status.container_statuses.as_deref().unwrap_or_default();
    let words = |reason: &Option<String>, message: &Option<String>| match (reason, message) {
        (Some(r), Some(m)) => format!("{r}: {}", m.trim()),
        (Some(r), None) => r.clone(),
        (None, m) => m.clone().unwrap_or_default(),
    };
    for c in init.iter().chain(main) {
        let Some(state) = &c.state else { continue };
        if let Some(w) = &state.waiting {
            if matches!(w.reason.as_deref(), None | Some("PodInitializing" | "ContainerCreating")) {
                continue;
            }
            let mut why = words(&w.reason, &w.message);
            let last = c.last_state.as_ref().and_then(|s| s.terminated.as_ref());
            if let Some(t) = last.filter(|t| t.message.as_deref().is_some_and(|m| !m.trim().is_empty())) {
                why = format!("{why}; it last said: {}", shorten(&words(&None, &t.message), 300));
            }
            return Some((c.name.clone(), why));
        }
        if let Some(t) = state.terminated.as_ref().filter(|t| t.exit_code != 0) {
            let why = words(&t.reason, &t.message);
            return Some((c.name.clone(), format!("ended with exit code {}: {why}", t.exit_code)));
        }
    }
    None
}

/// Why a pod of ours is not ready, in words.
pub fn unready(p: &Pod) -> String {
    if going(p) {
        return "is being deleted".into();
    }
    if let Some((container, why)) = trouble(p) {
        return format!("is not ready, container {container}: {why}");
    }
    match pod_condition(p, "PodScheduled") {
        Some(("False", why)) => format!("has no node: {why}"),
        _ if node_of(p).is_none() => "has no node yet".into(),
        _ => match pod_condition(p, "Ready") {
            Some((_, why)) if !why.is_empty() => format!("is not ready: {why}"),
            _ => "is not ready".into(),
        },
    }
}

/// Has a container of it begun, so that its volumes are there?
pub fn volumes_are_mounted(p: &Pod) -> bool {
    let status = p.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let main = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    init.iter().chain(main).any(|c| {
        let state = c.state.as_ref();
        let begun = state.is_some_and(|s| s.running.is_some() || s.terminated.is_some());
        let waiting = state.and_then(|s| s.waiting.as_ref()?.reason.as_deref());
        begun || waiting.is_some_and(|r| r != "ContainerCreating" && r != "PodInitializing")
    })
}

/// Is a node Ready?
pub fn node_is_ready(n: &Node) -> bool {
    let all = n.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    all.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Does it have this taint?
pub fn has_taint(n: &Node, key: &str) -> bool {
    taints(n).iter().any(|t| t.key == key)
}

/// Its taints.
pub fn taints(n: &Node) -> &[Taint] {
    n.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Why a pod made of this template does not run on that node; nothing when it may.
pub fn keeps_away(spec: &PodSpec, n: &Node) -> Option<String> {
    let have = labels(n);
    for (key, value) in spec.node_selector.iter().flatten() {
        if have.get(key) != Some(value) {
            return Some(format!(
                "its nodeSelector wants the label {key}={value}, which the node does not have"
            ));
        }
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    if let Some(terms) = required.map(|r| &r.node_selector_terms) {
        let field = BTreeMap::from([("metadata.name".to_owned(), name(n))]);
        let fits = |t: &k8s_openapi::api::core::v1::NodeSelectorTerm| {
            let by_label = t.match_expressions.iter().flatten().all(|e| matches(e, have));
            by_label && t.match_fields.iter().flatten().all(|e| matches(e, &field))
        };
        if !terms.iter().any(fits) {
            return Some("its node affinity leaves this node out".into());
        }
    }
    let bears = spec.tolerations.as_deref().unwrap_or_default();
    sheepdog_crds::daemons::keeps_away(taints(n), bears)
        .map(|t| format!("the node has the taint {}:{}, which it does not tolerate", t.key, t.effect))
}

fn matches(e: &NodeSelectorRequirement, have: &BTreeMap<String, String>) -> bool {
    let mine = have.get(&e.key);
    let values = e.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let pair = || Some((mine.and_then(number)?, values.first().and_then(number)?));
    match e.operator.as_str() {
        "In" => mine.is_some_and(|m| values.contains(m)),
        "NotIn" => mine.is_none_or(|m| !values.contains(m)),
        "Exists" => mine.is_some(),
        "DoesNotExist" => mine.is_none(),
        "Gt" => pair().is_some_and(|(m, v)| m > v),
        "Lt" => pair().is_some_and(|(m, v)| m < v),
        _ => false,
    }
}

/// When an event was last seen.
pub fn seen_at(e: &Event) -> Option<Timestamp> {
    let series = e.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
    let last = e.last_timestamp.as_ref().map(|t| t.0);
    series.or(last).or(e.event_time.as_ref().map(|t| t.0)).or(e
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|t| t.0))
}

/// Words of the access modes of a claim.
pub fn modes(c: &PersistentVolumeClaim) -> &[String] {
    c.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default()
}

/// At most so many characters, on one line.
pub fn shorten(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= most {
        return line;
    }
    line.chars().take(most.saturating_sub(3)).chain("...".chars()).collect()
}

/// A list for a sentence: at most five, then how many more.
pub fn listing(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(labels: serde_json::Value, taints: serde_json::Value) -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": taints}}),
        )
        .unwrap()
    }

    fn template(spec: serde_json::Value) -> PodSpec {
        let mut whole = json!({"containers": []});
        for (k, v) in spec.as_object().unwrap() {
            whole[k] = v.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn why_a_pod_keeps_away_from_a_node() {
        let plain = node(json!({"zone": "a", "size": "7"}), json!([]));
        assert_eq!(keeps_away(&template(json!({})), &plain), None);
        let selector = template(json!({"nodeSelector": {"disk": "fast"}}));
        assert!(keeps_away(&selector, &plain).is_some_and(|w| w.contains("disk=fast")));
        let affinity = |key: &str, op: &str, values: serde_json::Value, on: &str| {
            template(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{on: [{"key": key, "operator": op, "values": values}]}]}}}}))
        };
        let by =
            |key, op, values| keeps_away(&affinity(key, op, values, "matchExpressions"), &plain).is_none();
        assert!(by("zone", "In", json!(["a", "b"])) && !by("zone", "In", json!(["b"])));
        assert!(!by("zone", "NotIn", json!(["a"])) && by("other", "NotIn", json!(["a"])));
        assert!(by("zone", "Exists", json!(null)) && !by("zone", "DoesNotExist", json!(null)));
        assert!(by("size", "Gt", json!(["6"])) && !by("size", "Lt", json!(["6"])));
        let named =
            |op, values| keeps_away(&affinity("metadata.name", op, values, "matchFields"), &plain).is_none();
        assert!(named("In", json!(["n1"])) && !named("NotIn", json!(["n1"])));
    }

    #[test]
    fn taints_keep_pods_away_unless_they_are_borne() {
        let tainted = node(json!({}), json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]));
        assert!(keeps_away(&template(json!({})), &tainted).is_some_and(|w| w.contains("gpu:NoSchedule")));
        for bears in [
            json!([{"operator": "Exists"}]),
            json!([{"key": "gpu", "operator": "Exists"}]),
            json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]),
        ] {
            assert_eq!(keeps_away(&template(json!({"tolerations": bears})), &tainted), None);
        }
        for does_not in
            [json!([{"key": "gpu", "value": "no"}]), json!([{"operator": "Exists", "effect": "NoExecute"}])]
        {
            assert!(keeps_away(&template(json!({"tolerations": does_not})), &tainted).is_some());
        }
        let passing =
            node(json!({}), json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]));
        assert_eq!(keeps_away(&template(json!({})), &passing), None);
    }

    #[test]
    fn times_and_lists_are_short() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(ago(at(0), at(90)), "90 s");
        assert_eq!(ago(at(0), at(600)), "10 min");
        assert_eq!(ago(at(0), at(8_000)), "2 h");
        assert_eq!(ago(at(0), at(200_000)), "2 days");
        assert_eq!(ago(at(5), at(0)), "0 s");
        assert_eq!(shorten("a\n  b\tc", 10), "a b c");
        assert_eq!(shorten("abcdefgh", 6), "abc...");
        let many: Vec<String> = (0..7).map(|i| i.to_string()).collect();
        assert_eq!(listing(&many), "0, 1, 2, 3, 4 and 2 more");
    }
}
