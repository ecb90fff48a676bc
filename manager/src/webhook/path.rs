//! Paths that only the API server is to know: see [`super`].

use std::fmt::{self, Write};

use ring::rand::{SecureRandom, SystemRandom};

use crate::session::is_same;

/// Random bytes in a path: enough not to be guessed.
const SECRET_BYTES: usize = 32;

/// A path with a secret in it. `Debug` shows what it begins with, and no more.
pub(super) struct SecretPath {
    prefix: &'static str,
    path: String,
}

impl SecretPath {
    /// Makes up a path that begins with `prefix`; `None` when the system has no randomness.
    pub(super) fn new(prefix: &'static str) -> Option<Self> {
        let mut secret = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut secret).ok()?;
        let mut path = prefix.to_owned();
        for byte in secret {
            write!(path, "{byte:02x}").expect("writing to a string cannot fail");
        }
        Some(Self { prefix, path })
    }

    /// The whole path. To be told to the API server alone.
    pub(super) fn as_str(&self) -> &str {
        &self.path
    }

    /// Whether `path` is this one, found out in a time that does not depend on where the two differ.
    pub(super) fn is(&self, path: &str) -> bool {
        is_same(self.path.as_bytes(), path.as_bytes())
    }
}

impl fmt::Debug for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_long_never_the_same_and_stays_out_of_debug_output() {
        let made = || SecretPath::new("/identity/").unwrap();
        let (a, b) = (made(), made());
        assert!(a.as_str().len() == "/identity/".len() + 64 && a.as_str() != b.as_str());
        assert!(a.is(a.as_str()) && !a.is(b.as_str()) && !a.is("/identity/") && !a.is(&a.as_str()[1..]));
        assert_eq!(format!("{a:?}"), "/identity/");
    }
}
