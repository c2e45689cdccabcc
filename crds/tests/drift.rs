//! The YAML that is checked in is what the types say.

use std::path::Path;

#[test]
fn generated_files_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a repository");
    for file in sheepdog_crds::generate::files().expect("YAML") {
        let there = std::fs::read_to_string(root.join(file.path)).unwrap_or_default();
        assert!(there == file.text, "{} differs from crds/src: run `cargo xtask crds` and commit", file.path);
    }
}

/// What a person types, and what tools rely on.
#[test]
fn names_columns_and_subresources() {
    for crd in sheepdog_crds::generate::all() {
        let names = &crd.spec.names;
        assert_eq!(names.categories.as_deref(), Some(&["sheepdog".to_owned()][..]), "{}", names.kind);
        assert_eq!(crd.spec.group, "sheepdog.io");
        let version = crd.spec.versions.first().expect("one version");
        assert_eq!((version.name.as_str(), version.storage, version.served), ("v1alpha1", true, true));
        assert!(version.subresources.as_ref().is_some_and(|s| s.status.is_some()), "{}", names.kind);
        let columns = version.additional_printer_columns.clone().unwrap_or_default();
        assert!(columns.iter().any(|c| c.name == "Age") && columns.len() > 3, "{}", names.kind);
        // Every rule has a sentence of its own.
        let text = serde_json::to_string(&version.schema).expect("JSON");
        assert_eq!(
            text.matches("\"rule\":").count(),
            text.matches("\"message\":\"").count(),
            "{}",
            names.kind
        );
    }
}

/// The server bounds what a rule may cost by the sizes of what it looks at: everything a rule looks at is bounded.
#[test]
fn strings_and_lists_that_rules_look_at_are_bounded() {
    fn walk(path: &str, schema: &serde_json::Value) {
        let ruled = schema.get("x-kubernetes-validations").is_some();
        match schema["type"].as_str() {
            Some("string") if ruled => assert!(schema["maxLength"].is_number(), "{path}"),
            Some("array") => {
                let inner = schema["items"].to_string().contains("x-kubernetes-validations");
                assert!(!(ruled || inner) || schema["maxItems"].is_number(), "{path}");
                walk(&format!("{path}[]"), &schema["items"]);
            }
            _ => {}
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), property);
        }
    }
    for crd in sheepdog_crds::generate::all() {
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).expect("JSON");
        walk(&crd.spec.names.kind, &schema["openAPIV3Schema"]["properties"]["spec"]);
    }
}
