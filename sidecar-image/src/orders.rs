//! What the manager has ordered, and what has become of it.
//!
//! The first orders that name ports start the engine, and later ones change where the app's pods are and what is engaged.
//! What is in force stays so while the manager is away. In the app's own pod the engine starts with the agent, and orders name no
//! ports.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tp_protocol::engage::call::{self, AgentPort, AgentState, Environment, Orders};
use tp_protocol::engage::wire::{self, EngagementError};
use tp_protocol::engage::{Engagement, EngagementId};
use tp_protocol::open::Transport;

use crate::apps::Apps;
use crate::config::OwnPort;
use crate::engine::destination::Destination;
use crate::engine::engagements::{Engagements, Report};
use crate::engine::{AppProtocol, Engine, Port};
use crate::environment;
use crate::handler::{CurrentLane, Handler};

/// Most engagements at once. With ids of the greatest length, what is said of them fits into a control message.
const ENGAGEMENTS_MAX: usize = 2048;

/// Longest text about what is wrong; longer text is cut.
const PROBLEM_BYTES_MAX: usize = 4096;

/// What the agent does by order of the manager.
pub(crate) struct Duties {
    /// The container whose environment the agent has; empty for none.
    container: String,
    /// By which handlers are reached.
    lane: CurrentLane,
    /// Takes the engine to where it runs, once.
    engine_tx: Option<oneshot::Sender<Engine>>,
    /// Becomes true when the first orders are carried out.
    ready_tx: watch::Sender<bool>,
    /// Whether streams are to wait for what clients dial.
    dials: watch::Sender<bool>,
    /// `None` until the ports are open.
    taken: Option<Taken>,
    /// The ports are those of the app in the agent's own pod.
    is_own: bool,
    /// Number of the last orders.
    number: u64,
    problem: String,
}

/// The ports that the engine has.
struct Taken {
    apps: HashMap<PortName, Arc<Apps>>,
    engagements: Engagements,
}

/// A port, in numbers and as people know it: `8080/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PortName {
    number: u16,
    transport: Transport,
}

/// [`AgentPort`], as far as it is valid, or an [`OwnPort`].
struct OrderedPort {
    name: PortName,
    /// Where the agent listens.
    listen: u16,
    protocol: AppProtocol,
    apps: Vec<SocketAddr>,
}

/// What is wrong with orders, piece by piece.
#[derive(Default)]
struct Problems(Vec<String>);

impl Duties {
    /// Nothing to do yet. The engine goes to `engine_tx` when there is one, and `ready_tx` is told when the first orders are
    /// carried out.
    pub(crate) fn new(container: &str, engine_tx: oneshot::Sender<Engine>, ready_tx: watch::Sender<bool>) -> Self {
        Self {
            container: container.to_owned(),
            lane: CurrentLane::default(),
            engine_tx: Some(engine_tx),
            ready_tx,
            dials: watch::Sender::new(false),
            taken: None,
            is_own: false,
            number: 0,
            problem: String::new(),
        }
    }

    /// The slot for the lane by which handlers are reached.
    pub(crate) fn lane(&self) -> &CurrentLane {
        &self.lane
    }

    /// Follows whether streams are to wait for what clients dial.
    pub(crate) fn dials(&self) -> watch::Receiver<bool> {
        self.dials.subscribe()
    }

    /// Takes the ports of the app in the agent's own pod, if there are any. This waits for no orders: the pod is to serve, whether
    /// the manager is there or not.
    ///
    /// # Errors
    /// The operating system's, when a port cannot be opened.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn take_own(&mut self, ports: &[OwnPort]) -> io::Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        let ports: Vec<_> = ports.iter().map(OrderedPort::own).collect();
        let taken = self.listen(&ports)?;
        // These are the ports that it has.
        taken.set_apps(&ports, &mut Problems::default());
        self.taken = Some(taken);
        self.is_own = true;
        self.ready_tx.send_replace(true);
        Ok(())
    }

    /// Ends all engagements, since a manager that is there speaks of none. In a pod of its own the agent waits for its orders: such a
    /// pod is there for an engagement.
    pub(crate) fn forget(&mut self) {
        if self.is_own {
            self.carry_out(&Orders { number: self.number, ..Orders::default() });
        }
    }

    /// Carries orders out as far as that is possible; [`Self::state`] says what was not.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn carry_out(&mut self, orders: &Orders) {
        let mut problems = Problems::default();
        let ports: Vec<_> = orders.ports.iter().filter_map(|port| OrderedPort::read(port, &mut problems)).collect();
        if self.taken.is_none() && !ports.is_empty() {
            match self.listen(&ports) {
                Ok(taken) => self.taken = Some(taken),
                Err(error) => problems.note(error),
            }
        }
        if let Some(taken) = &self.taken {
            taken.set_apps(&ports, &mut problems);
            taken.set_engagements(&orders.engagements, &self.lane, &mut problems);
        } else if problems.is_empty() && !orders.engagements.is_empty() {
            problems.note("engagements without a port to listen on");
        }
        // One that stands in for no port of a Service is there for its environment alone.
        if self.taken.is_some() || (problems.is_empty() && orders.number > 0) {
            self.ready_tx.send_replace(true);
        }
        self.dials.send_replace(orders.dials);
        self.number = orders.number;
        self.problem = problems.into_text();
        let (number, engagements) = (self.number, orders.engagements.len());
        if self.problem.is_empty() {
            tracing::debug!(number, engagements, "orders carried out");
        } else {
            tracing::warn!(number, engagements, problem = self.problem, "orders not carried out as they are");
        }
    }

    /// What has become of the last orders.
    pub(crate) fn state(&self) -> AgentState {
        let reports = self.taken.as_ref().map(|taken| taken.engagements.report()).unwrap_or_default();
        let reports = reports.into_iter().map(report).collect();
        AgentState { number: self.number, problem: self.problem.clone(), reports }
    }

    /// The environment of the container that the agent stands for.
    pub(crate) fn environment(&self) -> Environment {
        environment::of(&self.container, std::env::vars_os())
    }

    /// Opens the ports and starts the engine.
    fn listen(&mut self, ports: &[OrderedPort]) -> io::Result<Taken> {
        let any = any_address();
        let apps: HashMap<_, _> = ports.iter().map(|port| (port.name, Arc::<Apps>::default())).collect();
        let engine_ports = ports.iter().map(|port| Port {
            listen: SocketAddr::new(any, port.listen),
            number: port.name.number,
            transport: port.name.transport,
            protocol: port.protocol,
            app: apps[&port.name].clone(),
        });
        let engine = Engine::bind(engine_ports.collect())?;
        let engagements = engine.engagements();
        for port in ports {
            tracing::info!(port = %port.name, listen = port.listen, protocol = ?port.protocol, "listening");
        }
        if let Some(engine_tx) = self.engine_tx.take() {
            // Fails when the process ends: nothing is taken any more.
            let _ = engine_tx.send(engine);
        }
        Ok(Taken { apps, engagements })
    }
}

impl Taken {
    fn set_apps(&self, ports: &[OrderedPort], problems: &mut Problems) {
        for port in ports {
            match self.apps.get(&port.name) {
                Some(apps) => apps.set(&port.apps),
                None => problems.note(format!("port {} was not among the first: ports do not change", port.name)),
            }
        }
    }

    fn set_engagements(&self, messages: &[wire::Engagement], lane: &CurrentLane, problems: &mut Problems) {
        if messages.len() > ENGAGEMENTS_MAX {
            problems.note(format!("{} engagements, and {ENGAGEMENTS_MAX} is the limit", messages.len()));
        }
        let wanted = messages.iter().take(ENGAGEMENTS_MAX).filter_map(|message| match read(message, lane) {
            Ok(wanted) => Some(wanted),
            Err(error) => {
                problems.note(format!("engagement `{}`: {error}", message.id));
                None
            }
        });
        let wanted = wanted.collect();
        for id in self.engagements.set(wanted) {
            problems.note(format!("engagement `{id}`: the agent does not listen on its port"));
        }
    }
}

/// Reads an engagement and finds the way to its handler. The id of the whole engagement is what comes before the `#`.
fn read(message: &wire::Engagement, lane: &CurrentLane) -> Result<(Engagement, Arc<dyn Destination>), EngagementError> {
    let engagement = Engagement::try_from(message)?;
    let id = engagement.id.as_str();
    let whole = EngagementId::new(id.split_once('#').map_or(id, |(whole, _)| whole))?;
    let handler = Handler::new(lane.clone(), whole, engagement.port);
    Ok((engagement, Arc::new(handler)))
}

impl OrderedPort {
    /// Reads a port; `None` when there is no such port. Addresses that are none are left out.
    fn read(port: &AgentPort, problems: &mut Problems) -> Option<Self> {
        let number = u16::try_from(port.port).ok().filter(|number| *number > 0);
        let transport = match port.transport() {
            wire::Transport::Tcp => Some(Transport::Tcp),
            wire::Transport::Udp => Some(Transport::Udp),
            wire::Transport::Unspecified => None,
        };
        let (Some(number), Some(transport)) = (number, transport) else {
            problems.note(format!("no port has number {} and protocol {}", port.port, port.transport));
            return None;
        };
        let name = PortName { number, transport };
        let protocol = match port.protocol() {
            call::AppProtocol::Unknown => AppProtocol::Unknown,
            call::AppProtocol::Http => AppProtocol::Http,
            call::AppProtocol::Opaque => AppProtocol::Opaque,
        };
        let apps = port.apps.iter().filter_map(|app| {
            let address = app.parse();
            address.inspect_err(|_| problems.note(format!("port {name}: `{app}` is no address with a port"))).ok()
        });
        let apps = apps.collect();
        Some(Self { name, listen: number, protocol, apps })
    }

    fn own(port: &OwnPort) -> Self {
        let name = PortName { number: port.app.port(), transport: port.transport };
        Self { name, listen: port.listen, protocol: port.protocol, apps: vec![port.app] }
    }
}

impl Problems {
    fn note(&mut self, problem: impl fmt::Display) {
        self.0.push(problem.to_string());
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn into_text(self) -> String {
        let mut text = self.0.join("; ");
        text.truncate(text.floor_char_boundary(PROBLEM_BYTES_MAX));
        text
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{}/{transport}", self.number)
    }
}

/// All addresses: of both families, or of IPv4 alone where there is no IPv6.
fn any_address() -> IpAddr {
    let has_ipv6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    if has_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn report(report: Report) -> call::Report {
    let Report { id, is_away, taken, fallen_back, copied, copies_lost } = report;
    call::Report { id: id.as_str().to_owned(), is_away, taken, fallen_back, copied, copies_lost }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tp_protocol::engage::filter::Filter;
    use tp_protocol::engage::{Kind, WhenAway};

    use super::*;
    use crate::stage::free_port;

    #[tokio::test]
    async fn in_the_apps_own_pod_what_a_manager_does_not_speak_of_is_over() {
        let (engine_tx, _engine) = oneshot::channel();
        let (ready_tx, ready) = watch::channel(false);
        let mut duties = Duties::new("web", engine_tx, ready_tx);
        let app = SocketAddr::from(([127, 0, 0, 1], 8080));
        let transport = Transport::Tcp;
        let own = OwnPort { listen: free_port().await, app, transport, protocol: AppProtocol::Unknown };
        duties.take_own(&[own]).unwrap();
        assert!(*ready.borrow(), "before there are any orders");
        let engagement = Engagement {
            id: EngagementId::new("tp-web-ann#8080/tcp").unwrap(),
            kind: Kind::Intercept,
            port: 8080,
            transport,
            filter: Filter::default(),
            when_away: WhenAway::Fail,
            wait: Duration::ZERO,
            plaintext: false,
        };
        duties.carry_out(&Orders { number: 1, engagements: vec![(&engagement).into()], ..Orders::default() });
        let state = duties.state();
        assert_eq!((state.number, &*state.problem, state.reports.len()), (1, "", 1));
        duties.forget();
        assert!(duties.state().reports.is_empty() && *ready.borrow());
    }
}
