//! Where a flow goes, and what keeps a virtual address as long as the flow lives.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use super::Nat;

/// The far end of a flow. While it lives, the address that the container sees keeps its meaning.
#[derive(Debug)]
pub(crate) struct Destination {
    /// The address in the cluster.
    pub(crate) real: SocketAddr,
    seen: IpAddr,
    nat: Rc<RefCell<Nat>>,
}

impl Destination {
    /// What a flow to `dst` leads to; `None` when that is a virtual address that stands for nothing.
    pub(crate) fn of(dst: SocketAddr, nat: &Rc<RefCell<Nat>>) -> Option<Self> {
        // An IPv4 address written as IPv6 is an IPv4 address.
        let seen = dst.ip().to_canonical();
        let real = SocketAddr::new(nat.borrow().real(seen)?, dst.port());
        nat.borrow_mut().begin_use(seen);
        Some(Self { real, seen, nat: Rc::clone(nat) })
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.nat.borrow_mut().end_use(self.seen, Instant::now());
    }
}
