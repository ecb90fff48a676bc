//! The way to a client's handler: over the connection to the manager, whichever that is at the moment.
//!
//! | module | what it owns |
//! |---|---|
//! | [`stream`] | a flow as a byte stream |
//! | [`datagrams`] | a flow as datagrams |

mod datagrams;
mod stream;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tp_protocol::engage::EngagementId;
use tp_protocol::engage::reach::Arrival;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::{OpenRefused, Transport};
use tp_tunnel::client::Lane;
use tp_tunnel::error::FlowOpenError;
use tp_tunnel::flow::Flow;

use crate::engine::destination::{Datagrams, Destination, Opening};
use crate::engine::stream::BoxStream;
use datagrams::FlowDatagrams;
use stream::FlowStream;

/// The lane to the manager, while there is one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CurrentLane(
    /// Held for one look or one change at a time.
    Arc<Mutex<Option<Lane>>>,
);

/// A lane that can be used for as long as this lives.
#[derive(Debug)]
pub(crate) struct InUse(CurrentLane);

impl CurrentLane {
    /// Has handlers be reached over `lane` until what is returned is dropped.
    pub(crate) fn put(&self, lane: Lane) -> InUse {
        self.replace(Some(lane));
        InUse(self.clone())
    }

    fn replace(&self, lane: Option<Lane>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = lane;
    }

    fn lane(&self) -> Option<Lane> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.replace(None);
    }
}

/// The handler of one engaged port. Without a lane it is away.
#[derive(Debug)]
pub(crate) struct Handler {
    lane: CurrentLane,
    /// What the manager knows the engagement by.
    id: EngagementId,
    port: u16,
}

impl Handler {
    /// The handler of `port` of the engagement `id`, which is that of the whole engagement.
    pub(crate) fn new(lane: CurrentLane, id: EngagementId, port: u16) -> Self {
        Self { lane, id, port }
    }

    async fn reach(&self, transport: Transport, peer: SocketAddr) -> Result<Flow, OpenRefused> {
        let no_lane = || OpenRefused::new(ErrorClass::HostUnreachable, "not connected to the manager");
        let lane = self.lane.lane().ok_or_else(no_lane)?;
        // A socket of both families gives IPv4 addresses in IPv6's form (RFC 4291 section 2.5.5.2).
        let source = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        lane.reach(&self.id, &Arrival { port: self.port, transport, source }).await.map_err(|error| match error {
            FlowOpenError::Refused(refused) => refused,
            error => OpenRefused::new(error.class(), error.to_string()),
        })
    }
}

impl Destination for Handler {
    fn connect(&self, peer: SocketAddr) -> Opening<'_, BoxStream> {
        Box::pin(async move {
            let flow = self.reach(Transport::Tcp, peer).await?;
            Ok(Box::new(FlowStream::new(flow)) as BoxStream)
        })
    }

    fn associate(&self, peer: SocketAddr) -> Opening<'_, Box<dyn Datagrams>> {
        Box::pin(async move {
            let flow = self.reach(Transport::Udp, peer).await?;
            Ok(Box::new(FlowDatagrams::new(flow)) as Box<dyn Datagrams>)
        })
    }
}
