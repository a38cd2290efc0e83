//! The pool's token: one secret that every node and every client of a closed pool has.

use std::fmt;
use std::path::Path;

use common::hash::HashId;

use crate::{CredentialsError, read_secret};

/// Fewer characters could be guessed.
const LEAST: usize = 16;
/// It goes with every request.
const MOST: usize = 512;

/// A token. It shows itself to nobody, also not in logs.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token of a file, without the white space around it.
    ///
    /// # Errors
    /// The file cannot be read, or every user of this machine may read it; or what it holds is no token.
    pub fn read(path: &Path) -> Result<Token, CredentialsError> {
        Token::parse(&read_secret(path)?).ok_or_else(|| {
            let form = format_args!("a token has {LEAST} to {MOST} letters, digits and signs in one line");
            CredentialsError::of(path, form)
        })
    }

    fn parse(text: &str) -> Option<Token> {
        let text = text.trim();
        let fits = (LEAST..=MOST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Token(text.to_owned()))
    }

    /// As the header `authorization` has it (RFC 6750).
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether a header is that of this token. How long it takes says nothing about the token: digests are compared,
    /// and who knows one character more does not know more of those.
    pub fn admits(&self, header: &[u8]) -> bool {
        let digest = |bytes: &[u8]| *HashId::Blake3.hash(bytes).as_bytes();
        let (mine, theirs) = (digest(self.header().as_bytes()), digest(header));
        mine.iter().zip(&theirs).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use avidfs_tests::fuzz::fuzz;

    use super::*;

    const TEXT: &str = "0123456789abcdef";

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_token_admits_itself_alone_and_shows_itself_to_nobody() {
        let token = Token::read(file(&format!(" {TEXT}\n"), 0o600).path()).unwrap();
        assert!(token.admits(format!("Bearer {TEXT}").as_bytes()));
        for wrong in ["", TEXT, "Bearer ", "Bearer 0123456789abcdeg", "Bearer 0123456789abcdef0", "bearer"] {
            assert!(!token.admits(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn a_file_that_everybody_may_read_or_that_holds_no_token_is_refused() {
        let refused = |text: &str, mode| Token::read(file(text, mode).path()).unwrap_err().to_string();
        assert!(
            refused(TEXT, 0o604).ends_with("every user of this machine may read or change it: chmod 600")
        );
        assert!(Token::read(file(TEXT, 0o640).path()).is_ok(), "a group may be let in");
        for wrong in
            ["", "short", "two words of a token", "a line\nand another one", "\u{e4}0123456789abcdef"]
        {
            assert!(refused(wrong, 0o600).contains("a token has 16 to 512"), "{wrong:?}");
        }
        assert!(refused(&"x".repeat(513), 0o600).contains("a token has"));
        assert!(Token::read(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn whatever_the_file_it_is_refused_or_its_token_fits_a_header() {
        let valid = [format!(" {TEXT}\n"), "x".repeat(MOST)].map(String::into_bytes);
        let parse = |bytes: &[u8]| Token::parse(std::str::from_utf8(bytes).ok()?);
        fuzz(
            "token",
            &valid,
            |length| length + 256,
            parse,
            |token, bytes| {
                assert_eq!(Some(token.0.as_str()), std::str::from_utf8(bytes).ok().map(str::trim));
                assert!(token.header().bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
            },
        );
    }
}
