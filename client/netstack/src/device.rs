//! smoltcp's view of a TUN: one packet in, one packet out.

use std::num::NonZeroUsize;

use smoltcp::{
    iface::{Config, Interface},
    phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
    wire::{HardwareAddress, IpProtocol},
};

use crate::{
    Offload, TunId, checksum,
    ip::{self, IPV6_HEADER_BYTES},
    segment::Segment,
    virtio::{self, Offloaded, Segments, VIRTIO_HEADER_BYTES},
};

/// The largest IP packet that can be named by an IPv4 header; super-packets included.
const IP_PACKET_BYTES_MAX: usize = 65_535;

/// Room for the longest packet: an IPv6 header does not count itself.
const BUFFER_BYTES: usize = VIRTIO_HEADER_BYTES + IPV6_HEADER_BYTES + IP_PACKET_BYTES_MAX;

/// Where the checksum is in a TCP header.
const TCP_CHECKSUM_OFFSET: usize = 16;

/// A TUN device and the smoltcp interface for its flows.
pub(crate) struct Tun {
    pub(crate) offload: Offload,
    pub(crate) iface: Interface,
}

impl Tun {
    pub(crate) fn new(offload: Offload, seed: u64, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut buffer = PacketBuffer::new();
        let mut iface = Interface::new(config, &mut Egress::new(offload, &mut buffer), now);
        // Every address is ours. No route is needed: an IP medium sends without asking for one.
        iface.set_any_ip(true);
        Self { offload, iface }
    }
}

impl Offload {
    /// Length of what stands before each packet.
    pub(crate) fn header_len(self) -> usize {
        match self {
            Self::VirtioNet => VIRTIO_HEADER_BYTES,
            Self::Disabled { .. } => 0,
        }
    }

    fn capabilities(self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored(); // Received packets have been verified, or are trusted.
        checksum.ipv4 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        match self {
            Self::VirtioNet => {
                // smoltcp drops IPv6 packets above its MTU even when they are to be cut by the device, so the MTU is
                // the largest packet whatever the device's own is: super-packets bring the container's MSS.
                capabilities.max_transmission_unit = IP_PACKET_BYTES_MAX;
                capabilities.segmentation.tcpv4 = NonZeroUsize::new(IP_PACKET_BYTES_MAX);
                capabilities.segmentation.tcpv6 = NonZeroUsize::new(IP_PACKET_BYTES_MAX);
            }
            Self::Disabled { mtu } => {
                capabilities.max_transmission_unit = usize::from(mtu);
                checksum.tcp = Checksum::Tx;
            }
        }
        capabilities.checksum = checksum;
        capabilities
    }
}

/// The packet that is lent to the driver.
pub(crate) struct PacketBuffer {
    bytes: Vec<u8>,
    len: usize,
    tun: TunId,
}

impl PacketBuffer {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), len: 0, tun: TunId(0) }
    }

    pub(crate) fn tun(&self) -> TunId {
        self.tun
    }

    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Makes room for a packet of `len` bytes, device header included, and returns it. The contents are arbitrary.
    pub(crate) fn fill(&mut self, tun: TunId, len: usize) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes.resize(BUFFER_BYTES, 0);
        }
        self.tun = tun;
        self.len = len;
        &mut self.bytes[..len]
    }

    /// Completes a TCP packet that smoltcp has written: device header, and pseudo-header checksum.
    ///
    /// `mss` is the largest segment that the container takes. smoltcp announces the size of segments for IPv4 only, so
    /// it is worked out here for both.
    pub(crate) fn finish_tcp(&mut self, tun: TunId, offload: Offload, mss: u16) -> Option<Segment> {
        self.tun = tun;
        let (header, packet) = self.bytes[..self.len].split_at_mut(offload.header_len());
        let is_ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
        let ip_header_len = if is_ipv6 { IPV6_HEADER_BYTES } else { ip::IPV4_HEADER_BYTES };
        let segment = Segment::parse(packet.get(ip_header_len..)?).ok()?;
        if offload == Offload::VirtioNet {
            let (src, dst) = ip::addresses(packet)?;
            let tcp = &mut packet[ip_header_len..];
            let sum = checksum::pseudo_header(src, dst, IpProtocol::Tcp, tcp.len());
            tcp[TCP_CHECKSUM_OFFSET..TCP_CHECKSUM_OFFSET + 2].copy_from_slice(&sum.to_be_bytes());
            let segments = (segment.payload_len > usize::from(mss)).then_some(Segments {
                is_ipv6,
                header_len: ip_header_len + segment.header_len,
                size: mss,
            });
            let checksum_offset = TCP_CHECKSUM_OFFSET;
            virtio::write_offloaded(header, &Offloaded { checksum_start: ip_header_len, checksum_offset, segments });
        }
        Some(segment)
    }
}

/// The device while a flow sends: gives room for one packet.
pub(crate) struct Egress<'a> {
    offload: Offload,
    buffer: &'a mut PacketBuffer,
}

impl<'a> Egress<'a> {
    pub(crate) fn new(offload: Offload, buffer: &'a mut PacketBuffer) -> Self {
        Self { offload, buffer }
    }
}

impl Device for Egress<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = EgressToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Received<'_>, EgressToken<'_>)> {
        None
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<EgressToken<'_>> {
        Some(EgressToken { header_len: self.offload.header_len(), buffer: &mut *self.buffer })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.offload.capabilities()
    }
}

pub(crate) struct EgressToken<'a> {
    header_len: usize,
    buffer: &'a mut PacketBuffer,
}

impl TxToken for EgressToken<'_> {
    fn consume<R, F>(self, len: usize, write: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        let tun = self.buffer.tun;
        write(&mut self.buffer.fill(tun, self.header_len + len)[self.header_len..])
    }
}

/// The device while a flow receives: has one packet, and room for the answer.
pub(crate) struct Ingress<'a> {
    offload: Offload,
    packet: Option<&'a [u8]>,
    /// The answer, bare of a device header, empty when there is none.
    answer: &'a mut Vec<u8>,
}

impl<'a> Ingress<'a> {
    pub(crate) fn new(offload: Offload, packet: &'a [u8], answer: &'a mut Vec<u8>) -> Self {
        Self { offload, packet: Some(packet), answer }
    }
}

impl Device for Ingress<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = AnswerToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Received<'_>, AnswerToken<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), AnswerToken(&mut *self.answer)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<AnswerToken<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.offload.capabilities()
    }
}

pub(crate) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F>(self, read: F) -> R
    where
        F: FnOnce(&[u8]) -> R,
    {
        read(self.0)
    }
}

pub(crate) struct AnswerToken<'a>(&'a mut Vec<u8>);

impl TxToken for AnswerToken<'_> {
    fn consume<R, F>(self, len: usize, write: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        self.0.resize(len, 0);
        write(self.0)
    }
}
