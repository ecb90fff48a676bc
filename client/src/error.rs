//! Errors as users see them: what failed, on which object, and what to do next.
//!
//! Everything below the command line returns errors of its own; this is the one place where they become text and an
//! exit code.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use crate::attach::Failure;

/// The result of everything that reports to the user.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

/// Exit code for a failure that the user or the environment can cause.
const EXIT_FAILURE: u8 = 1;
/// Exit code for bad flags and bad configuration files.
const EXIT_USAGE: u8 = 2;
/// Exit code for a bug of ours (`EX_SOFTWARE` of sysexits.h).
const EXIT_BUG: u8 = 70;
/// Exit code of `tp docker-run` when the failure is tp's, as with `docker run`.
pub(crate) const EXIT_DOCKER_RUN: u8 = 125;
/// A process that a signal ended has the exit code 128 + the signal's number.
const EXIT_SIGNAL_BASE: u8 = 128;

/// An error with what the user needs to go on. Boxed inside: results that carry it stay small.
pub(crate) struct CliError(Box<Report>);

struct Report {
    blame: Blame,
    message: String,
    /// Preformatted text below the message, such as a line of the file at fault.
    detail: Option<String>,
    hints: Vec<String>,
    causes: Vec<String>,
}

/// Whose move it is, which decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    /// The user or the environment: something can be done about it.
    Environment,
    /// The command line or a configuration file.
    Usage,
    /// Ours.
    Bug,
    /// Nobody's: a signal ended the command.
    Signal(u8),
}

impl CliError {
    /// An expected failure (exit code 1). `message` is lower-case and has no full stop.
    pub(crate) fn user(message: impl Into<String>) -> Self {
        Self::new(Blame::Environment, message.into())
    }

    /// Bad flags or a bad configuration file (exit code 2).
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Blame::Usage, message.into())
    }

    /// Something that cannot happen did (exit code 70).
    pub(crate) fn bug(message: impl Into<String>) -> Self {
        Self::new(Blame::Bug, message.into())
            .hint("this is a bug in tp; please report it with the output of `tp version`")
    }

    /// The command was ended by a signal; nothing is printed but `message`.
    pub(crate) fn signal(number: u8, message: impl Into<String>) -> Self {
        Self::new(Blame::Signal(number), message.into())
    }

    fn new(blame: Blame, message: String) -> Self {
        Self(Box::new(Report { blame, message, detail: None, hints: Vec::new(), causes: Vec::new() }))
    }

    /// Adds what to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hints.push(hint.into());
        self
    }

    /// Adds preformatted text below the message.
    #[must_use]
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Adds a cause and the causes below it, shown with `--verbose`.
    #[must_use]
    pub(crate) fn because(mut self, error: &dyn Error) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            self.0.causes.push(cause.to_string());
            next = cause.source();
        }
        self
    }

    /// Whether the command line or a configuration file is to blame.
    pub(crate) fn is_usage(&self) -> bool {
        self.0.blame == Blame::Usage
    }

    /// Whether a signal is what ended the command.
    pub(crate) fn is_signal(&self) -> bool {
        matches!(self.0.blame, Blame::Signal(_))
    }

    /// The message alone, for where an error is one line of a list.
    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    /// The exit code of a command that failed with this error.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.0.blame {
            Blame::Environment => EXIT_FAILURE,
            Blame::Usage => EXIT_USAGE,
            Blame::Bug => EXIT_BUG,
            Blame::Signal(number) => EXIT_SIGNAL_BASE.saturating_add(number),
        }
    }

    /// The exit code when the command was `tp docker-run`: 125, whoever is to blame, as `docker run` does.
    pub(crate) fn docker_run_exit_code(&self) -> u8 {
        match self.0.blame {
            Blame::Environment | Blame::Usage | Blame::Bug => EXIT_DOCKER_RUN,
            Blame::Signal(_) => self.exit_code(),
        }
    }

    /// The whole report; with the chain of causes when `verbose`.
    pub(crate) fn render(&self, verbose: bool) -> String {
        const ERROR: Style = AnsiColor::Red.on_default().bold();
        const HINT: Style = AnsiColor::Cyan.on_default();
        let report = &*self.0;
        let mut out = String::new();
        if let Blame::Signal(_) = report.blame {
            writeln!(out, "{}", report.message).expect("writing to a string");
        } else {
            writeln!(out, "{ERROR}error:{ERROR:#} {}", indent_rest(&report.message, 7)).expect("writing to a string");
        }
        if let Some(detail) = &report.detail {
            for line in detail.lines() {
                writeln!(out, "  {line}").expect("writing to a string");
            }
        }
        if verbose {
            for cause in &report.causes {
                writeln!(out, "  because: {}", indent_rest(cause, 11)).expect("writing to a string");
            }
        }
        for hint in &report.hints {
            writeln!(out, "{HINT}hint:{HINT:#} {}", indent_rest(hint, 6)).expect("writing to a string");
        }
        out
    }

    /// Prints the report to stderr.
    pub(crate) fn print(&self, verbose: bool) {
        anstream::eprint!("{}", self.render(verbose));
    }
}

/// Indents all lines of `text` but the first.
fn indent_rest(text: &str, columns: usize) -> String {
    text.trim_end().replace('\n', &format!("\n{:columns$}", ""))
}

impl fmt::Debug for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(true))
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        let mut error = Self::user(failure.message);
        if !failure.hint.is_empty() {
            error = error.hint(failure.hint);
        }
        error.0.causes = failure.causes;
        error
    }
}

/// Exit code of a process that succeeded or failed with `code`.
pub(crate) fn exit_code(code: u8) -> ExitCode {
    ExitCode::from(code)
}

/// The exit code that stands for how a child process ended.
pub(crate) fn exit_code_of(status: std::process::ExitStatus) -> u8 {
    if let Some(code) = status.code() {
        return u8::try_from(code & 0xff).unwrap_or(EXIT_FAILURE);
    }
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return EXIT_SIGNAL_BASE.saturating_add(u8::try_from(signal).unwrap_or(0));
    }
    EXIT_FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(error: &CliError, verbose: bool) -> String {
        anstream::adapter::strip_str(&error.render(verbose)).to_string()
    }

    #[test]
    fn report_has_message_detail_and_hints() {
        let error =
            CliError::user("no context `a`\nin two files").detail("1 | x\n  | ^").hint("use `b`").hint("or `c`");
        assert_eq!(
            plain(&error, false),
            "error: no context `a`\n       in two files\n  1 | x\n    | ^\nhint: use `b`\nhint: or `c`\n"
        );
    }

    #[test]
    fn causes_are_shown_when_verbose_only() {
        let error = CliError::from(Failure {
            message: "cannot reach the API server".into(),
            hint: String::new(),
            causes: vec!["connection refused".into()],
        });
        assert_eq!(plain(&error, false), "error: cannot reach the API server\n");
        assert_eq!(plain(&error, true), "error: cannot reach the API server\n  because: connection refused\n");
    }

    #[test]
    fn exit_codes_follow_the_blame() {
        assert_eq!(CliError::user("x").exit_code(), 1);
        assert_eq!(CliError::usage("x").exit_code(), 2);
        assert_eq!(CliError::bug("x").exit_code(), 70);
        assert_eq!(CliError::signal(2, "x").exit_code(), 130);
        assert_eq!(CliError::usage("x").docker_run_exit_code(), 125);
        assert_eq!(CliError::signal(15, "x").docker_run_exit_code(), 143);
    }
}
