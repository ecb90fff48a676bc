//! An imitation of a container engine: enough of Docker's API for commands that only look.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::daemon::Daemon;

/// What the engine answers.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    /// Version of its API.
    pub(crate) api: &'static str,
    /// System of its containers.
    pub(crate) os: &'static str,
    /// Its containers, as `/containers/json` lists them.
    pub(crate) containers: Value,
    /// State of every container, as inspecting one shows it.
    pub(crate) state: Value,
    /// Who answers in its containers.
    pub(crate) daemon: Daemon,
}

impl Default for Engine {
    fn default() -> Self {
        Self { api: "1.41", os: "linux", containers: json!([]), state: json!({}), daemon: Daemon::default() }
    }
}

impl Engine {
    /// An engine with one connection, `dev`, whose container is in `state` (`running` or `exited`).
    pub(crate) fn with_connection(state: &str, exit_code: i64) -> Self {
        let labels = json!({
            "tp.role": "daemon", "tp.connection": "dev", "tp.version": env!("CARGO_PKG_VERSION"), "tp.lifetime": "detached",
            "tp.context": "dev", "tp.server": "https://192.0.2.1:6443", "tp.namespace": "web",
            "tp.manager-namespace": "tp-system", "tp.invocation": "00",
        });
        let container = json!({"Id": "0123", "Names": ["/tp-dev"], "State": state, "Labels": labels, "Created": 1});
        let inspected = json!({"Status": state, "Running": state == "running", "ExitCode": exit_code});
        Self { containers: json!([container]), state: inspected, ..Self::default() }
    }

    /// Begins to answer on a socket in `dir`; ends with the test's process. Returns the value for `DOCKER_HOST`.
    pub(crate) fn start(self, dir: &Path) -> String {
        let path: PathBuf = dir.join("engine.sock");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (engine, stream) = (self.clone(), stream.unwrap());
                std::thread::spawn(move || engine.serve(stream));
            }
        });
        format!("unix://{}", path.display())
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let mut request = String::new();
            if reader.read_line(&mut request).unwrap_or(0) == 0 {
                return;
            }
            let mut length = 0;
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).unwrap();
                if header.trim().is_empty() {
                    break;
                }
                if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let path = request.split_whitespace().nth(1).unwrap_or_default();
            if path.contains("/wait") {
                // The container does not end while the test runs.
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                let _ = reader.read(&mut [0]);
                return;
            }
            if path.contains("/exec/") && path.ends_with("/start") {
                let _ = stream.write_all(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
                return self.daemon.talk(reader, stream);
            }
            let (status, body) = self.answer(path);
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).is_err() {
                return;
            }
        }
    }

    fn answer(&self, path: &str) -> (u16, Value) {
        if path.ends_with("/version") {
            let version = json!({"ApiVersion": self.api, "Version": "1.2.3", "Os": self.os, "Arch": "amd64"});
            (200, version)
        } else if path.contains("/containers/json") {
            let role = if path.contains("handler") { "handler" } else { "" };
            let list = self.containers.as_array().unwrap().iter();
            let matching = list.filter(|c| {
                let found = c["Labels"]["tp.role"].as_str().unwrap_or_default();
                if role.is_empty() { found != "handler" } else { found == role }
            });
            (200, matching.cloned().collect())
        } else if path.ends_with("/exec") {
            (201, json!({"Id": "exec"}))
        } else if path.ends_with("/info") {
            (200, json!({"NCPU": 4}))
        } else if path.contains("/json") {
            (200, json!({"Id": "0123", "State": self.state}))
        } else {
            (500, json!({"message": format!("the imitation does not know {path}")}))
        }
    }
}
