use clap::ValueEnum as _;

use super::*;

/// Values that readers stumble over.
const NASTY: [&str; 24] = [
    "",
    " ",
    "  both ends  ",
    "plain",
    "it's",
    "'quoted'",
    "\"quoted\"",
    "a \"b\" 'c' `d`",
    "$HOME ${HOME} $(id) $$ \\$x",
    "`id`",
    "#no comment",
    "a # b #",
    "back\\slash \\n \\\\",
    "ends with \\",
    "bang! !! !$",
    "50% %PATH% %%",
    "a&b|c<d>e^f(g)",
    "x\"y&z\"w&v",
    "tab\there",
    "=a=b=",
    "grüße, 世界 🦀 \u{2019}",
    "two\nlines",
    "\n\nedges\n",
    "carriage\r\nreturn\\\nand 'all' \"of\" $it!\n",
];

fn environment(values: &[&str]) -> Environment {
    let name = |at: usize| format!("V{at:02}");
    values.iter().enumerate().map(|(at, value)| (name(at), (*value).to_owned())).collect()
}

fn rendered(syntax: Syntax, value: &str) -> String {
    syntax.render(&environment(&[value])).unwrap()
}

fn refused(syntax: Syntax, name: &str, value: &str) -> String {
    let environment: Environment = [(name.to_owned(), value.to_owned())].into_iter().collect();
    syntax.render(&environment).unwrap_err().render(false)
}

#[test]
fn names_of_syntaxes_are_those_of_the_option() {
    for syntax in Syntax::value_variants() {
        assert_eq!(syntax.to_possible_value().unwrap().get_name(), syntax.to_string());
        assert!(ALL.contains(syntax));
    }
}

/// The shell gets every value as it is; it is run with the file that a user would have.
#[cfg(unix)]
#[test]
fn sh_reads_back_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env.sh");
    std::fs::write(&file, Syntax::Sh.render(&environment(&NASTY)).unwrap()).unwrap();
    let shell =
        std::process::Command::new("sh").args(["-euc", ". \"$1\" && exec env -0", "sh"]).arg(&file).output().unwrap();
    assert!(shell.status.success(), "{}", String::from_utf8_lossy(&shell.stderr));
    let said = String::from_utf8(shell.stdout).unwrap();
    let read: Environment = said
        .split_terminator('\0')
        .filter_map(|variable| variable.split_once('='))
        .filter(|(name, _)| name.starts_with('V') && name.len() == 3)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let (read, written): (Vec<_>, Vec<_>) =
        (read.iter().collect(), NASTY.iter().map(|value| (*value).to_owned()).collect());
    let read: Vec<_> = read.into_iter().map(|(_, value)| value.to_owned()).collect();
    assert_eq!(read, written);
}

/// What compose-go does with a value in double quotes: quotes, escapes, interpolation, one after the other.
fn read_compose(line: &str) -> String {
    let quoted = line.strip_prefix("V00=\"").unwrap().strip_suffix("\"\n").unwrap();
    assert!(!quoted.contains('\n'));
    let (mut without_quotes, mut chars) = (String::new(), quoted.chars());
    while let Some(char) = chars.next() {
        match char {
            '"' => panic!("the value ends at a quote: {line}"),
            '\\' => match chars.next().unwrap() {
                '"' => without_quotes.push('"'),
                other => without_quotes.extend(['\\', other]),
            },
            other => without_quotes.push(other),
        }
    }
    let (mut unescaped, mut chars) = (String::new(), without_quotes.chars());
    while let Some(char) = chars.next() {
        match char {
            '\\' => unescaped.push(match chars.next().unwrap() {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                other => panic!("an escape that was not written: {other}"),
            }),
            other => unescaped.push(other),
        }
    }
    let dollars = unescaped.replace("$$", "\0");
    assert!(!dollars.contains('$'), "{line}");
    dollars.replace('\0', "$")
}

#[test]
fn compose_reads_back_what_was_written() {
    for value in NASTY {
        // A quote behind a backslash is taken off first, and the escapes are looked for in what is left.
        assert_eq!(read_compose(&rendered(Syntax::Compose, value)), value, "{value:?}");
    }
    assert_eq!(rendered(Syntax::Compose, "a\"b\\c\n$d"), "V00=\"a\\\"b\\\\c\\n$$d\"\n");
}

#[test]
fn json_reads_back_what_was_written() {
    let text = Syntax::Json.render(&environment(&NASTY)).unwrap();
    let read: std::collections::BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
    assert_eq!(read.into_values().collect::<Vec<_>>(), NASTY);
}

#[test]
fn docker_gets_values_as_they_are() {
    for value in NASTY.iter().filter(|value| !value.contains(['\n', '\r'])) {
        assert_eq!(rendered(Syntax::Docker, value), format!("V00={value}\n"));
    }
}

#[test]
fn each_shell_gets_its_own_quotes() {
    let value = "it's $x `y` \\ \"z\" !!\nend";
    for (syntax, expected) in [
        (Syntax::Sh, "export V00='it'\\''s $x `y` \\ \"z\" !!\nend'\n"),
        (Syntax::Csh, "setenv V00 'it'\\''s $x `y` \\ \"z\" \\!\\!\\\nend'\n"),
        (Syntax::Fish, "set -gx V00 'it\\'s $x `y` \\\\ \"z\" !!\nend'\n"),
        (Syntax::Ps, "[Environment]::SetEnvironmentVariable('V00', 'it''s $x `y` \\ \"z\" !!\nend')\n"),
    ] {
        assert_eq!(rendered(syntax, value), expected, "{syntax}");
    }
}

#[test]
fn powershell_gets_typographic_quotes_twice_and_a_mark_for_utf8() {
    let text = rendered(Syntax::Ps, "a\u{2018}b\u{2019}c\u{201a}d\u{201b}");
    let value = "a\u{2018}\u{2018}b\u{2019}\u{2019}c\u{201a}\u{201a}d\u{201b}\u{201b}";
    assert_eq!(text, format!("\u{feff}[Environment]::SetEnvironmentVariable('V00', '{value}')\n"));
    assert!(rendered(Syntax::Ps, "a").starts_with('['));
}

#[test]
fn cmd_gets_percent_signs_twice_and_operators_outside_of_quotes_escaped() {
    for (value, expected) in [
        ("", "@set \"V00=\"\r\n"),
        (" a ", "@set \"V00= a \"\r\n"),
        ("50% %PATH%", "@set \"V00=50%% %%PATH%%\"\r\n"),
        ("a&b|c<d>e^f(g)!", "@set \"V00=a&b|c<d>e^f(g)!\"\r\n"),
        ("x\"y&z\"w&v", "@set \"V00=x\"y^&z\"w&v\"\r\n"),
    ] {
        assert_eq!(rendered(Syntax::Cmd, value), expected, "{value}");
    }
}

#[test]
fn what_a_syntax_cannot_hold_is_named_with_the_ways_out_and_without_its_value() {
    let error = refused(Syntax::Docker, "KEY", "s3cret\nline");
    let error = anstream::adapter::strip_str(&error).to_string();
    assert_eq!(
        error,
        "error: the variable KEY cannot be written in the syntax `docker`: its value has several lines\n\
         hint: these can hold the whole environment: --env-syntax compose, sh, csh, fish, ps, json\n\
         hint: or leave out what cannot be written: --env-exclude KEY\n"
    );
    for (syntax, name, value) in [
        (Syntax::Docker, "A B", "x"),
        (Syntax::Docker, "#A", "x"),
        (Syntax::Docker, "A", "x\r"),
        (Syntax::Compose, "A+B", "x"),
        (Syntax::Compose, "1A", "x"),
        (Syntax::Sh, "a.b", "x"),
        (Syntax::Sh, "1A", "x"),
        (Syntax::Csh, "a-b", "x"),
        (Syntax::Fish, "a.b", "x"),
        (Syntax::Cmd, "A", "x\ny"),
        (Syntax::Cmd, "A", "ä"),
        (Syntax::Cmd, "A%B", "x"),
    ] {
        assert!(refused(syntax, name, value).contains(&format!("the variable {name} cannot")), "{syntax} {name}");
    }
    for (syntax, longest) in [(Syntax::Docker, (64 << 10) - 3), (Syntax::Cmd, 8191 - 11)] {
        assert_eq!(syntax.refusal("A", &"x".repeat(longest)), None, "{syntax}");
        assert!(syntax.refusal("A", &"x".repeat(longest + 1)).is_some(), "{syntax}");
    }
    assert_eq!(Syntax::Ps.refusal("any name at all", "x\ny"), None);
}
