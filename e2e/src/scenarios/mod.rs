//! One story per file.

mod backup;
mod boot;
mod chart;
mod csi_sanity;
mod csi_volume;
mod delta;
mod disks;
mod hang;
mod idle;
mod image;
mod k8s_changed;
mod k8s_disks;
mod k8s_failover;
mod k8s_faults;
mod k8s_install;
mod k8s_kernel;
mod k8s_lab;
mod k8s_scale;
mod k8s_speed;
mod k8s_upgrade;
mod k8s_volumes;
mod k8s_why;
mod layers;
mod partition;
mod pause;
mod rebuild;
mod strips;
mod yielding;

use crate::harness::Lab;
use anyhow::{Result, bail};

/// A story.
pub struct Scenario {
    /// As it is called on the command line.
    pub name: &'static str,
    /// In a few words.
    pub about: &'static str,
    /// Part of `core`.
    pub core: bool,
    /// Tell it.
    pub run: fn(&Lab) -> Result<()>,
}

/// All of them. The core of what has to be shown on Kubernetes comes first: where time is short the rest is left out.
pub const ALL: &[Scenario] = &[
    Scenario { name: "chart", about: chart::ABOUT, core: true, run: chart::run_scenario },
    Scenario { name: "k8s-lab", about: k8s_lab::ABOUT, core: false, run: k8s_lab::run_scenario },
    Scenario { name: "k8s-install", about: k8s_install::ABOUT, core: true, run: k8s_install::run_scenario },
    Scenario {
        name: "k8s-failover",
        about: k8s_failover::ABOUT,
        core: true,
        run: k8s_failover::run_scenario,
    },
    Scenario { name: "k8s-upgrade", about: k8s_upgrade::ABOUT, core: true, run: k8s_upgrade::run_scenario },
    Scenario { name: "k8s-volumes", about: k8s_volumes::ABOUT, core: true, run: k8s_volumes::run_scenario },
    Scenario { name: "csi-sanity", about: csi_sanity::ABOUT, core: true, run: csi_sanity::run_scenario },
    Scenario { name: "csi-volume", about: csi_volume::ABOUT, core: true, run: csi_volume::run_scenario },
    Scenario { name: "pause", about: pause::ABOUT, core: true, run: pause::run },
    Scenario {
        name: "pause-coded",
        about: "pause on volumes of 2:1 and 4:2",
        core: false,
        run: pause::run_coded,
    },
    Scenario {
        name: "partition-coded",
        about: "partition on a volume of 2:1",
        core: false,
        run: partition::run_coded,
    },
    Scenario { name: "yield", about: yielding::ABOUT, core: false, run: yielding::run_scenario },
    Scenario { name: "freeze", about: "the second half of pause", core: false, run: pause::freeze },
    Scenario { name: "partition", about: partition::ABOUT, core: true, run: partition::run },
    Scenario { name: "image", about: image::ABOUT, core: true, run: image::run_scenario },
    Scenario { name: "backup", about: backup::ABOUT, core: true, run: backup::run_scenario },
    Scenario { name: "boot", about: boot::ABOUT, core: false, run: boot::run_scenario },
    Scenario { name: "delta", about: delta::ABOUT, core: false, run: delta::run_scenario },
    Scenario { name: "strips", about: strips::ABOUT, core: true, run: strips::run_scenario },
    Scenario { name: "disks", about: disks::ABOUT, core: true, run: disks::run_scenario },
    Scenario { name: "hang", about: hang::ABOUT, core: false, run: hang::run_scenario },
    Scenario { name: "rebuild", about: rebuild::ABOUT, core: true, run: rebuild::run_scenario },
    Scenario { name: "layers", about: layers::ABOUT, core: false, run: layers::run_scenario },
    Scenario { name: "k8s-scale", about: k8s_scale::ABOUT, core: false, run: k8s_scale::run_scenario },
    Scenario { name: "k8s-disks", about: k8s_disks::ABOUT, core: false, run: k8s_disks::run_scenario },
    Scenario { name: "k8s-faults", about: k8s_faults::ABOUT, core: false, run: k8s_faults::run_scenario },
    Scenario { name: "k8s-speed", about: k8s_speed::ABOUT, core: false, run: k8s_speed::run_scenario },
    Scenario { name: "k8s-kernel", about: k8s_kernel::ABOUT, core: false, run: k8s_kernel::run_scenario },
    Scenario { name: "k8s-why", about: k8s_why::ABOUT, core: false, run: k8s_why::run_scenario },
    Scenario { name: "idle", about: idle::ABOUT, core: false, run: idle::run_scenario },
];

/// Those meant by the words of a command line.
pub fn choose(names: &[String]) -> Result<Vec<&'static Scenario>> {
    let mut chosen: Vec<&Scenario> = Vec::new();
    for name in names {
        let found: Vec<&Scenario> = ALL
            .iter()
            .filter(|s| (name == "all" && s.name != "freeze") || (name == "core" && s.core) || s.name == name)
            .collect();
        if found.is_empty() {
            let known: Vec<&str> = ALL.iter().map(|s| s.name).collect();
            bail!("no scenario {name}: there are {}, core, all", known.join(", "));
        }
        for s in found {
            if !chosen.iter().any(|c| c.name == s.name) {
                chosen.push(s);
            }
        }
    }
    Ok(chosen)
}
