//! What the chart says is true of the programs: metrics, images, permissions.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("charts/sheepdog")
}

fn text(path: &str) -> String {
    std::fs::read_to_string(chart().join(path)).unwrap()
}

/// Words that look like our metrics.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|w| (w.starts_with("sheepdog_") || w.starts_with("process_")) && w.matches('_').count() > 1)
        .filter(|w| !w.starts_with("sheepdog_io_"))
        .map(|w| w.trim_end_matches("_bucket").to_owned())
        .collect()
}

#[test]
fn alerts_and_dashboard_use_metrics_that_exist() {
    let known = metrics_in(include_str!("../../docs/metrics.md"));
    let ours = ["sheepdog_operator_cluster_condition"];
    for file in ["files/rules.yaml", "files/dashboard.json"] {
        let used = metrics_in(&text(file));
        assert!(used.len() > 5, "{file}: {used:?}");
        for metric in used {
            assert!(known.contains(&metric) || ours.contains(&metric.as_str()), "{file}: {metric}");
        }
    }
}

#[test]
fn images_of_the_values_are_those_that_are_to_be_mirrored() {
    let values: serde_json::Value = serde_yaml_ng::from_str(&text("values.yaml")).unwrap();
    let listed = text("Chart.yaml");
    let mut images = Vec::new();
    fn walk(v: &serde_json::Value, out: &mut Vec<serde_json::Value>) {
        for (k, v) in v.as_object().into_iter().flatten() {
            if k == "image" { out.push(v.clone()) } else { walk(v, out) }
        }
    }
    walk(&values, &mut images);
    assert_eq!(images.len(), 10);
    for i in images {
        let tag = i["tag"].as_str().filter(|t| !t.is_empty()).unwrap_or("0.1.0");
        let registry =
            i["registry"].as_str().filter(|r| !r.is_empty()).map(|r| format!("{r}/")).unwrap_or_default();
        let image = format!("{registry}{}:{tag}\n", i["repository"].as_str().unwrap());
        assert!(listed.contains(&image), "{image}");
    }
}

#[test]
fn every_value_is_in_the_schema_and_in_the_readme() {
    let values: serde_json::Value = serde_yaml_ng::from_str(&text("values.yaml")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&text("values.schema.json")).unwrap();
    let readme = text("README.md");
    fn walk(
        path: &str,
        v: &serde_json::Value,
        schema: &serde_json::Value,
        root: &serde_json::Value,
        readme: &str,
    ) {
        let schema = match schema["$ref"].as_str() {
            Some(r) => &root["$defs"][r.rsplit('/').next().unwrap()],
            None => schema,
        };
        for (key, value) in v.as_object().into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let inner = &schema["properties"][key];
            if schema["additionalProperties"] == false {
                assert!(inner.is_object(), "{path} is not in the schema");
            }
            let leaf = !value.is_object() || key == "image" || key == "resources" || key == "labels";
            if leaf || value.as_object().is_some_and(serde_json::Map::is_empty) {
                assert!(readme.contains(&format!("`{path}`")), "{path} is not in the README");
            } else {
                walk(&path, value, inner, root, readme);
            }
        }
    }
    walk("", &values, &schema, &schema, &readme);
}

/// What the scenarios run is what the chart installs.
#[test]
fn sidecars_are_those_that_are_tested() {
    let modules = text("../../e2e/tools/go.mod") + &text("../../e2e/tools/metadata/go.mod");
    let values: serde_json::Value = serde_yaml_ng::from_str(&text("values.yaml")).unwrap();
    let mut compared = 0;
    for (key, module) in [
        ("provisioner", "external-provisioner/v6"),
        ("attacher", "external-attacher/v4"),
        ("resizer", "external-resizer/v2"),
        ("snapshotter", "external-snapshotter/v8"),
        ("snapshotMetadata", "external-snapshot-metadata"),
    ] {
        let tag = values["csi"]["sidecars"][key]["image"]["tag"].as_str().unwrap();
        let line = format!("github.com/kubernetes-csi/{module} {tag} ");
        assert!(modules.lines().any(|l| format!("{} ", l.trim()).contains(&line)), "{key}: {tag}");
        compared += 1;
    }
    assert_eq!(compared, 5);
}
