//! Sizes as people write and read them. All units are powers of 1,024, as Sheepdog always had it: `4M` = `4Mi` = 4,194,304 bytes.

const UNITS: [char; 5] = ['k', 'M', 'G', 'T', 'P'];

/// A number with an optional fraction and unit: `512`, `4k`, `10G`, `1.5Ti`, `64MiB`.
pub fn parse(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let bad = || {
        format!(
            "\"{text}\" is not a size: write a number with k, M, G, T or P (powers of 1024), for example 512M or 10G"
        )
    };
    let mut letters = unit.chars();
    let shift = match letters.next() {
        None => 0,
        Some('B') if unit == "B" => 0,
        Some(c) => match UNITS.iter().position(|u| u.eq_ignore_ascii_case(&c)) {
            Some(i) if matches!(letters.as_str(), "" | "i" | "iB" | "B") => 10 * (i as u32 + 1),
            _ => return Err(bad()),
        },
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || (number.contains('.') && fraction.is_empty())
        || fraction.len() > 9
        || fraction.contains('.')
    {
        return Err(bad());
    }
    let large = || format!("\"{text}\" is too large: at most 16P");
    let whole: u64 = whole.parse().map_err(|_| large())?;
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(large)?;
    if !fraction.is_empty() {
        let scale = 10u128.pow(fraction.len() as u32);
        let digits: u128 = fraction.parse().map_err(|_| bad())?;
        let scaled = digits << shift;
        if !scaled.is_multiple_of(scale) {
            return Err(format!("\"{text}\" is not a whole number of bytes"));
        }
        bytes = bytes.checked_add((scaled / scale) as u64).ok_or_else(large)?;
    }
    Ok(bytes)
}

/// Like `parse`, for a size that may not be zero.
pub fn parse_positive(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("the size must be more than 0".into()),
        n => Ok(n),
    }
}

/// For people: three digits and a unit.
pub fn show(bytes: u64) -> String {
    let mut unit = None;
    let mut value = bytes as f64;
    for u in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = Some(u);
    }
    match unit {
        None => format!("{bytes} B"),
        Some(u) => {
            let u = u.to_ascii_uppercase();
            let digits = if value < 10.0 {
                2
            } else if value < 100.0 {
                1
            } else {
                0
            };
            format!("{value:.digits$} {u}iB")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        let table = [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4k", 4096),
            ("4K", 4096),
            ("4Ki", 4096),
            ("4KiB", 4096),
            ("4MB", 4 << 20),
            ("10G", 10 << 30),
            ("1.5T", 3 << 39),
            ("0.5k", 512),
            ("16P", 16 << 50),
        ];
        for (text, want) in table {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1X",
            "1.5",
            "1..5G",
            ".5G",
            "5.G",
            "1 G",
            "1GG",
            "99999999999P",
            "1e3",
            "18446744073709551616",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_people_read() {
        for (bytes, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 << 30, "10.0 GiB"),
            (3 << 39, "1.50 TiB"),
            (100 << 20, "100 MiB"),
            (1 << 54, "16.0 PiB"),
        ] {
            assert_eq!(show(bytes), want);
        }
    }
}
