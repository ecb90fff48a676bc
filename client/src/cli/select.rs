//! Which of the connections a command is about.

use crate::config::value::ConnectionName;
use crate::docker::Engine;
use crate::docker::connections::Connection;
use crate::error::{CliError, Result};

/// The connection, by name.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct UseArgs {
    /// The connection, when there are several
    #[arg(long = "use", visible_alias = "name", env = "TP_CONNECTION", hide_env_values = true, value_name = "NAME")]
    pub(super) connection: Option<ConnectionName>,
}

/// The connection called `name`.
///
/// # Errors
/// A user error that lists the connections there are.
pub(super) fn by_name<'a>(connections: &'a [Connection], name: &ConnectionName) -> Result<&'a Connection> {
    connections.iter().find(|connection| connection.name == name.as_str()).ok_or_else(|| {
        let error = CliError::user(format!("there is no connection `{name}`"));
        if connections.is_empty() { error.hint("nothing is connected") } else { error.hint(listed(connections)) }
    })
}

/// The connection called `name`, which has to run.
///
/// # Errors
/// As [`by_name`], and when it has ended: why.
pub(super) async fn running_by_name(
    engine: &Engine,
    connections: &[Connection],
    name: &ConnectionName,
) -> Result<Connection> {
    let connection = by_name(connections, name)?;
    if connection.running {
        return Ok(connection.clone());
    }
    let why = match engine.ended(&connection.id).await? {
        Some(ended) => ended.reason(),
        None => "its container does not run".to_owned(),
    };
    Err(CliError::user(format!("the connection `{name}` has ended: {why}"))
        .hint(format!("connect again with `tp connect --name {name}`")))
}

/// The only connection; `None` when there is none.
///
/// # Errors
/// A user error that lists them when there are several.
pub(super) fn only(connections: &[Connection]) -> Result<Option<&Connection>> {
    match connections {
        [] => Ok(None),
        [connection] => Ok(Some(connection)),
        several => Err(CliError::user("there are several connections")
            .hint(listed(several))
            .hint("say which one with --use NAME")),
    }
}

fn listed(connections: &[Connection]) -> String {
    let names = connections.iter().map(|connection| {
        format!("{} (context {}, namespace {})", connection.name, connection.context, connection.namespace)
    });
    format!("connections: {}", names.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
pub(super) fn example(name: &str) -> Connection {
    Connection {
        name: name.into(),
        id: format!("id-{name}"),
        context: format!("context-{name}"),
        server: "https://k:6443".into(),
        namespace: "default".into(),
        manager_namespace: "tp-system".into(),
        via: String::new(),
        version: "0.1.0".into(),
        invocation: "0123".into(),
        held: false,
        running: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_needs_no_name_and_two_do() {
        let (a, b) = (example("a"), example("b"));
        assert_eq!(only(&[]).unwrap(), None);
        assert_eq!(only(std::slice::from_ref(&a)).unwrap(), Some(&a));
        let error = only(&[a, b]).unwrap_err();
        assert!(error.render(false).contains("a (context context-a, namespace default), b (context"), "{error:?}");
    }

    #[test]
    fn unknown_name_lists_the_known_ones() {
        let connections = [example("a")];
        assert_eq!(by_name(&connections, &"a".parse().unwrap()).unwrap().name, "a");
        let error = by_name(&connections, &"x".parse().unwrap()).unwrap_err();
        assert_eq!(error.message(), "there is no connection `x`");
        assert!(error.render(false).contains("connections: a "), "{error:?}");
        let error = by_name(&[], &"x".parse().unwrap()).unwrap_err();
        assert!(error.render(false).contains("nothing is connected"), "{error:?}");
    }
}
