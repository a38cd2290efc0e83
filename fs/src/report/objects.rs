//! What the commands of the object store print.

use std::fmt::Write;

use super::{plural, size, utc};
use crate::objects::{Got, Listed, Stored};

/// How far a put or get is; `all` is 0 if that is not known. As wide each time, so that it covers the line before.
pub fn transfer_progress(verb: &str, (done, all): (u64, u64)) -> String {
    let of_all = if all > 0 { format!(" of {}", size(all)) } else { String::new() };
    format!("{:<60}", format!("{verb}: {}{of_all}", size(done)))
}

/// `avidfs put`.
pub fn stored(key: &str, stored: &Stored, seconds: f64) -> String {
    let Stored { version, bytes, parts } = *stored;
    format!("{} is stored as version {version}: {}\n", shown(key), amount(bytes, parts, seconds))
}

/// `avidfs get`.
pub fn got(key: &str, got: &Got, seconds: f64) -> String {
    let Got { version, bytes, parts, .. } = *got;
    format!("{} was read in version {version}: {}\n", shown(key), amount(bytes, parts, seconds))
}

/// `avidfs delete`.
pub fn deleted(key: &str, version: u64) -> String {
    format!("{} is deleted as version {version}\n", shown(key))
}

/// `avidfs list`: one line for each key, the key last as it may be of any length.
pub fn keys(listed: &[(Listed, Option<Got>)]) -> String {
    let width = listed.iter().map(|(listed, _)| listed.version.to_string().len()).max().unwrap_or(0);
    let mut text = String::new();
    for (Listed { key, version, deleted }, got) in listed {
        if let Some(got) = got {
            let _ = write!(text, "{:>9}  {}  ", size(got.bytes), utc(got.put_ms / 1000));
        }
        let deleted = if *deleted { "  (deleted)" } else { "" };
        let _ = writeln!(text, "{version:>width$}  {}{deleted}", shown(key));
    }
    text
}

fn amount(bytes: u64, parts: u32, seconds: f64) -> String {
    let in_parts = if parts > 0 { format!(" in {}", plural(parts as usize, "part")) } else { String::new() };
    format!("{}{in_parts}, {seconds:.2} s", size(bytes))
}

/// A key may hold what a terminal takes for commands.
fn shown(key: &str) -> String {
    let sign = |sign: char| match sign.is_control() {
        true => sign.escape_default().to_string(),
        false => sign.to_string(),
    };
    key.chars().map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_and_got_is_one_line() {
        let put = Stored { version: 3, bytes: 9 << 20, parts: 3 };
        assert_eq!(stored("a", &put, 1.234), "a is stored as version 3: 9.00 MiB in 3 parts, 1.23 s\n");
        let read = Got { version: 3, bytes: 5, parts: 0, put_ms: 0 };
        assert_eq!(got("a\x1b[2J", &read, 0.0), "a\\u{1b}[2J was read in version 3: 5 B, 0.00 s\n");
        assert_eq!(transfer_progress("putting", (1024, 2048)).trim_end(), "putting: 1.00 KiB of 2.00 KiB");
        assert_eq!(transfer_progress("putting", (1024, 0)).trim_end(), "putting: 1.00 KiB");
    }

    #[test]
    fn keys_are_listed_with_what_is_known_of_them() {
        let listed = |key: &str, version, deleted| Listed { key: key.into(), version, deleted };
        let rows = [(listed("a", 9, false), None), (listed("b c", 10, true), None)];
        assert_eq!(keys(&rows), " 9  a\n10  b c  (deleted)\n");
        let read = Got { version: 1, bytes: 2048, parts: 0, put_ms: 951_782_400_000 };
        let rows = [(listed("a", 1, false), Some(read))];
        assert_eq!(keys(&rows), " 2.00 KiB  2000-02-29 00:00:00 UTC  1  a\n");
    }
}
