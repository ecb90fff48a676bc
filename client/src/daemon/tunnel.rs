//! The tunnel as flows see it: a lane that may be away for a while and comes back.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::{Open, OpenRefused};
use tp_tunnel::client::Lane;
use tp_tunnel::error::FlowOpenError;
use tp_tunnel::flow::Flow;

/// How long an open waits for a lane that is being made again.
pub(crate) const LANE_WAIT: Duration = Duration::from_secs(20);

/// How long a DNS query waits for it: less than the 5 s after which a stub resolver asks again (resolv.conf(5)).
const DNS_LANE_WAIT: Duration = Duration::from_secs(2);

/// Hands out the lane that is up. Clones share it.
#[derive(Clone)]
pub(crate) struct Tunnel {
    lane: Rc<watch::Sender<Option<Lane>>>,
}

impl Tunnel {
    /// Starts without a lane.
    pub(crate) fn new() -> Self {
        Self { lane: Rc::new(watch::Sender::new(None)) }
    }

    /// Replaces the lane. `None`: it is lost, opens wait for the next one.
    pub(crate) fn set_lane(&self, lane: Option<Lane>) {
        self.lane.send_replace(lane);
    }

    /// Opens a flow, once a lane is up. A lane that dies meanwhile is as good as none: the next one is waited for.
    ///
    /// # Errors
    /// The far end's refusal, or that no lane came up in time.
    pub(crate) async fn open(&self, open: &Open) -> Result<Flow, FlowOpenError> {
        self.with_lane(LANE_WAIT, async |lane| lane.open(open).await).await
    }

    /// Asks the cluster's DNS, once a lane is up.
    ///
    /// # Errors
    /// The manager's refusal, or that the tunnel is down.
    pub(crate) async fn resolve(&self, query: Bytes) -> Result<Bytes, FlowOpenError> {
        self.with_lane(DNS_LANE_WAIT, async |lane| lane.resolve(query.clone()).await).await
    }

    /// Has the manager ping `dst` with `data`, and returns the data of the reply. Without a lane nothing is asked.
    ///
    /// # Errors
    /// [`FlowOpenError`] when there was no reply.
    pub(crate) async fn echo(&self, dst: IpAddr, data: Bytes) -> Result<Bytes, FlowOpenError> {
        self.with_lane(Duration::ZERO, async |lane| lane.echo(dst, data.clone()).await).await
    }

    /// Does something on the lane that is up, and again on the next one when that one was lost: nothing has come of it.
    async fn with_lane<T>(
        &self,
        limit: Duration,
        act: impl AsyncFn(Lane) -> Result<T, FlowOpenError>,
    ) -> Result<T, FlowOpenError> {
        let mut lanes = self.lane.subscribe();
        loop {
            let up = timeout(limit, lanes.wait_for(Option::is_some)).await;
            let lane = up.ok().and_then(Result::ok).and_then(|lane| lane.clone());
            let Some(lane) = lane else {
                return Err(OpenRefused::new(ErrorClass::TimedOut, "the tunnel to the cluster is down").into());
            };
            lanes.mark_unchanged();
            match act(lane).await {
                Err(FlowOpenError::Lane(error)) => {
                    let replaced = timeout(limit, lanes.changed()).await;
                    if !matches!(replaced, Ok(Ok(()))) {
                        return Err(FlowOpenError::Lane(error));
                    }
                }
                other => return other,
            }
        }
    }
}
