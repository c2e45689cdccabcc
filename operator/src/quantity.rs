//! Kubernetes quantities as bytes, bytes for people, and times.

pub use sheepdog_client::quantity::bytes;

/// Milliseconds of a time such as `30s`, `10m`, `24h` or `7d`; None when it is none, or does not fit.
pub fn millis(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let scale = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    let number = text.strip_suffix(unit).filter(|n| n.bytes().all(|b| b.is_ascii_digit()))?;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// For people: `12 GiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// As a quantity, in the largest binary unit that says it exactly.
pub fn exact(bytes: u64) -> String {
    for (suffix, shift) in [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, want) in [
            ("0s", Some(0)),
            ("30s", Some(30_000)),
            ("10m", Some(600_000)),
            ("24h", Some(86_400_000)),
            ("7d", Some(604_800_000)),
            ("", None),
            ("h", None),
            ("24", None),
            ("+1h", None),
            ("1.5h", None),
            ("24 h", None),
            ("1w", None),
            ("99999999999999999d", None),
        ] {
            assert_eq!(millis(text), want, "{text}");
        }
    }

    #[test]
    fn there_and_back() {
        for n in [0, 1, 512, 4096, 1 << 20, 3 << 30, (5 << 40) + 1] {
            assert_eq!(bytes(&exact(n)), Some(n));
        }
        assert_eq!((exact(10 << 30).as_str(), human(10 << 30).as_str()), ("10Gi", "10.0 GiB"));
        assert_eq!((human(0).as_str(), human(2048 << 30).as_str()), ("0 B", "2.0 TiB"));
    }
}
