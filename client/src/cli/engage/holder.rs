//! Who engages, as other people are told.

/// The user and the machine that `tp` runs on: `ann@laptop`.
pub(super) fn this() -> String {
    of(|name| std::env::var(name).ok().or_else(|| account().filter(|_| name == "USER")), machine())
}

fn of(var: impl Fn(&str) -> Option<String>, machine: String) -> String {
    let given = |name: &&str| var(name).filter(|value| !value.is_empty());
    let user = ["USER", "LOGNAME", "USERNAME"].iter().find_map(given);
    let or_unknown = |text: String| if text.is_empty() { "unknown".to_owned() } else { text };
    format!("{}@{}", or_unknown(user.unwrap_or_default()), or_unknown(machine))
}

/// The name that the system has for whom this runs as: services and containers set no variable.
#[cfg(unix)]
fn account() -> Option<String> {
    let uid = rustix::process::getuid().as_raw().to_string();
    let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
    // NAME:PASSWORD:UID:... (passwd(5))
    let mut lines = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.get(2) == Some(&uid.as_str())).map(|fields| fields[0].to_owned())
}

#[cfg(not(unix))]
fn account() -> Option<String> {
    None
}

#[cfg(unix)]
fn machine() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn machine() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_whom_the_environment_names() {
        let var = |name: &str| match name {
            "USER" => Some(String::new()),
            "LOGNAME" => Some("ann".to_owned()),
            _ => None,
        };
        assert_eq!(of(var, "laptop".into()), "ann@laptop");
        assert_eq!(of(|_| None, String::new()), "unknown@unknown");
    }
}
