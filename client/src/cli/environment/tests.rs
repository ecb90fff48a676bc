use tp_protocol::engage::call::Variable;

use super::*;

fn told(variables: &[(&str, &str)], problem: &str) -> Option<call::Environment> {
    let variable = |(name, value): &(&str, &str)| Variable { name: (*name).into(), value: (*value).into() };
    Some(call::Environment { variables: variables.iter().map(variable).collect(), problem: problem.into() })
}

#[test]
fn what_the_agent_tells_is_taken_as_it_is() {
    let environment = Environment::from_wire(told(&[("B", "two\nlines"), ("A.b", "")], ""), "deployment/web").unwrap();
    assert_eq!(environment.iter().collect::<Vec<_>>(), [("A.b", ""), ("B", "two\nlines")]);
    assert_eq!(environment.expand("$(B)!"), "two\nlines!");
}

#[test]
fn what_is_not_known_is_said() {
    for (told, part) in [
        (None, "did not tell"),
        (told(&[], "no agent has answered"), "the environment of deployment/web is not known: no agent has answered"),
        (told(&[("A=B", "s3cret")], ""), "a variable that no process can have, \"A=B\""),
        (told(&[("", "s3cret")], ""), "a variable that no process can have"),
        (told(&[("A", "s3cret\0")], ""), "a variable that no process can have"),
    ] {
        let error = Environment::from_wire(told, "deployment/web").unwrap_err();
        assert!(error.message().contains(part) && !format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

#[test]
fn values_are_not_shown() {
    let environment = Environment::from_wire(told(&[("TOKEN", "s3cret")], ""), "web").unwrap();
    assert_eq!(format!("{environment:?}"), "{\"TOKEN\"}");
}
