//! The tunnel as flows see it: a lane that may be away for a while and comes back, and lanes for those that move much.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tp_protocol::engage::EngagementId;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::lane::Direction;
use tp_protocol::limits::CONTINUE_AFTER_BYTES;
use tp_protocol::open::{Open, OpenRefused};
use tp_tunnel::client::{Arrived, Lane};
use tp_tunnel::error::FlowOpenError;
use tp_tunnel::flow::{Continuation, Flow};

use crate::daemon::backoff::Backoff;
use crate::daemon::bulk::{BulkLanes, Seat};

/// How long an open waits for a lane that is being made again.
pub(crate) const LANE_WAIT: Duration = Duration::from_secs(20);

/// How long a DNS query waits for it: less than the 5 s after which a stub resolver asks again (resolv.conf(5)).
const DNS_LANE_WAIT: Duration = Duration::from_secs(2);

/// Hands out the lane that is up. Clones share it.
#[derive(Clone)]
pub(crate) struct Tunnel(Rc<Shared>);

struct Shared {
    lane: watch::Sender<Option<Lane>>,
    bulk: BulkLanes,
    next_flow: Cell<u64>,
}

/// A flow as it is seen by who moves its bytes: it goes on on a lane for bulk once they are many.
pub(crate) struct Moving {
    tunnel: Tunnel,
    up_bytes: Cell<u64>,
    down_bytes: Cell<u64>,
    /// Its number, and what it takes to go on; until it does.
    waits: RefCell<Option<(u64, Continuation)>>,
    seat: RefCell<Option<Seat>>,
}

impl Moving {
    /// Counts bytes that were moved.
    pub(crate) fn count(self: &Rc<Self>, direction: Direction, len: usize) {
        let counter = match direction {
            Direction::Up => &self.up_bytes,
            Direction::Down => &self.down_bytes,
        };
        counter.set(counter.get() + len as u64);
        let (up, down) = (self.up_bytes.get(), self.down_bytes.get());
        let direction = if up > down { Direction::Up } else { Direction::Down };
        if up + down > CONTINUE_AFTER_BYTES
            && self.tunnel.0.bulk.has_room(direction)
            && let Some((flow, continuation)) = self.waits.take()
        {
            let moving = Rc::clone(self);
            spawn_local(async move {
                let seat = moving.tunnel.0.bulk.carry_on(flow, direction, continuation).await;
                moving.seat.replace(seat);
            });
        }
    }
}

impl Tunnel {
    /// Starts without a lane.
    pub(crate) fn new() -> Self {
        Self(Rc::new(Shared { lane: watch::Sender::new(None), bulk: BulkLanes::default(), next_flow: Cell::new(1) }))
    }

    /// The lanes for bulk.
    pub(crate) fn bulk(&self) -> &BulkLanes {
        &self.0.bulk
    }

    /// Replaces the lane. `None`: it is lost, opens wait for the next one.
    pub(crate) fn set_lane(&self, lane: Option<Lane>) {
        self.0.lane.send_replace(lane);
    }

    /// Opens a flow, once a lane is up. A lane that dies meanwhile is as good as none: the next one is waited for.
    ///
    /// # Errors
    /// The far end's refusal, or that no lane came up in time.
    pub(crate) async fn open(&self, open: Open) -> Result<(Flow, Rc<Moving>), FlowOpenError> {
        let number = self.0.next_flow.replace(self.0.next_flow.get() + 1);
        let open = Open { flow: Some(number), ..open };
        let mut flow = self.with_lane(LANE_WAIT, async |lane| lane.open(&open).await).await?;
        let waits = RefCell::new(Some((number, flow.continuation())));
        let moving = Moving {
            tunnel: self.clone(),
            up_bytes: Cell::default(),
            down_bytes: Cell::default(),
            waits,
            seat: RefCell::default(),
        };
        Ok((flow, Rc::new(moving)))
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

    /// The lane that is up, or the next one, however long that takes.
    pub(crate) async fn lane(&self) -> Lane {
        next_lane(&mut self.0.lane.subscribe()).await
    }

    /// Waits for a connection that arrives for an engagement, on whichever lane is up, however long that takes.
    pub(crate) async fn accept(&self, id: &EngagementId) -> Arrived {
        let mut lanes = self.0.lane.subscribe();
        let mut backoff = Backoff::new();
        loop {
            match next_lane(&mut lanes).await.accept(id).await {
                Ok(arrived) => return arrived,
                Err(error) => tracing::debug!(%id, %error, "a stream does not wait for connections any more"),
            }
            // The lane is lost, or the manager does not want more of these at the moment.
            tokio::select! {
                _ = lanes.changed() => {}
                () = backoff.wait() => {}
            }
        }
    }

    /// Does something on the lane that is up, and again on the next one when that one was lost: nothing has come of it.
    async fn with_lane<T>(
        &self,
        limit: Duration,
        act: impl AsyncFn(Lane) -> Result<T, FlowOpenError>,
    ) -> Result<T, FlowOpenError> {
        let mut lanes = self.0.lane.subscribe();
        loop {
            let Ok(lane) = timeout(limit, next_lane(&mut lanes)).await else {
                return Err(OpenRefused::new(ErrorClass::TimedOut, "the tunnel to the cluster is down").into());
            };
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

/// The lane that is up, or the next one. From then on `lanes` has changed once another one is.
async fn next_lane(lanes: &mut watch::Receiver<Option<Lane>>) -> Lane {
    loop {
        if let Some(lane) = &*lanes.borrow_and_update() {
            return lane.clone();
        }
        if lanes.changed().await.is_err() {
            // The tunnel is gone, and with it whoever waits.
            pending::<()>().await;
        }
    }
}
