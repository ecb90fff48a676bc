//! The syntaxes in which an environment can be written, so that what reads it gets every value as it is, or nothing at all.

use std::fmt;

use super::Environment;
use super::name::is_identifier;
use crate::error::{CliError, Result};

/// Longest line that docker reads (`bufio.MaxScanTokenSize`, with which its `pkg/kvfile` scans), its end included.
const DOCKER_LINE_BYTES: usize = 64 << 10;

/// Longest line that cmd takes ("Command prompt line string limitation", Windows support article 830473).
const CMD_LINE_CHARS: usize = 8191;

/// How a file with an environment is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Syntax {
    /// For `docker run --env-file`: values as they are, one line each
    Docker,
    /// For `env_file` of Docker Compose
    Compose,
    /// For sh, bash and zsh: `. FILE`
    Sh,
    /// For csh and tcsh: `source FILE`
    Csh,
    /// For fish: `source FILE`
    Fish,
    /// For PowerShell: `. FILE.ps1`
    Ps,
    /// For cmd: `call FILE.cmd`
    Cmd,
    /// One JSON object
    Json,
}

const ALL: [Syntax; 8] =
    [Syntax::Docker, Syntax::Compose, Syntax::Sh, Syntax::Csh, Syntax::Fish, Syntax::Ps, Syntax::Cmd, Syntax::Json];

impl Syntax {
    /// Writes an environment.
    ///
    /// # Errors
    /// User errors: the first variable that this syntax cannot express, and what can be done.
    pub(super) fn render(self, environment: &Environment) -> Result<String> {
        let refused: Vec<_> =
            environment.iter().filter_map(|(name, value)| Some((name, self.refusal(name, value)?))).collect();
        if let Some((name, why)) = refused.first() {
            let error = CliError::user(format!("the variable {name} cannot be written in the syntax `{self}`: {why}"));
            let names: Vec<_> = refused.iter().map(|(name, _)| *name).collect();
            return Err(error
                .hint(format!("these can hold the whole environment: --env-syntax {}", able(environment)))
                .hint(format!("or leave out what cannot be written: --env-exclude {}", names.join(","))));
        }
        if self == Self::Json {
            return Ok(json(environment));
        }
        let lines: String = environment.iter().map(|(name, value)| self.line(name, value)).collect();
        // Windows PowerShell takes a file for one of the system's code page unless it begins like this.
        let is_marked = self == Self::Ps && !lines.is_ascii();
        Ok(if is_marked { format!("\u{feff}{lines}") } else { lines })
    }

    /// Why a variable cannot be expressed; `None` when it can.
    pub(super) fn refusal(self, name: &str, value: &str) -> Option<&'static str> {
        let length = name.len() + value.len();
        match self {
            // A `#` begins a comment. Lines lose a carriage return at their end.
            Self::Docker if name.contains(char::is_whitespace) || name.starts_with('#') => {
                Some("docker cannot read its name")
            }
            Self::Docker | Self::Cmd if value.contains(['\n', '\r']) => Some("its value has several lines"),
            Self::Docker => (length + 2 > DOCKER_LINE_BYTES).then_some("its value is longer than docker reads"),
            Self::Compose => (!is_compose_name(name)).then_some("Compose cannot read its name"),
            Self::Sh | Self::Csh | Self::Fish => {
                (!is_identifier(name)).then_some("a shell has no variable of this name")
            }
            Self::Cmd if !is_compose_name(name) => Some("cmd cannot set a variable of this name"),
            Self::Cmd if !value.is_ascii() => Some("cmd reads other characters than ASCII by the console's code page"),
            Self::Cmd => (cmd(name, value).len() > CMD_LINE_CHARS).then_some("its value is longer than cmd reads"),
            Self::Ps | Self::Json => None,
        }
    }

    /// One variable, with the end of its line.
    fn line(self, name: &str, value: &str) -> String {
        match self {
            Self::Docker => format!("{name}={value}\n"),
            Self::Compose => format!("{name}={}\n", compose(value)),
            Self::Sh => format!("export {name}='{}'\n", value.replace('\'', r"'\''")),
            Self::Csh => format!("setenv {name} '{}'\n", csh(value)),
            Self::Fish => format!("set -gx {name} '{}'\n", value.replace('\\', r"\\").replace('\'', r"\'")),
            Self::Ps => format!("[Environment]::SetEnvironmentVariable('{}', '{}')\n", ps(name), ps(value)),
            Self::Cmd => cmd(name, value),
            Self::Json => String::new(),
        }
    }
}

impl fmt::Display for Syntax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Compose => "compose",
            Self::Sh => "sh",
            Self::Csh => "csh",
            Self::Fish => "fish",
            Self::Ps => "ps",
            Self::Cmd => "cmd",
            Self::Json => "json",
        })
    }
}

/// The syntaxes that can hold all of it; `json` always can.
fn able(environment: &Environment) -> String {
    let can = |syntax: &Syntax| environment.iter().all(|(name, value)| syntax.refusal(name, value).is_none());
    let names: Vec<_> = ALL.into_iter().filter(can).map(|syntax| syntax.to_string()).collect();
    names.join(", ")
}

/// All of it as one object.
pub(super) fn json(environment: &Environment) -> String {
    let object: serde_json::Map<_, _> =
        environment.iter().map(|(name, value)| (name.to_owned(), value.to_owned().into())).collect();
    let text = serde_json::to_string_pretty(&object).expect("keys and values are strings");
    format!("{text}\n")
}

/// The names that Compose reads (compose-go, `dotenv/parser.go`): digits in front are left out there.
fn is_compose_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    name.bytes().all(is_inner) && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// A value in double quotes, which Compose first takes the escapes out of and then interpolates, where `$$` is a `$`.
fn compose(value: &str) -> String {
    let mut out = String::from('"');
    for char in value.chars() {
        match char {
            '\\' => out.push_str(r"\\"),
            '"' => out.push_str("\\\""),
            '$' => out.push_str("$$"),
            '\n' => out.push_str(r"\n"),
            '\r' => out.push_str(r"\r"),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// A value between single quotes, where csh still takes `!` for history and the end of a line for the end of the quotes, unless
/// a backslash is in front (tcsh(1), "Lexical structure").
fn csh(value: &str) -> String {
    let mut out = String::new();
    for char in value.chars() {
        match char {
            '\'' => out.push_str(r"'\''"),
            '!' | '\n' => out.extend(['\\', char]),
            other => out.push(other),
        }
    }
    out
}

/// A value between single quotes, where PowerShell takes typographic quotes for quotes as well, and two for one
/// (about_Quoting_Rules; `IsSingleQuote` of its tokenizer).
fn ps(value: &str) -> String {
    let mut out = String::new();
    for char in value.chars() {
        if matches!(char, '\'' | '\u{2018}'..='\u{201b}') {
            out.push(char);
        }
        out.push(char);
    }
    out
}

/// A line that cmd does not show. `set` takes all up to the last quote of the line. The parser in front of it takes `%` for a
/// variable everywhere, and operators where a quote in the value has ended the one before (`set /?`, `cmd /?`).
fn cmd(name: &str, value: &str) -> String {
    let mut out = format!("@set \"{name}=");
    let mut is_quoted = true;
    for char in value.chars() {
        match char {
            '%' => out.push('%'),
            '"' => is_quoted = !is_quoted,
            '^' | '&' | '|' | '<' | '>' | '(' | ')' if !is_quoted => out.push('^'),
            _ => {}
        }
        out.push(char);
    }
    out.push_str("\"\r\n");
    out
}

#[cfg(test)]
mod tests;
