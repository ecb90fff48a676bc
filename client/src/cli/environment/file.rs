//! Files that hold an environment: for their owner alone, and whole or not there.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

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

impl Target {
    /// Writes `text`.
    ///
    /// # Errors
    /// User errors: the file cannot be written.
    pub(super) fn write(&self, text: &str) -> Result<()> {
        match self {
            Self::Stdout => print(text),
            Self::File(path) => replace(path, text.as_bytes()).map_err(|e| {
                CliError::user(format!("cannot write the environment to {}: {e}", path.display())).because(&e)
            }),
        }
    }
}

/// Puts a file of mode 0600 in the place of the one that is there; its reader sees the old one or the new one. What is there
/// and no file, a pipe for one, is written to.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        return OpenOptions::new().write(true).open(&path)?.write_all(bytes);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Its mode is 0600 from the beginning.
    let mut file = tempfile::Builder::new().prefix(".tp-env-").tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.persist(&path)?;
    Ok(())
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
        replace(&link, b"A=1\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "A=1\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn what_cannot_be_written_is_named_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("nowhere/env")] {
            let error = Target::File(path.clone()).write("SECRET=s3cret").unwrap_err();
            let start = format!("cannot write the environment to {}: ", path.display());
            assert!(error.message().starts_with(&start), "{error:?}");
            assert!(!format!("{error:?}").contains("s3cret"));
        }
    }
}
