//! `tp daemon init`: PID 1 of the daemon container.
//!
//! Begins with the few rights that setting up takes, and ends up with none. It makes the TUN, binds the control socket and
//! starts the daemon, which has no capability from its first instruction. When the daemon knows the cluster's subnets
//! the init sets addresses, routes and resolv.conf, and drops every right for good. From then on it reaps, passes signals
//! on, and starts the daemon again when it dies, with what the daemon asked it to remember.
//!
//! It is synchronous and has one thread: capabilities belong to threads.

mod child;
pub(crate) mod link;
mod messages;
mod network;
pub(crate) mod privileges;
mod resolv_conf;
mod signals;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, poll};
use tp_protocol::frame;

use self::child::Child;
use self::messages::{FromInit, MAX_INIT_BYTES, Restore, ToInit, from_init, to_init};
use self::signals::{Signal, Signals};
use crate::daemon::tun::Tun;

/// Where CLIs reach the daemon: in the container's own file system, which no other container shares.
pub(crate) const CONTROL_SOCKET: &str = "/run/tp/daemon.sock";

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Wait before the daemon is started again; doubles with each crash up to the next constant.
const RESTART_MIN: Duration = Duration::from_millis(100);

/// Longest wait before the daemon is started again.
const RESTART_MAX: Duration = Duration::from_secs(2);

/// Crashes within [`CRASH_WINDOW`] after which the container ends.
const MAX_CRASHES: usize = 10;

/// Crashes older than this are forgotten.
const CRASH_WINDOW: Duration = Duration::from_secs(60);

/// Exit code of the container when the daemon crashed too often.
const CRASHED_TOO_OFTEN: u8 = 5;

/// Exit codes of the daemon that mean that it is done.
const ORDERLY_EXITS: [i32; 3] = [0, 3, 4];

/// Runs the container until its connection has ended.
pub(crate) fn run() -> ExitCode {
    match Init::new().and_then(|mut init| init.run()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("cannot set up the daemon container: {error}"));
            ExitCode::from(70)
        }
    }
}

/// Routes `subnets` into the TUN of the network namespace that this process was started in.
pub(crate) fn route(subnets: &[String]) -> ExitCode {
    match network::add_routes(subnets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The init has no logger: one line on stderr, which the engine keeps.
fn say(text: &str) {
    // Nobody is left to tell when stderr is gone.
    let _ = writeln!(io::stderr(), "init: {text}");
}

struct Init {
    tun: Tun,
    listener: UnixListener,
    resolv_conf: File,
    original_resolv_conf: String,
    signals: Signals,
    configured: bool,
    /// What the next daemon process starts with. Holds credentials; nobody can read this process's memory (it is not
    /// dumpable).
    state: Option<Vec<u8>>,
    crashes: VecDeque<Instant>,
    restarts: u32,
    /// The engine wants the container to end.
    terminating: bool,
}

/// How the daemon process ended.
enum ChildEnd {
    Orderly(u8),
    Crashed(String),
}

impl Init {
    fn new() -> io::Result<Self> {
        let named = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
        };
        let signals = Signals::new().map_err(named("signals"))?;
        let tun = Tun::create().map_err(named("/dev/net/tun"))?;
        let listener = bind(CONTROL_SOCKET).map_err(named(CONTROL_SOCKET))?;
        let mut resolv_conf =
            OpenOptions::new().read(true).write(true).open(RESOLV_CONF).map_err(named(RESOLV_CONF))?;
        let mut original_resolv_conf = String::new();
        resolv_conf.read_to_string(&mut original_resolv_conf).map_err(named(RESOLV_CONF))?;
        Ok(Self {
            tun,
            listener,
            resolv_conf,
            original_resolv_conf,
            signals,
            configured: false,
            state: None,
            crashes: VecDeque::new(),
            restarts: 0,
            terminating: false,
        })
    }

    /// Keeps the daemon running; returns the container's exit code.
    fn run(&mut self) -> io::Result<u8> {
        loop {
            match self.run_child()? {
                ChildEnd::Orderly(code) => return Ok(code),
                // A daemon that was just starting does not know SIGTERM yet, and dies of it.
                ChildEnd::Crashed(_) if self.terminating => return Ok(0),
                ChildEnd::Crashed(how) => {
                    say(&format!("the daemon {how}"));
                    let Some(wait) = self.on_crash(Instant::now()) else {
                        say("the daemon crashed too often, giving up");
                        return Ok(CRASHED_TOO_OFTEN);
                    };
                    if self.wait(wait)? == Some(Signal::Terminate) {
                        return Ok(0);
                    }
                }
            }
        }
    }

    /// Returns how long to wait before the next start, `None` to give up.
    fn on_crash(&mut self, now: Instant) -> Option<Duration> {
        self.restarts += 1;
        self.crashes.push_back(now);
        self.crashes.retain(|at| now.duration_since(*at) < CRASH_WINDOW);
        let recent = u32::try_from(self.crashes.len()).expect("at most ten");
        (self.crashes.len() < MAX_CRASHES)
            .then(|| RESTART_MIN.saturating_mul(1 << (recent - 1).min(10)).min(RESTART_MAX))
    }

    /// Sleeps, but not through a signal that ends the container.
    fn wait(&mut self, limit: Duration) -> io::Result<Option<Signal>> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN)];
            let timeout = left.try_into().expect("at most two seconds");
            poll(&mut fds, Some(&timeout)).or_else(ignore_interrupt)?;
            while let Some(signal) = self.signals.next()? {
                match signal {
                    Signal::Child => child::reap_orphans(),
                    Signal::Terminate => return Ok(Some(signal)),
                }
            }
        }
    }

    /// Starts the daemon and serves it until it ends.
    fn run_child(&mut self) -> io::Result<ChildEnd> {
        let (mut link, theirs) = UnixStream::pair()?;
        let child = Child::start(theirs.as_fd(), self.listener.as_fd(), self.tun.as_fd())?;
        drop(theirs);
        let restore = Restore {
            state: self.state.clone(),
            original_resolv_conf: self.original_resolv_conf.clone(),
            restarts: self.restarts,
        };
        let mut link_open = send(&mut link, from_init::Kind::Restore(restore)).is_ok();
        let mut inbox = BytesMut::new();
        loop {
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&link, PollFlags::IN)];
            let watched = if link_open { &mut fds[..] } else { &mut fds[..1] };
            poll(watched, None).or_else(ignore_interrupt)?;
            let link_ready = link_open && !fds[1].revents().is_empty();
            while let Some(signal) = self.signals.next()? {
                match signal {
                    Signal::Terminate => {
                        self.terminating = true;
                        child.terminate();
                    }
                    Signal::Child => {
                        if let Some(end) = child.try_wait() {
                            return Ok(end);
                        }
                    }
                }
            }
            if link_ready {
                link_open = self.serve(&mut link, &mut inbox).unwrap_or_else(|error| {
                    say(&format!("the daemon's link broke: {error}"));
                    false
                });
            }
        }
    }

    /// Carries out what has arrived; false when the daemon has closed the link.
    fn serve(&mut self, link: &mut UnixStream, inbox: &mut BytesMut) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let len = link.read(&mut chunk)?;
        inbox.extend_from_slice(&chunk[..len]);
        while let Some(ToInit { kind }) = frame::decode(inbox, MAX_INIT_BYTES).map_err(io::Error::other)? {
            let answer = match kind {
                Some(to_init::Kind::Configure(config)) => self.configure(&config),
                Some(to_init::Kind::SaveState(state)) => {
                    self.state = Some(state);
                    Ok(())
                }
                None => Err(io::Error::other("unknown request")),
            };
            let answer = match answer {
                Ok(()) => from_init::Kind::Done(messages::Empty {}),
                Err(error) => from_init::Kind::Failed(error.to_string()),
            };
            send(link, answer)?;
        }
        Ok(len > 0)
    }

    /// Sets the container's network up, once, and gives up every right.
    fn configure(&mut self, config: &messages::NetworkConfig) -> io::Result<()> {
        if self.configured {
            return Err(io::Error::other("the network is set up already and no right is left to change it"));
        }
        network::set_up(config)?;
        resolv_conf::write(&mut self.resolv_conf, config)?;
        privileges::drop_all()?;
        self.configured = true;
        Ok(())
    }
}

/// Binds the control socket. Everybody may connect who sees this file system: the daemon, and `docker exec`.
fn bind(path: &str) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    // Without CAP_CHOWN the socket stays root's, so the mode has to let the daemon's uid in.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn send(link: &mut UnixStream, kind: from_init::Kind) -> io::Result<()> {
    let mut outbox = BytesMut::new();
    frame::encode(&FromInit { kind: Some(kind) }, &mut outbox);
    link.write_all(&outbox)
}

/// A poll that a signal cut short is repeated by its loop.
fn ignore_interrupt(error: rustix::io::Errno) -> rustix::io::Result<usize> {
    if error == rustix::io::Errno::INTR { Ok(0) } else { Err(error) }
}
