//! The API server's checks, run here: defaults are filled in, then every CEL rule is evaluated.

use kube::CustomResourceExt;
use kube::core::cel::{Validator, apply_defaults};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why an object is refused: the sentences of all rules that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Refused(pub Vec<String>);

/// The schema of a kind.
pub fn schema<K: CustomResourceExt>() -> Value {
    let crd = K::crd();
    let schema = crd.spec.versions.into_iter().next().and_then(|v| v.schema);
    schema.and_then(|s| s.open_api_v3_schema).and_then(|s| serde_json::to_value(s).ok()).unwrap_or_default()
}

/// As a server would take it: with defaults, by every rule; `old` is what was there before.
pub fn accept<K: CustomResourceExt + DeserializeOwned>(
    object: &Value,
    old: Option<&Value>,
) -> Result<K, Refused> {
    let schema = schema::<K>();
    let object = apply_defaults(&schema, object);
    let old = old.map(|o| apply_defaults(&schema, o));
    let parsed = serde_json::from_value(object.clone()).map_err(|e| Refused(vec![e.to_string()]))?;
    match Validator::new().validate(&schema, &object, old.as_ref()) {
        Ok(()) => Ok(parsed),
        Err(errors) => Err(Refused(errors.as_slice().iter().map(|e| e.message.clone()).collect())),
    }
}
