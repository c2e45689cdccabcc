//! Bytes as hexadecimal digits, for names and for JSON.

/// Two digits a byte, small letters.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// And back; `None`: it is something else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16);
    text.as_bytes().chunks(2).map(|p| Some((digit(p[0])? * 16 + digit(*p.get(1)?)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        assert_eq!((hex(&[0, 10, 255]).as_str(), hex(&[]).as_str()), ("000aff", ""));
        assert_eq!(unhex("000aFF"), Some(vec![0, 10, 255]));
        for not in ["0", "0g", "+1", "é"] {
            assert_eq!(unhex(not), None, "{not}");
        }
    }
}
