//! Names of TUN devices, flows and associations.

use std::net::SocketAddr;

/// A TUN device, and with it a network namespace. Chosen by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunId(pub u32);

/// What tells one conversation from another: the namespace and both ends, as the container sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The device that the packets come from.
    pub tun: TunId,
    /// The container's end.
    pub src: SocketAddr,
    /// Where the container wants to go.
    pub dst: SocketAddr,
}

/// A TCP flow. Never reused: a stale id is answered with [`crate::FlowError::Gone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// A UDP association: the datagrams of one [`FlowKey`]. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssociationId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}
