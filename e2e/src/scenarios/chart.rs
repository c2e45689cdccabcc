//! The Helm chart by itself: lint, values that the schema refuses, and what it renders, compared with what is kept. `SHEEPDOG_GOLDEN=write` writes that anew.

use crate::harness::Lab;
use crate::harness::k8s::sheepdog::chart;
use crate::harness::k8s::tools::tool;
use crate::harness::proc::{output, run};
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};

pub const ABOUT: &str = "helm lint, values that are refused, what the chart renders";

/// Everything that is off by default.
const EVERYTHING: &str = "global.imageRegistry=registry.example.com,global.imagePullSecrets={pull},networkPolicy.enabled=true,\
    monitoring.podMonitor.enabled=true,monitoring.rules.enabled=true,monitoring.dashboard.enabled=true,\
    csi.sidecars.snapshotter.enabled=true,csi.sidecars.snapshotMetadata.enabled=true,\
    csi.sidecars.snapshotMetadata.tls.secretName=given,csi.sidecars.snapshotMetadata.tls.caCert=certificate,operator.nodeSelector.role=infra,cluster.name=other,kubeletRootDir=/var/lib/k0s/kubelet";
/// As little as there can be.
const LITTLE: &str =
    "csi.enabled=false,crds.enabled=false,operator.releaseLostNodes=false,operator.replicas=1";

/// A value that is wrong, and what the refusal names.
const WRONG: [(&str, &str); 9] = [
    ("csi.backend=magic", "'auto', 'nbd', 'loop'"),
    ("operator.replicas=-1", "/operator/replicas"),
    ("operator.replicas=two", "/operator/replicas"),
    ("nonsense=1", "'nonsense' not allowed"),
    ("csi.node.nonsense=1", "'nonsense' not allowed"),
    (
        "csi.sidecars.snapshotMetadata.enabled=true,csi.sidecars.snapshotMetadata.tls.secretName=x",
        "needs tls.caCert",
    ),
    ("kubeletRootDir=relative", "/kubeletRootDir"),
    ("cluster.clientPort=70000", "/cluster/clientPort"),
    ("global.imagePullPolicy=Sometimes", "/global/imagePullPolicy"),
];

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let helm = tool("helm")?;
    let (helm, chart) = (helm.to_str().context("path")?, chart()?);
    run(helm, &["lint", "--strict", &chart])?;
    lab.proved("helm lint --strict");
    for (value, named) in WRONG {
        let out = output(helm, &["template", "sheepdog", &chart, "--set", value])?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success(), "--set {value} is taken");
        ensure!(said.contains(named), "--set {value} is refused without {named}: {said}");
    }
    lab.proved(format!("{} wrong values are refused, each with its place", WRONG.len()));
    for (name, set) in [("default", ""), ("everything", EVERYTHING), ("little", LITTLE)] {
        let rendered = run(helm, &["template", "sheepdog", &chart, "--namespace", "sheepdog", "--set", set])?;
        same(name, &rendered)?;
    }
    lab.proved("what it renders is what is kept in e2e/golden/chart");
    Ok(())
}

fn same(name: &str, rendered: &str) -> Result<()> {
    let file: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/chart/{name}.yaml"));
    if std::env::var("SHEEPDOG_GOLDEN").is_ok_and(|v| v == "write") {
        std::fs::create_dir_all(file.parent().context("parent")?)?;
        return Ok(std::fs::write(&file, rendered)?);
    }
    let kept = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let differ = |(a, b): &(&str, &str)| a != b;
    if let Some((now, then)) = rendered.lines().zip(kept.lines()).find(differ) {
        bail!(
            "{name}: rendered {now:?}, kept {then:?}: if that is meant, run it once with SHEEPDOG_GOLDEN=write"
        );
    }
    ensure!(rendered.lines().count() == kept.lines().count(), "{name}: more or fewer lines than are kept");
    Ok(())
}
