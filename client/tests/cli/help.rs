//! The help is the manual: every change of it is looked at.

use crate::fixture::{Home, stdout};

macro_rules! help_of {
    ($($name:ident: $line:expr;)*) => {$(
        #[test]
        fn $name() {
            let assert = Home::empty().tp($line).assert().success();
            insta::assert_snapshot!(stdout(&assert));
        }
    )*};
}

help_of! {
    tp: "-h";
    connect: "connect --help";
    docker_run: "docker-run --help";
    status: "status --help";
    quit: "quit --help";
    intercept: "intercept --help";
    replace: "replace --help";
    wiretap: "wiretap --help";
    ingest: "ingest --help";
    list: "list --help";
    leave: "leave --help";
    version: "version --help";
    helm: "helm --help";
    helm_install: "helm install --help";
    helm_upgrade: "helm upgrade --help";
    uninstall: "uninstall --help";
    config_view: "config view --help";
    completion: "completion --help";
}
