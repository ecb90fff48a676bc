//! The environment of the container that the agent stands for.
//!
//! The agent's own container has that container's variables in its specification, so the kubelet resolves them for it as
//! for any pod: values from ConfigMaps, Secrets and fields, `$(VAR)`, and those of Services. Nobody else has to be able to
//! read them, and what the agent is asked for it reads where it is: in its own environment.

use std::collections::BTreeMap;
use std::ffi::OsString;

use prost::Message;
use tp_protocol::engage::call::{Environment, Variable};
use tp_protocol::limits::MAX_CONTROL_BYTES;

/// Begins the names of the agent's own variables.
pub(crate) const OWN: &str = "TP_AGENT_";

/// Largest environment, encoded: it travels in a control message, and then with the container's description in an answer.
const BYTES_MAX: usize = MAX_CONTROL_BYTES / 2;

/// What a container runtime sets where a container's image and specification set nothing, as is the case here (containerd's
/// default `PATH`; runc's `HOME` of a user that `/etc/passwd` does not name).
const OF_THE_RUNTIME: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/")];

/// Picks those of the agent's variables that are the container's. Names and values that are no UTF-8 cannot be in a
/// specification.
pub(crate) fn of(container: &str, variables: impl Iterator<Item = (OsString, OsString)>) -> Environment {
    let text = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let is_the_containers =
        |(name, value): &(String, String)| !name.starts_with(OWN) && !OF_THE_RUNTIME.contains(&(name, value));
    let sorted: BTreeMap<String, String> = text.filter(is_the_containers).collect();
    let variables = sorted.into_iter().map(|(name, value)| Variable { name, value }).collect();
    let environment = Environment { variables, container: container.to_owned(), problem: String::new() };
    let bytes = environment.encoded_len();
    if bytes > BYTES_MAX {
        let problem = format!("its environment has {bytes} bytes, and {BYTES_MAX} is the limit");
        return Environment { variables: Vec::new(), problem, ..environment };
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(variables: &[(&str, &str)]) -> Vec<String> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        of("web", variables).variables.into_iter().map(|it| it.name).collect()
    }

    #[test]
    fn the_agents_own_and_the_runtimes_variables_are_left_out() {
        let path = OF_THE_RUNTIME[0].1;
        assert_eq!(names(&[("TP_AGENT_POD", "x"), ("PATH", path), ("HOME", "/"), ("A", "1")]), ["A"]);
        assert_eq!(names(&[("PATH", "/app/bin"), ("HOME", "/root"), ("A", "")]), ["A", "HOME", "PATH"]);
    }

    #[test]
    fn an_environment_that_no_message_can_hold_is_a_problem() {
        let huge = "x".repeat(BYTES_MAX);
        let told = of("web", [("A".into(), "1".into()), ("B".into(), huge.into())].into_iter());
        assert!(told.variables.is_empty() && told.problem.contains("is the limit"), "{told:?}");
        assert_eq!(told.container, "web");
    }

    #[test]
    fn values_are_in_no_log() {
        let told = of("web", [("PASSWORD".into(), "hunter2".into())].into_iter());
        let shown = format!("{told:?}");
        assert!(shown.contains("PASSWORD") && !shown.contains("hunter2"), "{shown}");
    }
}
