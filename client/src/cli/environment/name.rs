//! Names of variables. Kubernetes takes all printable ASCII characters but `=` (Kubernetes API, `EnvVar.name`).

use std::fmt;
use std::str::FromStr;

/// The name of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(pub(super) String);

/// `NAME=VALUE`. `Debug` does not show the value.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Assignment {
    /// The name.
    pub(super) name: String,
    /// The value, which may be empty.
    pub(super) value: String,
}

/// Whether a process can have a variable of this name.
pub(super) fn is_possible(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// Whether a shell can have a variable of this name (POSIX.1-2024, XBD section 3.216).
pub(super) fn is_identifier(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(is_inner) && !name.starts_with(|first: char| first.is_ascii_digit()) && !name.is_empty()
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_possible(text) {
            return Ok(Self(text.to_owned()));
        }
        Err("the name of a variable is not empty and has no `=`".to_owned())
    }
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if is_possible(name) => Ok(Self { name: name.to_owned(), value: value.to_owned() }),
            Some(_) | None => Err("write NAME=VALUE".to_owned()),
        }
    }
}

impl fmt::Debug for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assignment").field("name", &self.name).finish_non_exhaustive()
    }
}
