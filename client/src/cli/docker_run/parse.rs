//! Reads the command line of `tp docker-run`: tp's flags and docker's up to the image, then the container's own.
//!
//! The grammar is that of docker's flag library: `--flag=value`, `--flag value`, `-fvalue`, `-f value`, switches combined
//! (`-it`), `--flag=false`; a lone `--` ends tp's flags, docker's may follow it.

use std::ffi::{OsStr, OsString};

use super::flags::{Arity, by_long, by_short};

/// A flag for docker, by its full name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flag {
    /// The name without dashes.
    pub(super) name: String,
    /// Its value; `None` for a switch that was just named.
    pub(super) value: Option<OsString>,
}

impl Flag {
    /// The flag as one argument.
    pub(super) fn to_arg(&self) -> OsString {
        let mut arg = OsString::from(format!("--{}", self.name));
        if let Some(value) = &self.value {
            arg.push("=");
            arg.push(value);
        }
        arg
    }

    /// The value as text; lossy for what is not UTF-8.
    pub(super) fn text(&self) -> String {
        self.value.as_deref().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether a switch is on: docker's library takes the spellings of Go's `strconv.ParseBool`.
    pub(super) fn is_on(&self) -> bool {
        let off = ["0", "f", "F", "false", "False", "FALSE"];
        self.value.as_ref().is_none_or(|value| !off.iter().any(|word| value == word))
    }
}

/// A command line taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    /// tp's own flags, as arguments for clap.
    pub(super) own: Vec<OsString>,
    /// docker's flags, in order.
    pub(super) docker: Vec<Flag>,
    /// The image; `None` when there is none.
    pub(super) image: Option<OsString>,
    /// The container's command and arguments.
    pub(super) args: Vec<OsString>,
}

/// Takes the arguments behind `docker-run` apart. `own` tells tp's own flags, by their long names, and their arity.
///
/// # Errors
/// The text of a usage error.
pub(super) fn parse(args: Vec<OsString>, own: impl Fn(&str) -> Option<Arity>) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut args = args.into_iter();
    let mut tp_flags_over = false;
    while let Some(arg) = args.next() {
        // Flags are ASCII; a value may be anything, and is cut off as bytes.
        let bytes = arg.as_encoded_bytes();
        if bytes == b"--" && !tp_flags_over {
            tp_flags_over = true;
        } else if let Some(rest) = bytes.strip_prefix(b"--").filter(|rest| !rest.is_empty()) {
            let (name, value) = match rest.iter().position(|b| *b == b'=') {
                Some(at) => (&rest[..at], Some(suffix(&arg, 2 + at + 1))),
                None => (rest, None),
            };
            let name = std::str::from_utf8(name).map_err(|_| format!("unknown flag: {}", arg.to_string_lossy()))?;
            match own(name).filter(|_| !tp_flags_over) {
                Some(arity) => {
                    let value = take_value(&format!("--{name}"), arity, value, &mut args)?;
                    let flag = Flag { name: name.to_owned(), value };
                    parsed.own.push(flag.to_arg());
                }
                None => parsed.docker.push(long_flag(name, value, &mut args)?),
            }
        } else if bytes.len() > 1 && bytes[0] == b'-' {
            short_flags(&arg, &mut args, &mut parsed.docker)?;
        } else {
            parsed.image = Some(arg);
            parsed.args = args.collect();
            break;
        }
    }
    Ok(parsed)
}

fn long_flag(name: &str, value: Option<OsString>, args: &mut impl Iterator<Item = OsString>) -> Result<Flag, String> {
    match by_long(name) {
        Some((name, arity)) => {
            let value = take_value(&format!("--{name}"), arity, value, args)?;
            Ok(Flag { name: name.to_owned(), value })
        }
        // A flag of a later docker: with its value attached there is nothing to guess.
        None if value.is_some() => Ok(Flag { name: name.to_owned(), value }),
        None => Err(format!("unknown flag: --{name} (if your docker knows it, write it as --{name}=VALUE)")),
    }
}

/// Reads one argument of short flags, such as `-it`, `-eA=1` or `-p`.
fn short_flags(arg: &OsStr, args: &mut impl Iterator<Item = OsString>, flags: &mut Vec<Flag>) -> Result<(), String> {
    let bytes = arg.as_encoded_bytes();
    let mut at = 1;
    while let Some(&letter) = bytes.get(at) {
        let unknown = || format!("unknown shorthand flag: '{}' in {}", letter as char, arg.to_string_lossy());
        let (name, arity) = by_short(letter as char).ok_or_else(unknown)?;
        let attached = match bytes.get(at + 1) {
            // `-t=false`; also `-e=A=1`, whose value is `A=1`.
            Some(b'=') => Some(suffix(arg, at + 2)),
            Some(_) if arity == Arity::Value => Some(suffix(arg, at + 1)),
            Some(_) | None => None,
        };
        let ends = attached.is_some();
        let value = take_value(&format!("-{}", letter as char), arity, attached, args)?;
        flags.push(Flag { name: name.to_owned(), value });
        if ends || arity == Arity::Value {
            break;
        }
        at += 1;
    }
    Ok(())
}

fn take_value(
    flag: &str,
    arity: Arity,
    attached: Option<OsString>,
    args: &mut impl Iterator<Item = OsString>,
) -> Result<Option<OsString>, String> {
    match (arity, attached) {
        (_, Some(value)) => Ok(Some(value)),
        (Arity::Switch, None) => Ok(None),
        (Arity::Value, None) => match args.next() {
            Some(value) => Ok(Some(value)),
            None => Err(format!("flag needs an argument: {flag}")),
        },
    }
}

/// The part of `arg` from a byte that follows an ASCII character.
fn suffix(arg: &OsStr, from: usize) -> OsString {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt as _;
        OsStr::from_bytes(&arg.as_bytes()[from..]).to_owned()
    }
    #[cfg(not(unix))]
    {
        arg.to_string_lossy().get(from..).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(name: &str) -> Option<Arity> {
        match name {
            "use" | "context" => Some(Arity::Value),
            "verbose" => Some(Arity::Switch),
            _ => None,
        }
    }

    /// Takes a line of words apart; shows tp's flags, docker's flags, and image with arguments.
    fn taken(line: &str) -> (String, String, String) {
        let parsed = parse(line.split(' ').filter(|w| !w.is_empty()).map(OsString::from).collect(), own).unwrap();
        let join = |list: Vec<OsString>| {
            let words: Vec<_> = list.into_iter().map(|word| word.into_string().unwrap()).collect();
            words.join(" ")
        };
        let docker = parsed.docker.iter().map(Flag::to_arg).collect();
        (join(parsed.own), join(docker), join(parsed.image.into_iter().chain(parsed.args).collect()))
    }

    #[test]
    fn image_is_found_among_the_flags() {
        for (line, own, docker, rest) in [
            ("img", "", "", "img"),
            ("--rm -it img sh -c ls", "", "--rm --interactive --tty", "img sh -c ls"),
            ("-itd -eFOO=1 -e BAR img", "", "--interactive --tty --detach --env=FOO=1 --env=BAR", "img"),
            ("-itp 80:80 img", "", "--interactive --tty --publish=80:80", "img"),
            ("-ip80:80 img -p x", "", "--interactive --publish=80:80", "img -p x"),
            ("--name=a --env=X=Y=Z img --name b", "", "--name=a --env=X=Y=Z", "img --name b"),
            ("--use dev --rm --context=c img --use x", "--use=dev --context=c", "--rm", "img --use x"),
            ("--verbose --tty=false -t=true img", "--verbose", "--tty=false --tty=true", "img"),
            ("-e=A=1 img", "", "--env=A=1", "img"),
            ("--use dev -- --rm img -- x", "--use=dev", "--rm", "img -- x"),
            ("-- img", "", "", "img"),
            ("--net host --dns-opt x img", "", "--network=host --dns-option=x", "img"),
            ("--new-flag=3 img", "", "--new-flag=3", "img"),
            ("--env= img", "", "--env=", "img"),
            (
                "-v /a:/b -w /x -u 0 -m 1g -l a=b -h n -c 5 -a stdin -q -P img",
                "",
                "--volume=/a:/b --workdir=/x --user=0 --memory=1g --label=a=b --hostname=n --cpu-shares=5 --attach=stdin --quiet --publish-all",
                "img",
            ),
            ("--rm", "", "--rm", ""),
        ] {
            assert_eq!(taken(line), (own.to_owned(), docker.to_owned(), rest.to_owned()), "{line}");
        }
    }

    #[test]
    fn tp_flags_behind_a_double_dash_are_docker_s_to_refuse() {
        let words = ["--", "--use", "dev", "img"].map(OsString::from).to_vec();
        assert!(parse(words, own).unwrap_err().starts_with("unknown flag: --use"));
    }

    #[test]
    fn wrong_flags_are_named() {
        for (line, expected) in [
            (
                "--frobnicate img",
                "unknown flag: --frobnicate (if your docker knows it, write it as --frobnicate=VALUE)",
            ),
            ("-x img", "unknown shorthand flag: 'x' in -x"),
            ("-ix img", "unknown shorthand flag: 'x' in -ix"),
            ("--name", "flag needs an argument: --name"),
            ("-ie", "flag needs an argument: -e"),
            ("--use", "flag needs an argument: --use"),
        ] {
            let words = line.split(' ').map(OsString::from).collect();
            assert_eq!(parse(words, own).unwrap_err(), expected, "{line}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn values_need_not_be_utf8() {
        use std::os::unix::ffi::OsStringExt as _;
        let word = OsString::from_vec(b"--env=A=\xff".to_vec());
        let parsed = parse(vec![word.clone(), "img".into()], own).unwrap();
        assert_eq!(parsed.docker[0].to_arg(), word);
    }

    #[test]
    fn switches_read_go_booleans() {
        let on = |value: Option<&str>| Flag { name: "detach".into(), value: value.map(OsString::from) }.is_on();
        assert!(on(None) && on(Some("true")) && on(Some("1")));
        assert!(!on(Some("false")) && !on(Some("0")) && !on(Some("F")));
    }
}
