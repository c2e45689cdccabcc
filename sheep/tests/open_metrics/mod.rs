//! A strict reader of the OpenMetrics text format: every line has to be right.

use std::collections::{BTreeMap, BTreeSet};

pub type Labels = Vec<(String, String)>;

/// One scrape.
pub struct Scrape {
    families: BTreeMap<String, String>,
    samples: BTreeMap<(String, Labels), f64>,
}

fn is_name(s: &str) -> bool {
    let mut c = s.chars();
    c.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && c.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `{a="x",b="y"}`, with escapes; what follows it.
fn labels(text: &str) -> Option<(Labels, &str)> {
    let Some(mut rest) = text.strip_prefix('{') else { return Some((Vec::new(), text)) };
    let mut out = Vec::new();
    loop {
        let (name, after) = rest.split_once("=\"")?;
        if !is_name(name) || out.iter().any(|(n, _)| n == name) {
            return None;
        }
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (i, '"') => break i,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    _ => return None,
                },
                (_, c) => value.push(c),
            }
        };
        out.push((name.to_owned(), value));
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(r) => rest = r,
            None => return Some((out, rest.strip_prefix('}')?)),
        }
    }
}

impl Scrape {
    /// Panics at the first line that is wrong.
    pub fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("the last line is # EOF");
        let mut families: BTreeMap<String, String> = BTreeMap::new();
        let mut samples = BTreeMap::new();
        let (mut helped, mut family, mut kind) = (BTreeSet::new(), "", "");
        for line in body.lines() {
            if let Some(meta) = line.strip_prefix("# ") {
                let mut words = meta.splitn(3, ' ');
                let (what, name, rest) = (words.next(), words.next(), words.next());
                let (name, rest) = (name.expect("a name"), rest.expect("a value"));
                assert!(is_name(name) && !rest.is_empty(), "{line}");
                match what {
                    Some("HELP") => assert!(helped.insert(name), "announced twice: {line}"),
                    Some("TYPE") => {
                        assert!(helped.contains(name), "TYPE before HELP: {line}");
                        assert!(["gauge", "counter", "histogram"].contains(&rest), "{line}");
                        assert!(families.insert(name.to_owned(), rest.to_owned()).is_none(), "{line}");
                        (family, kind) = (name, rest);
                    }
                    Some("UNIT") => {
                        assert!(name == family && name.ends_with(&format!("_{rest}")), "{line}");
                        assert!(["seconds", "bytes"].contains(&rest), "a base unit: {line}");
                    }
                    _ => panic!("{line}"),
                }
                continue;
            }
            let at = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
            let (name, rest) = line.split_at(at);
            let (labels, rest) = labels(rest).unwrap_or_else(|| panic!("{line}"));
            let number = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
            let value: f64 = number.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(value.is_finite() && (kind == "gauge" || value >= 0.0), "{line}");
            let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("not of {family}: {line}"));
            let allowed: &[&str] = match kind {
                "gauge" => &[""],
                "counter" => &["_total"],
                _ => &["_sum", "_count", "_bucket"],
            };
            assert!(is_name(name) && allowed.contains(&suffix), "{kind}: {line}");
            assert!(samples.insert((name.to_owned(), labels), value).is_none(), "twice: {line}");
        }
        let scrape = Self { families, samples };
        scrape.check_histograms();
        scrape
    }

    fn check_histograms(&self) {
        for family in self.families.iter().filter(|(_, k)| *k == "histogram").map(|(n, _)| n) {
            let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for (labels, value) in self.all(&format!("{family}_bucket")) {
                let (le, rest): (Labels, Labels) = labels.into_iter().partition(|(n, _)| n == "le");
                let bound = if le[0].1 == "+Inf" { f64::INFINITY } else { le[0].1.parse().expect("le") };
                series.entry(rest).or_default().push((bound, value));
            }
            assert_eq!(series.len(), self.all(&format!("{family}_count")).len(), "{family}");
            for (labels, mut buckets) in series {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(
                    buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
                    "{family} {labels:?}: {buckets:?}"
                );
                let last = buckets.last().expect("buckets");
                assert_eq!(last.0, f64::INFINITY, "{family} {labels:?}");
                assert_eq!(Some(&last.1), self.samples.get(&(format!("{family}_count"), labels)), "{family}");
            }
        }
    }

    /// Series of a sample name.
    pub fn all(&self, name: &str) -> Vec<(Labels, f64)> {
        self.samples.iter().filter(|((n, _), _)| n == name).map(|((_, l), v)| (l.clone(), *v)).collect()
    }

    /// Sum of the series that have these labels; 0 when there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |l: &Labels| labels.iter().all(|(n, v)| l.iter().any(|(ln, lv)| n == ln && v == lv));
        self.all(name).into_iter().filter(|(l, _)| has(l)).map(|(_, v)| v).sum()
    }

    /// Names as one queries them, and types.
    pub fn families(&self) -> BTreeMap<String, String> {
        let name = |n: &str, k: &str| if k == "counter" { format!("{n}_total") } else { n.to_owned() };
        self.families.iter().map(|(n, k)| (name(n, k), k.clone())).collect()
    }
}
