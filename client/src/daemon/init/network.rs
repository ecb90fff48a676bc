//! Addresses and routes of the container's network namespace, over netlink (rtnetlink(7)).

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily as SocketFamily, SocketType, socket};

use super::messages::NetworkConfig;
use super::say;
use crate::daemon::tun::{TUN_MTU, TUN_NAME};

/// Packets that the kernel queues for the TUN. With its default of 1,000, 10,000 flows at once lost 130,000 packets.
const TUN_QUEUE_PACKETS: u32 = 20_000;

/// Largest answer of the kernel that is read at once (rtnetlink messages are far smaller).
const NETLINK_BUFFER_BYTES: usize = 32 << 10;

/// Gives the TUN its addresses and routes.
///
/// # Errors
/// What the kernel refused, by name. Nothing of it is taken back: the container ends then.
pub(super) fn set_up(config: &NetworkConfig) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let inet = socket(SocketFamily::INET, SocketType::DGRAM, None)?;
    let tun = name_to_index(&inet, TUN_NAME)?;
    let before = netlink.routes()?;
    netlink.set_link_up(tun).map_err(named("the TUN device"))?;
    for address in &config.addresses {
        let address = parse(address)?;
        match netlink.add_address(tun, address) {
            Err(error) if address.addr().is_ipv6() => {
                // An engine without IPv6: the cluster is reached over IPv4.
                say(&format!("no IPv6 address on the TUN: {error}"));
            }
            other => other.map_err(named(&format!("address {address}")))?,
        }
    }
    let routes = config.routes.iter().map(|route| parse(route)).collect::<io::Result<Vec<_>>>()?;
    for &route in &routes {
        match netlink.add_route(route, tun, None) {
            Err(error) if already_there(&error) => {
                return Err(io::Error::other(format!(
                    "subnet {route} of the cluster is also the subnet of a Docker network of the daemon container: \
                     give that network another subnet, or leave `--vnat none` out"
                )));
            }
            Err(error) if route.addr().is_ipv6() => say(&format!("no route to {route}: {error}")),
            other => other.map_err(named(&format!("route to {route}")))?,
        }
    }
    for exclude in &config.exclude {
        let exclude = parse(exclude)?;
        let Some(covering) = most_specific(&routes, exclude) else { continue };
        if let Some(old) = before.iter().filter(|old| old.leads_to(exclude)).max_by_key(|old| old.prefix_len)
            && old.prefix_len <= covering.prefix_len()
        {
            netlink.add_route(exclude, old.interface, old.gateway).map_err(named(&format!("route to {exclude}")))?;
        }
    }
    Ok(())
}

/// Routes more subnets into the TUN. The init has no right to do so any more: a process of another container does, which has
/// joined this one's network.
///
/// # Errors
/// What the kernel refused, by name.
pub(super) fn add_routes(subnets: &[String]) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let tun = name_to_index(&socket(SocketFamily::INET, SocketType::DGRAM, None)?, TUN_NAME)?;
    for subnet in subnets {
        match netlink.add_route(parse(subnet)?, tun, None) {
            Err(error) if already_there(&error) => {}
            other => other.map_err(named(&format!("route to {subnet}")))?,
        }
    }
    Ok(())
}

fn already_there(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EXIST.raw_os_error())
}

fn parse(net: &str) -> io::Result<IpNet> {
    net.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("`{net}` is not a subnet")))
}

fn named(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The route through which `net` would go.
fn most_specific(routes: &[IpNet], net: IpNet) -> Option<IpNet> {
    routes.iter().copied().filter(|route| route.contains(&net)).max_by_key(IpNet::prefix_len)
}

/// A route that was there before ours.
#[derive(Clone, Copy, Debug)]
struct OldRoute {
    /// `None` for a default route.
    destination: Option<IpAddr>,
    prefix_len: u8,
    gateway: Option<IpAddr>,
    interface: u32,
    is_ipv6: bool,
}

impl OldRoute {
    fn leads_to(&self, net: IpNet) -> bool {
        if self.is_ipv6 != net.addr().is_ipv6() {
            return false;
        }
        let Some(destination) = self.destination else { return true };
        IpNet::new(destination, self.prefix_len).is_ok_and(|own| own.contains(&net))
    }
}

/// A blocking rtnetlink socket.
struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn set_link_up(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![LinkAttribute::Mtu(TUN_MTU.into()), LinkAttribute::TxQueueLen(TUN_QUEUE_PACKETS)];
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn add_route(&mut self, destination: IpNet, index: u32, gateway: Option<IpAddr>) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(destination),
            destination_prefix_length: destination.prefix_len(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes =
            vec![RouteAttribute::Destination(destination.network().into()), RouteAttribute::Oif(index)];
        message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The routes of the main table.
    fn routes(&mut self) -> io::Result<Vec<OldRoute>> {
        self.send(RouteNetlinkMessage::GetRoute(RouteMessage::default()), NLM_F_DUMP)?;
        let mut routes = Vec::new();
        loop {
            for message in self.receive()? {
                match message.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                        routes.extend(old_route(&route))
                    }
                    NetlinkPayload::Done(_) => return Ok(routes),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Sends a request and waits for the kernel's verdict.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, flags | NLM_F_ACK)?;
        loop {
            for answer in self.receive()? {
                if let NetlinkPayload::Error(error) = answer.payload {
                    // A code of zero is the acknowledgement.
                    return if error.code.is_none() { Ok(()) } else { Err(error.to_io()) };
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Reads one datagram, which can hold many messages.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut bytes = Vec::with_capacity(NETLINK_BUFFER_BYTES);
        self.socket.recv(&mut bytes, 0)?;
        let mut messages = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            // Messages are aligned to four bytes (NLMSG_ALIGN).
            let len = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            if len == 0 {
                break;
            }
            rest = &rest[len..];
            messages.push(message);
        }
        Ok(messages)
    }
}

fn family(net: IpNet) -> AddressFamily {
    if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn old_route(message: &RouteMessage) -> Option<OldRoute> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN || message.header.kind != RouteType::Unicast {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let find = |get: &dyn Fn(&RouteAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(get);
    Some(OldRoute {
        destination: find(&|a| if let RouteAttribute::Destination(to) = a { ip(to) } else { None }),
        prefix_len: message.header.destination_prefix_length,
        gateway: find(&|a| if let RouteAttribute::Gateway(via) = a { ip(via) } else { None }),
        interface: message
            .attributes
            .iter()
            .find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None })?,
        is_ipv6: message.header.address_family == AddressFamily::Inet6,
    })
}
