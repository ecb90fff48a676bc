//! One connection to one cluster: the first lane, what the init has to set up, and byte streams for it when one is lost.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use prost::Message as _;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tp_protocol::control::{Agents, ClusterInfo, FromManager, Goodbye, ToManager, from_manager, to_manager};
use tp_protocol::engage::call::{Answer, Call, Engage, Engagements as Held, Held as HeldEngagement, answer, call};
use tp_protocol::engage::wire;
use tp_protocol::hello::{ClientHello, ENGAGE, IDENTITY, SessionKey, TO_POD, VIA, Welcome};
use tp_tunnel::carrier::{CarrierState, LaneHandle};
use tp_tunnel::client::{Admitted, Connected, Lane};
use tp_tunnel::control::{ControlReceiver, ControlSender};
use tp_tunnel::error::LaneError;

use crate::attach::{Agent, Connect, Failure, Status, TunnelState, User};
use crate::config::Layer;
use crate::config::value::HumanDuration;
use crate::daemon::address;
use crate::daemon::backoff::Backoff;
use crate::daemon::dns::{Mappings, Resolver};
use crate::daemon::egress::Egress;
use crate::daemon::engagements::{Engagements, Reserved};
use crate::daemon::flows::Flows;
use crate::daemon::hosts::HostLookup;
use crate::daemon::identity::Whoami;
use crate::daemon::kube::{MANAGER_POD, ManagerRoute};
use crate::daemon::layout::Layout;
use crate::daemon::nat::Nat;
use crate::daemon::tunnel::Tunnel;

/// How long the manager may take to describe the cluster once the lane is up.
const CLUSTER_INFO_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one attempt to get a lost lane back may take at least; it gets the time that connecting got.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the manager may take to see the session off.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the manager may take to give flows the place again from which they are dialled: its own limits are shorter.
const ENGAGE_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection that was made.
pub(crate) struct Connection {
    request: Connect,
    route: ManagerRoute,
    tunnel: Tunnel,
    resolver: Rc<Resolver>,
    flows: Rc<Flows>,
    egress: Rc<Egress>,
    engagements: Engagements,
    whoami: Whoami,
    nat: Rc<RefCell<Nat>>,
    layout: RefCell<Layout>,
    connected_at: i64,
    quit: Notify,
    tunnel_state: Cell<TunnelState>,
    reconnects: Cell<u32>,
    seen: RefCell<Seen>,
}

/// What the manager has told us so far.
#[derive(Default)]
struct Seen {
    welcome: Welcome,
    cluster: ClusterInfo,
    agents: Agents,
    tunnel_error: String,
}

/// What the next daemon process needs when this one dies. Kept in memory by the init.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct Saved {
    #[prost(message, required, tag = "1")]
    connect: Connect,
    #[prost(message, optional, tag = "2")]
    session: Option<SessionKey>,
    #[prost(message, required, tag = "3")]
    cluster: ClusterInfo,
    #[prost(message, required, tag = "4")]
    layout: Layout,
    #[prost(int64, tag = "5")]
    connected_at: i64,
    /// The connection ends with its holders.
    #[prost(bool, tag = "6")]
    pub(crate) held: bool,
    /// How the workload is engaged from whose place in the network flows are dialled.
    #[prost(message, optional, tag = "7")]
    via: Option<Engage>,
}

impl Saved {
    /// The connected namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.connect.namespace
    }
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("connect", &self.connect).finish_non_exhaustive()
    }
}

/// A lane that is up, with its control channel.
pub(crate) struct Live {
    welcome: Welcome,
    lane: Lane,
    handle: LaneHandle,
    driver: AbortOnDrop,
    sender: ControlSender,
    receiver: ControlReceiver,
    before: Before,
}

/// What the manager said before it described the cluster.
#[derive(Default)]
struct Before {
    agents: Option<Agents>,
    engagements: Option<Held>,
}

/// The task that drives a lane; ends with its owner.
struct AbortOnDrop(JoinHandle<Result<(), LaneError>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How serving a lane ended.
enum Served {
    /// We were asked to quit.
    Quit,
    /// The lane is over, and this one took its place.
    Replaced(Box<Live>),
    /// The lane is over, for this reason.
    Ended(String),
}

/// What a connection shares with the rest of the daemon.
pub(crate) struct Parts {
    pub(crate) tunnel: Tunnel,
    pub(crate) resolver: Rc<Resolver>,
    pub(crate) flows: Rc<Flows>,
    pub(crate) egress: Rc<Egress>,
    pub(crate) nat: Rc<RefCell<Nat>>,
}

impl Parts {
    /// Joins them, without a lane yet. `generation` counts the daemon processes before this one.
    pub(crate) fn new(namespace: &str, nameservers: Vec<IpAddr>, generation: u32, seed: u64) -> Self {
        let tunnel = Tunnel::new();
        let nat = Rc::new(RefCell::new(Nat::new(generation)));
        let resolver = Resolver::new(address::RESOLVER_SOCKET, tunnel.clone(), Rc::clone(&nat), nameservers);
        let resolver = Rc::new(resolver);
        let egress = Rc::<Egress>::default();
        let flows =
            Flows::new(tunnel.clone(), Rc::clone(&resolver), Rc::clone(&nat), Rc::clone(&egress), namespace, seed);
        Self { tunnel, resolver, flows, egress, nat }
    }
}

impl Connection {
    /// Makes the first lane and asks for the cluster's description. Nothing is set up yet.
    ///
    /// # Errors
    /// What the user sees.
    pub(crate) async fn establish(
        request: &Connect,
        route: &ManagerRoute,
        limit: Duration,
    ) -> Result<(Live, ClusterInfo), Failure> {
        let admitted = route.open_lane(&hello(request, None), limit).await?;
        start(route, admitted, limit).await
    }

    /// A connection whose network is set up as `layout` says.
    pub(crate) fn new(
        request: Connect,
        route: ManagerRoute,
        cluster: ClusterInfo,
        layout: Layout,
        parts: Parts,
    ) -> Self {
        let Parts { tunnel, resolver, flows, egress, nat } = parts;
        nat.borrow_mut().set_rules(layout.rules());
        inform(&resolver, &layout, &request, &cluster);
        Self {
            request,
            route,
            engagements: Engagements::new(tunnel.clone()),
            whoami: Whoami::default(),
            tunnel,
            resolver,
            flows,
            egress,
            nat,
            layout: RefCell::new(layout),
            connected_at: unix_seconds(),
            quit: Notify::new(),
            tunnel_state: Cell::new(TunnelState::Reconnecting),
            reconnects: Cell::new(0),
            seen: RefCell::new(Seen { cluster, ..Seen::default() }),
        }
    }

    /// The connection of the daemon process before this one; its lane is to be made again.
    ///
    /// # Errors
    /// What the user would see when the access is not usable.
    pub(crate) fn restore(saved: Saved, hosts: HostLookup, parts: Parts) -> Result<Self, Failure> {
        let route = ManagerRoute::new(saved.connect.kube.clone(), &saved.connect.manager_namespace, hosts)?;
        let mut connection = Self::new(saved.connect, route, saved.cluster, saved.layout, parts);
        connection.connected_at = saved.connected_at;
        if let Some(via) = saved.via {
            connection.egress.want(via);
        }
        connection.seen.get_mut().welcome.session = saved.session;
        Ok(connection)
    }

    /// Takes what the manager said when it let a lane in.
    pub(crate) fn on_lane(&self, live: &Live) {
        self.seen.borrow_mut().welcome.clone_from(&live.welcome);
        let client = hello(&self.request, None);
        self.tunnel.bulk().on_welcome(&live.welcome, &self.route, &client);
        // A control channel that begins tells what is held, and says nothing of it when that is nothing.
        self.set_held(Vec::new());
    }

    /// Takes all that the session holds.
    fn set_held(&self, held: Vec<HeldEngagement>) {
        self.egress.set(&held);
        self.engagements.set(held);
    }

    /// What the next daemon process needs.
    pub(crate) fn save(&self, held: bool) -> Vec<u8> {
        let seen = self.seen.borrow();
        Saved {
            connect: self.request.clone(),
            session: seen.welcome.session.clone(),
            cluster: seen.cluster.clone(),
            layout: self.layout.borrow().clone(),
            connected_at: self.connected_at,
            held,
            via: self.egress.wanted(),
        }
        .encode_to_vec()
    }

    /// The user's settings, and the chart's where the user has none.
    pub(crate) fn settings(&self) -> Layer {
        settings(&self.request, &self.seen.borrow().cluster)
    }

    /// The flows of this connection.
    pub(crate) fn flows(&self) -> &Rc<Flows> {
        &self.flows
    }

    /// The engagements of this connection.
    pub(crate) fn engagements(&self) -> &Engagements {
        &self.engagements
    }

    /// Ends [`Self::run`].
    pub(crate) fn quit(&self) {
        self.quit.notify_one();
    }

    /// Keeps a lane up, beginning with `live`, until [`Self::quit`].
    pub(crate) async fn run(&self, mut live: Option<Live>) {
        loop {
            let current = match live.take() {
                Some(live) => live,
                None => tokio::select! {
                    live = self.new_lane() => live,
                    () = self.quit.notified() => return,
                },
            };
            tracing::info!(
                manager = current.welcome.software_version,
                rejoined = current.welcome.rejoined,
                "tunnel up"
            );
            self.on_lane(&current);
            self.up(&current.lane);
            live = match self.serve(current).await {
                Served::Quit => return,
                Served::Replaced(next) => Some(*next),
                Served::Ended(why) => {
                    self.down(&why);
                    None
                }
            };
        }
    }

    fn up(&self, lane: &Lane) {
        self.tunnel.set_lane(Some(lane.clone()));
        self.set_state(TunnelState::Connected, "");
    }

    fn down(&self, why: &str) {
        tracing::warn!(why, "tunnel lost");
        self.tunnel.set_lane(None);
        self.set_state(TunnelState::Reconnecting, why);
        self.reconnects.set(self.reconnects.get() + 1);
    }

    /// Serves one lane until it is over, on as many byte streams as it takes.
    async fn serve(&self, mut live: Live) -> Served {
        let before = std::mem::take(&mut live.before);
        self.on_message(before.agents.map(from_manager::Kind::Agents));
        self.on_message(before.engagements.map(from_manager::Kind::Engagements));
        let (lane, welcome) = (live.lane.clone(), live.welcome.clone());
        let mut identified = pin!(self.identify(&lane, &welcome));
        let mut is_identified = false;
        let mut egress_kept = pin!(self.keep_egress(&lane));
        loop {
            tokio::select! {
                () = &mut identified, if !is_identified => is_identified = true,
                never = &mut egress_kept => match never {},
                ended = &mut live.driver.0 => {
                    return Served::Ended(match ended {
                        Ok(Ok(())) => "the manager closed the lane".to_owned(),
                        Ok(Err(error)) => error.to_string(),
                        Err(panic) => panic.to_string(),
                    });
                }
                lost = live.handle.lost() => {
                    // A lane that is over has a driver that says why.
                    let CarrierState::Lost(why) = lost else { continue };
                    self.down(&why);
                    tokio::select! {
                        next = self.bring_back(&live) => match next {
                            None => self.up(&live.lane),
                            Some(next) => {
                                live.handle.fail("the manager has given the lane up");
                                return Served::Replaced(next);
                            }
                        },
                        () = self.quit.notified() => return Served::Quit,
                    }
                }
                message = live.receiver.recv() => match message {
                    Some(Ok(FromManager { kind })) => {
                        if let Some(answer) = self.on_message(kind)
                            && let Err(error) = live.sender.send(&ToManager::from(answer)).await
                        {
                            return Served::Ended(error.to_string());
                        }
                    }
                    Some(Err(error)) => return Served::Ended(error.to_string()),
                    None => return Served::Ended("the manager ended the session".to_owned()),
                },
                () = self.quit.notified() => {
                    let goodbye = to_manager::Kind::Goodbye(Goodbye { reason: "quit".to_owned() });
                    let farewell = async {
                        live.sender.send(&ToManager::from(goodbye)).await?;
                        live.sender.finish()?;
                        while let Some(Ok(FromManager { .. })) = live.receiver.recv().await {}
                        Ok::<_, tp_tunnel::error::FlowError>(())
                    };
                    // A manager that does not answer finds out by the end of the lane.
                    let _ = timeout(GOODBYE_TIMEOUT, farewell).await;
                    return Served::Quit;
                }
            }
        }
    }

    /// Has the manager know who the session belongs to, if it wants to.
    async fn identify(&self, lane: &Lane, welcome: &Welcome) {
        match &welcome.session {
            Some(session) if has(welcome, IDENTITY) => self.whoami.establish(lane, &self.route, session).await,
            Some(_) | None => self.whoami.nobody_asks(),
        }
    }

    /// Asks for the place in the network from which flows are dialled, whenever it is wanted and missing.
    async fn keep_egress(&self, lane: &Lane) -> Infallible {
        let mut backoff = Backoff::new();
        loop {
            self.egress.missing().await;
            let Some(asked) = self.egress.wanted() else { continue };
            tracing::info!(workload = asked.workload, "asking again for the place that flows are dialled from");
            let call = Call { kind: Some(call::Kind::Engage(Box::new(asked))) };
            let problem = match timeout(ENGAGE_TIMEOUT, self.ask_on(lane, &call)).await {
                Ok(Ok(Answer { kind: Some(answer::Kind::Failure(failure)) })) => failure.message,
                Ok(Ok(_)) => continue,
                Ok(Err(failure)) => failure.message,
                Err(_) => "the traffic manager gave no answer".to_owned(),
            };
            tracing::warn!(problem, "flows wait");
            self.egress.set_problem(&problem);
            backoff.wait().await;
        }
    }

    /// Takes a message of the manager; returns what to answer.
    fn on_message(&self, kind: Option<from_manager::Kind>) -> Option<to_manager::Kind> {
        let mut seen = self.seen.borrow_mut();
        match kind {
            Some(from_manager::Kind::ClusterInfo(cluster)) => {
                inform(&self.resolver, &self.layout.borrow(), &self.request, &cluster);
                seen.cluster = cluster;
            }
            Some(from_manager::Kind::Agents(agents)) => seen.agents = agents,
            Some(from_manager::Kind::Ping(ping)) => return Some(to_manager::Kind::Pong(ping)),
            Some(from_manager::Kind::Goodbye(goodbye)) => {
                tracing::info!(reason = goodbye.reason, "the manager is stopping");
            }
            Some(from_manager::Kind::Engagements(held)) => self.set_held(held.engagements),
            // An agent's, or of a later version.
            Some(from_manager::Kind::Orders(_) | from_manager::Kind::TellEnvironment(_)) | None => {}
        }
        None
    }

    /// Makes a lane, however long it takes.
    async fn new_lane(&self) -> Live {
        self.persist(async |limit| {
            let admitted = self.open_lane(None, limit).await?;
            self.start(admitted, limit).await
        })
        .await
    }

    /// Brings a lane that has lost its byte stream another one, however long it takes. Returns a new lane when the manager
    /// has given this one up; `None` when it goes on with all its flows.
    async fn bring_back(&self, live: &Live) -> Option<Box<Live>> {
        let grace = Duration::from_millis(live.welcome.resume_grace_ms.into());
        let given_up_at = Instant::now() + grace;
        self.persist(async |limit| {
            if Instant::now() > given_up_at {
                // The manager has given it up as well: whoever waits for a flow is told so.
                live.handle.fail("the tunnel was down for too long");
            }
            let received = live.handle.detach("another byte stream is being opened");
            let admitted = self.open_lane(Some(received), limit).await?;
            if admitted.welcome.resume_received.is_none() {
                return Ok(Some(Box::new(self.start(admitted, limit).await?)));
            }
            let welcome = admitted.resume(&live.handle).map_err(|error| self.route.explain_lane(&error))?;
            tracing::info!(manager = welcome.software_version, "tunnel resumed");
            Ok(None)
        })
        .await
    }

    /// Tries until it succeeds.
    async fn persist<T>(&self, act: impl AsyncFn(Duration) -> Result<T, Failure>) -> T {
        let mut backoff = Backoff::new();
        let limit = RECONNECT_TIMEOUT.max(Duration::from_millis(self.request.connect_timeout_ms.into()));
        loop {
            match act(limit).await {
                Ok(done) => return done,
                Err(failure) => {
                    tracing::info!(error = failure.message, "not reconnected yet");
                    self.set_state(TunnelState::Reconnecting, &format!("{} ({})", failure.message, failure.hint));
                }
            }
            backoff.wait().await;
        }
    }

    async fn open_lane(&self, resume_received: Option<u64>, limit: Duration) -> Result<Admitted, Failure> {
        let session = self.seen.borrow().welcome.session.clone();
        let hello = ClientHello { resume_received, ..hello(&self.request, session) };
        self.route.open_lane(&hello, limit).await
    }

    async fn start(&self, admitted: Admitted, limit: Duration) -> Result<Live, Failure> {
        let (live, cluster) = start(&self.route, admitted, limit).await?;
        self.on_message(Some(from_manager::Kind::ClusterInfo(cluster)));
        Ok(live)
    }

    /// Asks the manager about engagements, once, on the lane that is up within `limit`: what came of a question that was lost
    /// with its lane is not known.
    ///
    /// # Errors
    /// When there was no answer.
    pub(crate) async fn ask(&self, call: &Call, limit: Duration) -> Result<Answer, Failure> {
        let asked = async {
            let lane = self.tunnel.lane().await;
            self.check_feature(ENGAGE, "engagements")?;
            let _reserved = self.reserve(call)?;
            let answer = self.ask_on(&lane, call).await?;
            if let (Some(call::Kind::Engage(asked)), Some(answer::Kind::Engaged(held))) = (&call.kind, &answer.kind)
                && held.what() == wire::Kind::Via
            {
                self.egress.want(Engage::clone(asked));
                self.egress.on_engaged(held);
            }
            Ok(answer)
        };
        let late = |_| Err(no_answer(&format!("it took longer than {}", HumanDuration(limit))));
        timeout(limit, asked).await.unwrap_or_else(late)
    }

    /// Asks on this lane, when the manager knows who asks.
    async fn ask_on(&self, lane: &Lane, call: &Call) -> Result<Answer, Failure> {
        if needs_identity(call) && has(&self.seen.borrow().welcome, IDENTITY) {
            self.whoami.known().await?;
        }
        let answer = lane.call(call).await.map_err(|error| no_answer(&error.to_string()))?;
        match &answer.kind {
            Some(answer::Kind::Engaged(held)) => {
                self.engagements.on_engaged(held);
                self.egress.on_engaged(held);
            }
            Some(answer::Kind::Left(left)) => self.engagements.on_left(&left.engagements),
            Some(
                answer::Kind::Failure(_)
                | answer::Kind::Listed(_)
                | answer::Kind::Described(_)
                | answer::Kind::OneTimePort(_),
            )
            | None => {}
        }
        Ok(answer)
    }

    /// Whether the manager has a feature; `what` is its name for people.
    fn check_feature(&self, feature: &str, what: &str) -> Result<(), Failure> {
        let welcome = &self.seen.borrow().welcome;
        if has(welcome, feature) {
            return Ok(());
        }
        Err(Failure {
            message: format!(
                "the traffic manager {} in {} does not know {what}",
                welcome.software_version, self.request.manager_namespace
            ),
            hint: format!("an administrator updates it to {} with `tp helm upgrade`", env!("CARGO_PKG_VERSION")),
            causes: Vec::new(),
        })
    }

    /// Takes the ports of the localhost that an engagement is to have, before it is asked for, when the manager knows what it is.
    fn reserve(&self, call: &Call) -> Result<Option<Reserved>, Failure> {
        let Some(call::Kind::Engage(engage)) = &call.kind else { return Ok(None) };
        if engage.what() == wire::Kind::Via {
            self.check_feature(VIA, "--via")?;
        }
        if engage.to_pod.is_empty() {
            return Ok(None);
        }
        self.check_feature(TO_POD, "--to-pod")?;
        self.engagements.reserve(&engage.to_pod).map(Some)
    }

    fn set_state(&self, state: TunnelState, error: &str) {
        self.tunnel_state.set(state);
        error.clone_into(&mut self.seen.borrow_mut().tunnel_error);
    }

    /// The subnets of the cluster that came up since the network was set up, and can be routed as they are: what overlaps
    /// with anything else needs a new connection, which maps it.
    pub(crate) async fn new_subnets(&self) -> Vec<String> {
        let mut taken = crate::routes::of_this_namespace();
        taken.extend(self.route.addresses().await.into_iter().map(IpNet::from));
        taken.extend(self.request.machine_subnets.iter().filter_map(|subnet| subnet.parse::<IpNet>().ok()));
        let new = self.layout.borrow().new_subnets(&self.settings(), &self.seen.borrow().cluster, &taken);
        new.iter().map(ToString::to_string).collect()
    }

    /// Takes up routes that were added, as `present` shows.
    ///
    /// # Errors
    /// When they are not there.
    pub(crate) fn on_routed(&self, subnets: &[String], present: &[IpNet]) -> Result<(), Failure> {
        let is_there = |subnet: &String| subnet.parse().is_ok_and(|net| present.contains(&net));
        if let Some(missing) = subnets.iter().find(|subnet| !is_there(subnet)) {
            return Err(Failure {
                message: format!("no route to {missing} was added to the container's network"),
                hint: format!("connect again to have it routed: `tp quit --use {}` first", self.request.name),
                causes: Vec::new(),
            });
        }
        tracing::info!(?subnets, "new subnets of the cluster are routed");
        let mut layout = self.layout.borrow_mut();
        layout.network.routes.extend_from_slice(subnets);
        self.nat.borrow_mut().set_rules(layout.rules());
        Ok(())
    }

    /// The state of the connection. The daemon adds what it knows itself.
    pub(crate) fn status(&self) -> Status {
        let settings = self.settings();
        let (seen, layout) = (self.seen.borrow(), self.layout.borrow());
        let (tcp_flows, udp_flows) = self.flows.open_flows();
        let agents = seen.agents.agents.iter().map(|a| Agent {
            namespace: a.namespace.clone(),
            pod: a.pod.clone(),
            version: a.software_version.clone(),
        });
        Status {
            name: self.request.name.clone(),
            context: self.request.kube.context.clone(),
            server: self.request.kube.original_server.clone(),
            namespace: self.request.namespace.clone(),
            manager_namespace: self.request.manager_namespace.clone(),
            manager_pod: MANAGER_POD.to_owned(),
            manager_version: seen.welcome.software_version.clone(),
            tunnel: self.tunnel_state.get().into(),
            tunnel_error: seen.tunnel_error.clone(),
            connected_at: self.connected_at,
            cluster_domain: seen.cluster.cluster_domain.clone(),
            service_subnets: seen.cluster.service_subnets.clone(),
            pod_subnets: seen.cluster.pod_subnets.clone(),
            routed_subnets: layout.network.routes.clone(),
            excluded_subnets: settings.never_proxy.iter().flatten().map(ToString::to_string).collect(),
            virtual_subnets: layout.virtual_subnets.clone(),
            virtual_addresses: self.nat.borrow().borrowed() as u64,
            dns_mappings: settings.dns_mappings.iter().flatten().map(ToString::to_string).collect(),
            dns_address: layout.network.nameserver.clone(),
            dns_search: layout.network.search.clone(),
            agents: agents.collect(),
            lanes: u32::from(self.tunnel_state.get() == TunnelState::Connected) + self.tunnel.bulk().open(),
            tcp_flows,
            udp_flows,
            bytes_up: self.flows.traffic().up_bytes.get(),
            bytes_down: self.flows.traffic().down_bytes.get(),
            chart_settings_json: seen.cluster.client_settings_json.clone(),
            reconnects: self.reconnects.get(),
            engagements: self.engagements.held(),
            engaged_connections: self.engagements.open(),
            user: self.whoami.user().map(|it| User { name: it.user, groups: it.groups }),
            via: self.egress.wanted().map(|asked| asked.workload).unwrap_or_default(),
            via_problem: self.egress.problem(),
            user_problem: self.whoami.problem().unwrap_or_default(),
            ..Status::default()
        }
    }
}

fn no_answer(why: &str) -> Failure {
    Failure {
        message: format!("the traffic manager gave no answer: {why}"),
        hint: "see in `tp status` whether the tunnel is up, and in `tp list` what is engaged".to_owned(),
        causes: Vec::new(),
    }
}

fn has(welcome: &Welcome, feature: &str) -> bool {
    welcome.features.iter().any(|it| it == feature)
}

/// Whether the manager has to know who asks.
fn needs_identity(call: &Call) -> bool {
    match call.kind {
        Some(call::Kind::Engage(_) | call::Kind::Describe(_)) => true,
        Some(call::Kind::Leave(_) | call::Kind::List(_) | call::Kind::Identify(_)) | None => false,
    }
}

/// Starts a lane and its control channel, and waits for the cluster's description.
async fn start(route: &ManagerRoute, admitted: Admitted, limit: Duration) -> Result<(Live, ClusterInfo), Failure> {
    let started = timeout(limit, admitted.start()).await;
    let started = started.unwrap_or(Err(LaneError::TimedOut(limit)));
    let Connected { welcome, lane, driver, handle } = started.map_err(|error| route.explain_lane(&error))?;
    let driver = AbortOnDrop(tokio::spawn(driver));
    let silent = |error: String| Failure {
        message: format!("the traffic manager {MANAGER_POD} did not describe the cluster: {error}"),
        hint: format!("look at the manager with `kubectl logs {MANAGER_POD}` in its namespace"),
        causes: Vec::new(),
    };
    let described = async {
        let (sender, mut receiver) = lane.control().await.map_err(|e| silent(e.to_string()))?.split();
        let mut before = Before::default();
        loop {
            match receiver.recv().await {
                Some(Ok(FromManager { kind: Some(from_manager::Kind::ClusterInfo(cluster)) })) => {
                    return Ok((sender, receiver, before, cluster));
                }
                Some(Ok(FromManager { kind: Some(from_manager::Kind::Agents(list)) })) => before.agents = Some(list),
                Some(Ok(FromManager { kind: Some(from_manager::Kind::Engagements(held)) })) => {
                    before.engagements = Some(held);
                }
                Some(Ok(FromManager { .. })) => {}
                Some(Err(error)) => return Err(silent(error.to_string())),
                None => return Err(silent("it closed the control channel".to_owned())),
            }
        }
    };
    let (sender, receiver, before, cluster) = timeout(CLUSTER_INFO_TIMEOUT, described)
        .await
        .unwrap_or_else(|_| Err(silent(format!("no answer for {CLUSTER_INFO_TIMEOUT:?}"))))?;
    Ok((Live { welcome, lane, handle, driver, sender, receiver, before }, cluster))
}

fn hello(request: &Connect, session: Option<SessionKey>) -> ClientHello {
    ClientHello { session, ..ClientHello::new(env!("CARGO_PKG_VERSION"), &request.name) }
}

/// The user's settings, and the chart's where the user has none. Either was checked where it was made.
pub(crate) fn settings(request: &Connect, cluster: &ClusterInfo) -> Layer {
    let chart = Layer::from_chart(&cluster.client_settings_json).unwrap_or_default();
    Layer::from_chart(&request.settings_json).unwrap_or_default().over(chart)
}

/// Tells the resolver which names are whose, as the cluster is now, and what they stand for.
fn inform(resolver: &Resolver, layout: &Layout, request: &Connect, cluster: &ClusterInfo) {
    let settings = settings(request, cluster);
    resolver.set_zones(layout.zones(&settings, cluster));
    resolver.set_mappings(mappings(&settings));
}

/// What names stand for; of two for one name the first one counts.
fn mappings(settings: &Layer) -> Mappings {
    let mappings = settings.dns_mappings.iter().flatten().rev();
    mappings.map(|it| (it.name.as_str().to_owned(), it.target.clone())).collect()
}

fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
