//! The conformance tests of the CSI project against the driver, on a real cluster.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::csi::Driver;
use crate::harness::k8s::tools;
use crate::harness::proc::output;
use anyhow::{Context as _, Result, ensure};
use sheepdog_csi::capability::Fs;
use sheepdog_csi::mount;
use std::path::Path;

pub const ABOUT: &str = "csi-sanity, all of it: file systems, XFS, and devices";

/// The spec that grows a file system in use: ext4 wants a capability for it that this machine may lack.
const GROWS: &str = "should work if node-expand is called after node-publish";
const WHY: &str = "the kernel lets nobody without CAP_SYS_RESOURCE grow ext4 in use, and this machine has it not; shown with XFS";

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let sanity = tools::tool("csi-sanity")?;
    let mut c = Cluster::start(lab, Plan::new(3, 3))?;
    // A small limit, so that reaching it is part of the test.
    let mut d = Driver::start(lab, &c, &["--max-volumes", "4"])?;
    let mut total = 0;
    if !mount::grows_in_use(Fs::Ext4) {
        lab.step(format!("left out for ext4: \"{GROWS}\": {WHY}"));
    }
    for (name, kind, fs) in [("ext4", "mount", "ext4"), ("xfs", "mount", "xfs"), ("block", "block", "ext4")] {
        total += specs(lab, &sanity, &d, name, kind, fs)?;
    }
    lab.proved(format!("{total} specs passed"));
    let left: Vec<String> = c
        .rows(&["vdi", "list"])?
        .iter()
        .filter_map(|r| r["name"].as_str().map(str::to_owned))
        .filter(|n| n != sheepdog_csi::registry::NAME)
        .collect();
    ensure!(left.is_empty(), "volumes were left behind: {}", left.join(", "));
    d.stop()?;
    c.alive()?;
    c.stop_all()
}

/// One run; how many specs passed.
fn specs(lab: &Lab, sanity: &Path, d: &Driver, name: &str, kind: &str, fs: &str) -> Result<u64> {
    let dir = lab.dir.join(format!("sanity-{name}"));
    std::fs::create_dir_all(&dir)?;
    let file = |f: &str| dir.join(f).display().to_string();
    std::fs::write(file("parameters.yaml"), format!("fsType: {fs}\n"))?;
    std::fs::write(file("mutable.yaml"), "copies: \"2\"\niops: \"50000\"\nbandwidth: 4Gi\n")?;
    let args = [
        format!("--csi.endpoint=unix://{}", d.endpoint().display()),
        format!("--csi.mountdir={}", file("mount")),
        format!("--csi.stagingdir={}", file("staging")),
        format!("--csi.testvolumeaccesstype={kind}"),
        "--csi.testvolumesize=1073741824".into(),
        "--csi.testvolumeexpandsize=2147483648".into(),
        format!("--csi.testvolumeparameters={}", file("parameters.yaml")),
        format!("--csi.testvolumemutableparameters={}", file("mutable.yaml")),
        "--csi.testnodevolumeattachlimit".into(),
        format!("--ginkgo.json-report={}", file("report.json")),
        "--ginkgo.no-color".into(),
    ];
    let left_out = kind == "mount" && !mount::grows_in_use(Fs::parse(fs)?);
    let skip = left_out.then(|| format!("--ginkgo.skip={GROWS}"));
    let args: Vec<&str> = args.iter().chain(&skip).map(String::as_str).collect();
    let out = output(sanity, &args)?;
    let said = String::from_utf8_lossy(&out.stdout);
    std::fs::write(file("log"), said.as_bytes())?;
    let report = std::fs::read(file("report.json")).context("csi-sanity wrote no report")?;
    let (mut passed, mut wrong) = (0, Vec::new());
    for spec in serde_json::from_slice::<serde_json::Value>(&report)?[0]["SpecReports"]
        .as_array()
        .context("report")?
    {
        if spec["LeafNodeType"] != "It" {
            continue;
        }
        let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let words = containers.chain([&spec["LeafNodeText"]]).filter_map(|t| t.as_str());
        let title = words.collect::<Vec<_>>().join(" ");
        match spec["State"].as_str().unwrap_or_default() {
            "passed" => passed += 1,
            // csi-sanity itself has it turned off (`XIt`).
            "pending" => lab.step(format!("{name}: turned off in csi-sanity: {title}")),
            "skipped" if left_out && title.contains(GROWS) => {}
            state => wrong.push(format!("{state}: {title}: {}", spec["Failure"]["Message"])),
        }
    }
    ensure!(
        wrong.is_empty() && out.status.success(),
        "csi-sanity {name}: {}\n{}",
        out.status,
        wrong.join("\n")
    );
    ensure!(passed > 80, "only {passed} specs ran");
    lab.proved(format!("{name}: {passed} specs passed, none failed"));
    Ok(passed)
}
