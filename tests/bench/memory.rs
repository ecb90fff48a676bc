//! Resident memory.

use std::time::Duration;

use serde_json::Value;
use tp_tests::given::given;
use tp_tests::test::Connection;
use tp_tests::wait::try_until;
use tp_tests::{docker, kubectl, proc};

/// The kubelet measures every 10 to 20 s (cAdvisor, `--housekeeping-interval` and its jitter).
const MEASURED_WITHIN: Duration = Duration::from_secs(40);

/// Resident memory of all processes in the daemon container, the init included. Pages that they share count once, which
/// takes root to see; without it they count for each. Needs the engine on this machine.
pub(crate) fn of_daemon(connection: &Connection<'_>) -> u64 {
    docker::processes(&connection.container()).into_iter().filter_map(proc::resident_bytes).sum()
}

/// Resident memory of the manager as its node's kubelet measures it, after the loads; `None` where it does not.
pub(crate) fn of_manager() -> Option<u64> {
    let namespace = given().manager_namespace.as_str();
    let node = ["-n", namespace, "get", "pod", "tp-manager-0", "-o", "jsonpath={.spec.nodeName}"];
    let node = kubectl::admin(&node).ok();
    let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
    let look = || {
        let summary = kubectl::admin(&["get", "--raw", &path]).json();
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let manager = pods.into_iter().find(|pod| pod["podRef"]["name"] == "tp-manager-0");
        let memory = manager.map(|pod| pod["containers"][0]["memory"].clone()).unwrap_or(Value::Null);
        Some((memory["time"].as_str()?.to_owned(), memory["rssBytes"].as_u64()?))
    };
    let (first, _) = look()?;
    let fresh = || look().filter(|(time, _)| *time != first).ok_or(());
    try_until(MEASURED_WITHIN, fresh).ok().map(|((_, bytes), _)| bytes)
}
