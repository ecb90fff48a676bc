//! What the kubelet of the manager's node has measured of the manager.

use std::time::Duration;

use serde_json::Value;
use tp_tests::given::given;
use tp_tests::kubectl;
use tp_tests::wait::try_until;

/// The manager's pod.
pub(crate) const MANAGER: &str = "tp-manager-0";

/// The kubelet measures every 10 to 20 s (cAdvisor, `--housekeeping-interval` and its jitter).
const MEASURED_WITHIN: Duration = Duration::from_secs(40);

/// What is measured of a container, as the kubelet's summary names it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Measure {
    /// Anonymous memory, in bytes.
    Memory,
    /// Processor time since the start, in nanoseconds.
    Cpu,
}

/// Waits for the next measurement; `None` where the kubelet has none.
pub(crate) fn next(measure: Measure) -> Option<u64> {
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", pod_field("{.spec.nodeName}"));
    let (group, field) = match measure {
        Measure::Memory => ("memory", "rssBytes"),
        Measure::Cpu => ("cpu", "usageCoreNanoSeconds"),
    };
    let look = || {
        let summary = kubectl::admin(&["get", "--raw", &path]).json();
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let manager = pods.into_iter().find(|pod| pod["podRef"]["name"] == MANAGER);
        let measured = manager.map(|pod| pod["containers"][0][group].clone()).unwrap_or(Value::Null);
        Some((measured["time"].as_str()?.to_owned(), measured[field].as_u64()?))
    };
    let (first, _) = look()?;
    let fresh = || look().filter(|(time, _)| *time != first).ok_or(());
    try_until(MEASURED_WITHIN, fresh).ok().map(|((_, value), _)| value)
}

/// A field of the manager's pod.
pub(crate) fn pod_field(path: &str) -> String {
    let output = format!("jsonpath={path}");
    kubectl::admin(&["-n", &given().manager_namespace, "get", "pod", MANAGER, "-o", &output]).ok()
}
