//! What clients ask for.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Container, Service};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::timeout;
use tp_protocol::engage::call::{
    Answer, Call, Describe, Described, Engage, Engagements as Message, Failure, Held, HeldPort, Leave, Listed, Mode,
    answer, call,
};
use tp_protocol::engage::wire;
use tp_protocol::hello::SessionKey;

use super::mode::{Choice, Wish};
use super::registry::{Phase, Registry, secret_sha256};
use super::service::Port;
use super::stand_in::{Record, StandIn, fresh_id, lease};
use super::workload::{Workload, WorkloadName};
use super::{Cluster, Engagements, container, failure, rollout, service, to_pod, via, workload};
use crate::config::Inject;
use crate::session::SessionId;

/// How long a stand-in may take until traffic arrives: its image has to be pulled.
const START_LIMIT: Duration = Duration::from_secs(90);

/// How long a rollout that gives a workload's pods their agents is waited for at most.
const ROLLOUT_LIMIT: Duration = Duration::from_secs(900);

/// The end of a rollout is no longer waited for so long before the client stops waiting: for what is left to do, and so that the
/// client learns why it was not in time.
const ANSWER_EARLIER: Duration = Duration::from_secs(10);

/// How long an agent may take to tell its environment.
const TELL_LIMIT: Duration = Duration::from_secs(10);

/// How long leaving may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(20);

/// How long writing a Lease may take.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Random bytes in an engagement's id.
const ID_BYTES: usize = 5;

impl Engagements {
    /// Does what a client asks for.
    pub(crate) async fn call(&self, session: &SessionKey, call: Call) -> Answer {
        let id = SessionId::from(&*session.id);
        let done = match call.kind {
            Some(call::Kind::Engage(engage)) => self.engage(session, *engage).await.map(answer::Kind::Engaged),
            Some(call::Kind::Leave(leave)) => self.leave(&id, &leave).await.map(answer::Kind::Left),
            Some(call::Kind::List(list)) => self.list(&id, &list.namespace).await.map(answer::Kind::Listed),
            Some(call::Kind::Describe(asked)) => self.describe(&id, &asked).await.map(answer::Kind::Described),
            Some(call::Kind::Identify(_)) => self.identify(&id).await.map(answer::Kind::OneTimePort),
            None => {
                Err(failure("the manager does not know this call", "`tp helm upgrade` brings the client's version"))
            }
        };
        Answer { kind: Some(done.unwrap_or_else(answer::Kind::Failure)) }
    }

    pub(super) fn cluster(&self) -> Result<&Arc<Cluster>, Failure> {
        self.cluster.as_ref().ok_or_else(|| {
            failure("engaging workloads is switched off", "the chart's value engage.enabled switches it on")
        })
    }

    async fn list(&self, session: &SessionId, namespace: &str) -> Result<Listed, Failure> {
        let cluster = self.cluster()?;
        let workloads = match namespace {
            "" => Vec::new(),
            _ => workload::list(&cluster.client, namespace).await?,
        };
        let workloads = workloads.iter().map(WorkloadName::to_string).collect();
        Ok(Listed { workloads, engagements: self.registry.list(namespace, session) })
    }

    async fn engage(&self, session: &SessionKey, asked: Engage) -> Result<Held, Failure> {
        let cluster = self.cluster()?;
        let namespace = asked.namespace.as_str();
        if cluster.forbids(namespace) {
            let hint = "the chart's value engage.forbiddenNamespaces has the list; the manager's own is always on it";
            return Err(failure(format!("workloads of namespace {namespace} are not to be engaged"), hint));
        }
        self.authorize(&SessionId::from(&*session.id), asked.what(), namespace, &asked.workload).await?;
        let workload = workload::find(&cluster.client, namespace, &asked.workload).await?;
        let (held, ports, is_headless) = if asked.what() == wire::Kind::Ingest {
            (ingested(&asked, &workload)?, Vec::new(), false)
        } else if asked.what() == wire::Kind::Via {
            (via::asked(&asked, &workload)?, Vec::new(), false)
        } else {
            if workload.uses_host_network() {
                let why = format!("the pods of {workload} use their nodes' network");
                return Err(failure(why, "a stand-in cannot take the place of such a pod"));
            }
            check_kind(asked.what(), &workload)?;
            let service = service::find(service::list(&cluster.client, namespace).await?, &workload, &asked.service)?;
            let (held, ports) = engaged(&asked, &workload, &service)?;
            (held, ports, service::is_headless(&service))
        };
        let headless = is_headless.then_some(held.service.as_str());
        let choice = self.choose(cluster, &asked, &workload, &held, (&ports, headless)).await?;
        if choice.restarts {
            self.authorize_restart(&SessionId::from(&*session.id), namespace, &workload).await?;
        }
        let held = choice.of(held);
        if held.what() == wire::Kind::Via && held.mode() == Mode::StandIn {
            via::refuse_endpoint(&service::list(&cluster.client, namespace).await?, &workload)?;
        }
        let stand_in = StandIn::of(&cluster.namespace, &held);
        let record = Record { held, session: session.id.clone(), secret_sha256: secret_sha256(&session.secret) };
        self.registry.add(record.clone(), &stand_in, asked.replace_held)?;
        if choice.restarts {
            // While it has no Lease, nobody else would take it out again.
            let abandoned = Abandoned { registry: &self.registry, id: &record.held.id, undo: Some(Registry::forget) };
            rollout::restart(cluster, namespace, &workload, rollout_limit(asked.limit_ms)).await?;
            abandoned.disarm();
        }
        let made = self.make(cluster, &stand_in, &record).await;
        let id = &record.held.id;
        if let Err(failure) = &made {
            tracing::info!(engagement = id, workload = stand_in.workload, why = failure.message, "not engaged");
            self.registry.end(id);
        }
        made?;
        let all = self.registry.list(namespace, &SessionId::from(&*session.id));
        all.into_iter().find(|held| held.id == *id).ok_or_else(|| failure("the engagement was ended meanwhile", ""))
    }

    /// Decides where the agent runs.
    async fn choose(
        &self,
        cluster: &Cluster,
        asked: &Engage,
        workload: &Workload,
        held: &Held,
        (ports, headless): (&[Port], Option<&str>),
    ) -> Result<Choice, Failure> {
        let inject = cluster.config.inject;
        let pods = match inject {
            Inject::Never => Vec::new(),
            Inject::Enabled | Inject::OnDemand => workload.pods(&cluster.client, &asked.namespace).await?,
        };
        let wish = Wish {
            asked: asked.mode(),
            default: cluster.config.mode,
            inject,
            namespace: &asked.namespace,
            workload,
            ports,
            headless,
            container: &held.container,
            others: self.registry.mode(&held.namespace, &held.workload),
            pods: &pods,
            is_connected: pods
                .iter()
                .filter(|pod| workload::stays(pod))
                .all(|pod| self.registry.has_agent(&asked.namespace, &pod.name_any())),
        };
        wish.choose()
    }

    /// Writes the Lease and waits until traffic arrives. The engagement ends when the client does not wait for that.
    async fn make(&self, cluster: &Arc<Cluster>, stand_in: &StandIn, record: &Record) -> Result<(), Failure> {
        let id = &record.held.id;
        let abandoned = Abandoned { registry: &self.registry, id, undo: Some(Registry::end) };
        // By a task of its own: a Lease that is made has to be known of, whatever becomes of the client.
        let written = tokio::spawn(self.clone().write_lease(Arc::clone(cluster), stand_in.clone(), record.clone()));
        written.await.unwrap_or_else(|panic| Err(failure(panic.to_string(), "")))?;
        let mut phase = self.registry.phase(id).ok_or_else(|| failure("the engagement was ended meanwhile", ""))?;
        let settled = timeout(START_LIMIT, phase.wait_for(|phase| *phase != Phase::Pending)).await;
        let settled = settled.map(|settled| settled.map_or(Phase::Ended, |phase| phase.clone()));
        match settled {
            Ok(Phase::InForce) => {
                abandoned.disarm();
                Ok(())
            }
            Ok(Phase::Failed(failure)) => Err(failure),
            Ok(Phase::Pending | Phase::Ending | Phase::Ended) => Err(failure("the engagement was ended meanwhile", "")),
            Err(_) if stand_in.is_sidecar => Err(failure(
                format!(
                    "not all agents in the pods of {} are ready after {} s",
                    stand_in.workload,
                    START_LIMIT.as_secs()
                ),
                "their logs say whether they reach the traffic manager",
            )),
            Err(_) => Err(failure(
                format!("the stand-in of {} is not ready after {} s", stand_in.workload, START_LIMIT.as_secs()),
                format!(
                    "`kubectl -n {} describe pod -l {}={}` says why",
                    stand_in.namespace,
                    service::STAND_IN,
                    stand_in.name
                ),
            )),
        }
    }

    async fn write_lease(self, cluster: Arc<Cluster>, stand_in: StandIn, record: Record) -> Result<(), Failure> {
        let id = &record.held.id;
        let leases = Api::<Lease>::namespaced(cluster.client.clone(), &stand_in.namespace);
        let object = lease(&cluster.namespace, &stand_in, &record, self.registry.grace().as_secs(), Timestamp::now());
        let params = PostParams::default();
        let made = match timeout(WRITE_LIMIT, leases.create(&params, &object)).await {
            Ok(made) => made.map_err(|error| error.to_string()),
            // One that is made all the same is found by its watch, and taken up with nobody to hold it for long.
            Err(_) => Err(format!("no answer for {} s", WRITE_LIMIT.as_secs())),
        };
        match made {
            Ok(made) => {
                self.registry.on_lease_made(id, made.uid().unwrap_or_default());
                // Also when the engagement was ended meanwhile: the Lease has to go.
                self.start(&stand_in);
                Ok(())
            }
            Err(why) => {
                self.registry.forget(id);
                Err(failure(format!("cannot make the Lease {id} in namespace {}: {why}", stand_in.namespace), ""))
            }
        }
    }

    /// Tells how an engaged container runs.
    async fn describe(&self, session: &SessionId, asked: &Describe) -> Result<Described, Failure> {
        let cluster = self.cluster()?;
        let mine = self.registry.held_by(session).engagements;
        let held = mine.into_iter().find(|held| held.id == asked.id && held.what() != wire::Kind::Via);
        let held = held.ok_or_else(|| {
            failure(format!("this connection holds no engagement {}", asked.id), "`tp list` shows what it holds")
        })?;
        // Once more: it may hold secrets, and the right may have been taken away since.
        self.authorize(session, held.what(), &held.namespace, &held.workload).await?;
        let workload = workload::find(&cluster.client, &held.namespace, &held.workload).await?;
        let app = container::find(&workload, &held.container, &[])?;
        let answered = timeout(TELL_LIMIT, self.registry.ask_environment(&held.id)?).await;
        let environment = answered.ok().and_then(Result::ok).ok_or_else(|| {
            failure(format!("the agent that stands in for {workload} does not tell its environment"), "try again")
        })?;
        if !environment.problem.is_empty() {
            return Err(failure(format!("container {} of {workload}: {}", app.name, environment.problem), ""));
        }
        if environment.container != app.name {
            return Err(failure(
                format!("the stand-in of {workload} has the environment of its container {}", environment.container),
                format!("`tp ingest {} --container {}` gets the other", held.workload, app.name),
            ));
        }
        let container = Some(container::describe(&workload.template, app));
        Ok(Described { container, environment: Some(environment) })
    }

    async fn leave(&self, session: &SessionId, asked: &Leave) -> Result<Message, Failure> {
        let mut mine = self.registry.held_by(session).engagements;
        // From where a connection dials is part of it, and ends with it.
        mine.retain(|held| held.what() != wire::Kind::Via);
        let is_meant = |held: &&Held| {
            let name = held.workload.split_once('/').map_or("", |(_, name)| name);
            let in_namespace = asked.namespace.is_empty() || asked.namespace == held.namespace;
            in_namespace && (asked.what.is_empty() || [&*held.id, &*held.workload, name].contains(&&*asked.what))
        };
        let meant: Vec<Held> = mine.iter().filter(is_meant).cloned().collect();
        if meant.is_empty() && !asked.what.is_empty() {
            let held: Vec<&str> = mine.iter().map(|held| held.workload.as_str()).collect();
            let hint = if held.is_empty() {
                "it engages nothing".to_owned()
            } else {
                format!("it engages {}", held.join(", "))
            };
            return Err(failure(format!("this connection does not engage {}", asked.what), hint));
        }
        let mut phases = Vec::new();
        for held in &meant {
            phases.extend(self.registry.phase(&held.id));
            self.registry.end(&held.id);
        }
        for mut phase in phases {
            let ended = timeout(LEAVE_LIMIT, phase.wait_for(|phase| *phase == Phase::Ended)).await;
            if ended.is_err() {
                let hint = "the manager goes on trying; `tp list` shows what is wrong";
                return Err(failure("the workload's traffic is not back yet", hint));
            }
        }
        Ok(Message { engagements: meant })
    }
}

/// Does away with an engagement whose client has stopped waiting for it, or that could not be made.
struct Abandoned<'a> {
    registry: &'a Registry,
    id: &'a str,
    /// What is to be done about it; `None` once it is not abandoned.
    undo: Option<fn(&Registry, &str)>,
}

impl Abandoned<'_> {
    fn disarm(mut self) {
        self.undo = None;
    }
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(undo) = self.undo {
            undo(self.registry, self.id);
        }
    }
}

/// Whether a workload's traffic can be taken like that. What an intercept or a wiretap leaves to the pods has to have somebody to answer
/// it, whenever it comes.
fn check_kind(what: wire::Kind, workload: &Workload) -> Result<(), Failure> {
    let shares = match what {
        wire::Kind::Intercept | wire::Kind::Wiretap => true,
        wire::Kind::Unspecified | wire::Kind::Replace | wire::Kind::Ingest | wire::Kind::Via => false,
    };
    if !(shares && workload.kind.ends()) {
        return Ok(());
    }
    Err(failure(
        format!("{workload} runs to its end, so the rest of its traffic would often have no pod to go to"),
        format!("`tp replace {workload}` takes all of it; `tp ingest {workload}` has its environment, and takes none"),
    ))
}

/// How long a rollout is waited for by a client that waits for its answer for so long, or does not say.
fn rollout_limit(limit_ms: u32) -> Duration {
    let limit = if limit_ms == 0 { START_LIMIT } else { Duration::from_millis(limit_ms.into()) };
    limit.saturating_sub(ANSWER_EARLIER).min(ROLLOUT_LIMIT)
}

/// An engagement of traffic, with what the cluster knows of it.
fn engaged(asked: &Engage, workload: &Workload, service: &Service) -> Result<(Held, Vec<Port>), Failure> {
    if asked.what() == wire::Kind::Replace && asked.filter.is_some() {
        return Err(failure("what replaces a container gets all of its requests", "`tp intercept` has filters"));
    }
    let taken = taken(asked, workload, service)?;
    let ports: Vec<Port> = taken.iter().map(|(port, _)| port.clone()).collect();
    let app = container::find(workload, &asked.container, &ports)?;
    let held_port = |(port, local): (Port, String)| HeldPort {
        port: port.container_port.into(),
        transport: port.transport.into(),
        service_port: port.service_port.into(),
        local,
    };
    let held_ports: Vec<HeldPort> = taken.into_iter().map(held_port).collect();
    let held = Held {
        service: service.name_any(),
        to_pod: to_pod::asked(asked, workload, &held_ports)?,
        ports: held_ports,
        filter: asked.filter.clone(),
        when_away: asked.when_away,
        wait_ms: asked.wait_ms,
        ..held(asked, workload, app)?
    };
    // What an agent would refuse is refused here.
    for order in orders_of(&held) {
        tp_protocol::engage::Engagement::try_from(&order).map_err(|error| failure(error.to_string(), ""))?;
    }
    Ok((held, ports))
}

/// An engagement of a container's environment and volumes alone.
fn ingested(asked: &Engage, workload: &Workload) -> Result<Held, Failure> {
    if !asked.ports.is_empty() || asked.filter.is_some() {
        return Err(failure("an ingest takes no traffic", "`tp intercept` does"));
    }
    let held = held(asked, workload, container::find(workload, &asked.container, &[])?)?;
    Ok(Held { to_pod: to_pod::asked(asked, workload, &[])?, ..held })
}

/// What every engagement has. Where its agent runs is decided later.
pub(super) fn held(asked: &Engage, workload: &Workload, app: &Container) -> Result<Held, Failure> {
    let mut random = [0; ID_BYTES];
    SystemRandom::new().fill(&mut random).map_err(|_| failure("the manager has no randomness", ""))?;
    Ok(Held {
        id: fresh_id(&workload.name, &random),
        namespace: asked.namespace.clone(),
        workload: workload.to_string(),
        what: asked.what,
        holder: asked.holder.clone(),
        since: Timestamp::now().as_second(),
        container: app.name.clone(),
        mounts: container::mounts(workload.template.spec.as_ref(), app),
        ..Held::default()
    })
}

/// The ports that are asked for, and where the client takes what arrives there.
fn taken(asked: &Engage, workload: &Workload, service: &Service) -> Result<Vec<(Port, String)>, Failure> {
    let name = service.name_any();
    let all = service::ports(service, workload, &asked.container)?;
    let mut taken: Vec<(Port, String)> = Vec::new();
    let is_taken = |taken: &[(Port, String)], port: &Port| {
        taken.iter().any(|(it, _)| (it.container_port, it.transport) == (port.container_port, port.transport))
    };
    if asked.ports.is_empty() && asked.what() == wire::Kind::Replace {
        let app = container::find(workload, &asked.container, &all)?;
        let is_others = |port: &Port| {
            let mut others = workload.containers().iter().filter(|it| it.name != app.name);
            others.any(|it| container::declares(it, port.container_port))
        };
        for port in all.into_iter().filter(|port| !is_others(port)) {
            if !is_taken(&taken, &port) {
                let local = format!("127.0.0.1:{}", port.container_port);
                taken.push((port, local));
            }
        }
    } else {
        for asked in &asked.ports {
            let port = service::port(&all, asked, &name)?;
            if is_taken(&taken, port) {
                let why = format!("port {} of {workload} is to be engaged twice", port.container_port);
                return Err(failure(why, "two ports of the Service may lead to it: name one of them"));
            }
            let local = match asked.local.strip_suffix(":0") {
                Some(address) => format!("{address}:{}", port.container_port),
                None => asked.local.clone(),
            };
            taken.push((port.clone(), local));
        }
    }
    if taken.is_empty() {
        return Err(failure("no port is engaged", "say which with --port LOCAL:REMOTE"));
    }
    Ok(taken)
}

/// An engagement as its agent has to carry it out: one for each port.
pub(super) fn orders_of(held: &Held) -> impl Iterator<Item = wire::Engagement> + '_ {
    held.ports.iter().map(|port| {
        let transport = if port.transport() == wire::Transport::Udp { "udp" } else { "tcp" };
        wire::Engagement {
            id: format!("{}#{}/{transport}", held.id, port.port),
            kind: held.what,
            port: port.port,
            transport: port.transport,
            filter: held.filter.clone(),
            when_away: held.when_away,
            wait_ms: held.wait_ms,
            plaintext: false,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::PodTemplateSpec;

    use super::*;
    use crate::engage::workload::Kind;

    #[test]
    fn what_runs_to_its_end_is_replaced_and_never_shared() {
        let is_taken = |kind: Kind, what| {
            let name = "report".to_owned();
            let workload = Workload { kind, name, selector: BTreeMap::new(), template: PodTemplateSpec::default() };
            check_kind(what, &workload)
        };
        for kind in Kind::ALL {
            assert!(is_taken(kind, wire::Kind::Replace).is_ok(), "{kind}");
            let shared = [wire::Kind::Intercept, wire::Kind::Wiretap].map(|what| is_taken(kind, what).is_ok());
            let ends = matches!(kind, Kind::CronJob | Kind::Job);
            assert_eq!(shared, [!ends; 2], "{kind}");
        }
        let refused = is_taken(Kind::CronJob, wire::Kind::Intercept).unwrap_err();
        assert!(refused.hint.starts_with("`tp replace cronjob/report` takes all of it; "), "{refused:?}");
    }
}
