//! Conditions: the standard structure, and a time of transition that changes only when the status does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// A condition before it has a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Type.
    pub kind: &'static str,
    /// True, false, or not known.
    pub status: Option<bool>,
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Said {
    /// Plain constructor.
    pub fn new(
        kind: &'static str,
        status: impl Into<Option<bool>>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, status: status.into(), reason, message: shorten(&message.into()) }
    }
    fn word(&self) -> &'static str {
        match self.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// Longest message, characters: the API server takes 32768, people a few lines.
const LONGEST: usize = 1_000;

fn shorten(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST - 3).chain("...".chars()).collect()
}

/// The new list: times of those whose status is as before are kept; conditions of other types, made by others, stay.
pub fn merge(old: &[Condition], said: &[Said], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let kept = old.iter().filter(|c| !said.iter().any(|s| s.kind == c.type_)).cloned();
    let new = said.iter().map(|s| {
        let before = old.iter().find(|c| c.type_ == s.kind && c.status == s.word());
        Condition {
            type_: s.kind.into(),
            status: s.word().into(),
            reason: s.reason.into(),
            message: s.message.clone(),
            observed_generation: generation,
            last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
        }
    });
    kept.chain(new).collect()
}

/// Is this condition true?
pub fn holds(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|c| c.type_ == kind && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_changes_with_the_status_only() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let first = merge(&[], &[Said::new("Ready", true, "Up", "all up")], Some(1), at(1));
        let second = merge(&first, &[Said::new("Ready", true, "Up", "still up")], Some(2), at(2));
        assert_eq!(second[0].last_transition_time, Time(at(1)));
        assert_eq!((second[0].message.as_str(), second[0].observed_generation), ("still up", Some(2)));
        let third = merge(&second, &[Said::new("Ready", None, "Lost", "?")], Some(2), at(3));
        assert_eq!((third[0].status.as_str(), &third[0].last_transition_time), ("Unknown", &Time(at(3))));
    }

    #[test]
    fn conditions_of_others_stay_and_messages_are_bounded() {
        let at = Timestamp::from_second(1).unwrap();
        let theirs = merge(&[], &[Said::new("Theirs", true, "X", "")], None, at);
        let both = merge(&theirs, &[Said::new("Ours", false, "Y", "z".repeat(5_000))], None, at);
        assert_eq!(both.len(), 2);
        assert_eq!(both[1].message.len(), LONGEST);
        assert!(holds(&both, "Theirs") && !holds(&both, "Ours"));
    }
}
