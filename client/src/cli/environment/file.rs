//! Files that hold an environment: for their owner alone, and whole or not there.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::cli::output::print;
use crate::error::{CliError, Result};

/// Where an environment is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Standard output: `-`.
    Stdout,
    /// This file.
    File(PathBuf),
}

impl From<PathBuf> for Target {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "-" { Self::Stdout } else { Self::File(path) }
    }
}

/// A text that is to be written, and is written beside its place already where that is possible.
#[derive(Debug)]
pub(super) struct Prepared<'a> {
    target: &'a Target,
    text: String,
    /// The file that takes the place, and the place.
    beside: Option<(NamedTempFile, PathBuf)>,
}

impl Target {
    /// Prepares to write `text`.
    ///
    /// # Errors
    /// User errors: the file cannot be written.
    pub(super) fn prepare(&self, text: String) -> Result<Prepared<'_>> {
        let beside = match self {
            Self::Stdout => None,
            Self::File(path) => beside(path, text.as_bytes()).map_err(|e| cannot_write(path, &e))?,
        };
        Ok(Prepared { target: self, text, beside })
    }
}

impl<'a> Prepared<'a> {
    /// Puts it in its place; returns the path of a file.
    ///
    /// # Errors
    /// User errors: the file cannot be written.
    pub(super) fn commit(self) -> Result<Option<&'a Path>> {
        let path = match self.target {
            Target::Stdout => return print(&self.text).map(|()| None),
            Target::File(path) => path,
        };
        let written = match self.beside {
            Some((file, place)) => file.persist(place).map(drop).map_err(|e| e.error),
            None => OpenOptions::new().write(true).open(path).and_then(|mut pipe| pipe.write_all(self.text.as_bytes())),
        };
        written.map_err(|e| cannot_write(path, &e))?;
        Ok(Some(path))
    }
}

fn cannot_write(path: &Path, e: &io::Error) -> CliError {
    CliError::user(format!("cannot write the environment to {}: {e}", path.display())).because(e)
}

/// Writes a file of mode 0600 that can take the place of the one that is there: its reader sees the old one or the new one.
/// `None` where there is something that is no file, a pipe for one: that is to be written to.
fn beside(path: &Path, bytes: &[u8]) -> io::Result<Option<(NamedTempFile, PathBuf)>> {
    // A link stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Ok(found) = fs::metadata(&path)
        && !found.is_file()
    {
        return if found.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(None) };
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Its mode is 0600 from the beginning.
    let mut file = tempfile::Builder::new().prefix(".tp-env-").tempfile_in(directory)?;
    file.write_all(bytes)?;
    Ok(Some((file, path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_is_standard_output() {
        assert_eq!(Target::from(PathBuf::from("-")), Target::Stdout);
        assert_eq!(Target::from(PathBuf::from("./-")), Target::File("./-".into()));
    }

    #[cfg(unix)]
    #[test]
    fn file_is_for_its_owner_and_takes_the_place_of_another() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("env"), dir.path().join("link"));
        fs::write(&path, "before").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        symlink(&path, &link).unwrap();
        let target = Target::File(link.clone());
        assert_eq!(target.prepare("A=1\n".into()).unwrap().commit().unwrap(), Some(&*link));
        assert_eq!(fs::read_to_string(&path).unwrap(), "A=1\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn what_cannot_be_written_is_named_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("nowhere/env")] {
            let error = Target::File(path.clone()).prepare("SECRET=s3cret".into()).unwrap_err();
            let start = format!("cannot write the environment to {}: ", path.display());
            assert!(error.message().starts_with(&start), "{error:?}");
            assert!(!format!("{error:?}").contains("s3cret"));
        }
    }
}
