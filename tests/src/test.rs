//! A test's turn, the connections it makes, and what has to be left when it is over: nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::panicking;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::docker::{self, Container, Spec};
use crate::given::given;
use crate::kubeconfig::Kubeconfig;
use crate::process::Outcome;
use crate::runtime::block_on;
use crate::tp::Tp;
use crate::{kubectl, wait};

/// How long everything may take to be gone after a command was killed.
pub const GONE: Duration = Duration::from_secs(10);

/// The turn of one test. Everything that a test makes borrows from it, and is gone before the next one's turn.
#[derive(Debug)]
pub struct Test {
    _turn: Turn,
}

#[derive(Debug)]
enum Turn {
    BesideOthers { _held: OwnedRwLockReadGuard<()> },
    Alone { _held: OwnedRwLockWriteGuard<()> },
}

impl Test {
    /// Waits for a turn beside other tests.
    ///
    /// # Panics
    /// When nothing was prepared to be tested.
    pub fn beside_others() -> Self {
        given();
        Self { _turn: Turn::BesideOthers { _held: block_on(turns().read_owned()) } }
    }

    /// Waits for a turn alone, for the benchmarks and for tests that change or measure what all share. The names of these
    /// begin with `alone_`, for `make test` to run them behind the others instead of having those wait.
    ///
    /// # Panics
    /// When nothing was prepared to be tested, and when the test has another name.
    pub fn alone() -> Self {
        given();
        let thread = std::thread::current();
        let is_known = thread.name().is_some_and(|name| name == "main" || name.contains("::alone_"));
        assert!(is_known, "the name of a test that runs alone begins with `alone_`");
        Self { _turn: Turn::Alone { _held: block_on(turns().write_owned()) } }
    }

    /// A name that no other test has, and the means to use it.
    pub fn scope(&self) -> Scope<'_> {
        Scope { owned: Owned::new(), _test: self }
    }

    /// Connects as the plain user, to stay connected.
    #[track_caller]
    pub fn connect(&self) -> Connection<'_> {
        let scope = self.scope();
        scope.tp(["connect"]).run().ok();
        Connection { scope }
    }

    /// A connection that is shared with the tests that run beside this one: nothing may be done to it.
    #[track_caller]
    pub fn shared(&self) -> Shared<'_> {
        static SHARED: Mutex<Weak<SharedConnection>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = shared.upgrade().unwrap_or_else(|| {
            let owned = Owned::new();
            owned.tp(["connect"]).run().ok();
            let client = Spec::client().network(&format!("container:{}", owned.container())).start();
            Arc::new(SharedConnection { client, owned })
        });
        *shared = Arc::downgrade(&connection);
        Shared { connection, _test: self }
    }
}

fn turns() -> Arc<RwLock<()>> {
    static TURNS: OnceLock<Arc<RwLock<()>>> = OnceLock::new();
    Arc::clone(TURNS.get_or_init(Arc::default))
}

/// A name for a connection with a home directory and a kubeconfig whose context bears it, so that it is the default
/// name. Everything in the engine that belongs to it is removed in the end.
#[derive(Debug)]
pub struct Scope<'t> {
    owned: Owned,
    _test: &'t Test,
}

impl Scope<'_> {
    /// The connection's name.
    pub fn name(&self) -> &str {
        &self.owned.name
    }

    /// Name of its container.
    pub fn container(&self) -> String {
        self.owned.container()
    }

    /// The home directory, which the test may write to.
    pub fn home(&self) -> &Path {
        self.owned.home.path()
    }

    /// A `tp` command line of this user, about this connection whatever else is connected.
    pub fn tp<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Tp {
        self.owned.tp(args)
    }

    /// `tp docker-run` with `args`: in the connection of this scope, which is made when it is not there.
    pub fn docker_run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Tp {
        self.owned.tp(["docker-run"].into_iter().chain(args))
    }

    /// A copy of the user's kubeconfig, whose context bears the scope's name.
    pub fn kubeconfig(&self) -> Kubeconfig {
        Kubeconfig::of_user().context(self.name())
    }

    /// Connects through a `tp-sample relay` before the API server, which is given `args`. The tunnel's way goes with it.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn connect_through_relay(&self, args: &[&str]) -> Container {
        let (host, port) = self.kubeconfig().server_address();
        let (target, listen) = (format!("{host}:{port}"), format!("0.0.0.0:{port}"));
        let relay = ["relay", "--listen", &listen, "--target", &target];
        let relay = Spec::sample(relay.into_iter().chain(args.iter().copied())).start();
        let path = self.kubeconfig().through(&relay.bridge_ip()).save(self.home());
        self.tp(["connect"]).kubeconfig(&path).run().ok();
        relay
    }

    /// Demands that the engine holds nothing of this connection, or does not within `limit`, and that no process of
    /// this user is left on the machine.
    ///
    /// # Panics
    /// When something is left.
    #[track_caller]
    pub fn leaves_nothing_within(&self, limit: Duration) {
        wait::until(limit, "everything to be gone", || {
            let mut left = docker::traces_of(self.name());
            left.extend(crate::proc::with_home(self.home()));
            if left.is_empty() { Ok(()) } else { Err(format!("left: {left:?}")) }
        });
    }

    /// A container that joins the connection of this scope, past the CLI.
    #[track_caller]
    pub fn join(&self, spec: Spec) -> Container {
        spec.network(&format!("container:{}", self.container())).start()
    }

    /// The connection's status, as JSON.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        self.tp(["status", "--output", "json"]).run().json()
    }
}

/// A connection that stays until this is dropped.
#[derive(Debug)]
pub struct Connection<'t> {
    scope: Scope<'t>,
}

impl<'t> std::ops::Deref for Connection<'t> {
    type Target = Scope<'t>;

    fn deref(&self) -> &Scope<'t> {
        &self.scope
    }
}

impl Connection<'_> {
    /// A joined container with the usual clients.
    #[track_caller]
    pub fn client(&self) -> Container {
        self.join(Spec::client())
    }
}

/// See [`Test::shared`].
#[derive(Debug)]
pub struct Shared<'t> {
    connection: Arc<SharedConnection>,
    _test: &'t Test,
}

#[derive(Debug)]
struct SharedConnection {
    client: Container,
    owned: Owned,
}

impl Shared<'_> {
    /// A joined container with the usual clients.
    pub fn client(&self) -> &Container {
        &self.connection.client
    }

    /// Runs a script in the joined container.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Outcome {
        self.client().sh(script)
    }

    /// Starts another container that joins.
    #[track_caller]
    pub fn join(&self, spec: Spec) -> Container {
        spec.network(&format!("container:{}", self.connection.owned.container())).start()
    }

    /// Name of the daemon container.
    pub fn container(&self) -> String {
        self.connection.owned.container()
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        if panicking() {
            self.connection.owned.print_state();
        }
    }
}

/// A name, its home, and all that the engine holds under the name.
#[derive(Debug)]
struct Owned {
    name: String,
    home: TempDir,
    kubeconfig: PathBuf,
}

impl Owned {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("e2e-{:x}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let home = tempfile::Builder::new().prefix("tp-e2e-").tempdir().expect("there is room for a folder");
        let kubeconfig = Kubeconfig::of_user().context(&name).save(home.path());
        Self { name, home, kubeconfig }
    }

    fn container(&self) -> String {
        format!("tp-{}", self.name)
    }

    fn tp<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Tp {
        let args: Vec<_> = args.into_iter().collect();
        let tp = Tp::new(self.home.path()).kubeconfig(&self.kubeconfig).env("TP_CONTEXT", &self.name);
        // Other tests' connections are there as well, and these commands would ask which one is meant.
        let is_about_one = matches!(
            args.first(),
            Some(&("status" | "quit" | "intercept" | "replace" | "wiretap" | "ingest" | "leave" | "list"))
        );
        let tp = if is_about_one { tp.env("TP_CONNECTION", &self.name) } else { tp };
        tp.args(args)
    }

    /// All that helps to understand a failure.
    fn print_state(&self) {
        let container = self.container();
        eprintln!("=== {container}: {:?}", docker::traces_of(&self.name));
        eprintln!("{}", docker::logs(&container, "40"));
        eprintln!("=== {}", self.tp(["status"]).run());
        let manager = kubectl::admin(&["-n", &given().manager_namespace, "logs", "tp-manager-0", "--tail=15"]);
        eprintln!("=== {manager}");
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if panicking() && !docker::traces_of(&self.name).is_empty() {
            self.print_state();
        }
        docker::remove(&self.container());
        for container in docker::labelled(&format!("tp.connection={}", self.name)) {
            docker::remove(&container.id.unwrap_or_default());
        }
    }
}
