//! Values that a filter asks for: one text, or a regular expression.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ParserBuilder;
use regex_syntax::hir::literal::Extractor;
use regex_syntax::hir::{Hir, Look};

/// Longest text or regular expression of a filter.
pub const MAX_PATTERN_BYTES: usize = 1024;

/// Largest compiled regular expression: `\d{1,1000}` fits, a nested repetition of it does not.
const REGEX_PROGRAM_BYTES: usize = 256 << 10;

/// Memory that matching one regular expression may cache; when it needs more, it runs slower instead.
const REGEX_CACHE_BYTES: usize = 64 << 10;

/// Deepest nesting of groups.
const REGEX_NESTING: u32 = 32;

/// A text, or a regular expression for all of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This text.
    Exact(String),
    /// Whatever the expression matches.
    Regex(WholeRegex),
}

/// A regular expression that has to match the whole value (as if between `^` and `$`), compiled.
///
/// Syntax is that of the `regex` crate, without Unicode classes: `\w`, `\d` and `(?i)` are about ASCII. Matching takes
/// time linear in the value, whatever the expression.
#[derive(Clone)]
pub struct WholeRegex {
    source: String,
    regex: Regex,
    /// Every match begins with one of these; `None` when there is no such list.
    prefixes: Option<Vec<Vec<u8>>>,
}

/// Why a text is not a pattern.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatternError {
    /// Longer than [`MAX_PATTERN_BYTES`].
    #[error("it has {0} bytes, and {MAX_PATTERN_BYTES} is the limit")]
    TooLong(usize),
    /// The `regex` crate refuses it.
    #[error("`{source_text}` is not a regular expression that can be used: {problem}")]
    BadRegex {
        /// The expression.
        source_text: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Pattern {
    /// Takes a text as it is.
    ///
    /// # Errors
    /// [`PatternError::TooLong`].
    pub fn exact(text: impl Into<String>) -> Result<Self, PatternError> {
        let text = text.into();
        check_length(&text)?;
        Ok(Self::Exact(text))
    }

    /// Compiles a regular expression.
    ///
    /// # Errors
    /// [`PatternError`] says what is wrong with it.
    pub fn regex(source: impl Into<String>) -> Result<Self, PatternError> {
        WholeRegex::new(source.into()).map(Self::Regex)
    }

    /// Whether `value` is what the pattern asks for.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Regex(regex) => regex.matches(value),
        }
    }

    /// Whether certainly no value matches both. Symmetric; `false` says nothing.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a != b,
            (Self::Exact(text), Self::Regex(regex)) | (Self::Regex(regex), Self::Exact(text)) => {
                !regex.matches(text.as_bytes())
            }
            (Self::Regex(a), Self::Regex(b)) => a.is_disjoint(b),
        }
    }
}

impl WholeRegex {
    fn new(source: String) -> Result<Self, PatternError> {
        check_length(&source)?;
        let bad = |problem: String| PatternError::BadRegex { source_text: source.clone(), problem };
        let hir = ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .nest_limit(REGEX_NESTING)
            .build()
            .parse(&source)
            // The last line of the message says what; the others point into the expression.
            .map_err(|error| bad(error.to_string().lines().last().unwrap_or_default().trim().to_owned()))?;
        let prefixes = Extractor::new().extract(&hir);
        let prefixes = prefixes.literals().map(|all| all.iter().map(|literal| literal.as_bytes().to_vec()).collect());
        // Parsed, anchored and written again: wrapping the text itself would be fooled by `a)|(b` and by `(?x)`.
        let whole = Hir::concat(vec![Hir::look(Look::Start), hir, Hir::look(Look::End)]);
        let regex = RegexBuilder::new(&whole.to_string())
            .unicode(false)
            .size_limit(REGEX_PROGRAM_BYTES)
            .dfa_size_limit(REGEX_CACHE_BYTES)
            .build()
            .map_err(|error| bad(error.to_string()))?;
        Ok(Self { source, regex, prefixes })
    }

    /// Whether all of `value` matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }

    /// Whether certainly no value matches both. Symmetric; `false` says nothing.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.prefixes.as_ref().is_some_and(|all| all.iter().all(|prefix| other.is_disjoint_from_prefix(prefix)))
    }

    /// Whether certainly no value that begins with `prefix` matches; `false` says nothing.
    pub fn is_disjoint_from_prefix(&self, prefix: &[u8]) -> bool {
        self.prefixes.as_ref().is_some_and(|all| all.iter().all(|p| !p.starts_with(prefix) && !prefix.starts_with(p)))
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

fn check_length(text: &str) -> Result<(), PatternError> {
    if text.len() > MAX_PATTERN_BYTES { Err(PatternError::TooLong(text.len())) } else { Ok(()) }
}

impl PartialEq for WholeRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for WholeRegex {}

impl fmt::Debug for WholeRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WholeRegex").field(&self.source).finish()
    }
}

impl fmt::Display for Pattern {
    /// As it is written behind a header's name: `=ann` or `=~an+`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "={text}"),
            Self::Regex(regex) => write!(f, "=~{}", regex.source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(source: &str) -> Pattern {
        Pattern::regex(source).unwrap()
    }

    #[test]
    fn a_regex_matches_the_whole_value_only() {
        for (source, value, expected) in [
            ("ann|bob", "ann", true),
            ("ann|bob", "bob", true),
            ("ann|bob", "anna", false),
            ("ann|bob", "bobann", false),
            ("an+", "annn", true),
            ("(?i)ann", "ANN", true),
            (".*", "", true),
            ("", "", true),
            ("", "x", false),
            ("^ann$", "ann", true),
            ("(?x) a n n # of accounts", "ann", true),
            ("(?m)^ann$", "x\nann", false),
        ] {
            assert_eq!(regex(source).matches(value.as_bytes()), expected, "{source} on {value}");
        }
    }

    #[test]
    fn a_regex_that_is_wrong_or_too_large_is_refused() {
        for source in ["(", "a)|(b", "[", "*", "\\", "((((\\d{1,200}){1,200}){1,200}){1,200})", "\\p{Greek}"] {
            assert!(matches!(Pattern::regex(source), Err(PatternError::BadRegex { .. })), "{source}");
        }
        let long = "x".repeat(MAX_PATTERN_BYTES + 1);
        assert_eq!(Pattern::regex(long.clone()), Err(PatternError::TooLong(long.len())));
        assert_eq!(Pattern::exact(long.clone()), Err(PatternError::TooLong(long.len())));
    }

    #[test]
    fn patterns_with_nothing_in_common_are_told_apart() {
        let exact = |text: &str| Pattern::exact(text).unwrap();
        for (a, b, disjoint) in [
            (exact("ann"), exact("bob"), true),
            (exact("ann"), exact("ann"), false),
            (exact("ann"), regex("b.*"), true),
            (exact("ann"), regex("a.*"), false),
            (regex("ann-.*"), regex("bob-.*"), true),
            (regex("ann-.*"), regex("an.*"), false),
            (regex("(ann|bob)-.*"), regex("(carl|dora)-.*"), true),
            (regex(".*"), regex("bob-.*"), false),
        ] {
            assert_eq!(a.is_disjoint(&b), disjoint, "{a} {b}");
            assert_eq!(b.is_disjoint(&a), disjoint, "{b} {a}");
        }
    }
}
