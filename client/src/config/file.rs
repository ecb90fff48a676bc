//! Reads `config.yaml`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::Layer;
use crate::error::{CliError, Result};

/// Largest configuration file; ours have a few lines.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where to look for `config.yaml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The user named it: it has to be there.
    Named(PathBuf),
    /// The default place: it may be missing.
    Usual(PathBuf),
}

impl Place {
    /// The place that `--config`, `TP_CONFIG` or the system's conventions give. `None` when there is no home directory.
    pub(crate) fn find(flag: Option<&Path>, var: impl Fn(&str) -> Option<String>) -> Option<Self> {
        if let Some(path) = flag {
            return Some(Self::Named(path.to_owned()));
        }
        if let Some(path) = var("TP_CONFIG").filter(|path| !path.is_empty()) {
            return Some(Self::Named(path.into()));
        }
        usual_dir(var).map(|dir| Self::Usual(dir.join("tp").join("config.yaml")))
    }
}

/// The directory for users' configuration files.
fn usual_dir(var: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if cfg!(windows) {
        return var("APPDATA");
    }
    // Relative paths in XDG variables are to be ignored (XDG Base Directory Specification).
    if let Some(dir) = var("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute()) {
        return Some(dir);
    }
    let home = var("HOME")?;
    Some(if cfg!(target_os = "macos") { home.join("Library/Application Support") } else { home.join(".config") })
}

/// Reads the file at `place`; `None` when there is none at the default place.
///
/// # Errors
/// Usage errors that name file, line and column.
pub(crate) fn read(place: &Place) -> Result<Option<(PathBuf, Layer)>> {
    let (Place::Named(path) | Place::Usual(path)) = place;
    let text = match read_text(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound && matches!(place, Place::Usual(_)) => return Ok(None),
        Err(e) => {
            return Err(CliError::usage(format!("cannot read the configuration file {}: {e}", path.display())));
        }
    };
    Ok(Some((path.clone(), parse(path, &text)?)))
}

/// Reads a file of bounded size as UTF-8.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    fs::read_to_string(path)
}

fn parse(path: &Path, text: &str) -> Result<Layer> {
    // A file of comments only holds no document, which is not an error here.
    if text.lines().all(|line| line.trim_start().starts_with('#') || line.trim().is_empty() || line.trim() == "---") {
        return Ok(Layer::default());
    }
    serde_saphyr::from_str(text).map_err(|e| {
        let problem = e.without_snippet().to_string();
        match e.location() {
            Some(at) => {
                CliError::usage(format!("{}:{}:{}: {}", path.display(), at.line(), at.column(), strip(&problem)))
                    .detail(snippet(text, at.line(), at.column()))
            }
            None => CliError::usage(format!("{}: {}", path.display(), strip(&problem))),
        }
    })
}

/// Cuts the position off a message of the parser, which ours says in front, and advice for programmers.
fn strip(problem: &str) -> &str {
    let problem = problem.lines().next().unwrap_or(problem);
    let problem = problem.strip_prefix("error: ").unwrap_or(problem);
    let ends = [problem.rfind(" at line "), problem.find(", set DuplicateKeyPolicy")];
    &problem[..ends.into_iter().flatten().min().unwrap_or(problem.len())]
}

/// The line at fault with a mark below the column.
fn snippet(text: &str, line: u64, column: u64) -> String {
    let (line, column) = (usize::try_from(line).unwrap_or(1), usize::try_from(column).unwrap_or(1));
    let shown = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let number = line.to_string();
    format!("{number} | {shown}\n{:1$} | {2:>column$}", "", number.len(), "^")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(text: &str) -> String {
        let error = parse(Path::new("/home/u/config.yaml"), text).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        anstream::adapter::strip_str(&error.render(false)).to_string()
    }

    #[test]
    fn file_with_all_keys_reads() {
        let text = "manager-namespace: tools\nnamespace: web\nname: demo\nnetworks: [a, b]\nidle-limit: 30m\n\
                    also-proxy: [10.9.0.0/16]\nnever-proxy: [10.9.1.0/24]\ndns-include: [corp]\ndns-exclude: [a.corp]\n\
                    dns-mappings: [db.corp=10.9.0.1]\nvnat: [none, 10.9.0.0/24]\nlog-level: debug\nconnect-timeout: 20s\ndocker: podman\n";
        let layer = parse(Path::new("c"), text).unwrap();
        assert_eq!(layer.networks, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(layer.docker.as_deref(), Some("podman"));
        assert_eq!(layer.name.unwrap().as_str(), "demo");
    }

    #[test]
    fn empty_and_comment_files_set_nothing() {
        for text in ["", "\n", "# idle-limit: 1h\n", "---\n# nothing\n"] {
            assert_eq!(parse(Path::new("c"), text).unwrap(), Layer::default(), "{text:?}");
        }
    }

    #[test]
    fn errors_name_file_line_and_column() {
        for (text, expected) in [
            (
                "namespace: web\nidle-limit: soon\n",
                "error: /home/u/config.yaml:2:13: `soon` is not a duration: write it like `60s`, `12h` or `1h30m`\n  \
                 2 | idle-limit: soon\n    |             ^\n",
            ),
            (
                "namespace: web\nidle_limit: 1h\n",
                "error: /home/u/config.yaml:2:1: unknown field `idle_limit`, expected one of manager-namespace, namespace, \
                 name, networks, also-proxy, never-proxy, dns-include, dns-exclude, dns-mappings, vnat, idle-limit, log-level, connect-timeout, docker\n  2 | idle_limit: 1h\n    | ^\n",
            ),
            (
                "namespace: [web\n",
                "error: /home/u/config.yaml:1:12: expected string scalar\n  1 | namespace: [web\n    |            ^\n",
            ),
            (
                "namespace: a\nnamespace: b\n",
                "error: /home/u/config.yaml:2:1: duplicate mapping key: namespace\n  2 | namespace: b\n    | ^\n",
            ),
        ] {
            assert_eq!(fails(text), expected);
        }
    }

    #[test]
    fn named_file_must_exist_and_the_usual_one_need_not() {
        let missing = PathBuf::from("/nonexistent/config.yaml");
        assert_eq!(read(&Place::Named(missing.clone())).unwrap_err().exit_code(), 2);
        assert!(read(&Place::Usual(missing)).unwrap().is_none());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn place_follows_flag_variable_and_xdg() {
        let vars = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        };
        let flag = Path::new("/f");
        assert_eq!(Place::find(Some(flag), vars(&[("TP_CONFIG", "/e")])), Some(Place::Named("/f".into())));
        assert_eq!(Place::find(None, vars(&[("TP_CONFIG", "/e")])), Some(Place::Named("/e".into())));
        assert_eq!(
            Place::find(None, vars(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")])),
            Some(Place::Usual("/x/tp/config.yaml".into()))
        );
        assert_eq!(
            Place::find(None, vars(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "rel")])),
            Some(Place::Usual("/h/.config/tp/config.yaml".into()))
        );
        assert_eq!(Place::find(None, vars(&[])), None);
    }
}
