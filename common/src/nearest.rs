//! What somebody who typed an unknown name probably meant.

/// The one of `known` that is closest to `name`, if any is close.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let close = 1 + name.len() / 3;
    let distance = |other: &&&str| distance(name.as_bytes(), other.as_bytes());
    known.iter().min_by_key(distance).filter(|other| distance(other) <= close).copied()
}

/// How many bytes must be inserted, removed or changed to get from one to the other (Levenshtein).
fn distance(from: &[u8], to: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_leads_to_what_was_meant_and_nonsense_to_nothing() {
        let known = ["listen", "data", "capacity", "zone"];
        assert_eq!(nearest("capcity", &known), Some("capacity"));
        assert_eq!(nearest("Listen", &known), Some("listen"));
        assert_eq!(nearest("frobnicate", &known), None);
        assert_eq!(nearest("x", &[]), None);
    }

    #[test]
    fn distances_are_levenshteins() {
        assert_eq!(distance(b"kitten", b"sitting"), 3);
        assert_eq!(distance(b"", b"abc"), 3);
    }
}
