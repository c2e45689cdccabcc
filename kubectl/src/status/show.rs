//! A status for people.

use super::report::Report;
use std::fmt::Write as _;

/// Conditions whose True is bad news.
const BAD: [&str; 3] = ["Degraded", "CapacityLow", "UpgradeBlocked"];

/// As text.
pub fn text(r: &Report) -> String {
    let mut out = format!("SheepdogCluster {}/{}", r.namespace, r.cluster);
    out += if r.deleting { " (is being deleted)\n\n" } else { "\n\n" };
    let rows = r.conditions.iter().map(|c| {
        let good = match c.kind.as_str() {
            kind if BAD.contains(&kind) => c.status == "False",
            "Available" | "QuorumHeld" => c.status == "True",
            _ => true,
        };
        [
            if good { "" } else { "!" },
            c.kind.as_str(),
            c.status.as_str(),
            c.reason.as_str(),
            c.message.as_str(),
        ]
        .map(str::to_owned)
        .to_vec()
    });
    out += &table(&["", "CONDITION", "STATUS", "REASON", "MESSAGE"], rows.collect());
    out.push('\n');
    let mut field = |title: &str, value: Option<&str>| {
        if let Some(v) = value.filter(|v| !v.is_empty()) {
            let _ = writeln!(out, "{title:<10} {v}");
        }
    };
    field("Sheep:", r.sheep.as_deref());
    field("Gateways:", r.gateways.as_deref());
    field("Space:", r.usage.as_deref());
    field("Recovery:", r.recovery.as_deref());
    field("Version:", r.version.as_deref());
    let v = &r.volumes;
    let volumes = format!(
        "{} in Sheepdog, {} listed as objects, {} of them attached; {} PersistentVolumes, {} VolumeAttachments",
        v.vdis.map_or_else(|| "?".into(), |n| n.to_string()),
        v.listed,
        v.attached,
        v.persistent_volumes,
        v.attachments
    );
    field("Volumes:", Some(&volumes));
    let rows = r.components.iter().map(|(what, c)| {
        let images: Vec<&str> = c.images.iter().map(String::as_str).collect();
        vec![what.clone(), format!("{}/{}", c.ready, c.pods), images.join(", ")]
    });
    section(&mut out, &["PODS", "READY", "IMAGE"], rows.collect());
    let rows = r.nodes.iter().map(|n| {
        let state = if n.state.is_empty() { "-" } else { &n.state };
        let pod = n.pod.as_deref().unwrap_or("-");
        let ready = if n.ready { "ready" } else { n.trouble.as_deref().unwrap_or("not ready") };
        let zone = n.zone.as_deref().unwrap_or("-");
        [&n.node, &n.group, zone, state, pod, ready].map(str::to_owned).to_vec()
    });
    section(&mut out, &["NODE", "GROUP", "ZONE", "SHEEP", "POD", "POD IS"], rows.collect());
    lines(&mut out, "Nodes that are not heard", &r.lost);
    let rows = r.unhappy.iter().map(|c| {
        let ask = format!("kubectl sheepdog why -n {} pvc/{}", c.namespace, c.name);
        vec![format!("{}/{}", c.namespace, c.name), c.why.clone(), ask]
    });
    section(&mut out, &["CLAIM", "STATE", "ASK"], rows.collect());
    lines(&mut out, "Not read", &r.unread);
    out
}

fn lines(out: &mut String, title: &str, all: &[String]) {
    if all.is_empty() {
        return;
    }
    let _ = write!(out, "\n{title}\n");
    for line in all {
        let _ = writeln!(out, "  - {line}");
    }
}

fn section(out: &mut String, header: &[&str], rows: Vec<Vec<String>>) {
    if !rows.is_empty() {
        out.push('\n');
        *out += &table(header, rows);
    }
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut t = comfy_table::Table::new();
    t.load_style(comfy_table::presets::NOTHING);
    t.set_header(header.to_vec());
    for row in rows {
        t.add_row(row);
    }
    for column in t.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = t.lines().map(|l| l.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::report::{Claim, Place, Said, Volumes};

    #[test]
    fn one_screen() {
        let said = |kind: &str, status: &str| Said {
            kind: kind.into(),
            status: status.into(),
            reason: "R".into(),
            message: "m".into(),
        };
        let r = Report {
            cluster: "main".into(),
            namespace: "sd".into(),
            deleting: false,
            conditions: vec![said("Available", "True"), said("Degraded", "True")],
            sheep: Some("3/3".into()),
            gateways: None,
            usage: None,
            capacity_bytes: None,
            free_bytes: None,
            recovery: None,
            version: None,
            epoch: None,
            components: Default::default(),
            nodes: vec![Place {
                node: "n0".into(),
                group: "default".into(),
                ready: true,
                ..Place::default()
            }],
            lost: vec![],
            volumes: Volumes::default(),
            unhappy: vec![Claim { namespace: "a".into(), name: "b".into(), why: "is Pending".into() }],
            unread: vec!["nodes: no permission".into()],
        };
        let text = text(&r);
        for part in [
            "SheepdogCluster sd/main\n",
            "!  Degraded",
            "Sheep:     3/3\n",
            "kubectl sheepdog why -n a pvc/b",
            "Not read\n  - nodes: no permission\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("!  Available") && !text.contains("Gateways:"), "{text}");
    }
}
