//! kubectl, for what the administrator does in a cluster and what the plain user may not.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::given::given;
use crate::process::{Input, Outcome, Running, run};
use crate::wait::until;

/// How long a command may take, those that wait for something included.
const LIMIT: Duration = Duration::from_secs(90);

/// Runs kubectl as the administrator.
#[track_caller]
pub fn admin(args: &[&str]) -> Outcome {
    with(&given().admin_kubeconfig, args, Input::Nothing)
}

/// Runs kubectl as the plain user.
#[track_caller]
pub fn user(args: &[&str]) -> Outcome {
    with(&given().user_kubeconfig, args, Input::Nothing)
}

/// Applies objects as the administrator.
#[track_caller]
pub fn apply(objects: &Value) {
    admin_with(&["apply"], objects).ok();
}

/// Applies objects as the administrator, as a tool that does it again and again: server-side, with a field manager of its own, and
/// taking nothing from others.
#[track_caller]
pub fn apply_as_gitops(objects: &Value) -> Outcome {
    admin_with(&["apply", "--server-side", "--field-manager=gitops"], objects)
}

/// What the API server would make of new objects, as the administrator.
#[track_caller]
pub fn dry_run(objects: &Value) -> Value {
    admin_with(&["create", "--dry-run=server", "-o", "json"], objects).json()
}

/// Runs kubectl as the administrator, on objects.
#[track_caller]
fn admin_with(args: &[&str], objects: &Value) -> Outcome {
    let input = Input::Bytes(objects.to_string().into_bytes());
    with(&given().admin_kubeconfig, &[args, &["-f", "-"]].concat(), input)
}

/// Creates an object as the plain user; returns what the API server made of it. For reviews, which are answers. The user
/// may not read the schemas that kubectl would check it against.
#[track_caller]
pub fn user_creates(object: &Value) -> Value {
    let input = Input::Bytes(object.to_string().into_bytes());
    with(&given().user_kubeconfig, &["create", "--validate=false", "-f", "-", "-o", "json"], input).json()
}

#[track_caller]
fn with(kubeconfig: &Path, args: &[&str], input: Input) -> Outcome {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(kubeconfig).args(args);
    run(command, input, LIMIT)
}

/// A running `kubectl port-forward`. It ends with this.
#[derive(Debug)]
pub struct Forward {
    address: String,
    _running: Running,
}

impl Forward {
    /// Where it listens on this machine.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// Starts `kubectl port-forward` to `port` as the administrator, and waits until it listens.
///
/// # Panics
/// When it does not within `limit`.
pub fn port_forward(namespace: &str, object: &str, port: u16, limit: Duration) -> Forward {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(&given().admin_kubeconfig);
    command.args(["-n", namespace, "port-forward", "--address", "127.0.0.1", object, &format!(":{port}")]);
    let running = Running::start(command, Input::Nothing);
    let (address, _) = until(limit, "kubectl port-forward to listen", || {
        let said = running.stdout();
        let address = said.split_whitespace().find(|word| word.starts_with("127.0.0.1:"));
        address.map(str::to_owned).ok_or_else(|| running.stderr())
    });
    Forward { address, _running: running }
}

/// The address of one pod that carries `label`.
#[track_caller]
pub fn pod_ip(namespace: &str, label: &str) -> String {
    let path = "jsonpath={.items[0].status.podIP}";
    admin(&["-n", namespace, "get", "pods", "-l", label, "-o", path]).ok()
}

/// All addresses of the pods that carry `label`, of both families where the cluster has both.
#[track_caller]
pub fn pod_ips(namespace: &str, label: &str) -> Vec<IpAddr> {
    let path = "jsonpath={.items[*].status.podIPs[*].ip}";
    addresses(&admin(&["-n", namespace, "get", "pods", "-l", label, "-o", path]).ok())
}

/// The cluster addresses of a service, one of each family that it has.
#[track_caller]
pub fn service_ips(namespace: &str, service: &str) -> Vec<IpAddr> {
    let path = "jsonpath={.spec.clusterIPs[*]}";
    addresses(&admin(&["-n", namespace, "get", "service", service, "-o", path]).ok())
}

fn addresses(list: &str) -> Vec<IpAddr> {
    list.split_whitespace().map(|ip| ip.parse().expect("the API server names addresses")).collect()
}

/// The cluster address of a service.
#[track_caller]
pub fn service_ip(namespace: &str, service: &str) -> String {
    admin(&["-n", namespace, "get", "service", service, "-o", "jsonpath={.spec.clusterIP}"]).ok()
}

/// Objects that go away with this.
#[derive(Debug)]
pub struct Applied(Value);

impl Applied {
    /// Applies objects, as often as it takes: some have to wait for others.
    ///
    /// # Panics
    /// When the cluster does not take them within `limit`.
    pub fn within(limit: Duration, objects: Value) -> Self {
        until(limit, "the cluster to take the objects", || {
            let outcome = admin_with(&["apply"], &objects);
            if outcome.code == 0 { Ok(()) } else { Err(outcome.stderr) }
        });
        Self(objects)
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        admin_with(&["delete", "--wait=false", "--ignore-not-found"], &self.0);
    }
}

/// A namespace that goes away with this, and all in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace.
    ///
    /// # Panics
    /// When the cluster refuses.
    pub fn create(name: &str) -> Self {
        apply(&serde_json::json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
        Self { name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the plain user the right to port-forward to the manager's pod in it, and nothing else.
    ///
    /// # Panics
    /// When the cluster refuses.
    pub fn let_user_connect(&self) {
        grant(&self.name, "tp-user", "pods/portforward", &["tp-manager-0"], &["get", "create"]);
    }

    /// Gives the plain user the right that restarting its Deployments takes, and nothing else.
    ///
    /// # Panics
    /// When the cluster refuses.
    pub fn let_user_restart(&self) {
        grant(&self.name, "tp-restart", "deployments.apps", &[], &["patch"]);
    }

    /// Gives the plain user the right that engaging its workloads takes, and nothing else.
    ///
    /// # Panics
    /// When the cluster refuses.
    pub fn let_user_engage(&self) {
        let_user_engage(&self.name);
    }
}

/// Gives the plain user the right that engaging the workloads of a namespace takes, and nothing else.
///
/// # Panics
/// When the cluster refuses.
pub fn let_user_engage(namespace: &str) {
    grant(namespace, "tp-engage", "pods/exec", &[], &["create"]);
}

/// Who the plain user is to RBAC.
///
/// # Panics
/// When nothing binds them to the right to connect.
fn user_subjects() -> Vec<Value> {
    let manager_namespace = &given().manager_namespace;
    let bindings = admin(&["-n", manager_namespace, "get", "rolebindings", "-o", "json"]).json();
    let binds = |binding: &&Value| binding["roleRef"]["name"] == "tp-user";
    let bindings = bindings["items"].as_array().into_iter().flatten().filter(binds);
    let subjects: Vec<Value> =
        bindings.flat_map(|binding| binding["subjects"].as_array().cloned().unwrap_or_default()).collect();
    assert!(!subjects.is_empty(), "no RoleBinding of the Role tp-user in {manager_namespace}");
    subjects
}

/// Makes a Role with one rule and binds the plain user to it. `resource` is one of the core group, or has its group behind a dot.
fn grant(namespace: &str, role: &str, resource: &str, names: &[&str], verbs: &[&str]) {
    let metadata = serde_json::json!({ "name": role, "namespace": namespace });
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    apply(&serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": [
            { "apiGroups": [group], "resources": [resource], "resourceNames": names, "verbs": verbs } ] },
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
          "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role },
          "subjects": user_subjects() },
    ] }));
}

impl Drop for Namespace {
    fn drop(&mut self) {
        admin(&["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"]);
    }
}
