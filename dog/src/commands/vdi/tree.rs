//! `dog vdi tree` and `dog vdi graph`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Output, timestamp};
use sheepdog_client::pb::Vdi;
use std::collections::BTreeMap;
use std::fmt::Write;

/// VDIs, snapshots and clones as a tree
#[derive(clap::Args, Debug)]
pub struct TreeArgs {}

/// VDIs, snapshots and clones for Graphviz: `dog vdi graph | dot -Tsvg`
#[derive(clap::Args, Debug)]
pub struct GraphArgs {}

/// Clones by the snapshot they stand on: (VDI id, snapshot id).
type Clones<'a> = BTreeMap<(u32, u32), Vec<&'a Vdi>>;

fn clones(vdis: &[Vdi]) -> Clones<'_> {
    let mut map = Clones::new();
    for v in vdis {
        if let Some(p) = &v.parent {
            map.entry((p.vdi, p.snapshot)).or_default().push(v);
        }
    }
    map
}

fn label(tag: &str, id: u32) -> String {
    if tag.is_empty() { format!("snapshot {id}") } else { format!("{tag} (snapshot {id})") }
}

/// The tree.
pub async fn run(ctx: &Context, _: TreeArgs) -> Result<Output, Failure> {
    let vdis = ctx.client().await?.all_vdis("", false).await?;
    Ok(Output::Text(tree(&vdis)))
}

fn tree(vdis: &[Vdi]) -> String {
    let clones = clones(vdis);
    let mut out = String::new();
    // A clone whose source was deleted under it stands at the top.
    let has_parent = |v: &Vdi| {
        v.parent.as_ref().is_some_and(|p| {
            vdis.iter().any(|x| x.id == p.vdi && x.snapshots.iter().any(|s| s.id == p.snapshot))
        })
    };
    for v in vdis.iter().filter(|v| !has_parent(v)) {
        branch(&mut out, v, &clones, "", "");
    }
    out
}

/// A VDI, its snapshots in order, and the clones on each.
fn branch(out: &mut String, v: &Vdi, clones: &Clones<'_>, lead: &str, below: &str) {
    let _ = writeln!(out, "{lead}{}", v.name);
    let entries = v.snapshots.len() + usize::from(v.working);
    for (i, s) in v.snapshots.iter().enumerate() {
        let last = i + 1 == entries;
        let (here, deeper) = if last { ("`-- ", "    ") } else { ("|-- ", "|   ") };
        let _ = writeln!(out, "{below}{here}{} [{}]", label(&s.tag, s.id), timestamp(s.created_ms));
        let on_it = clones.get(&(v.id, s.id)).map(Vec::as_slice).unwrap_or_default();
        for (j, c) in on_it.iter().enumerate() {
            let (arm, rest) = if j + 1 == on_it.len() { ("`-- ", "    ") } else { ("|-- ", "|   ") };
            branch(out, c, clones, &format!("{below}{deeper}{arm}"), &format!("{below}{deeper}{rest}"));
        }
    }
    if v.working {
        let _ = writeln!(out, "{below}`-- (you are here)");
    }
}

/// The graph.
pub async fn run_graph(ctx: &Context, _: GraphArgs) -> Result<Output, Failure> {
    let vdis = ctx.client().await?.all_vdis("", false).await?;
    Ok(Output::Text(graph(&vdis)))
}

fn graph(vdis: &[Vdi]) -> String {
    let quote = |s: &str| s.replace('\\', "\\\\").replace('"', "\\\"");
    let mut out = String::from("digraph vdi {\n  rankdir=LR;\n  node [shape=box];\n");
    for v in vdis {
        let mut before = v.parent.as_ref().map(|p| format!("v{}_s{}", p.vdi, p.snapshot));
        let steps = v
            .snapshots
            .iter()
            .map(|s| (format!("v{}_s{}", v.id, s.id), label(&s.tag, s.id), "style=rounded"));
        let working = v.working.then(|| (format!("v{}", v.id), "working".to_owned(), "style=bold"));
        for (node, text, style) in steps.chain(working) {
            let _ = writeln!(out, "  {node} [label=\"{}\\n{}\", {style}];", quote(&v.name), quote(&text));
            if let Some(b) = before.replace(node.clone()) {
                let _ = writeln!(out, "  {b} -> {node};");
            }
        }
    }
    out + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_client::pb::{Parent, Snapshot};

    fn family() -> Vec<Vdi> {
        let snapshot = |id, tag: &str| Snapshot { id, tag: tag.into(), ..Default::default() };
        let base = Vdi {
            id: 1,
            name: "base".into(),
            working: true,
            snapshots: vec![snapshot(1, "gold"), snapshot(2, "")],
            ..Default::default()
        };
        let parent = Some(Parent { vdi: 1, name: "base".into(), snapshot: 1, tag: "gold".into() });
        let clone = |id, name: &str| Vdi {
            id,
            name: name.into(),
            working: true,
            parent: parent.clone(),
            ..Default::default()
        };
        vec![base, clone(4, "vm1"), clone(5, "vm\"2")]
    }

    #[test]
    fn a_tree() {
        let at = "[1970-01-01T00:00:00Z]";
        let want = format!(
            "base\n|-- gold (snapshot 1) {at}\n|   |-- vm1\n|   |   `-- (you are here)\n|   `-- vm\"2\n|       `-- (you are here)\n|-- snapshot 2 {at}\n`-- (you are here)\n"
        );
        assert_eq!(tree(&family()), want);
    }

    #[test]
    fn a_graph() {
        let g = graph(&family());
        assert!(
            g.contains("  v1_s1 -> v1_s2;\n")
                && g.contains("  v1_s2 -> v1;\n")
                && g.contains("  v1_s1 -> v4;\n"),
            "{g}"
        );
        assert!(g.contains("label=\"vm\\\"2\\nworking\""), "{g}");
    }
}
