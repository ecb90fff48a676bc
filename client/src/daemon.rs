//! The daemon of one connection: runs in the daemon container, unprivileged, on one thread.
//!
//! Its init hands it the TUN, the control socket's listener and a link to itself ([`init`]). A CLI asks it to connect
//! ([`control`]); from then on [`connection`] keeps a lane to the manager up and [`flows`] joins the network stack to it.
//! All state belongs to one thread: a packet, its flow's task and the lane's TLS never change threads.

mod address;
pub(crate) mod attach;
mod backoff;
mod bulk;
mod connection;
mod control;
mod dns;
mod egress;
mod engagements;
mod flows;
mod hosts;
mod identity;
pub(crate) mod init;
mod kube;
mod layout;
mod lifetime;
mod nat;
mod portforward;
mod readahead;
#[cfg(test)]
mod simulation;
mod tun;
mod tunnel;

use std::cell::RefCell;
use std::future::pending;
use std::net::IpAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use prost::Message as _;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep_until;
use tp_netstack::TunId;
use tp_protocol::engage::call::{Answer, answer};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::connection::{Connection, Live, Parts, Saved, settings};
use self::control::Replies;
use self::hosts::HostLookup;
use self::init::link::InitLink;
use self::kube::ManagerRoute;
use self::layout::{Before, Layout};
use self::lifetime::{End, Lifetime};
use self::tun::Tun;
use crate::attach::{Connect, EngagementCall, Failure, Status, TunnelState};

/// The device of the container's own network namespace. Others belong to holder containers.
const OWN_TUN: TunId = TunId(0);

/// How often an idle limit looks at the traffic counters.
const ACTIVITY_INTERVAL: Duration = Duration::from_secs(10);

/// How often memory that is free is given back.
const MEMORY_INTERVAL: Duration = Duration::from_secs(2);

/// What the daemon knows besides its connection.
pub(crate) struct Daemon {
    link: Mutex<InitLink>,
    tun: RefCell<Option<Tun>>,
    nameservers: Vec<IpAddr>,
    hosts: HostLookup,
    old_search: Vec<String>,
    restarts: u32,
    lifetime: RefCell<Lifetime>,
    lifetime_changed: watch::Sender<()>,
    connection: RefCell<Option<Rc<Connection>>>,
    running: RefCell<Option<JoinHandle<()>>>,
    ended: watch::Sender<Option<End>>,
}

/// Keeps a held connection alive; dropping it counts a holder out.
pub(crate) struct Holder(Rc<Daemon>);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.change_lifetime(|life| life.on_holder_gone(Instant::now()));
    }
}

/// `tp daemon run`: the child of the container's init.
pub(crate) fn run() -> ExitCode {
    start_logging();
    // A task that panics takes the process with it: its init starts the next one, which has lost flows and nothing else.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(70);
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::from(70);
        }
    };
    let end = LocalSet::new().block_on(&runtime, serve());
    // Tasks of flows and lanes end with the process.
    runtime.shutdown_background();
    match end {
        Ok(end) => ExitCode::from(end as u8),
        Err(error) => {
            tracing::error!(%error, "the daemon stops");
            ExitCode::from(70)
        }
    }
}

/// Logs to stderr, which the engine keeps. The level of the container's variable is that of tp's own modules: what
/// libraries say below `info` helps nobody who looks for why a name does not resolve.
fn start_logging() {
    let level = std::env::var(init::link::LOG_VARIABLE).ok().and_then(|level| level.parse().ok());
    let level = level.unwrap_or(LevelFilter::INFO);
    let filter = Targets::new().with_target("tp", level).with_default(level.min(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(filter).init();
}

/// Returns what a load has left behind to the kernel: the allocator itself looks at it only when much is freed at once.
async fn give_memory_back() {
    let mut interval = tokio::time::interval(MEMORY_INTERVAL);
    loop {
        interval.tick().await;
        #[expect(unsafe_code, reason = "the allocator's crate has no safe way")]
        // SAFETY: may be called at any time (mimalloc, "Extended Functions").
        unsafe {
            libmimalloc_sys::mi_collect(true);
        }
    }
}

async fn serve() -> std::io::Result<End> {
    let inherited = init::link::inherit().await?;
    let daemon = Rc::new(Daemon {
        link: Mutex::new(inherited.link),
        tun: RefCell::new(Some(inherited.tun)),
        hosts: HostLookup::new(inherited.resolv_conf.nameservers.clone()),
        nameservers: inherited.resolv_conf.nameservers,
        old_search: inherited.resolv_conf.search,
        restarts: inherited.restarts,
        lifetime: RefCell::new(Lifetime::new(Instant::now())),
        lifetime_changed: watch::Sender::new(()),
        connection: RefCell::new(None),
        running: RefCell::new(None),
        ended: watch::Sender::new(None),
    });
    if let Some(state) = inherited.state {
        daemon.restore(&state);
    }
    spawn_local(give_memory_back());
    let listener = spawn_local(control::listen(Rc::clone(&daemon), inherited.listener));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ended = daemon.ended.subscribe();
    let end = tokio::select! {
        end = daemon.watch_lifetime() => end,
        end = ended.wait_for(Option::is_some) => return Ok(end.ok().and_then(|end| *end).unwrap_or(End::Quit)),
        _ = terminate.recv() => End::Quit,
    };
    tracing::info!(?end, "the connection ends");
    daemon.quit().await;
    listener.abort();
    Ok(end)
}

impl Daemon {
    /// Makes the connection.
    ///
    /// # Errors
    /// What the user sees; the daemon can be asked again.
    async fn connect(self: &Rc<Self>, request: Connect, replies: &mut Replies) -> Result<Status, Failure> {
        if self.connection.borrow().is_some() {
            return Err(failure("this daemon is already connected", "run `tp status` to see to what"));
        }
        let limit = Duration::from_millis(request.connect_timeout_ms.into());
        // The CLI may be gone, which its stream's end tells better than a failed write.
        let _ = replies.progress(&format!("connecting to the traffic manager in {}", request.manager_namespace)).await;
        let parts = self.parts(&request.namespace);
        let route = ManagerRoute::new(request.kube.clone(), &request.manager_namespace, self.hosts.clone())?;
        let (live, cluster) = Connection::establish(&request, &route, limit).await?;
        let _ = replies.progress("setting up the container's network").await;
        let api_server = route.addresses().await;
        let before = Before {
            container: &crate::routes::of_this_namespace(),
            search: &self.old_search,
            api_server: &api_server,
        };
        let layout = Layout::plan(&request, &settings(&request, &cluster), &cluster, before)?;
        self.link.lock().await.configure(&layout.network).await.map_err(|error| Failure {
            message: format!("the init of the daemon container cannot set up the network: {error}"),
            hint: "look at `docker logs` of the daemon container".into(),
            causes: Vec::new(),
        })?;
        let held = request.hold;
        let connection = Rc::new(Connection::new(request, route, cluster, layout, parts));
        if !held {
            self.change_lifetime(|life| life.detach(Instant::now()));
        }
        connection.on_lane(&live);
        self.start(connection, Some(live));
        self.save().await;
        Ok(self.status())
    }

    /// Takes up the connection of the process before this one.
    fn restore(self: &Rc<Self>, state: &[u8]) {
        let saved = match Saved::decode(state) {
            Ok(saved) => saved,
            Err(error) => return tracing::error!(%error, "the state of the process before this one is not readable"),
        };
        let held = saved.held;
        let parts = self.parts(saved.namespace());
        match Connection::restore(saved, self.hosts.clone(), parts) {
            Ok(connection) => {
                tracing::info!(restarts = self.restarts, "taking up the connection of the process before this one");
                let now = Instant::now();
                self.change_lifetime(|life| if held { life.hold(now) } else { life.detach(now) });
                self.start(Rc::new(connection), None);
            }
            Err(failure) => tracing::error!(error = failure.message, "cannot take up the connection"),
        }
    }

    fn parts(&self, namespace: &str) -> Parts {
        let mut seed = [0; 8];
        // Without randomness initial sequence numbers are guessable, by processes of the same namespace only.
        let _ = SystemRandom::new().fill(&mut seed);
        Parts::new(namespace, self.nameservers.clone(), self.restarts, u64::from_ne_bytes(seed))
    }

    /// Starts the tasks of a connection: the packets and the lanes.
    fn start(self: &Rc<Self>, connection: Rc<Connection>, live: Option<Live>) {
        let idle_limit = connection.settings().idle_limit.unwrap_or(crate::config::DEFAULT_IDLE_LIMIT).as_duration();
        self.change_lifetime(|life| life.set_idle_limit((!idle_limit.is_zero()).then_some(idle_limit)));
        let tun = self.tun.borrow_mut().take().expect("one connection in the life of a daemon");
        let packets = Rc::clone(connection.flows());
        drop(spawn_local(async move {
            if let Err(error) = packets.drive(OWN_TUN, tun).await {
                // The init starts the next process, which finds the device again or fails the same way.
                tracing::error!(%error, "the TUN device failed");
                std::process::exit(70);
            }
        }));
        let lanes = Rc::clone(&connection);
        *self.running.borrow_mut() = Some(spawn_local(async move { lanes.run(live).await }));
        *self.connection.borrow_mut() = Some(connection);
    }

    /// The subnets of the cluster that came up since the network was set up, and can be routed as they are.
    async fn new_subnets(&self) -> Vec<String> {
        let connection = self.connection.borrow().clone();
        match connection {
            Some(connection) => connection.new_subnets().await,
            None => Vec::new(),
        }
    }

    /// Takes up routes that were added to this network namespace.
    ///
    /// # Errors
    /// When they are not there.
    async fn on_routed(&self, subnets: &[String]) -> Result<(), Failure> {
        if let Some(connection) = self.connection.borrow().as_ref() {
            connection.on_routed(subnets, &crate::routes::of_this_namespace())?;
        }
        self.save().await;
        Ok(())
    }

    /// Asks the manager about engagements.
    ///
    /// # Errors
    /// When there was no answer.
    async fn ask_manager(&self, ask: &EngagementCall) -> Result<Answer, Failure> {
        let connection = self.connection.borrow().clone();
        match connection {
            Some(connection) => {
                let answer = connection.ask(&ask.call, Duration::from_millis(ask.limit_ms.into())).await?;
                if matches!(answer.kind, Some(answer::Kind::Engaged(_))) {
                    // From where flows are dialled may be another from here on.
                    self.save().await;
                }
                Ok(answer)
            }
            None => Err(failure("this daemon is not connected yet", "try again when `tp status` says that it is")),
        }
    }

    /// Counts a holder in; the connection ends a grace after the last one.
    fn hold(self: &Rc<Self>) -> Holder {
        self.change_lifetime(|life| {
            life.hold(Instant::now());
            life.on_holder();
        });
        Holder(Rc::clone(self))
    }

    /// Lets the connection go on without holders.
    async fn detach(&self) {
        self.change_lifetime(|life| life.detach(Instant::now()));
        self.save().await;
    }

    /// Gives the init what the next process needs.
    async fn save(&self) {
        let held = self.lifetime.borrow().is_held();
        let Some(state) = self.connection.borrow().as_ref().map(|connection| connection.save(held)) else {
            return;
        };
        if let Err(error) = self.link.lock().await.save_state(&state).await {
            tracing::warn!(%error, "the init did not take the state: a crash would end the connection");
        }
    }

    /// Tells the manager that the session ends.
    async fn quit(&self) {
        let connection = self.connection.borrow().clone();
        let running = self.running.borrow_mut().take();
        if let (Some(connection), Some(running)) = (connection, running) {
            connection.quit();
            // Bounded by the connection's own farewell.
            let _ = running.await;
        }
    }

    /// Ends the process.
    fn end(&self, end: End) {
        self.ended.send_replace(Some(end));
    }

    fn status(&self) -> Status {
        let connection = self.connection.borrow().as_ref().map(|connection| connection.status());
        Status {
            daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
            restarts: self.restarts,
            resident_bytes: resident_bytes(),
            held: self.lifetime.borrow().is_held(),
            ..connection.unwrap_or(Status { tunnel: TunnelState::Idle.into(), ..Status::default() })
        }
    }

    fn change_lifetime(&self, change: impl FnOnce(&mut Lifetime)) {
        change(&mut self.lifetime.borrow_mut());
        self.lifetime_changed.send_replace(());
    }

    /// Waits until the connection has no reason to go on.
    async fn watch_lifetime(&self) -> End {
        let mut changed = self.lifetime_changed.subscribe();
        loop {
            self.note_activity();
            let now = Instant::now();
            if let Some(end) = self.lifetime.borrow().handle_timeout(now) {
                return end;
            }
            let wake = self.lifetime.borrow().poll_timeout().map(|(at, _)| at.min(now + ACTIVITY_INTERVAL));
            tokio::select! {
                _ = changed.changed() => {}
                () = async { match wake { Some(at) => sleep_until(at.into()).await, None => pending().await } } => {}
            }
        }
    }

    /// Traffic and open flows keep a detached connection, in either direction.
    fn note_activity(&self) {
        if let Some(connection) = self.connection.borrow().as_ref() {
            let (flows, engagements) = (connection.flows(), connection.engagements());
            let mut lifetime = self.lifetime.borrow_mut();
            if flows.open_flows() != (0, 0) || engagements.open() > 0 {
                lifetime.on_activity(Instant::now());
            } else if let Some(last) = flows.traffic().last.get().max(engagements.last()) {
                lifetime.on_activity(last);
            }
        }
    }
}

fn failure(message: &str, hint: &str) -> Failure {
    Failure { message: message.to_owned(), hint: hint.to_owned(), causes: Vec::new() }
}

/// Resident memory of this process (proc(5): the second field of `statm`, in pages).
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
