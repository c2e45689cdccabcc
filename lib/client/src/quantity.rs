//! Kubernetes quantities as bytes, for the CSI driver and the operator. `50M` is 50,000,000 there; `dog` takes it for 50 Mi, as Sheepdog always had it. Pure.

/// Bytes of a quantity such as `10Gi`, `1.5G`, `1e9` or `1048576`; None when it is none, is negative, or does not fit. Parts of a byte are rounded up.
pub fn bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && part.is_empty()) || part.contains('.') || part.len() > 18 || whole.len() > 20 {
        return None;
    }
    let (times, over) = scale(suffix)?;
    let digits: u128 = format!("{whole}{part}").parse().ok()?;
    let below = 10u128.pow(u32::try_from(part.len()).ok()?).checked_mul(over)?;
    let value = digits.checked_mul(times)?.div_ceil(below);
    u64::try_from(value).ok()
}

/// What a suffix multiplies and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    const TEN: u128 = 10;
    Some(match suffix {
        "" => (1, 1),
        "m" => (1, 1_000),
        "k" => (TEN.pow(3), 1),
        "M" => (TEN.pow(6), 1),
        "G" => (TEN.pow(9), 1),
        "T" => (TEN.pow(12), 1),
        "P" => (TEN.pow(15), 1),
        "E" => (TEN.pow(18), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<u32>().ok().filter(|e| *e <= 18)?;
            (TEN.pow(exponent), 1)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_kubernetes_reads_them() {
        for (text, want) in [
            ("10Gi", Some(10 << 30)),
            ("1.5G", Some(1_500_000_000)),
            ("1e3", Some(1_000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("1500m", Some(2)),
            ("0.5Ki", Some(512)),
            ("1048576", Some(1 << 20)),
            (".5Mi", Some(1 << 19)),
            ("", None),
            ("-1Gi", None),
            ("1 Gi", None),
            ("99999999999Ei", None),
            ("1e99", None),
            ("1.1.1", None),
            ("Gi", None),
        ] {
            assert_eq!(bytes(text), want, "{text}");
        }
    }
}
