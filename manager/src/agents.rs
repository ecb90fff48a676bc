//! The traffic agents that are registered, and who may register.
//!
//! An agent connects over TLS and proves with a projected service account token which pod it is: the API server
//! reviews the token ([`admit`] compares the result with the claim). It is registered while its lane is open.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tp_protocol::control::{Agent, Agents as AgentsMessage};
use tp_protocol::hello::{AgentIdentity, ClientHello, Refusal, RefusalCode};

use crate::VERSION;

pub mod listener;
pub mod review;

use review::Reviewed;

/// The registered agents. Clones share them.
#[derive(Clone, Debug)]
pub struct Agents {
    list: Arc<watch::Sender<Arc<AgentList>>>,
    max: usize,
}

/// The registered agents at one moment.
#[derive(Clone, Debug, Default)]
pub struct AgentList {
    by_pod: BTreeMap<PodKey, Entry>,
    next_registration: u64,
}

/// Namespace and name of a pod.
type PodKey = (String, String);

#[derive(Clone, Debug)]
struct Entry {
    software_version: String,
    registration: u64,
}

/// An agent's place in the list. Dropping it takes the agent off.
#[derive(Debug)]
pub struct Registration {
    pod: PodKey,
    number: u64,
    agents: Agents,
}

impl AgentList {
    /// Returns the list as clients are told it, sorted by namespace and pod.
    #[must_use]
    pub fn to_message(&self) -> AgentsMessage {
        let agents = self.by_pod.iter().map(|((namespace, pod), entry)| Agent {
            namespace: namespace.clone(),
            pod: pod.clone(),
            software_version: entry.software_version.clone(),
        });
        AgentsMessage { agents: agents.collect() }
    }
}

impl Agents {
    /// Starts without any, with room for `max`.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { list: Arc::new(watch::Sender::default()), max }
    }

    /// Follows the list.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<AgentList>> {
        self.list.subscribe()
    }

    /// Registers an agent. One that comes again, as it does after its connection was lost, replaces itself.
    ///
    /// # Errors
    /// A [`Refusal`] when there is no room.
    pub fn register(&self, identity: &AgentIdentity, software_version: &str) -> Result<Registration, Refusal> {
        let pod = (identity.namespace.clone(), identity.pod.clone());
        let mut number = None;
        self.list.send_if_modified(|list| {
            if !list.by_pod.contains_key(&pod) && list.by_pod.len() >= self.max {
                return false;
            }
            let list = Arc::make_mut(list);
            let registration = list.next_registration;
            list.next_registration += 1;
            number = Some(registration);
            let entry = Entry { software_version: software_version.to_owned(), registration };
            let before = list.by_pod.insert(pod.clone(), entry);
            before.is_none_or(|before| before.software_version != software_version)
        });
        match number {
            Some(number) => Ok(Registration { pod, number, agents: self.clone() }),
            None => {
                let why =
                    format!("the manager has {} agents, which is its limit (limits.agents in the chart)", self.max);
                Err(Refusal::new(RefusalCode::Exhausted, &why, VERSION))
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.agents.list.send_if_modified(|list| {
            let is_current = list.by_pod.get(&self.pod).is_some_and(|entry| entry.registration == self.number);
            if is_current {
                Arc::make_mut(list).by_pod.remove(&self.pod);
            }
            is_current
        });
    }
}

/// Compares what an agent claims with what its token says.
///
/// # Errors
/// A [`Refusal`] that names the difference. It holds nothing of the token.
pub fn admit<'a>(hello: &'a ClientHello, reviewed: Option<&Reviewed>) -> Result<&'a AgentIdentity, Refusal> {
    let unauthenticated = |why: &str| Refusal::new(RefusalCode::Unauthenticated, why, VERSION);
    let Some(identity) = &hello.agent else {
        let why = "this port is for agents; clients connect through port-forward";
        return Err(Refusal::new(RefusalCode::WrongRole, why, VERSION));
    };
    let Some(reviewed) = reviewed else {
        let why = "the token is not valid: it must be a projected one of the audience tp-manager, bound to the pod";
        return Err(unauthenticated(why));
    };
    if (&reviewed.namespace, &reviewed.pod) != (&identity.namespace, &identity.pod) {
        return Err(unauthenticated(&format!(
            "the token is of pod {}/{}, and the agent says that it is {}/{}",
            reviewed.namespace, reviewed.pod, identity.namespace, identity.pod
        )));
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(pod: &str) -> AgentIdentity {
        AgentIdentity { namespace: "shop".into(), pod: pod.into(), token: "secret-token".into() }
    }

    fn hello(pod: &str) -> ClientHello {
        ClientHello { agent: Some(identity(pod)), ..ClientHello::new("0.1.0", "agent") }
    }

    fn reviewed(pod: &str) -> Reviewed {
        Reviewed { namespace: "shop".into(), pod: pod.into(), pod_uid: "u-1".into() }
    }

    fn pods(agents: &Agents) -> Vec<String> {
        agents.watch().borrow().to_message().agents.into_iter().map(|agent| agent.pod).collect()
    }

    #[test]
    fn an_agent_is_listed_while_it_is_registered() {
        let agents = Agents::new(8);
        let web = agents.register(&identity("web-1"), "0.1.0").unwrap();
        let api = agents.register(&identity("api-1"), "0.1.0").unwrap();
        assert_eq!(pods(&agents), ["api-1", "web-1"]);
        drop(web);
        assert_eq!(pods(&agents), ["api-1"]);
        drop(api);
        assert!(pods(&agents).is_empty());
    }

    #[test]
    fn an_agent_that_came_back_survives_the_end_of_its_old_lane() {
        let agents = Agents::new(1);
        let old = agents.register(&identity("web-1"), "0.1.0").unwrap();
        let mut watch = agents.watch();
        watch.mark_unchanged();
        let _new = agents.register(&identity("web-1"), "0.1.0").unwrap();
        drop(old);
        assert_eq!(pods(&agents), ["web-1"]);
        assert!(!watch.has_changed().unwrap(), "clients are not told of what they do not see");
    }

    #[test]
    fn a_full_list_refuses_another_agent() {
        let agents = Agents::new(1);
        let _web = agents.register(&identity("web-1"), "0.1.0").unwrap();
        let refusal = agents.register(&identity("web-2"), "0.1.0").unwrap_err();
        assert_eq!(refusal.code(), RefusalCode::Exhausted);
        assert_eq!(pods(&agents), ["web-1"]);
    }

    #[test]
    fn the_token_must_be_of_the_pod_that_the_agent_claims_to_be() {
        assert_eq!(admit(&hello("web-1"), Some(&reviewed("web-1"))).unwrap().pod, "web-1");
        let refusal = admit(&hello("web-1"), Some(&reviewed("web-2"))).unwrap_err();
        assert_eq!(refusal.code(), RefusalCode::Unauthenticated);
        assert!(refusal.message.contains("shop/web-2") && !refusal.message.contains("secret-token"));
    }

    #[test]
    fn invalid_tokens_and_clients_are_refused() {
        assert_eq!(admit(&hello("web-1"), None).unwrap_err().code(), RefusalCode::Unauthenticated);
        let client = ClientHello::new("0.1.0", "demo");
        assert_eq!(admit(&client, None).unwrap_err().code(), RefusalCode::WrongRole);
    }
}
