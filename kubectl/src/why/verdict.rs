//! What `why` answers: the first thing that blocks, the facts that led to it, and what to do. Plain values.

use serde::Serialize;
use std::fmt::Write as _;

/// Names of causes, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub enum Code {
    NoSuchClaim,
    ClaimLost,
    ClaimDeletionHeld,
    NoClass,
    NoSuchClass,
    OtherProvisioner,
    WaitsForVolume,
    WaitsForPod,
    NoSpace,
    TooFewNodes,
    InvalidParameters,
    SourceNotReady,
    ProvisioningFailed,
    BeingProvisioned,
    NoCluster,
    ClusterNotAvailable,
    DriverNotInstalled,
    NoCsiController,
    DriverNotRegistered,
    CsiNodeNotReady,
    NodeGone,
    NodeLost,
    NodeNotReady,
    NoSheepOnNode,
    SheepNotReady,
    VolumeGone,
    Unschedulable,
    VolumeNodeAffinity,
    TooManyVolumes,
    UsedByOtherPod,
    PodDeletionHeld,
    PodItself,
    BeingStarted,
    AttachedElsewhere,
    BeingDetached,
    AttachFailed,
    BeingAttached,
    ForeignData,
    FileSystemDamaged,
    WrongPassphrase,
    SecretMissing,
    MountFailed,
    WaitsForMount,
    GrowFailed,
    BeingGrown,
    NoSnapshotController,
    SnapshotClass,
    SnapshotFailed,
    SnapshotDeletionHeld,
    BeingTaken,
}

/// A step of what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Fix {
    /// In words.
    Say(String),
    /// A command.
    Run(String),
}

/// Something that blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// Its name.
    pub code: Code,
    /// In one sentence.
    pub sentence: String,
    /// What to do.
    pub fix: Vec<Fix>,
}

impl Cause {
    /// Without what to do yet.
    pub fn new(code: Code, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into(), fix: Vec::new() }
    }
    /// And then do this.
    pub fn say(mut self, text: impl Into<String>) -> Self {
        self.fix.push(Fix::Say(text.into()));
        self
    }
    /// And then run this.
    pub fn run(mut self, command: impl Into<String>) -> Self {
        self.fix.push(Fix::Run(command.into()));
        self
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What was asked about, `KIND/NAME`.
    pub about: String,
    /// Its namespace.
    pub namespace: String,
    /// Nothing blocks it, when absent.
    pub cause: Option<Cause>,
    /// How that was found, in order.
    pub facts: Vec<String>,
    /// What could not be read, and would have had a say.
    pub unread: Vec<String>,
}

/// `why` found nothing that blocks.
pub const FINE: u8 = 0;
/// It found a cause.
pub const BLOCKED: u8 = 1;
/// It could not ask.
pub const UNKNOWN: u8 = 2;

impl Verdict {
    /// Exit code.
    pub fn exit(&self) -> u8 {
        match (&self.cause, self.unread.is_empty()) {
            (Some(_), _) => BLOCKED,
            (None, true) => FINE,
            (None, false) => UNKNOWN,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = match (&self.cause, self.unread.is_empty()) {
            (Some(c), _) => format!("{}: {}\n", self.about, c.sentence),
            (None, true) => format!("Nothing blocks {}.\n", self.about),
            (None, false) => {
                format!(
                    "Nothing that could be read blocks {}, but not everything could be read.\n",
                    self.about
                )
            }
        };
        section(&mut out, "Facts", &self.facts);
        if let Some(cause) = self.cause.as_ref().filter(|c| !c.fix.is_empty()) {
            out += "\nWhat to do\n";
            for fix in &cause.fix {
                let _ = match fix {
                    Fix::Say(text) => writeln!(out, "  - {text}"),
                    Fix::Run(command) => writeln!(out, "      {command}"),
                };
            }
        }
        section(&mut out, "Not read", &self.unread);
        out
    }
}

fn section(out: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = write!(out, "\n{title}\n");
    for line in lines {
        let _ = writeln!(out, "  - {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(cause: Option<Cause>, unread: &[&str]) -> Verdict {
        Verdict {
            about: "pvc/data".into(),
            namespace: "shop".into(),
            cause,
            facts: vec!["pvc/data is Pending".into()],
            unread: unread.iter().map(|u| (*u).to_owned()).collect(),
        }
    }

    #[test]
    fn the_cause_comes_first_and_commands_stand_alone() {
        let cause = Cause::new(Code::NoClass, "it names no class.").say("name one:").run("kubectl edit");
        let v = verdict(Some(cause), &["nodes: forbidden"]);
        assert_eq!(
            v.text(),
            "pvc/data: it names no class.\n\nFacts\n  - pvc/data is Pending\n\nWhat to do\n  - name one:\n      kubectl edit\n\nNot read\n  - nodes: forbidden\n"
        );
        assert_eq!(v.exit(), BLOCKED);
    }

    #[test]
    fn what_could_not_be_read_is_not_taken_for_fine() {
        assert_eq!(verdict(None, &[]).exit(), FINE);
        assert!(verdict(None, &[]).text().starts_with("Nothing blocks pvc/data."));
        let unsure = verdict(None, &["nodes: forbidden"]);
        assert_eq!(unsure.exit(), UNKNOWN);
        assert!(unsure.text().contains("not everything could be read"));
    }
}
