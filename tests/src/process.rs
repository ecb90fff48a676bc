//! Programs under a time limit, with all they say kept.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;

use crate::runtime::block_on;

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// Its exit code, as a shell gives it: 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// All it wrote to stdout.
    pub stdout: String,
    /// All it wrote to stderr.
    pub stderr: String,
    /// From its start until it had ended and closed its output.
    pub took: Duration,
}

impl Outcome {
    /// Demands an exit code.
    ///
    /// # Panics
    /// With everything that the program said, when it is another one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of {self}");
        self
    }

    /// Demands success; returns what was written to stdout, without white space around it.
    ///
    /// # Panics
    /// With everything that the program said, when it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        self.exits(0).stdout.trim().to_owned()
    }

    /// Demands success and JSON on stdout.
    ///
    /// # Panics
    /// With everything that the program said, when it failed or wrote something else.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let outcome = self.exits(0);
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {outcome}"))
    }

    /// Demands that stdout and stderr together contain every one of `words`.
    ///
    /// # Panics
    /// With everything that the program said, when one is missing.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stdout.contains(word) || self.stderr.contains(word), "`{word}` is missing in {self}");
        }
        self
    }

    /// Demands an end within `limit`.
    ///
    /// # Panics
    /// When it took longer.
    #[track_caller]
    pub fn within(self, limit: Duration) -> Self {
        assert!(self.took <= limit, "more than {limit:?}: {self}");
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr, took } = self;
        write!(f, "`{command}`, exit code {code} after {took:.1?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

/// Where a program's standard input comes from.
#[derive(Clone, Debug, Default)]
pub enum Input {
    /// Nothing: the null device.
    #[default]
    Nothing,
    /// These bytes and then the end.
    Bytes(Vec<u8>),
    /// A pipe that stays open until the [`Running`] lets go of it.
    Open,
}

/// A program that was started. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    start: Instant,
    stdin: Option<ChildStdin>,
    stdout: Output,
    stderr: Output,
}

/// One of a program's two output streams, read as it comes.
#[derive(Debug)]
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Output {
    fn read(mut from: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = tokio::spawn(async move {
            let mut block = vec![0; 64 << 10];
            while let Ok(len @ 1..) = from.read(&mut block).await {
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&block[..len]);
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Running {
    /// Starts a program in a process group of its own, as a shell does.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: std::process::Command, input: Input) -> Self {
        let name = describe(&command);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let stdin = if matches!(input, Input::Nothing) { Stdio::null() } else { Stdio::piped() };
        block_on(async {
            let start = Instant::now();
            let mut child = Command::from(command)
                .stdin(stdin)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap_or_else(|e| panic!("`{name}` cannot be started: {e}"));
            let stdout = Output::read(child.stdout.take().expect("stdout is piped"));
            let stderr = Output::read(child.stderr.take().expect("stderr is piped"));
            let mut stdin = child.stdin.take();
            if let Input::Bytes(bytes) = input
                && let Some(mut pipe) = stdin.take()
            {
                // A program that ends without reading all of it is not at fault.
                tokio::spawn(async move { pipe.write_all(&bytes).await });
            }
            Self { name, child, start, stdin, stdout, stderr }
        })
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it was waited for already.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it was not waited for")
    }

    /// Sends a signal to the program alone.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.rustix_pid(), signal).unwrap_or_else(|e| panic!("`{}` cannot be signalled: {e}", self.name));
    }

    /// Sends a signal to the program and all it started in its group, as a terminal does on Ctrl-C.
    ///
    /// # Panics
    /// When all of them have ended.
    pub fn signal_group(&self, signal: Signal) {
        let sent = kill_process_group(self.rustix_pid(), signal);
        sent.unwrap_or_else(|e| panic!("the group of `{}` cannot be signalled: {e}", self.name));
    }

    fn rustix_pid(&self) -> Pid {
        Pid::from_raw(self.pid().cast_signed()).expect("a process id is not 0")
    }

    /// Writes to its standard input, which was asked to be [`Input::Open`].
    ///
    /// # Panics
    /// When the program does not take it.
    pub fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("the input is open");
        block_on(stdin.write_all(text.as_bytes())).unwrap_or_else(|e| panic!("`{}` reads no input: {e}", self.name));
    }

    /// What it wrote to stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, and for the end of its output: nothing that it leaves running may hold on to that.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Outcome {
        drop(self.stdin.take());
        let ended = block_on(async {
            tokio::time::timeout(limit, async {
                let status = self.child.wait().await;
                let _ = (&mut self.stdout.reader).await;
                let _ = (&mut self.stderr.reader).await;
                status
            })
            .await
        });
        let outcome = Outcome {
            command: std::mem::take(&mut self.name),
            code: ended.as_ref().map_or(-1, |status| status.as_ref().map_or(-1, code_of)),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            took: self.start.elapsed(),
        };
        assert!(ended.is_ok(), "no end of the program or of its output within {limit:?}: {outcome}");
        outcome
    }
}

/// Runs a program to its end.
///
/// # Panics
/// As [`Running::start`] and [`Running::wait`].
#[track_caller]
pub fn run(command: std::process::Command, input: Input, limit: Duration) -> Outcome {
    Running::start(command, input).wait(limit)
}

fn code_of(status: &ExitStatus) -> i32 {
    status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(-1)
}

fn describe(command: &std::process::Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
