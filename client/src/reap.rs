//! `tp reap`: removes what a CLI run made when that run is gone without having done so.
//!
//! Every run that makes containers starts one. The run holds the other end of the reaper's stdin, on which it says what
//! it did ([`Reaper`]), a line each: `p` and digits name the docker CLI that was started (`p0`: it has ended), `g`, the id of a
//! daemon's container, a space and the id of an engagement say what that holds for the run (`g` alone: nothing any more).
//! A `k` in place of a line ends the reaper. When the stream ends without it, the run was killed: the docker CLI is ended, the
//! engagement as well, and everything that carries the run's label is removed. After an `e` in place of a line, containers that
//! have ended by themselves are spared.

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tp_protocol::engage::call::{Call, Leave, call};

use crate::attach::{EngagementCall, request};
use crate::docker::Engine;
use crate::docker::endpoint::Endpoint;
use crate::docker::link::Purpose;
use crate::error::{CliError, Result};

/// How long the reaper looks for containers: one that the engine was making when the run died comes into being later.
const REAP_TIME: Duration = Duration::from_secs(8);
/// How often it looks.
const REAP_INTERVAL: Duration = Duration::from_millis(250);

/// How long the end of an engagement may take before the containers are removed: one of them may be what holds it.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// How long the end of an engagement is tried for when there is no way to the manager: a laptop's lid may be closed.
const LEAVE_LATER: Duration = Duration::from_secs(600);

/// The flags of the hidden command.
#[derive(clap::Args, Debug)]
pub(crate) struct ReapArgs {
    /// Remove what carries this label
    #[arg(long)]
    invocation: String,
    /// Address of the engine
    #[arg(long)]
    engine: String,
    /// Directory of the certificates for the engine
    #[arg(long)]
    engine_certs: Option<PathBuf>,
}

/// Runs `tp reap`.
pub(crate) async fn run(args: ReapArgs) -> u8 {
    // Its own session: the terminal's hang-up and Ctrl-C are not for it.
    #[cfg(unix)]
    let _own_session = rustix::process::setsid();
    let nothing = Said { keep: false, spare: Spare::Nothing, docker_cli: None, engaged: None };
    let said = tokio::task::spawn_blocking(listen).await.unwrap_or(nothing);
    if said.keep {
        return 0;
    }
    end_docker_cli(said.docker_cli);
    match reap(&args, &said).await {
        Ok(()) => 0,
        // Nobody reads what it would print.
        Err(error) => error.exit_code(),
    }
}

/// Which containers of a run are not removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spare {
    /// None: all are removed.
    Nothing,
    /// Those that ran, and have ended.
    Ended,
}

/// What the run said before its end of the stream was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    keep: bool,
    spare: Spare,
    docker_cli: Option<i32>,
    engaged: Option<Engaged>,
}

/// An engagement, and the container of the daemon that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Engaged {
    daemon: String,
    id: String,
}

fn listen() -> Said {
    let mut heard = Vec::new();
    // What was heard before an error counts.
    let _ = io::stdin().lock().read_to_end(&mut heard);
    interpret(&heard)
}

fn interpret(heard: &[u8]) -> Said {
    let text = String::from_utf8_lossy(heard);
    // A line that was cut off before its end is none.
    let (lines, last) = text.rsplit_once('\n').unwrap_or(("", &text));
    let last_with = |letter| lines.lines().filter_map(|line| line.strip_prefix(letter)).next_back();
    let docker_cli = last_with('p').and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0);
    let engaged = last_with('g').and_then(|engaged| engaged.split_once(' '));
    let engaged = engaged.map(|(daemon, id)| Engaged { daemon: daemon.to_owned(), id: id.to_owned() });
    let spare = if last == "e" { Spare::Ended } else { Spare::Nothing };
    Said { keep: last == "k", spare, docker_cli, engaged }
}

/// Ends the docker CLI that the run started: it may be about to make a container.
#[cfg(unix)]
fn end_docker_cli(pid: Option<i32>) {
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(not(unix))]
fn end_docker_cli(_: Option<i32>) {}

async fn reap(args: &ReapArgs, said: &Said) -> Result<()> {
    let engine = Engine::connect(Endpoint::from_flags(&args.engine, args.engine_certs.clone())?).await?;
    let has_left = match &said.engaged {
        Some(engaged) => {
            tokio::time::timeout(LEAVE_LIMIT, leave(&engine, engaged)).await.is_ok_and(|left| left.is_ok())
        }
        None => true,
    };
    let until = tokio::time::Instant::now() + REAP_TIME;
    let mut outcome = Ok(());
    while tokio::time::Instant::now() < until {
        outcome = remove_invocation(&engine, &args.invocation, said.spare).await;
        tokio::time::sleep(REAP_INTERVAL).await;
    }
    if let Some(engaged) = said.engaged.as_ref().filter(|_| !has_left) {
        leave_later(&engine, engaged).await;
    }
    outcome
}

/// Ends an engagement whose connection had no way to the manager, when it has one again. The connection's end ends it too.
async fn leave_later(engine: &Engine, engaged: &Engaged) {
    let until = tokio::time::Instant::now() + LEAVE_LATER;
    while tokio::time::Instant::now() < until {
        let connections = engine.connections().await.unwrap_or_default();
        let is_there = connections.iter().any(|it| it.id == engaged.daemon && it.running);
        if !is_there || tokio::time::timeout(LEAVE_LIMIT, leave(engine, engaged)).await.is_ok_and(|left| left.is_ok()) {
            return;
        }
        tokio::time::sleep(LEAVE_LIMIT).await;
    }
}

async fn leave(engine: &Engine, engaged: &Engaged) -> Result<()> {
    let leave = Leave { what: engaged.id.clone(), namespace: String::new() };
    let call = Call { kind: Some(call::Kind::Leave(leave)) };
    let ask = EngagementCall { call, limit_ms: LEAVE_LIMIT.as_millis().try_into().unwrap_or(u32::MAX) };
    let mut link = engine.attach(&engaged.daemon, Purpose::Talk).await?;
    link.request(request::Kind::Engagements(Box::new(ask)), |_| {}).await.map(drop)
}

/// Removes all containers of a run.
///
/// # Errors
/// The first refusal of the engine, after the others were tried.
pub(crate) async fn remove_invocation(engine: &Engine, invocation: &str, spare: Spare) -> Result<()> {
    let mut outcome = Ok(());
    let containers = engine.of_invocation(invocation).await?;
    for container in containers.into_iter().filter(|container| spare == Spare::Nothing || !container.has_ended) {
        let removed = engine.remove(&container.id).await;
        if outcome.is_ok() {
            outcome = removed;
        }
    }
    outcome
}

/// The run's end of the reaper's stdin.
pub(crate) struct Reaper {
    stdin: ChildStdin,
    child: Child,
}

impl Reaper {
    /// Starts the reaper of this run.
    ///
    /// # Errors
    /// When the system cannot start a process.
    pub(crate) fn start(engine: &Engine, invocation: &str) -> Result<Self> {
        let problem = |e: io::Error| CliError::user(format!("cannot start tp's own helper process: {e}")).because(&e);
        let mut command = Command::new(std::env::current_exe().map_err(problem)?);
        command
            .arg("reap")
            .arg(format!("--invocation={invocation}"))
            .args(engine.endpoint().to_flags())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        #[cfg(windows)]
        {
            // Neither the console's Ctrl-C nor its end are for it (CreateProcess flags, Windows API).
            const DETACHED_PROCESS: u32 = 0x8;
            const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
            std::os::windows::process::CommandExt::creation_flags(
                &mut command,
                DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP,
            );
        }
        let mut child = command.spawn().map_err(problem)?;
        let stdin = child.stdin.take().expect("stdin is piped");
        Ok(Self { stdin, child })
    }

    /// Tells the reaper which process is the docker CLI; `None` when that has ended.
    pub(crate) fn on_docker_cli(&mut self, pid: Option<u32>) {
        // A reaper that was killed can be told nothing; the run goes on without it.
        let _ = writeln!(self.stdin, "p{}", pid.unwrap_or(0));
    }

    /// Tells the reaper which engagement, held by the daemon in which container, ends with the run; `None` for none any more.
    pub(crate) fn on_engaged(&mut self, engaged: Option<(&str, &str)>) {
        let line = engaged.map_or_else(String::new, |(daemon, id)| format!("{daemon} {id}"));
        let _ = writeln!(self.stdin, "g{line}");
    }

    /// Has the reaper remove what the run made, but for containers that have ended by themselves.
    pub(crate) fn keep_ended(mut self) {
        let _ = self.stdin.write_all(b"e");
    }

    /// Ends the reaper: this run has cleaned up after itself, or what it made is to stay.
    pub(crate) fn keep(mut self) {
        let _ = self.stdin.write_all(b"k");
        drop(self.stdin);
        // It ends at once; waiting for it leaves no zombie to a parent that never looks.
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_without_keep_names_the_last_docker_cli() {
        for (heard, keep, spare, docker_cli) in [
            ("", false, Spare::Nothing, None),
            ("k", true, Spare::Nothing, None),
            ("p12\n", false, Spare::Nothing, Some(12)),
            ("p12\np0\n", false, Spare::Nothing, None),
            ("p12\np0\nk", true, Spare::Nothing, None),
            ("p12\np0\ne", false, Spare::Ended, None),
            ("p12\np3", false, Spare::Nothing, Some(12)),
            ("p-1\n", false, Spare::Nothing, None),
        ] {
            let said = Said { keep, spare, docker_cli, engaged: None };
            assert_eq!(interpret(heard.as_bytes()), said, "{heard:?}");
        }
    }

    #[test]
    fn stream_names_what_is_engaged() {
        let engaged = |daemon: &str, id: &str| Some(Engaged { daemon: daemon.into(), id: id.into() });
        for (heard, keep, expected) in [
            ("gabc tp-kiosk-1\n", false, engaged("abc", "tp-kiosk-1")),
            ("gabc tp-kiosk-1\np12\n", false, engaged("abc", "tp-kiosk-1")),
            ("gabc tp-kiosk-1\ng\n", false, None),
            ("gabc tp-k", false, None),
            ("gabc tp-kiosk-1\ng\nk", true, None),
        ] {
            let said = interpret(heard.as_bytes());
            assert_eq!((said.keep, said.engaged), (keep, expected), "{heard:?}");
        }
    }
}
