//! Who may engage what: asks for the client's user, writes each decision to the log, and explains refusals.

use tp_protocol::engage::call::Failure;
use tp_protocol::engage::wire::Kind;
use tp_protocol::identity::OneTimePort;

use super::workload::Workload;
use super::{Engagements, failure};
use crate::VERSION;
use crate::identity::User;
use crate::identity::rights::{Right, Verdict};
use crate::session::SessionId;

/// Names of the Role and the RoleBinding in the hint of a refusal.
const ROLE_ENGAGE: &str = "tp-engage";
const ROLE_RESTART: &str = "tp-restart";

impl Engagements {
    /// Opens a port on which a client shows who it is.
    pub(super) async fn identify(&self, session: &SessionId) -> Result<OneTimePort, Failure> {
        let nobody_asks = || failure("this traffic manager does not ask who clients are", "");
        self.identities().ok_or_else(nobody_asks)?.open(session).await
    }

    /// Decides whether a session may engage a workload like that. Every decision is a line in the log, target `audit`.
    ///
    /// # Errors
    /// The refusal, with what would grant the right.
    pub(super) async fn authorize(
        &self,
        session: &SessionId,
        kind: Kind,
        namespace: &str,
        workload: &str,
    ) -> Result<(), Failure> {
        self.audit(session, Right::ENGAGE, verb(kind), namespace, workload).await
    }

    /// Decides whether a session may restart a workload's pods, which it may engage. As [`Self::authorize`].
    pub(super) async fn authorize_restart(
        &self,
        session: &SessionId,
        namespace: &str,
        workload: &Workload,
    ) -> Result<(), Failure> {
        let right = Right::restart(workload.kind.group(), workload.kind.plural());
        self.audit(session, right, "restart", namespace, &workload.to_string()).await
    }

    async fn audit(
        &self,
        session: &SessionId,
        right: Right,
        verb: &str,
        namespace: &str,
        workload: &str,
    ) -> Result<(), Failure> {
        // Without a cluster nobody would be asked.
        self.cluster()?;
        let user = self.identities().and_then(|identities| identities.user(session));
        let (decision, why) = self.decide(user.as_deref(), namespace, right).await;
        let outcome = if decision.is_ok() { "allowed" } else { "refused" };
        let user = user.as_ref().map(|user| user.name.as_str());
        tracing::info!(target: "audit", user, verb, namespace, workload, outcome, why, %session, "{verb} {outcome}");
        decision
    }

    /// Decides, and says why.
    async fn decide(&self, user: Option<&User>, namespace: &str, right: Right) -> (Result<(), Failure>, String) {
        let Some(identities) = self.identities() else {
            return (Ok(()), "authorization is port-forward-only".to_owned());
        };
        let Some(user) = user else {
            return (Err(unknown()), "the client has not shown who it is".to_owned());
        };
        match identities.may(user, namespace, right).await {
            Ok(Verdict::Allowed(why)) => (Ok(()), why),
            Ok(Verdict::Refused(why)) => (Err(refused(user, namespace, right)), why),
            Err(error) => (Err(undecided(user, namespace, &error.to_string())), error.to_string()),
        }
    }
}

/// What the audit calls it: as the command.
fn verb(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "engage",
        Kind::Intercept => "intercept",
        Kind::Wiretap => "wiretap",
        Kind::Replace => "replace",
        Kind::Ingest => "ingest",
        Kind::Via => "via",
    }
}

fn unknown() -> Failure {
    failure(
        "the traffic manager does not know who you are, and engages workloads for those only who may do it",
        format!("update tp on this machine to {VERSION} or later, and connect again"),
    )
}

fn refused(user: &User, namespace: &str, right: Right) -> Failure {
    let name = &user.name;
    let (verb, resource) = (right.verb, right.resource_name());
    let (what, role, other) = match right {
        Right::ENGAGE => ("engage workloads", ROLE_ENGAGE, ""),
        _ => (
            "restart workloads, as the pods without an agent would have to be,",
            ROLE_RESTART,
            "`--mode stand-in` restarts nothing; ",
        ),
    };
    failure(
        format!("user `{name}` may not {what} in namespace {namespace}: the right `{right}` is missing"),
        format!(
            "{other}an administrator grants it: `kubectl -n {namespace} create role {role} --verb={verb} --resource={resource} && \
             kubectl -n {namespace} create rolebinding {role} --role={role} {}`",
            subject(name)
        ),
    )
}

fn undecided(user: &User, namespace: &str, error: &str) -> Failure {
    failure(
        format!(
            "whether user `{}` may engage workloads in namespace {namespace} could not be found out: {error}",
            user.name
        ),
        "try again; the manager needs the right to create subjectaccessreviews, which `tp helm upgrade` gives it",
    )
}

/// A user as kubectl takes one.
fn subject(name: &str) -> String {
    let account = name.strip_prefix("system:serviceaccount:").filter(|account| account.contains(':'));
    match account {
        Some(account) => format!("--serviceaccount={account}"),
        // For a shell: names of identity providers may have anything in them.
        None => format!("--user='{}'", name.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> User {
        User { name: name.to_owned(), ..User::default() }
    }

    #[test]
    fn a_refusal_names_user_right_and_namespace_and_the_command_that_grants_it() {
        let Failure { message, hint } = refused(&user("ann@example.com"), "shop", Right::ENGAGE);
        assert_eq!(
            message,
            "user `ann@example.com` may not engage workloads in namespace shop: the right `create pods/exec` is missing"
        );
        assert_eq!(
            hint,
            "an administrator grants it: `kubectl -n shop create role tp-engage --verb=create --resource=pods/exec && \
             kubectl -n shop create rolebinding tp-engage --role=tp-engage --user='ann@example.com'`"
        );
    }

    #[test]
    fn a_restart_that_is_refused_says_what_restarts_nothing() {
        let Failure { message, hint } = refused(&user("ann"), "shop", Right::restart("apps", "deployments"));
        assert!(message.ends_with("in namespace shop: the right `patch deployments` is missing"), "{message}");
        assert!(hint.starts_with("`--mode stand-in` restarts nothing; "), "{hint}");
        assert!(hint.contains("role tp-restart --verb=patch --resource=deployments "), "{hint}");
        let Failure { message, hint } = refused(&user("ann"), "shop", Right::restart("argoproj.io", "rollouts"));
        assert!(message.ends_with("the right `patch rollouts.argoproj.io` is missing"), "{message}");
        assert!(hint.contains(" --resource=rollouts.argoproj.io "), "{hint}");
    }

    #[test]
    fn service_accounts_and_odd_names_become_what_kubectl_and_a_shell_take() {
        assert_eq!(subject("system:serviceaccount:build:ci"), "--serviceaccount=build:ci");
        assert_eq!(subject("o'hara; rm -rf /"), r"--user='o'\''hara; rm -rf /'");
    }
}
