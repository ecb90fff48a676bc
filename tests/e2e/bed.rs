//! The workload that is engaged in tests, and a pod that calls it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::panicking;
use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::docker::{Container, Spec};
use tp_tests::given::given;
use tp_tests::kubectl::{self, Namespace};
use tp_tests::process::Outcome;
use tp_tests::test::{Scope, Test};

/// User and group of the workload.
pub(crate) const UID: u32 = 65532;
pub(crate) const GID: u32 = 4242;

/// A Secret's value of several lines, with all that shells look at.
const PEM: &str = "-----BEGIN KEY-----\nit's $HOME `id` \"q\" \\n ! # %x\n\n-----END KEY-----\n";

/// How long a change of who gets the traffic may take to show.
pub(crate) const SHOWS_WITHIN: Duration = Duration::from_secs(10);

/// How long the cluster may take to be rid of a stand-in.
pub(crate) const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// A namespace with `web`: a Deployment of two pods behind a Service, whose container has variables of every kind; a
/// headless Service `peers` on the same pods; and a pod that calls them.
///
/// Making one takes longer than most tests that use it, so what a test leaves as it was is used by the next.
pub(crate) struct Bed {
    namespace: Option<Namespace>,
    is_as_before: Cell<bool>,
    made: Arc<Made>,
}

/// Beds that nobody uses. They are gone with the last test that uses one.
#[derive(Default)]
struct Made(Mutex<Vec<Namespace>>);

impl Made {
    fn get() -> Arc<Self> {
        static MADE: Mutex<Weak<Made>> = Mutex::new(Weak::new());
        let mut shared = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let made = shared.upgrade().unwrap_or_default();
        *shared = Arc::downgrade(&made);
        made
    }
}

impl Bed {
    /// The plain user may engage its workloads.
    pub(crate) fn get() -> Self {
        let made = Made::get();
        let free = made.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let namespace = free.unwrap_or_else(|| {
            let namespace = namespace_with_web();
            namespace.let_user_engage();
            namespace
        });
        Self { namespace: Some(namespace), is_as_before: Cell::new(false), made }
    }

    /// One that nobody else has used or will use.
    pub(crate) fn own() -> Self {
        let bed = Self::without_right();
        bed.namespace().let_user_engage();
        bed
    }

    /// One of its own for a plain user who may not engage its workloads.
    pub(crate) fn without_right() -> Self {
        Self { namespace: Some(namespace_with_web()), is_as_before: Cell::new(false), made: Arc::default() }
    }

    fn namespace(&self) -> &Namespace {
        self.namespace.as_ref().expect("it goes with the bed")
    }

    /// The plain user may restart its workloads as well.
    pub(crate) fn let_user_restart(&self) {
        self.namespace().let_user_restart();
    }

    pub(crate) fn name(&self) -> &str {
        self.namespace().name()
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Outcome {
        kubectl::admin(&[&["-n", self.name()], args].concat())
    }

    /// Runs a script in the pod that calls.
    pub(crate) fn call(&self, script: &str) -> Outcome {
        self.kubectl(&["exec", "caller", "--", "bash", "-c", script])
    }

    /// Who answers a request with these arguments of curl.
    pub(crate) fn who(&self, args: &str) -> String {
        let answer = self.call(&format!("curl -sS --max-time 5 {args} http://web/"));
        let report: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        report["name"].as_str().map_or_else(|| answer.to_string(), str::to_owned)
    }

    /// Waits until `name` answers requests with these arguments of curl.
    pub(crate) fn until_answered_by(&self, name: &str, args: &str) {
        let request = format!("curl -sS --max-time 5 {args} http://web/ 2>&1");
        self.call(&until_says(SHOWS_WITHIN, &request, &format!("\"name\":\"{name}\""))).ok();
    }

    /// What the workload's variables are, as its pod has them.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("APP_NAME", "cluster".to_owned()),
            ("MODE", "fast  and loud ".to_owned()),
            ("SET_mode", "fast  and loud ".to_owned()),
            ("PEM", PEM.to_owned()),
            ("POD_NAMESPACE", self.name().to_owned()),
            ("URL", format!("http://{}/$(MODE)/$(NONE)", self.name())),
            ("EMPTY", String::new()),
        ]
    }

    /// Nothing of tp is left, and the Service is what it was.
    pub(crate) fn is_as_before(&self) {
        let timeout = format!("--timeout={}s", SETTLES_WITHIN.as_secs());
        self.kubectl(&["wait", "--for=delete", "leases", "--all", &timeout]).ok();
        self.kubectl(&["wait", "--for=delete", "replicasets,pods", "-l", "tp/stand-in", &timeout]).ok();
        assert_eq!(self.kubectl(&["get", "leases", "-o", "name"]).ok(), "");
        let selector = self.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.selector}"]).ok();
        assert_eq!(selector, r#"{"app":"web"}"#);
        self.is_as_before.set(true);
    }

    /// Starts a request after another, each on a connection of its own, for as long as the file is there.
    pub(crate) fn start_load(&self) {
        let load = "rm -f /tmp/done; touch /tmp/load; (while [ -e /tmp/load ]; do sleep 0.02; \
            curl -sS -o /dev/null -w '%{http_code}\\n' --max-time 10 http://web/ || echo failed; \
            done > /tmp/codes 2>&1; touch /tmp/done) < /dev/null > /dev/null 2>&1 &";
        self.call(load).ok();
    }

    /// Ends the load: how many requests were answered, and what became of the others.
    pub(crate) fn end_load(&self) -> (usize, String) {
        let codes = self.call("rm /tmp/load; until [ -e /tmp/done ]; do sleep 0.1; done; cat /tmp/codes").ok();
        let (answered, others): (Vec<&str>, Vec<&str>) = codes.lines().partition(|line| *line == "200");
        (answered.len(), others.join("\n"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let namespace = self.namespace.take().filter(|_| self.is_as_before.get() && !panicking());
        self.made.0.lock().unwrap_or_else(PoisonError::into_inner).extend(namespace);
    }
}

/// A script that repeats `command` until it prints `text`, and ends with 1 and what it printed last if it does not within
/// `limit`.
pub(crate) fn until_says(limit: Duration, command: &str, text: &str) -> String {
    format!(
        "until said=$({command}); [[ $said == *'{text}'* ]]; do \
           ((SECONDS < {})) || {{ echo \"not {text} but: $said\"; exit 1; }}; sleep 0.1; done",
        limit.as_secs()
    )
}

/// Labels of the workload's pods.
fn labels() -> Value {
    json!({ "app": "web" })
}

/// What a container of a bed may, in a namespace that is restricted.
pub(crate) fn security() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": UID, "runAsGroup": GID,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// The Deployment `web` of a bed.
pub(crate) fn deployment(namespace: &str) -> Value {
    let web = json!({
        "name": "web", "image": given().cluster_sample_image, "securityContext": security(), "workingDir": "/tmp",
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "resources": { "limits": { "memory": "64Mi", "cpu": "500m" }, "requests": { "memory": "16Mi", "cpu": "10m" } },
        "envFrom": [{ "configMapRef": { "name": "settings" }, "prefix": "SET_" }],
        "env": [
            { "name": "APP_NAME", "value": "cluster" },
            { "name": "MODE", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "mode" } } },
            { "name": "PEM", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "pem" } } },
            { "name": "POD_NAMESPACE", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } } },
            { "name": "URL", "value": "http://$(POD_NAMESPACE)/$$(MODE)/$(NONE)" },
            { "name": "EMPTY", "value": "" },
        ],
        "readinessProbe": { "httpGet": { "path": "/status/200", "port": "http" }, "periodSeconds": 1 },
    });
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web", "namespace": namespace }, "spec": {
        "replicas": 2,
        "selector": { "matchLabels": labels() },
        "template": { "metadata": { "labels": labels() }, "spec": { "containers": [web] } },
    } })
}

fn namespace_with_web() -> Namespace {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("bed-{:x}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let namespace = Namespace::create(&name);
    let metadata = |object: &str| json!({ "name": object, "namespace": name });
    let ports = json!([{ "name": "http", "port": 80, "targetPort": "http" }]);
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted" } } },
        { "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("settings"),
          "data": { "mode": "fast  and loud " } },
        { "apiVersion": "v1", "kind": "Secret", "metadata": metadata("keys"), "stringData": { "pem": PEM } },
        deployment(&name),
        { "apiVersion": "v1", "kind": "Service", "metadata": metadata("web"),
          "spec": { "selector": labels(), "ports": ports } },
        { "apiVersion": "v1", "kind": "Service", "metadata": metadata("peers"),
          "spec": { "selector": labels(), "clusterIP": "None", "ports": ports } },
        { "apiVersion": "v1", "kind": "Pod", "metadata": metadata("caller"), "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "caller", "image": given().cluster_client_image,
                "command": ["sleep", "infinity"], "securityContext": security() }],
        } },
    ] }));
    let wait = |object: &str, condition: &str| {
        kubectl::admin(&["-n", &name, "wait", &format!("--for=condition={condition}"), object, "--timeout=60s"]).ok();
    };
    wait("pod/caller", "Ready");
    wait("deployment/web", "Available");
    namespace
}

pub(crate) fn connect<'t>(test: &'t Test, bed: &Bed) -> Scope<'t> {
    let scope = test.scope();
    scope.tp(["connect", "--namespace", bed.name()]).run().ok();
    scope
}

/// A handler in the network of a connection, where `web` would listen.
pub(crate) fn handler(scope: &Scope<'_>, name: &str) -> Container {
    scope.join(Spec::sample(["serve", "--name", name]))
}

pub(crate) fn intercept(scope: &Scope<'_>, flags: &[&str]) -> Outcome {
    scope.tp([&["intercept", "web"], flags].concat()).run()
}
