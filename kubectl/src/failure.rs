//! When the question could not be asked: what happened and what to try. Its exit code is 2.

use crate::read::Trouble;

/// Exit code of every failure of the plugin itself.
pub const COULD_NOT_ASK: u8 = 2;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
}

impl Failure {
    /// Without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }
    /// Add what to try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// A request that everything else depends on.
    pub fn of(what: &str, trouble: &Trouble) -> Self {
        let f = Self::new(format!("{what}: {trouble}"));
        match trouble {
            Trouble::Unreachable(_) => f.hint("does kubectl get nodes work? Say which cluster with --context or --kubeconfig"),
            Trouble::NoSuchKind => f.hint("Sheepdog's chart is not installed in this cluster, or it is another cluster: say which with --context"),
            _ => f,
        }
    }
}
