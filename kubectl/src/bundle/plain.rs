//! What an object looks like in a bundle: without what is long and says nothing, and without what may hold somebody's secret. Pure.

use serde_json::Value;

/// Annotations that repeat the whole object.
const LONG: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];
/// Variables whose values nobody needs to see.
const SECRET_WORDS: [&str; 6] = ["PASSWORD", "PASSPHRASE", "TOKEN", "CREDENTIAL", "PRIVATE", "API_KEY"];

/// Strip it.
pub fn strip(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
        if let Some(notes) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            for key in LONG {
                notes.remove(key);
            }
        }
    }
    // All that a secret has, should one come here by mistake.
    if object.get("kind").is_some_and(|k| k == "Secret") {
        for key in ["data", "stringData"] {
            if object.get(key).is_some() {
                object[key] = "left out".into();
            }
        }
    }
    variables(object);
}

/// Values of variables that sound like secrets, wherever containers are.
fn variables(v: &mut Value) {
    match v {
        Value::Array(all) => all.iter_mut().for_each(variables),
        Value::Object(o) => {
            let sounds = o.get("name").and_then(Value::as_str).is_some_and(|n| {
                let n = n.to_ascii_uppercase();
                SECRET_WORDS.iter().any(|w| n.contains(w))
            });
            if sounds && o.get("value").is_some_and(Value::is_string) {
                o.insert("value".into(), "left out".into());
            }
            o.values_mut().for_each(variables);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_must_not_leave_is_gone() {
        let mut pod = json!({
            "kind": "Pod",
            "metadata": {"name": "p", "managedFields": [1], "annotations": {LONG[0]: "{}", "mine": "1"}},
            "spec": {"containers": [{"env": [{"name": "DB_PASSWORD", "value": "hunter2"}, {"name": "SHEEP_DIR", "value": "/data"},
                {"name": "API_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}
        });
        strip(&mut pod);
        let text = pod.to_string();
        assert!(
            !text.contains("hunter2") && !text.contains("managedFields") && !text.contains("last-applied")
        );
        assert!(text.contains("/data") && text.contains("\"mine\"") && text.contains("secretKeyRef"));
        let mut secret = json!({"kind": "Secret", "data": {"secret": "c2VjcmV0"}});
        strip(&mut secret);
        assert!(!secret.to_string().contains("c2VjcmV0"));
    }
}
