//! Flags that say what becomes of the environment.

use clap::builder::{PathBufValueParser, TypedValueParser as _};

use super::Environment;
use super::file::Target;
use super::name::{Assignment, Name};
use super::syntax::{Syntax, json};
use crate::error::{CliError, Result};

/// Where the environment goes to, and what is different there.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct EnvironmentArgs {
    /// Write the container's environment to this file, which only you can read; `-` for standard output
    #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().map(Target::from), help_heading = HEADING)]
    env_file: Option<Target>,
    /// Write that file for this reader
    #[arg(long, value_name = "SYNTAX", default_value = "docker", requires = "env_file", help_heading = HEADING)]
    env_syntax: Syntax,
    /// Write the container's environment to this file as one JSON object; `-` for standard output
    #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().map(Target::from), help_heading = HEADING)]
    env_json: Option<Target>,
    /// Leave this variable out; NAME,NAME for several
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = HEADING)]
    env_exclude: Vec<Name>,
    /// Set this variable, in place of the container's
    #[arg(long, value_name = "NAME=VALUE", help_heading = HEADING)]
    env: Vec<Assignment>,
}

const HEADING: &str = "Environment options";

impl EnvironmentArgs {
    /// Checks the flags; `has_image` says whether a container here gets the environment as well.
    ///
    /// # Errors
    /// Usage errors: flags that do not go together.
    pub(in crate::cli) fn check(&self, has_image: bool) -> Result<()> {
        let is_written = self.env_file.is_some() || self.env_json.is_some();
        for (flag, is_given) in [("--env", !self.env.is_empty()), ("--env-exclude", !self.env_exclude.is_empty())] {
            if is_given && !is_written && !has_image {
                return Err(CliError::usage(format!("{flag} changes an environment that goes nowhere"))
                    .hint("it goes with --env-file, --env-json or an image behind `--`"));
            }
        }
        if self.env_file == Some(Target::Stdout) && self.env_json == Some(Target::Stdout) {
            return Err(CliError::usage("--env-file and --env-json cannot both be standard output"));
        }
        if has_image && self.takes_stdout() {
            return Err(CliError::usage("standard output is the container's, and cannot be the environment's as well")
                .hint("write the environment to a file"));
        }
        Ok(())
    }

    /// Whether the environment is to be written anywhere.
    pub(in crate::cli) fn is_written(&self) -> bool {
        self.env_file.is_some() || self.env_json.is_some()
    }

    /// Whether standard output is where it goes to.
    pub(in crate::cli) fn takes_stdout(&self) -> bool {
        [&self.env_file, &self.env_json].into_iter().flatten().any(|target| *target == Target::Stdout)
    }

    /// Makes the changes that are asked for.
    pub(in crate::cli) fn change(&self, environment: &mut Environment) {
        for Name(name) in &self.env_exclude {
            environment.remove(name);
        }
        for Assignment { name, value } in &self.env {
            environment.set(name.clone(), value.clone());
        }
    }

    /// Writes what is asked for; returns what people are told of it, which is nothing for standard output.
    ///
    /// # Errors
    /// User errors: a syntax that cannot hold it all, a file that cannot be written.
    pub(in crate::cli) fn write(&self, environment: &Environment) -> Result<Vec<String>> {
        let file = match &self.env_file {
            Some(target) => Some((target, self.env_syntax.render(environment)?)),
            None => None,
        };
        let json = self.env_json.as_ref().map(|target| (target, json(environment)));
        // All is known to be writable before anything is in its place.
        let written: Vec<_> =
            file.into_iter().chain(json).map(|(target, text)| target.prepare(text)).collect::<Result<_>>()?;
        let mut told = Vec::new();
        for prepared in written {
            if let Some(path) = prepared.commit()? {
                told.push(format!("{} variables are in {}", environment.len(), path.display()));
            }
        }
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: EnvironmentArgs,
    }

    fn parse(line: &str) -> EnvironmentArgs {
        Line::try_parse_from(["tp"].into_iter().chain(line.split_whitespace())).unwrap().args
    }

    fn environment() -> Environment {
        [("A", "1"), ("B", "2"), ("C", "3")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect()
    }

    #[test]
    fn variables_are_left_out_and_then_set() {
        let mut changed = environment();
        parse("--env-exclude A,B --env-exclude NONE --env B=x=y --env D=").change(&mut changed);
        assert_eq!(changed.iter().collect::<Vec<_>>(), [("B", "x=y"), ("C", "3"), ("D", "")]);
    }

    #[test]
    fn values_on_the_command_line_are_not_shown() {
        let args = parse("--env A=s3cret");
        assert!(!format!("{args:?}").contains("s3cret"), "{args:?}");
        for line in ["--env A", "--env =x", "--env-exclude A=1", "--env-syntax sh", "--env-file x --env-syntax bash"] {
            assert!(Line::try_parse_from(["tp"].into_iter().chain(line.split_whitespace())).is_err(), "{line}");
        }
    }

    #[test]
    fn flags_that_do_not_go_together_are_refused() {
        for (line, has_image, part) in [
            ("--env A=1", false, "--env changes an environment that goes nowhere"),
            ("--env-exclude A", false, "--env-exclude changes an environment that goes nowhere"),
            ("--env-file - --env-json -", false, "cannot both be standard output"),
            ("--env-json -", true, "standard output is the container's"),
        ] {
            let error = parse(line).check(has_image).unwrap_err();
            assert!(error.message().contains(part) && error.exit_code() == 2, "{line}: {error:?}");
        }
        for (line, has_image) in [("", false), ("--env A=1", true), ("--env A=1 --env-file -", false)] {
            parse(line).check(has_image).unwrap();
        }
    }

    #[test]
    fn both_files_are_written_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let (file, json) = (dir.path().join("env"), dir.path().join("env.json"));
        let args = parse(&format!("--env-file {} --env-json {}", file.display(), json.display()));
        let mut environment = environment();
        environment.set("B".into(), "two\nlines".into());
        args.write(&environment).unwrap_err();
        assert!(!file.exists() && !json.exists());
        let nowhere = dir.path().join("nowhere/env.json");
        let elsewhere =
            parse(&format!("--env-file {} --env-syntax sh --env-json {}", file.display(), nowhere.display()));
        elsewhere.write(&environment).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        environment.remove("B");
        let told = args.write(&environment).unwrap();
        assert_eq!(told[0], format!("2 variables are in {}", file.display()));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "A=1\nC=3\n");
        assert_eq!(std::fs::read_to_string(&json).unwrap(), "{\n  \"A\": \"1\",\n  \"C\": \"3\"\n}\n");
    }
}
